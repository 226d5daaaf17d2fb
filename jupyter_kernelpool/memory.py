"""What processes have in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

KIB = 1024


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes: what it maps, its part of it when shared pages are split, what only it has.

    The last three leave out pages of files, which the system can drop and read again: what only it has (*own*), its
    part when shared ones are split (*split*), and all that belongs to no file, shared or not (*anonymous*).
    """

    rss: int
    pss: int
    uss: int
    own: int = 0
    split: int = 0
    anonymous: int = 0


def read_memory(pids: Iterable[int]) -> dict[int, Memory]:
    """Reads /proc/PID/smaps_rollup: milliseconds for each GiB, so in a thread. Processes that ended are left out."""
    found = {}
    for pid in pids:
        memory = _read_rollup(pid) or _ask_psutil(pid)
        if memory is not None:
            found[pid] = memory
    return found


def charge(root: int, memory: Mapping[int, Memory], *, inherited: int) -> int:
    """The bytes that a kernel's processes have for themselves; *memory* is theirs, *root* the kernel's own.

    What the kernel shares with the template or the kernel it was forked from is not charged; *inherited* is how much
    that was in the beginning. What it shares with forks and checkpoints of its own, or among its own processes, is
    its own. Nobody tells who else maps a page, so this is the most of three figures that can't be too high:

    - what each process has alone, which is exact as long as nothing is shared but what was inherited;
    - the same, but of the kernel what it grew by: pages that its forks and checkpoints have too are in that;
    - their parts of shared pages, without what was inherited: pages that its children share are in that.

    Where the last two matter, they are too low by what was inherited and has been changed or freed since.
    """
    own = sum(one.own for one in memory.values())
    split = sum(one.split for one in memory.values()) - inherited
    grown = own
    if root in memory:
        grown = own - memory[root].own + max(0, memory[root].anonymous - inherited)
    return max(own, grown, split)


def _read_rollup(pid: int) -> Memory | None:
    """None where the process has ended or may not be looked at, or the system has no such file."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb", buffering=0) as file:
            lines = file.read(4096).splitlines()[1:]
    except OSError:
        return None
    sizes = {name: int(value.split()[0]) * KIB for name, _, value in (line.partition(b":") for line in lines)}
    if b"Rss" not in sizes:
        return None
    dirty = sizes[b"Private_Dirty"]
    split = sizes.get(b"Pss_Anon", dirty) + sizes.get(b"Pss_Shmem", 0)  # since Linux 5.4
    return Memory(
        rss=sizes[b"Rss"],
        pss=sizes[b"Pss"],
        uss=dirty + sizes[b"Private_Clean"],
        own=min(dirty, split),  # files that were written a moment ago are dirty too
        split=split,
        anonymous=sizes[b"Anonymous"],
    )


def _ask_psutil(pid: int) -> Memory | None:
    """Elsewhere than on Linux what only it has is all that is known; of a process of another user's, an upper bound."""
    try:
        process = psutil.Process(pid)
        try:
            facts = process.memory_full_info()
            rss, pss, uss = facts.rss, getattr(facts, "pss", facts.uss), facts.uss
        except psutil.AccessDenied:
            plain = process.memory_info()
            rss, uss = plain.rss, plain.rss - getattr(plain, "shared", 0)
            pss = uss
    except (psutil.Error, OSError):
        return None
    return Memory(rss, pss, uss, own=uss, split=uss, anonymous=uss)
