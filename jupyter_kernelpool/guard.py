"""Holds the server's kernels to their limits: has enforcers set and read them, `standings` and `sums` judge what they
read, and `consequences` do what comes of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from jupyter_kernelpool.allowance import Allowance, Breach
from jupyter_kernelpool.allowances import MEASURED, Allowances
from jupyter_kernelpool.attention import Attention
from jupyter_kernelpool.cell_ends import CellEnd
from jupyter_kernelpool.consequences import Consequences
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.enforcement import Enforcement
from jupyter_kernelpool.errors import KernelPoolError
from jupyter_kernelpool.escalation import Step
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.limits.base import Reading, Subject
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.pace import Pace
from jupyter_kernelpool.single_cells import SingleCells
from jupyter_kernelpool.standings import ALL_KERNELS, REFUSED_BY_SYSTEM, Standings
from jupyter_kernelpool.sums import Group, Sums

AGAIN_AFTER = 0.1
SETTLED_WITHIN = 1.0  # seconds that the end of a cell is kept back at most

log = logging.getLogger("jupyter_kernelpool")


class Guard:
    """The limits of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, limits: KernelLimits, edge: Edge, events: Events) -> None:
        """Raises `NotEnforceable` when the configuration limits what can't be limited on this machine."""
        self.limits = limits
        self.on_change: list[Callable[[str], None]] = []  # told the id of a kernel whose limits change
        self._manager = manager
        self._subjects: dict[str, Subject] = {}
        self._standings = Standings(limits.policy, limits.total)
        self.sums = Sums(limits.policy)
        self._refused: frozenset[str] = frozenset()  # limits on the sum of which the system refused more just now
        self._edge = edge
        self._pace = Pace(lambda: limits.interval)
        self._attention = Attention(self._subjects, self._standings.readings, edge, self._pace, lambda: limits.interval)
        self._task: asyncio.Task[None] | None = None
        self._acts: dict[asyncio.Task[None], str | None] = {}  # and the kernel that each is about
        self._enforcement = Enforcement(limits, lambda: manager.pool.supervision, self._is_current)
        self.consequences = Consequences(manager, limits, edge, events, self._enforcement.enforcers, self._subjects)
        self.allowances = Allowances(manager, limits, self._enforcement.held)
        self.hold_together(self._all_kernels, limits.total, "KernelLimits.total")
        self.single_cells = SingleCells(
            self.allowances, edge, hold=self._hold_again, settle=self.settle, begin=self._begin
        )

    # -- what is allowed ----------------------------------------------------------------------------

    async def change(self, kernel_id: str, changes: dict[str, float]) -> Allowance:
        """Limit one kernel otherwise from now on. Raises `Loosens`, `NotEnforceable`; it is as before then."""
        before = self.allowances.own_of(kernel_id)
        changed = self.allowances.change(kernel_id, changes)
        subject = self._subjects.get(kernel_id)
        if subject is not None:
            try:
                await self._hold(subject)
            except BaseException:
                self.allowances.undo(kernel_id, changed, before)
                raise
            self._wake()
        self._tell_change(kernel_id)
        return changed

    async def recipe_changed(self, kernel_name: str) -> None:
        """Hold the kernels of that kernelspec to its new limits, but for those that have limits of their own.

        One that can't be held to them keeps its former ones.
        """
        for subject in list(self._subjects.values()):
            take_back = self.allowances.follow_recipe(subject.kernel_id, kernel_name)
            if take_back is None:
                continue
            try:
                await self._hold(subject)
            except Exception:  # the others are to have theirs
                take_back()
                log.warning("Kernel %s: its recipe's new limits could not be set", subject.kernel_id, exc_info=True)
            self._tell_change(subject.kernel_id)
        self._wake()

    def _tell_change(self, kernel_id: str) -> None:
        for listener in self.on_change:
            listener(kernel_id)

    def hold_together(self, find_groups: Callable[[], Iterable[Group]], most: Allowance, whose: str) -> None:
        """From now on judge the sums of the groups that *find_groups*, called at each look, gives.

        *most* has every limit that one of them may have; raises `NotEnforceable`, naming *whose* it is.
        """
        self.allowances.refuse_unenforceable(most, whose)
        self.sums.add(find_groups, most)
        self._enforcement.tell_memory_exactly("memory" in self.sums.limited)

    @property
    def breaches(self) -> dict[str, Breach]:
        """The last limit that each kernel crossed, by kernel id."""
        return self.consequences.breaches

    # -- the lives of kernels -----------------------------------------------------------------------

    async def hold(
        self, kernel_id: str, kernel_name: str, pid: int, inherited: int = 0, own: Allowance | None = None
    ) -> None:
        """*pid* is the kernel's process from now on; called before its user has it. Raises `NotEnforceable`.

        *own* are the limits of a fork that has its parent's; else they are those of its kernelspec.
        """
        self.allowances.begin(kernel_id, kernel_name, own)
        subject = Subject(kernel_id, pid, inherited)
        self._subjects[kernel_id] = subject
        self._standings.forget(kernel_id)
        try:
            await self._hold(subject)
        except BaseException:
            if self._subjects.get(kernel_id) is subject:
                del self._subjects[kernel_id]
            raise
        self._wake()

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self.allowances.forget(kernel_id)
        subject = self._subjects.get(kernel_id)
        for known in (self.sums.caps, self._subjects, self.breaches):
            known.pop(kernel_id, None)
        self._standings.forget(kernel_id)
        self._attention.forget(kernel_id)
        if self._enforcement.knows(kernel_id):
            self._begin(self._enforcement.let_go(kernel_id, subject))

    def set_apart(self, pid: int) -> None:
        """*pid*, a checkpoint's process, is held to its kernel's limits no more."""
        self._begin(self._enforcement.set_apart(pid))

    async def explain_end(self, kernel_id: str) -> bool:
        """The kernel's process ended by itself: whether a limit was the cause, and the kernel stays dead for it."""
        subject = self._subjects.get(kernel_id)
        cause = await self._enforcement.why_ended(subject) if subject is not None else None
        if cause is None:
            return False
        limit, most = cause
        most = max(most, self._standings.seen(kernel_id, limit))
        breach = self._standings.breach_of(limit, most, self.allowances.in_force(kernel_id), "killed")
        await self.consequences.end_for(kernel_id, breach)  # what it left would be in its successor's way
        await self.consequences.ended(kernel_id, breach)
        return True

    def looks_at_ends(self, kernel_id: str) -> bool:
        """Whether cells of the kernel may have crossed a limit when they end, and the guard has not seen it yet."""
        return kernel_id in self._subjects and bool(self._kills_at_once(kernel_id) or self._looked_at(kernel_id))

    def is_worth_a_look(self, kernel_id: str, end: CellEnd) -> bool:
        """Whether nobody is to be told of *end* before `settle` is through with it."""
        return self._kills_at_once(kernel_id) or self._may_have_crossed(kernel_id, end)

    async def settle(self, kernel_id: str, end: CellEnd) -> None:
        """A cell has ended, and nobody has been told so yet: if it crossed a limit, tell that first."""
        subject = self._subjects.get(kernel_id)
        if subject is None:
            return
        self._edge.closing[kernel_id] = end.header
        try:
            async with asyncio.timeout(SETTLED_WITHIN):
                await self._pace.present_look()  # which may have read already what is to be told
                looks = self._may_have_crossed(kernel_id, end) or await self._enforcement.has_killed(subject)
                while looks:
                    self._wake()
                    await self._pace.next_look()
                    looks = self._is_current(subject) and await self._enforcement.has_killed(subject)
                    if looks:  # in doubt whether it was the kernel itself
                        await asyncio.sleep(AGAIN_AFTER)
                if end.refused in REFUSED_BY_SYSTEM and self._is_current(subject):
                    allowance = self.allowances.in_force(kernel_id)
                    for breach, step in self._standings.judge_refusal(kernel_id, end.refused, allowance):
                        self._take(subject, breach, step)
                acts = [act for act, whose in self._acts.items() if whose == kernel_id]
                if acts:
                    await asyncio.wait(acts)
        except TimeoutError:
            log.warning("Kernel %s: what a limit did to it is not seen in time to tell it in its cell", kernel_id)
        finally:
            if self._edge.closing.get(kernel_id) is end.header:  # else another client's cell is being closed
                del self._edge.closing[kernel_id]

    def _may_have_crossed(self, kernel_id: str, end: CellEnd) -> bool:
        limited = self._looked_at(kernel_id)
        return end.refused in limited or bool(limited and not end.brief)

    def _kills_at_once(self, kernel_id: str) -> bool:
        """Whether the operating system may end processes of the kernel's before the guard has looked."""
        if not (self._enforcement.kills_at_once and self._enforcement.knows(kernel_id)):
            return False
        return bool(self.allowances.in_force(kernel_id).memory or self.limits.total.memory)

    def _looked_at(self, kernel_id: str) -> frozenset[str]:
        """The kernel's own limits that a cell can have crossed and be over; of the sum's the next look tells."""
        return self.allowances.in_force(kernel_id).limited & MEASURED - {"cpu"}

    async def close(self) -> None:
        """The server stops: nobody is judged any more. What holds the kernels goes with `let_all_go`."""
        for task in [self._task, *self._acts]:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def let_all_go(self) -> None:
        """All kernels have ended: leave nothing behind. What they left is ended first, which takes a second
        at most for each."""
        if self._acts:
            await asyncio.wait(self._acts)
        await self._enforcement.close()

    # -- the loop -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kernelpool-guard")

    async def _run(self) -> None:
        try:
            while watched := self._watched():
                with self._pace.look():
                    try:
                        await self._look(self._attention.due(watched))
                    except Exception:
                        log.exception("The guard of kernels' limits stumbled; it goes on")
                await self._pace.pause(
                    near=self._attention.is_near(watched),
                    is_astir=functools.partial(self._attention.are_astir, watched),
                )
        finally:
            self._pace.end()

    def _watched(self) -> dict[str, Subject]:
        return {
            kernel_id: subject
            for kernel_id, subject in self._subjects.items()
            if self.sums.limited or self.allowances.in_force(kernel_id).limited & MEASURED
        }

    async def _look(self, watched: dict[str, Subject]) -> None:
        """Read and judge these kernels once; their sums where they are all."""
        read = await self._enforcement.read(list(watched.values()))
        readings = {
            kernel_id: reading
            for kernel_id, reading in read.items()
            if kernel_id in watched and self._subjects.get(kernel_id) is watched[kernel_id]  # else it was replaced
        }
        near = set[str]()
        slowed = {key for key, reading in readings.items() if self._standings.is_slowed_down(key, reading)}
        for kernel_id, reading in readings.items():
            try:
                if self._judge(watched[kernel_id], reading):
                    near.add(kernel_id)
            except Exception:
                log.exception("Kernel %s: what it uses could not be judged", kernel_id)
        self._attention.looked(watched, near)
        if self.sums.limited and watched.keys() >= self._watched().keys():
            self._attention.sum_is_near = await self._judge_sums(watched, readings, slowed)

    def _judge(self, subject: Subject, reading: Reading) -> bool:
        """Begin what comes of *reading*; whether the kernel is near a limit."""
        kernel_id = subject.kernel_id
        found = self._standings.judge(kernel_id, reading, self.allowances.in_force(kernel_id), time.monotonic())
        if found.slowed_down is not None:
            self.consequences.slowed_down(kernel_id, self._in_force(kernel_id).cpu, found.slowed_down)
        if found.child_ended is not None:
            self.consequences.child_ended(kernel_id, found.child_ended)
        for breach, step in found.steps:
            self._take(subject, breach, step)
        return found.near

    async def _judge_sums(self, watched: dict[str, Subject], readings: dict[str, Reading], slowed: set[str]) -> bool:
        used = {kernel_id: reading.used for kernel_id, reading in readings.items() if kernel_id in self._subjects}
        own = {kernel_id: self.allowances.in_force(kernel_id).cpu for kernel_id in used}
        cores = {kernel_id: most for kernel_id, most in own.items() if most}
        self._refused = await self._enforcement.refused_together()
        judgement = self.sums.judge(used, slowed, cores, time.monotonic(), time.time())
        for kernel_id, breach, step in judgement.steps:
            self._take(watched[kernel_id], breach, step)
        for kernel_id in judgement.recapped:
            await self._hold(watched[kernel_id])
        return judgement.near

    # -- parts --------------------------------------------------------------------------------------

    def _all_kernels(self) -> Iterable[Group]:
        return [Group(ALL_KERNELS, self.limits.total, frozenset(self._subjects), self._refused)]

    def _in_force(self, kernel_id: str) -> Allowance:
        """What the kernel is held to by itself, its share of a group's cores included."""
        allowance, cap = self.allowances.in_force(kernel_id), self.sums.caps.get(kernel_id)
        if cap is None or 0 < allowance.cpu <= cap:
            return allowance
        return allowance.changed({"cpu": cap})

    async def _hold(self, subject: Subject) -> None:
        await self._enforcement.hold(subject, self._in_force(subject.kernel_id), self.sums.limited)

    def _is_current(self, subject: Subject) -> bool:
        return self._subjects.get(subject.kernel_id) is subject

    async def _hold_again(self, kernel_id: str) -> None:
        """Hold the kernel to what is in force by now, if it still has a process. Raises `NotEnforceable`."""
        subject = self._subjects.get(kernel_id)
        if subject is not None:
            await self._hold(subject)
            self._wake()

    def _take(self, subject: Subject, breach: Breach, step: Step) -> None:
        self._begin(self.consequences.act(subject, breach, step), subject.kernel_id)

    def _begin(self, act: Coroutine[Any, Any, None], kernel_id: str | None = None) -> None:
        task = asyncio.create_task(_guarded(act), name="kernelpool-guard-act")
        self._acts[task] = kernel_id
        task.add_done_callback(self._acts.pop)


async def _guarded(act: Coroutine[Any, Any, None]) -> None:
    try:
        await act
    except KernelPoolError as error:
        log.warning("%s", error)
    except Exception:
        log.exception("What a limit asks for could not be done")
