"""Process trees, what is a kernel's own memory, and what is read of real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from jupyter_kernelpool import usage
from jupyter_kernelpool.memory import Memory, charge, read_memory
from jupyter_kernelpool.usage import Reading, Root, Snapshot, Stat, cores, read_usage, rescan, scan

MIB = 1024 * 1024
SUPERVISOR, KERNEL, FORK = 10, 20, 30


def stat(pid: int, parent: int, session: int, state: str = "S") -> Stat:
    return Stat(pid, parent, session, state, 0.0, 0, 1, pid)


KERNELS = [stat(SUPERVISOR, 1, SUPERVISOR), stat(KERNEL, SUPERVISOR, KERNEL), stat(FORK, SUPERVISOR, FORK)]

TREES = {
    "itself": ([], [KERNEL]),
    "children and theirs": ([stat(21, KERNEL, KERNEL), stat(22, 21, KERNEL)], [KERNEL, 21, 22]),
    "orphans in its session": ([stat(21, SUPERVISOR, KERNEL)], [KERNEL, 21]),
    "what orphans started": ([stat(21, SUPERVISOR, KERNEL), stat(22, 21, 22)], [KERNEL, 21, 22]),
    "a child with a session of its own": ([stat(21, KERNEL, 21), stat(22, 21, 21)], [KERNEL, 21, 22]),
    "zombies": ([stat(21, KERNEL, KERNEL, "Z")], [KERNEL, 21]),
    "not what a fork has": ([stat(31, FORK, FORK), stat(32, SUPERVISOR, FORK)], [KERNEL]),
    "not a fork of ours that is still below it, nor what that has": (
        [stat(40, KERNEL, 40), stat(41, 40, 40)],
        [KERNEL],
    ),
    "not strangers": ([stat(50, 1, 50), stat(51, 50, 50)], [KERNEL]),
    "a loop of parents ends": ([stat(21, 22, 21), stat(22, 21, KERNEL)], [KERNEL, 21, 22]),
}


@pytest.mark.parametrize("more, expected", TREES.values(), ids=TREES.keys())
def test_tree_has(more: list[Stat], expected: list[int]) -> None:
    tree = Snapshot([*KERNELS, *more], 0.0).tree(KERNEL, {KERNEL, FORK, 40})
    assert tree[0].pid == KERNEL
    assert sorted(one.pid for one in tree) == expected


def test_tree_of_a_process_that_leads_no_session_has_its_descendants_only() -> None:
    snapshot = Snapshot([stat(5, 1, 5), stat(KERNEL, 5, 5), stat(21, KERNEL, 5), stat(6, 5, 5)], 0.0)
    assert [one.pid for one in snapshot.tree(KERNEL)] == [KERNEL, 21]


def test_tree_of_what_has_ended_is_empty() -> None:
    assert Snapshot(KERNELS, 0.0).tree(99) == []


def memory(own: int, split: int, anonymous: int) -> Memory:
    return Memory(rss=anonymous, pss=split, uss=own, own=own, split=split, anonymous=anonymous)


CHARGES = {
    "alone": (0, {KERNEL: memory(300, 300, 300)}, 300),
    "a fork that has done nothing": (500, {KERNEL: memory(5, 255, 500)}, 5),
    "a fork that changed what it inherited": (500, {KERNEL: memory(405, 455, 500)}, 405),
    "a fork that has more": (500, {KERNEL: memory(205, 455, 700)}, 205),
    "what a checkpoint of it has too": (50, {KERNEL: memory(2, 280, 550)}, 500),
    "what its parent had, once that has gone": (500, {KERNEL: memory(500, 500, 500)}, 500),
    "a child that has its own": (0, {KERNEL: memory(50, 50, 50), 21: memory(200, 200, 200)}, 250),
    "a child that shares with it": (0, {KERNEL: memory(10, 255, 500), 21: memory(10, 255, 500)}, 510),
    "children that share among each other": (
        0,
        {KERNEL: memory(50, 50, 50), 21: memory(5, 155, 305), 22: memory(5, 155, 305)},
        360,
    ),
    "a kernel that freed what it inherited": (500, {KERNEL: memory(20, 30, 60)}, 20),
    "children of a kernel that can't be read": (0, {21: memory(200, 200, 200)}, 200),
    "nothing that can be read": (500, {}, 0),
}


@pytest.mark.parametrize("inherited, found, expected", CHARGES.values(), ids=CHARGES.keys())
def test_charge_of(inherited: int, found: dict[int, Memory], expected: int) -> None:
    assert charge(KERNEL, found, inherited=inherited) == expected


def reading(at: float, cpu: float, process: tuple[int, int] = (1, 1)) -> Reading:
    return Reading(process, at, 0, 0, cpu, 1, 1, ())


def test_cores_are_seconds_per_second_of_the_same_process() -> None:
    assert cores(reading(10, 1.0), reading(12, 4.0)) == 1.5
    assert cores(reading(10, 4.0), reading(12, 1.0)) == 0.0
    assert cores(reading(10, 1.0), reading(10, 1.0)) is None
    assert cores(reading(10, 1.0), reading(12, 4.0, (1, 2))) is None


# -- real processes ---------------------------------------------------------------------------------

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def kp_python() -> Iterator[Start]:
    """Starts Python with code that prints when it is ready, in a session of its own, and waits until it has."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def private(process: subprocess.Popen[bytes], inherited: int = 0) -> float:
    return read_usage({"k": Root(process.pid, inherited)}, set())["k"].private / MIB


PLAIN = "import os, sys, time\nprint('ready', flush=True)\ntime.sleep(60)"


def test_a_scan_has_what_psutil_has(kp_python: Start) -> None:
    process = kp_python(PLAIN)
    found = scan().stats
    one, other = found[process.pid], psutil.Process(process.pid)
    assert (one.parent, one.session, one.ended) == (os.getpid(), process.pid, False)
    assert one.threads == other.num_threads()
    assert one.rss == pytest.approx(other.memory_info().rss, abs=MIB * (os.cpu_count() or 1))
    assert one.cpu == pytest.approx(sum(other.cpu_times()[:2]), abs=0.05)
    assert found[os.getpid()].rss > 0


def test_psutil_finds_the_same_tree_where_there_is_no_proc(kp_python: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # The child says that it is there: what it has still changes while it is loaded.
    child = "import subprocess as s\nchild = s.Popen(['sh', '-c', 'echo; read x'], stdin=-1, stdout=-1)\n"
    process = kp_python(f"{child}child.stdout.readline()\n{PLAIN}")
    ours = read_usage({"k": Root(process.pid)}, set())["k"]
    monkeypatch.setattr(usage, "LINUX", False)
    theirs = read_usage({"k": Root(process.pid)}, set())["k"]
    assert (theirs.processes, theirs.fds, theirs.rss) == (ours.processes, ours.fds, ours.rss)
    assert (theirs.processes, theirs.fds > 3) == (2, True)


def test_names_with_brackets_and_spaces_are_read(kp_python: Start) -> None:
    process = kp_python(
        """
        import os, time
        open(f'/proc/{os.getpid()}/comm', 'w').write('a) R 1 (b')
        print('ready', flush=True)
        time.sleep(60)
        """
    )
    assert scan().stats[process.pid].parent == os.getpid()


def test_memory_is_what_smaps_say(kp_python: Start) -> None:
    process = kp_python("x = bytearray(50 << 20)\n" + PLAIN)
    found = read_memory([process.pid])[process.pid]
    facts: Any = psutil.Process(process.pid).memory_full_info()
    assert (found.rss, found.pss, found.uss) == pytest.approx((facts.rss, facts.pss, facts.uss), rel=0.02)
    assert 50 * MIB < found.own <= found.uss
    assert 50 * MIB < found.split <= found.anonymous + MIB


def test_a_file_that_is_mapped_is_not_charged(kp_python: Start, tmp_path: Any) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(100 * MIB))
    quiet = private(kp_python(PLAIN))
    maps = "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsum(m[::4096])"
    reads = kp_python(f"import mmap\nf = open({str(file)!r}, 'rb')\n{maps}\n{PLAIN}")
    assert psutil.Process(reads.pid).memory_info().rss > 100 * MIB
    assert private(reads) == pytest.approx(quiet, abs=10)


def test_a_childs_memory_counts(kp_python: Start) -> None:
    quiet = private(kp_python(PLAIN))
    parent = kp_python(
        """
        import subprocess, sys, time
        child = "x = bytearray(200 << 20); print('ready', flush=True); import time; time.sleep(60)"
        subprocess.Popen([sys.executable, '-c', child])
        time.sleep(60)
        """
    )
    assert private(parent) == pytest.approx(200 + 2 * quiet, rel=0.15)


def test_what_children_share_with_their_parent_counts_once(kp_python: Start) -> None:
    process = kp_python(
        """
        import os, time
        x = bytearray(200 << 20)
        for _ in range(3):
            if not os.fork():
                time.sleep(60)
        print('ready', flush=True)
        time.sleep(60)
        """
    )
    assert read_memory([process.pid])[process.pid].own < 20 * MIB
    assert private(process) == pytest.approx(210, rel=0.15)


def test_what_children_share_among_each_other_counts_once(kp_python: Start) -> None:
    process = kp_python(
        """
        import os, time
        read, write = os.pipe()
        if not os.fork():
            x = bytearray(200 << 20)
            for _ in range(3):
                if not os.fork():
                    time.sleep(60)
            os.write(write, b'.')
            time.sleep(60)
        os.read(read, 1)
        print('ready', flush=True)
        time.sleep(60)
        """
    )
    assert private(process) == pytest.approx(210, rel=0.15)


def test_what_an_orphan_has_counts(kp_python: Start) -> None:
    process = kp_python(
        """
        import os, time
        read, write = os.pipe()
        middle = os.fork()
        if not middle:
            if os.fork():
                os._exit(0)
            x = bytearray(100 << 20)
            os.write(write, b'.')
            time.sleep(60)
        os.waitpid(middle, 0)
        os.read(read, 1)
        print('ready', flush=True)
        time.sleep(60)
        """
    )
    assert private(process) > 100
    assert read_usage({"k": Root(process.pid)}, set())["k"].processes == 2


def test_processor_time_of_children_that_have_gone_counts(kp_python: Start) -> None:
    process = kp_python(
        """
        import subprocess, sys, time
        subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 0.5: pass'])
        print('ready', flush=True)
        time.sleep(60)
        """
    )
    assert psutil.Process(process.pid).cpu_times().user < 0.4
    assert read_usage({"k": Root(process.pid)}, set())["k"].cpu > 0.45


def test_descriptors_are_counted(kp_python: Start) -> None:
    quiet = read_usage({"k": Root(kp_python(PLAIN).pid)}, set())["k"].fds
    process = kp_python("files = [open('/dev/null') for _ in range(50)]\n" + PLAIN)
    assert read_usage({"k": Root(process.pid)}, set())["k"].fds == quiet + 50


def test_memory_is_read_again_only_where_something_was_done_or_after_a_minute(
    kp_python: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    monkeypatch.setattr(usage, "read_memory", lambda pids: (reads.extend(pids), read_memory(pids))[1])
    process = kp_python("import sys\n" + PLAIN.replace("time.sleep(60)", "sys.stdin.read(1)\nx = bytearray(50 << 20)\n")
                        + "print('ready', flush=True)\ntime.sleep(60)")  # fmt: skip
    root = {"k": Root(process.pid)}
    first = read_usage(root, set())
    again = read_usage(root, set(), first)
    assert (again["k"].private, reads) == (first["k"].private, [process.pid])
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x")
    process.stdin.close()
    assert process.stdout.readline() == b"ready\n"
    later = read_usage(root, set(), again)
    assert (later["k"].private - again["k"].private > 50 * MIB, len(reads)) == (True, 2)
    monkeypatch.setattr(usage, "REMEMBERED", 0.0)
    read_usage(root, set(), later)
    assert len(reads) == 3


def test_what_has_ended_has_no_reading(kp_python: Start) -> None:
    process = kp_python("print('ready', flush=True)")
    deadline = time.monotonic() + 20
    while process.pid in (stats := scan().stats) and not stats[process.pid].ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert read_usage({"zombie": Root(process.pid)}, set()) == {}
    process.wait()
    assert read_usage({"gone": Root(process.pid)}, set()) == {}
    assert read_memory([process.pid]) == {}


def test_rescan_sees_what_changed_in_the_trees_that_matter_and_has_the_rest_as_before():
    script = "import subprocess, sys\nfor line in sys.stdin: print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    with contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(2)
        )

        def start_child(process: Any) -> int:
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        first = start_child(one)
        before = scan()
        second = start_child(one)
        third = start_child(other)
        now = rescan(before, [one.pid])
        assert {stat.pid for stat in now.tree(one.pid)} == {one.pid, first, second}
        assert now.stats[third].parent == other.pid, "new ones are all seen"
        assert now.stats[other.pid] is before.stats[other.pid]
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not rescan(before, [one.pid]).stats[first].ended:
            assert time.monotonic() < deadline
        for pid in (second, third):
            os.kill(pid, signal.SIGKILL)
        for process in (one, other):
            process.kill()
