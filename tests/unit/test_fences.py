"""What stands around the server is read from the control groups it is in, and from all that those lie in."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_kernelpool import fences
from jupyter_kernelpool.fences import Fence, find_fences, find_mounts, memory_room
from jupyter_kernelpool.limits.places import Mounts

GIB = 1 << 30


def group(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").write_text("")
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")
    return folder


@pytest.fixture(autouse=True)
def kp_no_container(monkeypatch):
    monkeypatch.setattr(fences, "CONTAINER_MARKS", ())
    monkeypatch.setattr(fences, "_init_environment", lambda: b"")


@pytest.fixture
def kp_unified(tmp_path):
    """A server in a service with 4 GiB below a slice with 2 GiB and 1.5 cores."""
    top = group(tmp_path / "top")
    slice_ = group(top / "user.slice", memory__max=2 * GIB, memory__current=GIB, cpu__max="150000 100000")
    unit = group(
        slice_ / "jupyter.service", memory__max=4 * GIB, memory__current=GIB // 2, cpu__max="max 100000", pids__max=500
    )
    return Mounts(str(unit), str(top))


def test_room_is_what_the_tightest_limit_leaves(kp_unified):
    assert memory_room(kp_unified) == GIB


def test_fences_are_told_with_what_they_allow(kp_unified):
    assert find_fences(kp_unified) == [
        Fence("memory", "2 GB for the server and its kernels"),
        Fence("cpu", "1.5 cores for the server and its kernels"),
        Fence("processes", "500 processes and threads for the server and its kernels"),
        Fence("service", "systemd runs it in jupyter.service"),
    ]


def test_without_limits_there_is_no_fence_and_no_bound_on_room(tmp_path):
    top = group(tmp_path / "top")
    own = group(top / "own", memory__max="max", memory__current=5, pids__max="max")
    mounts = Mounts(str(own), str(top))
    assert (memory_room(mounts), find_fences(mounts)) == (None, [])
    assert (memory_room(Mounts()), find_fences(Mounts())) == (None, [])


def test_version_1_is_read_too(tmp_path):
    own = group(tmp_path / "memory" / "box", memory__limit_in_bytes=3 * GIB, memory__usage_in_bytes=2 * GIB)
    unlimited = group(tmp_path / "memory", memory__limit_in_bytes=(1 << 63) - 4096, memory__usage_in_bytes=2 * GIB)
    assert memory_room(Mounts(None, "", {"memory": str(own)})) == GIB
    assert memory_room(Mounts(None, "", {"memory": str(unlimited)})) is None


def test_files_that_were_read_and_lie_unused_take_no_room(tmp_path):
    """A container that has read large files is charged for them until something else needs the memory."""
    stat = f"anon {GIB // 4}\ninactive_file {GIB}\nactive_file {GIB // 2}"
    top = group(tmp_path / "top")
    own = group(top / "own", memory__max=2 * GIB, memory__current=2 * GIB, memory__stat=stat)
    assert memory_room(Mounts(str(own), str(top))) == GIB
    stat = f"cache 0\ninactive_file 0\ntotal_inactive_file {GIB}"  # those of its children are in the total
    old = group(
        tmp_path / "memory" / "box",
        memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=2 * GIB, memory__stat=stat,
    )  # fmt: skip
    assert memory_room(Mounts(None, "", {"memory": str(old)})) == GIB


def test_quota_of_version_1_is_told_and_the_tightest_counts(tmp_path):
    """As `docker run --cpus` sets it there."""
    top = group(tmp_path / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    box = group(top / "box", cpu__cfs_quota_us=150_000, cpu__cfs_period_us=100_000)
    own = group(box / "own", cpu__cfs_quota_us=100_000, cpu__cfs_period_us=50_000)
    assert find_fences(Mounts(None, "", {"cpu": str(own)})) == [
        Fence("cpu", "1.5 cores for the server and its kernels")
    ]
    assert find_fences(Mounts(None, "", {"cpu": str(top)})) == []


def test_container_is_recognised(tmp_path, monkeypatch):
    (tmp_path / "mark").touch()
    monkeypatch.setattr(fences, "CONTAINER_MARKS", (str(tmp_path / "mark"),))
    assert [fence.kind for fence in find_fences(Mounts())] == ["container"]


def test_the_machines_own_can_be_read():
    mounts = find_mounts()
    room = memory_room(mounts)
    assert room is None or room >= 0
    assert all(fence.what for fence in find_fences(mounts))
