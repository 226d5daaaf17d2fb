"""Holds the server's kernels to their limits: has enforcers set and read them, and does what `escalation` says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from jupyter_kernelpool.allowance import Allowance, Breach, human
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ending import end_tree
from jupyter_kernelpool.errors import KernelPoolError, NotEnforceable
from jupyter_kernelpool.escalation import Interrupt, Kill, Note, Standing, Step, Warn, escalate, note_refusals
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.limits.base import Enforcer, Held, Reading, Subject, assign
from jupyter_kernelpool.limits.settings import KernelLimits

MEASURED = frozenset({"memory", "cpu", "processes", "open_files"})
REFUSED_BY_SYSTEM = frozenset({"open_files"})  # reaching it ends nothing: the next one is refused
QUICKER = 5.0
NEAR = 0.5

log = logging.getLogger("jupyter_kernelpool")


class Guard:
    """The limits of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, limits: KernelLimits, edge: Edge, events: Events) -> None:
        """Raises `NotEnforceable` when the configuration limits what can't be limited on this machine."""
        self.limits = limits
        self.edge = edge
        self.events = events
        self.breaches: dict[str, Breach] = {}  # the last one of each kernel
        self.on_change: list[Callable[[str], None]] = []  # told the id of a kernel whose limits change
        self._manager = manager
        self._own: dict[str, Allowance] = {}  # of kernels that differ from their recipe
        self._subjects: dict[str, Subject] = {}
        self._readings: dict[str, Reading] = {}
        self._standings: dict[tuple[str, str], Standing] = {}
        self._task: asyncio.Task[None] | None = None
        self._acts: set[asyncio.Task[None]] = set()
        self.enforcers: list[Enforcer] = [make(limits.policy.hard - 1.0) for make in limits.enforcers]
        self.held: Held = assign(self.enforcers)
        self.refuse_unenforceable(limits.allowance, "KernelLimits")
        self.refuse_unenforceable(limits.total, "KernelLimits.total")
        for kernel_name in manager.pool.recipes:
            self.refuse_unenforceable(self.allowance_for(kernel_name), f"KernelPool.recipes[{kernel_name!r}]")

    # -- what is allowed ----------------------------------------------------------------------------

    def allowance_of(self, kernel_id: str) -> Allowance:
        """What the kernel may use: what was said of it, of its recipe, or in general."""
        if kernel_id in self._own:
            return self._own[kernel_id]
        kernel = self._manager.get_kernel(kernel_id) if kernel_id in self._manager else None
        return self.allowance_for(kernel.kernel_name) if kernel is not None else self.limits.allowance

    def own_of(self, kernel_id: str) -> Allowance | None:
        """The kernel's limits, where they were changed for it alone."""
        return self._own.get(kernel_id)

    def allowance_for(self, kernel_name: str) -> Allowance:
        """What a new kernel of that kernelspec may use."""
        limits: dict[str, float] = dict(self._manager.pool.settings_for(kernel_name).limits)
        return self.limits.allowance.changed(limits)

    def refuse_unenforceable(self, allowance: Allowance, whose: str) -> None:
        """Raise `NotEnforceable` for a limit that nothing on this machine holds."""
        for limit in sorted(allowance.limited & MEASURED):
            if limit not in self.held.by:
                needed = self.held.missing.get(limit, "no enforcer in KernelLimits.enforcers holds it")
                raise NotEnforceable(
                    f"{whose} limits {limit.replace('_', ' ')}, which can't be enforced here: {needed}",
                    limit=limit,
                    needed=needed,
                )

    def who_holds(self, limit: str) -> tuple[str | None, str | None]:
        """The name of what holds kernels to *limit* here; else why nothing does."""
        if limit in MEASURED:
            enforcer = self.held.by.get(limit)
            missing = self.held.missing.get(limit, "no enforcer in KernelLimits.enforcers holds it")
            return (enforcer.name, None) if enforcer is not None else (None, missing)
        return "server", None

    async def change(self, kernel_id: str, changes: dict[str, float]) -> Allowance:
        """Limit one kernel otherwise from now on. Raises `Loosens`, `NotEnforceable`; it is as before then."""
        present = self.allowance_of(kernel_id)
        changed = present.changed(changes) if self.limits.allow_loosen else present.tightened(changes)
        self.refuse_unenforceable(changed, f"kernel {kernel_id}")
        subject = self._subjects.get(kernel_id)
        if subject is not None:
            await self._hold(subject, changed)
        self._own[kernel_id] = changed
        for listener in self.on_change:
            listener(kernel_id)
        return changed

    # -- the lives of kernels -----------------------------------------------------------------------

    async def hold(
        self, kernel_id: str, kernel_name: str, pid: int, inherited: int = 0, own: Allowance | None = None
    ) -> None:
        """*pid* is the kernel's process from now on; called before its user has it. Raises `NotEnforceable`.

        *own* are the limits of a fork that has its parent's; else they are those of its kernelspec.
        """
        allowance = own or self._own.get(kernel_id) or self.allowance_for(kernel_name)
        self.refuse_unenforceable(allowance, f"kernel {kernel_id}")
        subject = Subject(kernel_id, pid, inherited)
        self._subjects[kernel_id] = subject
        self._calm(kernel_id)
        try:
            await self._hold(subject, allowance)
        except BaseException:
            self._subjects.pop(kernel_id, None)
            raise
        if own is not None:
            self._own[kernel_id] = own
        self._wake()

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self._own.pop(kernel_id, None)
        self._readings.pop(kernel_id, None)
        self.breaches.pop(kernel_id, None)
        self._calm(kernel_id)
        if self._subjects.pop(kernel_id, None) is not None:
            self._begin(self._let_go(kernel_id))

    def set_apart(self, pid: int) -> None:
        """*pid*, a checkpoint's process, is held to its kernel's limits no more."""
        if self._subjects:
            self._begin(self._set_apart(pid))

    async def explain_end(self, kernel_id: str) -> bool:
        """The kernel's process ended by itself: whether a limit was the cause, and the kernel stays dead for it."""
        subject = self._subjects.get(kernel_id)
        if subject is None or not self.allowance_of(kernel_id).limited & MEASURED:
            return False
        for enforcer in self.enforcers:
            limit = await asyncio.to_thread(enforcer.why_ended, subject)
            if limit is not None:
                allowed = getattr(self.allowance_of(kernel_id), limit)
                peak = self._readings.get(kernel_id, Reading()).peak if limit == "memory" else 0
                seen = max(allowed, peak, self._standing(kernel_id, limit).seen)
                await self._ended(kernel_id, Breach(limit, allowed, seen, time.time(), "killed"))
                return True
        return False

    async def close(self) -> None:
        """The server stops."""
        for task in [self._task, *self._acts]:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        for enforcer in self.enforcers:
            await asyncio.to_thread(enforcer.close)

    # -- the loop -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kernelpool-guard")

    async def _run(self) -> None:
        while watched := self._watched():
            near = False
            try:
                near = await self._look(watched)
            except Exception:
                log.exception("The guard of kernels' limits stumbled; it goes on")
            await asyncio.sleep(self.limits.interval / (QUICKER if near else 1.0))

    def _watched(self) -> dict[str, Subject]:
        totals = bool(self.limits.total.limited)
        return {
            kernel_id: subject
            for kernel_id, subject in self._subjects.items()
            if totals or self.allowance_of(kernel_id).limited & MEASURED
        }

    async def _look(self, watched: dict[str, Subject]) -> bool:
        """Read and judge all kernels once; whether one of them is near a limit."""
        readings: dict[str, Reading] = {}
        ours = frozenset(self._manager.pool.supervision.pids)
        for enforcer in self.enforcers:
            if not self.held.limits_of(enforcer):
                continue
            subjects = list(watched.values())
            for kernel_id, reading in (await asyncio.to_thread(enforcer.read, subjects, ours)).items():
                readings[kernel_id] = _joined(readings.get(kernel_id), reading, self.held.limits_of(enforcer))
        near = False
        for kernel_id, reading in readings.items():
            if self._subjects.get(kernel_id) is watched[kernel_id]:  # else it was replaced meanwhile
                near |= self._judge(kernel_id, reading)
        self._readings.update(readings)
        return near

    def _judge(self, kernel_id: str, reading: Reading) -> bool:
        allowance, near = self.allowance_of(kernel_id), False
        before = self._readings.get(kernel_id)
        if before is not None and reading.throttled > before.throttled:
            self._throttled(kernel_id, reading.used.get("cpu", 0.0), allowance.cpu)
        for limit in allowance.limited & MEASURED - {"cpu"}:
            if limit not in reading.used:
                continue
            used, allowed = reading.used[limit], getattr(allowance, limit)
            near |= used > NEAR * allowed
            standing = self._standing(kernel_id, limit)
            if limit in REFUSED_BY_SYSTEM:
                standing, step = note_refusals(standing, used=used, allowed=allowed, policy=self.limits.policy)
            else:
                standing, step = escalate(
                    standing, used=used, allowed=allowed, policy=self.limits.policy, now=time.monotonic()
                )
            self._standings[kernel_id, limit] = standing
            if step is not None:
                self._begin(self._act(kernel_id, limit, allowed, standing.seen, step))
        return near

    # -- what is done about it ----------------------------------------------------------------------

    async def _act(self, kernel_id: str, limit: str, allowed: float, seen: float, step: Step) -> None:
        breach = Breach(limit, allowed, seen, time.time(), "interrupted")
        match step:
            case Warn():
                text = f"{limit.replace('_', ' ').capitalize()}: {human(limit, seen)} of {human(limit, allowed)} used."
                self.edge.say(kernel_id, text)
                self.events.emit("warned", kernel_id, now=breach.at, reason=text, **_facts(breach))
            case Note():
                self.note(kernel_id, Breach(limit, allowed, seen, breach.at, "refused"))
                self.edge.say(kernel_id, f"{breach}; the operating system refuses more.")
            case Interrupt():
                self.note(kernel_id, breach)
                self.edge.say(
                    kernel_id, f"{breach}. Interrupted; the kernel is ended if that does not help within "
                    f"{self.limits.grace:g} s.",
                )  # fmt: skip
                await self._manager.get_kernel(kernel_id).interrupt_kernel()
            case Kill():
                await self._kill(kernel_id, Breach(limit, allowed, seen, breach.at, "killed"))

    def note(self, kernel_id: str, breach: Breach) -> None:
        """The kernel crossed a limit: remember, log and publish it."""
        self.breaches[kernel_id] = breach
        log.warning("Kernel %s: %s; %s", kernel_id, breach, breach.outcome)
        outcome = {"outcome": breach.outcome, "state_lost": breach.state_lost}
        self.events.emit("breached", kernel_id, now=breach.at, reason=str(breach), **outcome, **_facts(breach))

    def _throttled(self, kernel_id: str, used: float, allowed: float) -> None:
        standing = self._standing(kernel_id, "cpu")
        if not standing.warned:
            self._standings[kernel_id, "cpu"] = Standing(warned=True)
            text = f"Slowed down to {human('cpu', allowed)}."
            self.events.emit(
                "throttled", kernel_id, now=time.time(), reason=text, limit="cpu", allowed=allowed, seen=used
            )

    async def _kill(self, kernel_id: str, breach: Breach) -> None:
        subject = self._subjects.get(kernel_id)
        if subject is None:
            return
        kernel = self._manager.get_kernel(kernel_id)
        kernel.stays_dead_for = breach  # before it ends: nobody is to restart it
        await self._end(subject)
        await self._ended(kernel_id, breach)

    async def end_for(self, kernel_id: str, breach: Breach) -> None:
        """End the kernel's processes for *breach*; nobody but the caller is to start the next one."""
        kernel = self._manager.get_kernel(kernel_id)
        kernel.stays_dead_for = breach  # before it ends
        subject = self._subjects.pop(kernel_id, None)
        if subject is not None:
            await self._end(subject)

    async def _end(self, subject: Subject) -> None:
        for enforcer in self.enforcers:
            await asyncio.to_thread(enforcer.end, subject)
        others = self._manager.pool.supervision.pids - {subject.pid}
        if not await asyncio.to_thread(end_tree, subject.pid, others):
            log.warning("Kernel %s: not every process of it could be ended", subject.kernel_id)

    async def _ended(self, kernel_id: str, breach: Breach) -> None:
        """The process has ended for *breach*: tell everybody, and do what `on_breach` says."""
        kernel = self._manager.get_kernel(kernel_id)
        kernel.stays_dead_for = breach
        kernel.reason = str(breach)
        kernel.execution_state = "dead"
        self._subjects.pop(kernel_id, None)
        self.note(kernel_id, breach)
        self.edge.say(kernel_id, f"{breach}. The kernel was ended; its variables are lost.")
        self.edge.give_up(kernel_id, "KernelKilled", str(breach))
        if self.limits.on_breach in ("restart", "restore"):
            await self._bring_back(kernel_id, breach)
        else:
            self.edge.declare_dead(kernel_id)
            self.events.emit("dead", kernel_id, now=time.time(), reason=str(breach))

    async def _bring_back(self, kernel_id: str, breach: Breach) -> None:
        outcome = await self._manager.bring_back(kernel_id, restore=self.limits.on_breach == "restore")
        self.breaches[kernel_id] = Breach(breach.limit, breach.allowed, breach.seen, breach.at, outcome)

    # -- parts --------------------------------------------------------------------------------------

    async def _hold(self, subject: Subject, allowance: Allowance) -> None:
        for enforcer in self.enforcers:
            limits = self.held.limits_of(enforcer)
            if limits and (limits & allowance.limited or subject.kernel_id in self._own):
                await asyncio.to_thread(enforcer.hold, subject, allowance, limits)

    async def _let_go(self, kernel_id: str) -> None:
        for enforcer in self.enforcers:
            await asyncio.to_thread(enforcer.let_go, kernel_id)

    async def _set_apart(self, pid: int) -> None:
        for enforcer in self.enforcers:
            await asyncio.to_thread(enforcer.set_apart, pid)

    def _standing(self, kernel_id: str, limit: str) -> Standing:
        return self._standings.get((kernel_id, limit), Standing())

    def _calm(self, kernel_id: str) -> None:
        self._standings = {key: standing for key, standing in self._standings.items() if key[0] != kernel_id}

    def _begin(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_guarded(act), name="kernelpool-guard-act")
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)


async def _guarded(act: Coroutine[Any, Any, None]) -> None:
    try:
        await act
    except KernelPoolError as error:
        log.warning("%s", error)
    except Exception:
        log.exception("What a limit asks for could not be done")


def _facts(breach: Breach) -> dict[str, Any]:
    return {"limit": breach.limit, "allowed": breach.allowed, "seen": breach.seen}


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
