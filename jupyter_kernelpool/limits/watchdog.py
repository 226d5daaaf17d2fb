"""Holds kernels to limits by looking at them: needs nothing of the machine, and is as quick as it looks often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.limits.cputime import CpuCount
from jupyter_kernelpool.limits.throttle import Throttle
from jupyter_kernelpool.memory import charge, read_memory
from jupyter_kernelpool.usage import LINUX, Snapshot, Stat, rescan, scan

EXACT_FROM = 0.5  # of the limit: below it an upper bound of the memory, which costs next to nothing, will do
REMEMBERED = 10.0  # seconds for which memory of processes that do nothing is taken to be the same
FRESH = 2.0  # seconds for which it is enough to look at the processes of some kernels
LEAST_SPAN = 0.4  # seconds over which cores are told: a moment's work is no reason to slow anybody down

Signs = frozenset[tuple[int, int, float, int]]


@dataclass
class Watched:
    """What is known of one kernel's process from look to look; *started* tells it from the next with its pid."""

    pid: int
    allowance: Allowance
    inherited: int
    started: int | None = None
    at: float = 0.0
    counted: CpuCount = field(default_factory=CpuCount)
    cores: float | None = None
    memory: int = 0
    memory_at: float = float("-inf")
    signs: Signs = frozenset()
    peak: int = 0


class WatchdogEnforcer(Enforcer):
    """Reads /proc: private memory of the process tree, its processor time, its processes and threads.

    What is done about too much memory or too many processes is the guard's business; the processor is held here.
    """

    name = "watchdog"
    holds = frozenset({"memory", "processes", "cpu"})

    def __init__(self, headroom: float) -> None:
        super().__init__(headroom)
        self.throttle = Throttle()
        self._watched: dict[str, Watched] = {}
        self._whole: Snapshot | None = None

    def prepare(self) -> dict[str, str]:
        return {} if LINUX else {"cpu": "kernels are paused by what Linux tells of their processes"}

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        present = self._watched.get(subject.kernel_id)
        if present is not None and present.pid == subject.pid:
            present.allowance = allowance
            self.throttle.change(subject.kernel_id, allowance.cpu if "cpu" in limits else 0.0)
            return
        self.throttle.let_go(subject.kernel_id)  # its predecessor
        self._watched[subject.kernel_id] = Watched(subject.pid, allowance, subject.inherited)

    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        subjects = list(subjects)
        snapshot = self._look([subject.pid for subject in subjects])
        self.throttle.others = others
        found = {}
        for subject in subjects:
            watched = self._watched.get(subject.kernel_id)
            tree = snapshot.tree(subject.pid, others)
            if watched is None or watched.pid != subject.pid or not tree or tree[0].ended:
                continue
            if watched.started is None:
                watched.started = tree[0].started
            elif watched.started != tree[0].started:  # the process has ended, and another one has its pid
                continue
            self._count(subject.kernel_id, watched, tree, snapshot.at)
            alive = [one for one in tree if not one.ended]
            used: dict[str, float] = {
                "processes": sum(one.threads for one in alive),
                "memory": self._memory(watched, alive, snapshot.at),
            }
            if watched.cores is not None:
                used["cpu"] = watched.cores
            pauses = self.throttle.pauses(subject.kernel_id)
            found[subject.kernel_id] = Reading(used, watched.peak, throttled=pauses)
        return found

    def end(self, subject: Subject) -> bool:
        """Nothing is to go on while the guard ends it."""
        self.throttle.let_go(subject.kernel_id)
        return False

    def set_apart(self, pid: int) -> None:
        self.throttle.set_apart(pid)

    def let_go(self, kernel_id: str) -> None:
        self._watched.pop(kernel_id, None)
        self.throttle.let_go(kernel_id)

    def close(self) -> None:
        self.throttle.close()

    def _look(self, pids: list[int]) -> Snapshot:
        """All processes; but where only a few of the kernels are asked for, soon after all were, only theirs anew."""
        if self._whole is not None and len(pids) < len(self._watched):
            snapshot = rescan(self._whole, pids)
            if snapshot.at - self._whole.at < FRESH:
                return snapshot
        self._whole = scan()
        return self._whole

    def _count(self, kernel_id: str, watched: Watched, tree: list[Stat], at: float) -> None:
        """How many cores it uses; a tree that uses too many is slowed down from here on."""
        span = at - watched.at
        if span < LEAST_SPAN:
            return
        spent = watched.counted.advance(tree, at)
        first, watched.at = not watched.at, at
        if first:
            return
        watched.cores = spent / span
        cores = watched.allowance.cpu
        if cores and watched.cores > cores:
            self.throttle.slow_down(kernel_id, watched.pid, cores, spent - cores * span)

    def _memory(self, watched: Watched, alive: list[Stat], at: float) -> int:
        """Exactly where that matters: near the limit, and where it is summed up with others'."""
        most = sum(one.rss for one in alive)
        allowed = watched.allowance.memory
        if not self.exact and (not allowed or most < EXACT_FROM * allowed):
            return most
        signs = frozenset((one.pid, one.started, one.cpu, one.rss) for one in alive)
        if signs == watched.signs and at - watched.memory_at < REMEMBERED:
            return watched.memory
        watched.memory = charge(watched.pid, read_memory([one.pid for one in alive]), inherited=watched.inherited)
        watched.signs, watched.memory_at = signs, at
        watched.peak = max(watched.peak, watched.memory)
        return watched.memory
