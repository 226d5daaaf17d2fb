"""What processes have in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes: what it maps, its part of it when shared pages are split, what only it has."""

    rss: int
    pss: int
    uss: int


def read_memory(pids: Iterable[int]) -> dict[int, Memory]:
    """Reads /proc/PID/smaps_rollup: milliseconds for each GiB, so in a thread. Processes that ended are left out."""
    found = {}
    for pid in pids:
        try:
            facts = psutil.Process(pid).memory_full_info()
        except (psutil.Error, OSError):
            continue
        found[pid] = Memory(facts.rss, facts.pss, facts.uss)
    return found
