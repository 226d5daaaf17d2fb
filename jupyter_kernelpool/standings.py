"""How far each kernel went with each of its own limits, and what comes of a look at it. Pure; `sums` has what they may
use together. Times are seconds on the monotonic clock, but for those of breaches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from jupyter_kernelpool.allowance import Allowance, Breach
from jupyter_kernelpool.allowances import MEASURED
from jupyter_kernelpool.escalation import Policy, Standing, Step, escalate, note_refusals, note_throttling
from jupyter_kernelpool.limits.base import Reading

ALL_KERNELS = "all kernels"
REFUSED_BY_SYSTEM = frozenset({"open_files"})  # reaching it ends nothing: the next one is refused
NEAR = 0.5


@dataclass
class Finding:
    """What comes of one look at a kernel: *steps* to take, whether it is *near* a limit, for what the operating system
    has ended a child of its, and how many cores it had as it was *slowed_down*, where that is to be told."""

    steps: list[tuple[Breach, Step]] = field(default_factory=list)
    near: bool = False
    child_ended: Breach | None = None
    slowed_down: float | None = None


class Standings:
    """Those of all kernels, by *policy*; *total* is what they may use together."""

    def __init__(self, policy: Policy, total: Allowance) -> None:
        self.readings: dict[str, Reading] = {}  # the last one of each kernel
        self._policy = policy
        self._total = total
        self._of: dict[tuple[str, str], Standing] = {}  # by kernel id and limit

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone, or has another process, which begins anew."""
        self.readings.pop(kernel_id, None)
        self._of = {key: standing for key, standing in self._of.items() if key[0] != kernel_id}

    def seen(self, kernel_id: str, limit: str) -> float:
        """The most that the kernel was seen to use while it was above the limit."""
        return self._find(kernel_id, limit).seen

    def judge(self, kernel_id: str, reading: Reading, allowance: Allowance, now: float) -> Finding:
        """What comes of *reading* for a kernel that may use *allowance*."""
        before, self.readings[kernel_id] = self.readings.get(kernel_id), reading
        finding = Finding(slowed_down=self._note_speed(kernel_id, reading, before, now))
        refused_before = before.refused.get("memory", 0) if before is not None else 0
        if reading.refused.get("memory", 0) > refused_before:
            finding.child_ended = self.breach_of("memory", reading.peak, allowance, "child_killed")
        for limit in allowance.limited & MEASURED - {"cpu"}:
            if limit not in reading.used:
                continue
            used, allowed = reading.used[limit], getattr(allowance, limit)
            finding.near |= used > NEAR * allowed
            standing = self._find(kernel_id, limit)
            if limit in REFUSED_BY_SYSTEM:
                standing, step = note_refusals(standing, used=used, allowed=allowed, policy=self._policy)
            else:
                standing, step = escalate(standing, used=used, allowed=allowed, policy=self._policy, now=now)
            finding.steps += self._set(kernel_id, limit, standing, allowed, step)
        return finding

    def judge_refusal(self, kernel_id: str, limit: str, allowance: Allowance) -> list[tuple[Breach, Step]]:
        """The steps to take as a cell has failed since the system refused more of *limit*: also where it has let go of
        all when it is looked at."""
        standing, allowed = self._find(kernel_id, limit), getattr(allowance, limit)
        if not allowed or standing.over_since is not None:
            return []  # it is told already
        standing, step = note_refusals(standing, used=allowed, allowed=allowed, policy=self._policy)
        return self._set(kernel_id, limit, standing, allowed, step)

    def is_slowed_down(self, kernel_id: str, reading: Reading) -> bool:
        """Whether the kernel was slowed down since it was judged last."""
        before = self.readings.get(kernel_id)
        return before is not None and reading.throttled > before.throttled

    def breach_of(self, limit: str, most: float, allowance: Allowance, outcome: str) -> Breach:
        """What the operating system acted for on a kernel that used *most*: its own limit, or that of the sum."""
        own, total = getattr(allowance, limit), getattr(self._total, limit)
        if total and (not own or most < own):
            return Breach(limit, total, max(most, total), time.time(), outcome, group=ALL_KERNELS)
        return Breach(limit, own, max(most, own), time.time(), outcome)

    def _note_speed(self, kernel_id: str, reading: Reading, before: Reading | None, now: float) -> float | None:
        slowed = before is not None and reading.throttled > before.throttled
        standing, tell = note_throttling(self._find(kernel_id, "cpu"), throttled=slowed, now=now)
        self._of[kernel_id, "cpu"] = standing
        if not tell or before is None:
            return None
        return max(reading.used.get("cpu", 0.0), before.used.get("cpu", 0.0))

    def _set(
        self, kernel_id: str, limit: str, standing: Standing, allowed: float, step: Step | None
    ) -> list[tuple[Breach, Step]]:
        self._of[kernel_id, limit] = standing
        return [(Breach(limit, allowed, standing.seen, time.time(), ""), step)] if step is not None else []

    def _find(self, kernel_id: str, limit: str) -> Standing:
        return self._of.get((kernel_id, limit), Standing())
