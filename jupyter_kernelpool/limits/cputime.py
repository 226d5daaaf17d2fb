"""Counts the processor time of a process tree, and says when the tree has to pause to keep to its cores. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jupyter_kernelpool.usage import Stat

PERIOD = 0.1  # seconds from one pause to the next: a pause is not felt, and the looks cost little
SHARE = 0.98  # of its cores that a tree gets: the rest is for what is seen too late
BACKLOG = 0.5  # seconds of pause at once for what was used before anybody slowed it down
REPAID = 0.1  # of what it earns goes to the rest of that
LONGEST = 5.0  # seconds of pause, whatever was used
SHORTEST = 0.01  # seconds between two looks; the system counts in these
REMEMBERED = 1.0


class CpuCount:
    """Seconds of processor time from one look at a tree to the next, though its processes begin and end meanwhile."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Stat] | None = None
        self._gone: dict[int, tuple[float, float]] = {}  # by parent: seconds of its children that ended, and when

    def advance(self, tree: Iterable[Stat], at: float) -> float:
        """What *tree* used since the last call, 0 at the first; *at* is monotonic, zombies are in the tree.

        What a process used is its parent's as soon as that has waited for it, and the two are not read in the same
        moment: it is counted where it was first seen, and not again.
        """
        present = {(one.pid, one.started): one for one in tree}
        known, self._known = self._known, present
        if known is None:
            return 0.0
        for key, one in known.items():
            if key not in present:
                self._gone[one.parent] = (self._gone.get(one.parent, (0.0, at))[0] + one.cpu, at)
        self._gone = {parent: gone for parent, gone in self._gone.items() if at - gone[1] < REMEMBERED}
        return sum(self._spent(one, known.get(key)) for key, one in present.items())

    def _spent(self, now: Stat, before: Stat | None) -> float:
        own, reaped = now.cpu - now.reaped, now.reaped
        if before is not None:
            own, reaped = own - (before.cpu - before.reaped), reaped - before.reaped
        counted, at = self._gone.get(now.pid, (0.0, 0.0))
        again = min(max(0.0, reaped), counted)
        if again:
            self._gone[now.pid] = (counted - again, at)
        return max(0.0, own) + max(0.0, reaped) - again


@dataclass
class Budget:
    """What a tree may use on average, *cores*, as credit that it earns and spends; in seconds of processor time.

    *used* is what it used too much before it was slowed down.
    """

    cores: float
    used: float = 0.0
    running: bool = True
    credit: float = field(init=False)
    backlog: float = field(init=False)
    rate: float = field(init=False)  # cores that it uses while it runs

    def __post_init__(self) -> None:
        at_once = min(self.used, BACKLOG * self.cores)
        self.credit = -at_once
        self.backlog = self.used - at_once
        self.rate = 2 * self.cores

    def advance(self, elapsed: float, spent: float) -> float:
        """*spent* in *elapsed* seconds: sets whether it is to be *running*, and returns when to look again."""
        if self.running and elapsed > 0:
            self.rate += (spent / elapsed - self.rate) * min(1.0, 2 * elapsed / PERIOD)
        earned = elapsed * self.cores * SHARE
        repaid = min(self.backlog, earned * REPAID)
        self.backlog -= repaid
        most = self.cores * PERIOD
        self.credit = max(min(self.credit + earned - repaid - spent, most), -LONGEST * self.cores)
        over = max(self.rate - self.cores, 0.0)
        # So much is spent, and earned again, in one period.
        stake = min(max(PERIOD * self.cores * over / max(self.rate, 1e-9), SHORTEST * self.cores), most)
        self.running = self.credit > 0 if self.running else self.credit >= stake
        if self.running:
            return min(max(self.credit / over if over else PERIOD, SHORTEST), PERIOD)
        return min(max((stake - self.credit) / (self.cores * SHARE), SHORTEST), PERIOD)
