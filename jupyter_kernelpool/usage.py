"""What kernels use: their whole process trees, read from outside, never asked of the kernel.

In two stages, so that many kernels can be looked at often: `scan` is one pass over the machine's processes, 8 µs for
each; what is dearer, exact memory above all, is read only of the processes one asks for. All of it blocks: call it in a
thread.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import psutil

from jupyter_kernelpool.gpu import GPUS, GpuMemory, together
from jupyter_kernelpool.memory import charge, read_memory

LINUX: bool = sys.platform == "linux"
ZOMBIE = frozenset("ZX")
ASLEEP = frozenset("STt")  # sleeps or is stopped; D (waits for a disk) is neither
TICK = 1 / os.sysconf("SC_CLK_TCK") if LINUX else 0.01
PAGE = os.sysconf("SC_PAGE_SIZE") if LINUX else 4096
REMEMBERED = 60.0  # seconds for which memory of processes that do nothing is taken to be the same


class Stat(NamedTuple):
    """One process, as `scan` finds it.

    *cpu* is in seconds, its children that ended and were waited for included, so that the sum over a tree never goes
    back for them; *reaped* are those children's alone. *rss* is in bytes, and on machines with many cores off by some
    megabytes. *started* tells processes apart that have the same pid one after the other.
    """

    pid: int
    parent: int
    session: int
    state: str
    cpu: float
    rss: int
    threads: int
    started: int
    reaped: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left but its entry: a zombie."""
        return self.state in ZOMBIE


class Snapshot:
    """The processes of the machine at one moment, *at* (monotonic)."""

    def __init__(self, stats: Iterable[Stat], at: float) -> None:
        self.at = at
        self.stats: dict[int, Stat] = {}
        self._children: dict[int, list[int]] = {}
        self._sessions: dict[int, list[int]] = {}
        for one in stats:
            self.stats[one.pid] = one
            self._children.setdefault(one.parent, []).append(one.pid)
            self._sessions.setdefault(one.session, []).append(one.pid)

    def left_by(self, pid: int, others: Collection[int] = frozenset()) -> list[Stat]:
        """What outlived the process *pid* in the session that it led, with all below, as `tree`; nothing while there is
        a process of that number, which is given to another one only once the session is empty."""
        if pid in self.stats and not self.stats[pid].ended:
            return []
        return [stat for one in self._sessions.get(pid, ()) if one != pid for stat in self.tree(one, others)]

    def tree(self, pid: int, others: Collection[int] = frozenset()) -> list[Stat]:
        """The process *pid*, zombies too: itself first, all that descend from it, and the members of its session,
        where it leads one, with theirs: those whose parent has ended are the supervisor's children, but stay in it.

        *others* are left out with all below them: kernels, forks, checkpoints and the like. What has left both the
        tree and the session (a daemon that forked twice) is not found; only a cgroup would hold it.
        """
        if pid not in self.stats:
            return []
        found = {pid: self.stats[pid]}
        queue = [pid]
        if self.stats[pid].session == pid:
            queue += self._sessions[pid]
        while queue:
            one = queue.pop()
            if one != pid and one in others:
                continue
            found[one] = self.stats[one]
            queue += [child for child in self._children.get(one, ()) if child not in found]
        return list(found.values())


def scan() -> Snapshot:
    """The processes of the machine now."""
    at = time.monotonic()
    return Snapshot(_scan_proc() if LINUX else scan_with_psutil(), at)


def rescan(before: Snapshot, pids: Iterable[int]) -> Snapshot:
    """As `scan`, where only the trees of *pids* matter: of all others that are there, it has what *before* has.

    A process that has got the pid of another one since is found by the next `scan` only.
    """
    if not LINUX:
        return scan()
    at, concerned = time.monotonic(), {one.pid for pid in pids for one in before.tree(pid)}
    present = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    stats = (before.stats.get(pid) if pid not in concerned else None for pid in present)
    found = (known or read_stat(pid) for pid, known in zip(present, stats, strict=True))
    return Snapshot((one for one in found if one is not None), at)


def count_descriptors(pids: Iterable[int]) -> int:
    """How many descriptors the processes have open; one that ended, or may not be looked at, has none."""
    return sum(_count_descriptors(pid) for pid in pids)


def read_state(pid: int) -> str:
    """The state of one process, as `Stat.state` has it; "gone" without one, empty where that can't be told."""
    if not LINUX:
        return "" if psutil.pid_exists(pid) else "gone"
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    except OSError:
        return ""
    return line[line.rfind(b")") + 2 :][:1].decode()


def is_asleep(pid: int) -> bool:
    """Whether each thread of the process sleeps or is stopped: none computes, or waits for a processor or a disk.

    False where that can't be told. 10 µs where its first thread is awake, which is looked at first; else as much for
    each of the others.
    """
    if read_state(pid) not in ASLEEP:
        return False
    try:
        threads = [name for name in os.listdir(f"/proc/{pid}/task") if name != str(pid)]
    except OSError:
        return False
    states = (_read_stat(f"{pid}/task/{name}") for name in threads)
    return all(line[line.rfind(b")") + 2 :][:1].decode() in ASLEEP for line in states if line)


class Root(NamedTuple):
    """A kernel's own process; *inherited* is the memory it had from what it was forked from (see `charge`)."""

    pid: int
    inherited: int = 0


@dataclass(frozen=True)
class Reading:
    """What a kernel's processes use at one moment, *at* (monotonic). Sizes are in bytes.

    *process* is the kernel's own, as pid and start. *private* is what they have for themselves (see `charge`); *rss* is
    all that they map, counted for each of them; both are of *memory_at*. *cpu* are the seconds so far. *signs* are what
    changes in the scan when the processes do anything.
    """

    process: tuple[int, int]
    at: float
    private: int
    rss: int
    cpu: float
    processes: int
    fds: int
    gpu: tuple[GpuMemory, ...]
    memory_at: float = 0.0
    signs: frozenset[tuple[int, int, float, int]] = frozenset()


def read_usage(
    roots: Mapping[str, Root], others: Collection[int], known: Mapping[str, Reading] = MappingProxyType({})
) -> dict[str, Reading]:
    """A reading for each of *roots* that lives, under the same key; *others* are all processes of ours (see `tree`).

    Memory is by far the dearest (1 ms a kernel; all else together is 50 µs): that of *known* is taken where no process
    has done anything since, for a minute at most.
    """
    snapshot = scan()
    gpu = GPUS.read()
    found = {}
    for key, root in roots.items():
        tree = [one for one in snapshot.tree(root.pid, others) if not one.ended]
        if not tree or tree[0].pid != root.pid:
            continue
        pids = [one.pid for one in tree]
        signs = frozenset((one.pid, one.started, one.cpu, one.rss) for one in tree)
        before = known.get(key)
        if before is not None and before.signs == signs and snapshot.at - before.memory_at < REMEMBERED:
            private, rss, memory_at = before.private, before.rss, before.memory_at
        else:
            memory = read_memory(pids)
            private = charge(root.pid, memory, inherited=root.inherited)
            rss = sum(memory[one.pid].rss if one.pid in memory else one.rss for one in tree)
            memory_at = snapshot.at
        found[key] = Reading(
            process=(root.pid, tree[0].started),
            at=snapshot.at,
            private=private,
            rss=rss,
            cpu=sum(one.cpu for one in tree),
            processes=len(pids),
            fds=count_descriptors(pids),
            gpu=together(share for pid in pids for share in gpu.get(pid, ())),
            memory_at=memory_at,
            signs=signs,
        )
    return found


def cores(before: Reading, after: Reading) -> float | None:
    """How many cores were used between two readings of the same process, on average; else None."""
    if before.process != after.process or after.at <= before.at:
        return None
    return max(0.0, after.cpu - before.cpu) / (after.at - before.at)


def read_stat(pid: int) -> Stat | None:
    """The process *pid* now; None if there is none. 8 µs on Linux."""
    if not LINUX:
        return next((one for one in scan_with_psutil() if one.pid == pid), None)
    line = _read_stat(str(pid))
    return _parse_stat(pid, line) if line else None


def _scan_proc() -> Iterable[Stat]:
    for name in os.listdir("/proc"):
        line = _read_stat(name) if name.isdigit() else b""
        if line:
            yield _parse_stat(int(name), line)


def _read_stat(name: str) -> bytes:
    """Empty if there is no such process any more."""
    try:
        descriptor = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _parse_stat(pid: int, line: bytes) -> Stat:
    # The name may hold anything, brackets too; proc(5) has the fields after it.
    fields = line[line.rfind(b")") + 2 :].split()
    own, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return Stat(
        pid,
        int(fields[1]),
        int(fields[3]),
        fields[0].decode(),
        (own + reaped) * TICK,
        int(fields[21]) * PAGE,
        int(fields[17]),
        int(fields[19]),
        reaped * TICK,
    )


def scan_with_psutil() -> Iterable[Stat]:
    """The same where there is no /proc, as far as it goes: without sessions on Windows, without children that ended."""
    names = ["ppid", "status", "cpu_times", "memory_info", "num_threads", "create_time"]
    for process in psutil.process_iter(names, ad_value=None):
        facts = process.info
        times, memory = facts["cpu_times"], facts["memory_info"]
        yield Stat(
            process.pid,
            facts["ppid"] or 0,
            _session_of(process.pid),
            "Z" if facts["status"] == psutil.STATUS_ZOMBIE else "S",
            times.user + times.system if times else 0.0,
            memory.rss if memory else 0,
            facts["num_threads"] or 0,
            int((facts["create_time"] or 0) * 1000),
        )


def _session_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid) if hasattr(os, "getsid") else 0
    return 0


def _count_descriptors(pid: int) -> int:
    if LINUX:
        try:
            # Since Linux 6.2 the folder's size is their number; before, it is 0.
            folder = f"/proc/{pid}/fd"
            return os.stat(folder).st_size or len(os.listdir(folder))
        except OSError:
            return 0
    return count_descriptors_with_psutil(pid)


def count_descriptors_with_psutil(pid: int) -> int:
    """The same where there is no /proc; handles on Windows."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        return int(getattr(process, "num_fds" if hasattr(process, "num_fds") else "num_handles")())
    return 0
