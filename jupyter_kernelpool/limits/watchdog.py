"""Holds kernels to limits by looking at them: needs nothing of the machine, and is as quick as it looks often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.memory import charge, read_memory
from jupyter_kernelpool.usage import Stat, scan

EXACT_FROM = 0.5  # of the limit: below it an upper bound of the memory, which costs next to nothing, will do


@dataclass
class Watched:
    """What is known of one kernel's process from look to look."""

    pid: int
    allowance: Allowance
    inherited: int
    at: float = 0.0
    cpu: float = 0.0
    peak: int = 0


class WatchdogEnforcer(Enforcer):
    """Reads /proc: private memory of the process tree, its processor time, its processes and threads.

    What is done about too much of it is the guard's business; only the processor is held here (`throttle`).
    """

    name = "watchdog"
    holds = frozenset({"memory", "processes"})

    def __init__(self, headroom: float) -> None:
        super().__init__(headroom)
        self._watched: dict[str, Watched] = {}

    def prepare(self) -> dict[str, str]:
        return {}

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        present = self._watched.get(subject.kernel_id)
        if present is not None and present.pid == subject.pid:
            present.allowance = allowance
            return
        self._watched[subject.kernel_id] = Watched(subject.pid, allowance, subject.inherited)

    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        snapshot = scan()
        found = {}
        for subject in subjects:
            watched = self._watched.get(subject.kernel_id)
            tree = [one for one in snapshot.tree(subject.pid, others) if not one.ended]
            if watched is None or watched.pid != subject.pid or not tree:
                continue
            used: dict[str, float] = {"processes": sum(one.threads for one in tree)}
            cpu = sum(one.cpu for one in tree)
            if watched.at:
                used["cpu"] = max(0.0, cpu - watched.cpu) / max(snapshot.at - watched.at, 1e-3)
            watched.at, watched.cpu = snapshot.at, cpu
            used["memory"] = self._memory(watched, tree)
            found[subject.kernel_id] = Reading(used, watched.peak)
        return found

    def let_go(self, kernel_id: str) -> None:
        self._watched.pop(kernel_id, None)

    def _memory(self, watched: Watched, tree: list[Stat]) -> int:
        most = sum(one.rss for one in tree)
        if not watched.allowance.memory or most < EXACT_FROM * watched.allowance.memory:
            return most
        exact = charge(watched.pid, read_memory([one.pid for one in tree]), inherited=watched.inherited)
        watched.peak = max(watched.peak, exact)
        return exact
