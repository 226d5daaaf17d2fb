"""Where groups may be made: read from what the kernel says, and from folders as it would show them."""

import os

import pytest

from jupyter_kernelpool.limits import places
from jupyter_kernelpool.limits.hierarchy import Unified
from jupyter_kernelpool.limits.legacy import Legacy
from jupyter_kernelpool.limits.places import HOME, Place, find_place, read_mounts

OURS = {100, 101}
CONTROLLERS = "cpuset cpu io memory pids"


def mount(point, kind, root="/", options="rw"):
    return f"31 23 0:28 {root} {point} rw,relatime shared:4 - {kind} {kind} {options}"


@pytest.mark.parametrize(
    "cgroup, mounts, unified, legacy",
    [
        ("0::/user.slice/x.scope", [mount("/sys/fs/cgroup", "cgroup2")], "/sys/fs/cgroup/user.slice/x.scope", {}),
        ("0::/", [mount("/sys/fs/cgroup", "cgroup2")], "/sys/fs/cgroup", {}),
        ("0::/docker/abc", [mount("/sys/fs/cgroup", "cgroup2", root="/docker/abc")], "/sys/fs/cgroup", {}),
        ("0::/../other", [mount("/sys/fs/cgroup", "cgroup2")], None, {}),
        ("0::/elsewhere", [mount("/sys/fs/cgroup", "cgroup2", root="/docker/abc")], None, {}),
        (
            "5:memory:/a\n2:cpu,cpuacct:/b c\n0::/",
            [
                mount("/cg/memory", "cgroup", options="rw,memory"),
                mount("/cg/with\\040space", "cgroup", options="rw,cpuacct,cpu"),
                mount("/cg/unified", "cgroup2"),
            ],
            "/cg/unified",
            {"memory": "/cg/memory/a", "cpu": "/cg/with space/b c", "cpuacct": "/cg/with space/b c"},
        ),
        ("0::/", [mount("/", "ext4")], None, {}),
    ],
)
def test_own_cgroups_are_found_where_they_are_mounted(cgroup, mounts, unified, legacy):
    found = read_mounts(cgroup, "\n".join(mounts))
    assert found.unified == unified
    assert found.legacy == legacy


@pytest.fixture
def kp_marks(monkeypatch):
    """The folders that systemd has marked as delegated."""
    marked = set()
    monkeypatch.setattr(places, "_is_marked", lambda folder: folder in marked)
    return marked


def make(folder, *pids, controllers=CONTROLLERS, root=False):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.subtree_control").write_text("")
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    if not root:
        (folder / "cgroup.type").write_text("domain\n")
    return str(folder)


def test_server_alone_in_a_delegated_scope_moves_home(tmp_path, kp_marks):
    top, own = make(tmp_path, root=True), make(tmp_path / "x.scope", *OURS)
    kp_marks.add(own)
    place = find_place(own, top, OURS)
    assert place == Place(own, f"{own}/{HOME}", True, frozenset(CONTROLLERS.split()))


def test_scope_that_systemd_manages_is_left_to_it(tmp_path, kp_marks):
    top, own = make(tmp_path, root=True), make(tmp_path / "user@1.service" / "app.slice" / "x.scope", *OURS)
    kp_marks.add(str(tmp_path / "user@1.service"))
    why = find_place(own, top, OURS)
    assert why.startswith("systemd manages x.scope itself")
    assert "systemd-run --user --scope -p Delegate=yes" in why


def test_folder_below_a_delegated_unit_is_used_beside_the_servers_own(tmp_path, kp_marks):
    top, unit = make(tmp_path, root=True), make(tmp_path / "x.scope")
    own = make(tmp_path / "x.scope" / "leaf", *OURS, 7, controllers="")  # none before its parent shares them out
    kp_marks.add(unit)
    place = find_place(own, top, OURS)
    assert (place.base, place.home, place.moves) == (unit, own, False)


def test_old_systemd_that_marks_nothing_is_believed_where_the_user_may_write(tmp_path, kp_marks, monkeypatch):
    top, own = make(tmp_path, root=True), make(tmp_path / "x.scope", *OURS)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert isinstance(find_place(own, top, OURS), Place)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "systemd manages" in find_place(own, top, OURS)


def test_processes_of_others_are_named_and_not_moved(tmp_path, kp_marks):
    top, own = make(tmp_path, root=True), make(tmp_path / "x.service", *OURS, os.getpid())
    kp_marks.add(own)
    assert f"other processes are in the server's cgroup: {os.getpid()} (" in find_place(own, top, OURS)


def test_process_of_another_container_is_an_other(tmp_path, kp_marks):
    own = make(tmp_path, *OURS, 0)
    assert "0 (another container's)" in find_place(own, own, OURS)


def test_the_machines_topmost_cgroup_needs_no_move(tmp_path, kp_marks):
    top = make(tmp_path, *OURS, 1, root=True)
    place = find_place(top, top, OURS)
    assert (place.base, place.home, place.moves) == (top, top, False)


def test_top_of_a_container_is_shared_out_after_a_move(tmp_path, kp_marks):
    own = make(tmp_path, *OURS)
    assert find_place(own, own, OURS).moves


def test_cgroup_that_may_not_be_written_to_is_named(tmp_path, kp_marks, monkeypatch):
    top, own = make(tmp_path, root=True), make(tmp_path / "group", *OURS)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"may not write to {own}" in find_place(own, top, OURS)


def test_hierarchy_without_controllers_is_of_no_use(tmp_path, kp_marks):
    own = make(tmp_path, *OURS, controllers="", root=True)
    assert find_place(own, own, OURS) == "cgroup v2 has no controllers here"


def test_controller_that_is_not_delegated_is_missing_with_what_it_takes(tmp_path):
    place = Place(str(tmp_path), str(tmp_path), False, frozenset({"memory", "pids"}))
    groups = Unified("ours", place, frozenset)
    assert set(groups.missing) == {"cpu"}
    assert "Delegate=cpu memory pids" in groups.missing["cpu"]


def test_version_1_says_of_each_controller_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path.endswith("memory"))
    groups = Legacy("ours", {"memory": f"{tmp_path}/memory", "pids": f"{tmp_path}/pids"})
    assert set(groups.missing) == {"cpu", "processes"}
    assert groups.missing["cpu"] == "no cgroup controller cpu is mounted"
    assert f"may not write to {tmp_path}/pids" in groups.missing["processes"]


def test_version_2_writes_and_reads_the_files_of_a_group(tmp_path):
    group = tmp_path / "ours" / "kernel"
    group.mkdir(parents=True)
    files = ("memory.high", "memory.max", "memory.swap.max", "cpu.max", "pids.max")
    for name in files:
        (group / name).touch()
    groups = Unified(
        "ours", Place(str(tmp_path), str(tmp_path), False, frozenset({"memory", "cpu", "pids"})), frozenset
    )
    groups.limit_memory("kernel", 1000, 1100)
    groups.limit_cpu("kernel", 0.5)
    groups.limit_processes("kernel", 100)
    assert [(group / name).read_text() for name in files] == ["1000", "1100", "0", "50000 100000", "100"]
    groups.limit_memory("kernel", 0, 0)
    groups.limit_cpu("kernel", 0)
    groups.limit_processes("kernel", 0)
    assert [(group / name).read_text() for name in files] == ["max", "max", "max", "max 100000", "max"]
    (group / "memory.stat").write_text("anon 500\nfile 300\nshmem 100\nslab_reclaimable 50\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.peak").write_text("1000\n")
    (group / "memory.events").write_text("high 4\noom 1\noom_kill 2\n")
    (group / "cpu.stat").write_text("usage_usec 1500000\nnr_periods 10\nnr_throttled 7\n")
    (group / "pids.current").write_text("12\n")
    (group / "pids.events").write_text("max 3\n")
    tally = groups.tally("kernel")
    assert (tally.charged, tally.killed) == (900, 2)
    assert (groups.droppable("kernel"), groups.highest("kernel")) == (250, 1000)
    assert (tally.cpu, tally.periods, tally.throttled) == (1.5, 10, 7)
    assert (tally.processes, tally.refused) == (12, 3)
    assert groups.tally("unknown") is None


def test_version_2_moves_its_own_home_before_it_shares_out_and_nobody_else(tmp_path, monkeypatch):
    procs = tmp_path / "cgroup.procs"
    procs.write_text("100\n101\n")
    (tmp_path / "cgroup.subtree_control").touch()
    moved = []

    def move(folder, pid):
        moved.append((folder, pid))
        procs.write_text("")

    monkeypatch.setattr("jupyter_kernelpool.limits.hierarchy.move", move)
    home = str(tmp_path / HOME)
    groups = Unified("ours", Place(str(tmp_path), home, True, frozenset({"memory", "pids"})), lambda: OURS)
    groups._open()
    assert moved == [(home, 100), (home, 101)]
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    procs.write_text("7\n")
    with pytest.raises(OSError, match="process 7, which is not the server's"):
        groups._open()
    assert len(moved) == 2
