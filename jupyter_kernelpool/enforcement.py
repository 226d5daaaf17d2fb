"""The enforcers of this machine as one: asked in threads, each for the limits that it holds; one that fails keeps no
other from being asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.ending import end_rest
from jupyter_kernelpool.limits.base import Enforcer, Held, Reading, Subject, assign
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.supervision import Supervision

log = logging.getLogger("jupyter_kernelpool")


class Enforcement:
    """Those of *limits*; *is_current* says whether a kernel still has the process that is meant."""

    def __init__(
        self, limits: KernelLimits, find_supervision: Callable[[], Supervision], is_current: Callable[[Subject], bool]
    ) -> None:
        self.enforcers: list[Enforcer] = [make(limits.policy.hard - 1.0) for make in limits.enforcers]
        self.held: Held = assign(self.enforcers)
        self._find_supervision = find_supervision
        self._is_current = is_current
        self._known: set[str] = set()  # kernels of which enforcers know
        for enforcer in self.enforcers:
            enforcer.hold_together(limits.total, self.held.limits_of(enforcer))

    def tell_memory_exactly(self, exact: bool) -> None:
        """Whether memory is summed up: it is to be exact then, however little it is."""
        for enforcer in self.enforcers:
            enforcer.exact = exact

    def knows(self, kernel_id: str) -> bool:
        """Whether the kernel was ever held to anything."""
        return kernel_id in self._known

    @property
    def kills_at_once(self) -> bool:
        """Whether the operating system itself ends what takes too much memory."""
        return "memory" in self.held.by and self.held.by["memory"].kills

    async def hold(self, subject: Subject, allowance: Allowance, summed: frozenset[str]) -> None:
        """Hold the kernel to *allowance* and to the sums of *summed* limits from now on. Raises `NotEnforceable`."""
        concerned = allowance.limited | summed
        for enforcer in self.enforcers:
            limits = self.held.limits_of(enforcer)
            if not self._is_current(subject):
                return  # it has another process by now, which is held by itself
            if limits and (limits & concerned or subject.kernel_id in self._known):
                self._known.add(subject.kernel_id)
                self._find_supervision().guard_groups(enforcer.leaves())
                await asyncio.to_thread(enforcer.hold, subject, allowance, limits)
            elif self._known:  # it may be a fork of a kernel that is held
                await asyncio.to_thread(enforcer.set_apart, subject.pid)

    async def read(self, subjects: list[Subject]) -> dict[str, Reading]:
        """What each of the kernels uses, by id."""
        readings: dict[str, Reading] = {}
        ours = frozenset(self._find_supervision().pids)
        for enforcer in self.enforcers:
            limits = self.held.limits_of(enforcer)
            if not limits:
                continue
            try:
                found = await asyncio.to_thread(enforcer.read, subjects, ours)
            except Exception:
                log.exception("Enforcer %s could not read what kernels use", enforcer.name)
                continue
            for kernel_id, reading in found.items():
                readings[kernel_id] = _joined(readings.get(kernel_id), reading, limits)
        return readings

    async def refused_together(self) -> frozenset[str]:
        """The limits of the sum of which the operating system has refused more, since this was last asked."""
        refused: frozenset[str] = frozenset()
        for enforcer in self.enforcers:
            try:
                refused |= await asyncio.to_thread(enforcer.refused_together)
            except Exception:
                log.exception("Enforcer %s could not say what was refused", enforcer.name)
        return refused

    async def has_killed(self, subject: Subject) -> bool:
        """Whether the operating system has killed a process of the kernel's for its memory that was not read yet."""
        return "memory" in self.held.by and await asyncio.to_thread(self.held.by["memory"].has_killed, subject)

    async def why_ended(self, subject: Subject) -> tuple[str, float] | None:
        """The limit for which the operating system ended the kernel's process, and the most that was used of it."""
        if subject.kernel_id not in self._known:
            return None
        for enforcer in self.enforcers:
            cause = await asyncio.to_thread(enforcer.why_ended, subject)
            if cause is not None and self._is_current(subject):
                return cause
        return None

    async def set_apart(self, pid: int) -> None:
        """*pid*, a checkpoint's process, is held to its kernel's limits no more."""
        if self._known:
            await self._have_each(lambda enforcer: enforcer.set_apart(pid), "could not set a process apart")

    async def let_go(self, kernel_id: str, subject: Subject | None) -> None:
        """The kernel is gone for good. What its process left in its session would not be held to anything any more, and
        ends with it."""
        if kernel_id in self._known:
            self._known.discard(kernel_id)
            if subject is not None:
                await asyncio.to_thread(end_rest, subject.pid, self._find_supervision().pids)
            await self._have_each(lambda enforcer: enforcer.let_go(kernel_id), "could not let a kernel go")

    async def close(self) -> None:
        """All kernels have ended: leave nothing behind."""
        await self._have_each(lambda enforcer: enforcer.close(), "left something behind")

    async def _have_each(self, act: Callable[[Enforcer], None], failure: str) -> None:
        for enforcer in self.enforcers:
            try:
                await asyncio.to_thread(act, enforcer)
            except Exception:
                log.exception("Enforcer %s %s", enforcer.name, failure)


def _joined(one: Reading | None, other: Reading, limits: frozenset[str]) -> Reading:
    """*one*, and of *other* what concerns *limits*."""
    used = {limit: value for limit, value in other.used.items() if limit in limits}
    refused = {limit: count for limit, count in other.refused.items() if limit in limits}
    if one is None:
        return Reading(used, other.peak, refused, other.throttled)
    return Reading(
        {**one.used, **used},
        max(one.peak, other.peak),
        {**one.refused, **refused},
        one.throttled + other.throttled,
    )
