"""The execution clock: a cell that runs longer than it may is interrupted, and where that does not help its kernel
is replaced.

`decide` says what comes next for one execution; `Clock` does it, with one timer for each that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from queue import Empty
from typing import Any

from jupyter_kernelpool.allowance import Allowance, Breach, human
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.guard import Guard
from jupyter_kernelpool.ledger import Execution, Ledger

LIMIT = "execution_timeout"
LEAST_GRACE = 0.25  # seconds until an interrupt that worked is heard of
LAST_GRACE = 1.0  # seconds after the second interrupt
AT_REST_TIMEOUT = 0.5

log = logging.getLogger("jupyter_kernelpool")


# -- what comes next, decided ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """What holds for an execution: the seconds it is *allowed* (0: as many as it likes), the share of them at which
    its user is warned, the seconds it has to end once it was interrupted, and whether an interrupt can reach it."""

    allowed: float
    warn_at: float = 0.8
    grace: float = 3.0
    reachable: bool = True


@dataclass(frozen=True)
class Standing:
    """How far it came: *warned*, when it was interrupted, and once more; *done* if nothing is left to be done."""

    warned: bool = False
    done: bool = False
    interrupted_at: float | None = None
    again_at: float | None = None


@dataclass(frozen=True)
class Wait:
    """Look again in so many seconds; None: when something changes."""

    seconds: float | None


@dataclass(frozen=True)
class Warn:
    """Tell its user that it has not much time left."""


@dataclass(frozen=True)
class Interrupt:
    """Interrupt it: its time is up, or once more, since it did not end."""

    again: bool = False


@dataclass(frozen=True)
class Report:
    """Tell that its time is up; an interrupt would hit another."""


@dataclass(frozen=True)
class Replace:
    """No interrupt helped: the kernel's process has to go."""


Step = Wait | Warn | Interrupt | Report | Replace


def decide(standing: Standing, execution: Execution, terms: Terms, now: float) -> tuple[Standing, Step]:
    """The next step for *execution*, and how far it came with that; *now* is on the monotonic clock."""
    if standing.done:
        return standing, Wait(None)
    if standing.interrupted_at is not None:
        return _after_interrupt(standing, standing.interrupted_at, terms, now)
    if not terms.allowed:
        return standing, Wait(None)
    ran = execution.ran(now)
    if ran >= terms.allowed:
        if terms.reachable:
            return replace(standing, interrupted_at=now), Interrupt()
        return replace(standing, done=True), Report()
    warn_after = terms.warn_at * terms.allowed
    if ran >= warn_after and not standing.warned and terms.warn_at < 1.0:
        return replace(standing, warned=True), Warn()
    if execution.waits_since is not None:
        return standing, Wait(None)
    until = warn_after if ran < warn_after else terms.allowed
    return standing, Wait(until - ran)


def _after_interrupt(standing: Standing, interrupted_at: float, terms: Terms, now: float) -> tuple[Standing, Step]:
    grace = max(terms.grace, LEAST_GRACE)
    if standing.again_at is None:
        left = interrupted_at + grace - now
        return (standing, Wait(left)) if left > 0 else (replace(standing, again_at=now), Interrupt(again=True))
    left = standing.again_at + min(grace, LAST_GRACE) - now
    return (standing, Wait(left)) if left > 0 else (replace(standing, done=True), Replace())


# -- what comes next, done ------------------------------------------------------------------------------


@dataclass
class Watch:
    """One execution that runs: the limits that it asked for, what is under way for it."""

    execution: Execution
    asked: Any
    standing: Standing = Standing()
    timer: asyncio.TimerHandle | None = None
    act: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """No step is due any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Clock:
    """The execution times of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, guard: Guard, edge: Edge, events: Events) -> None:
        self._manager = manager
        self._guard = guard
        self._edge = edge
        self._events = events
        self._watches: dict[tuple[str, str], Watch] = {}  # by kernel id and request id
        self._acts: set[asyncio.Task[None]] = set()
        self._closed = False
        edge.on_ledger.append(self._follow)
        guard.on_change.append(self._changed)

    async def close(self) -> None:
        """The server stops: nobody's time is up any more."""
        self._closed = True
        for watch in self._watches.values():
            watch.stop()
        self._watches.clear()
        for task in list(self._acts):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- what is heard ------------------------------------------------------------------------------

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        ledger.on_begin.append(functools.partial(self._began, kernel_id))
        ledger.on_pause.append(functools.partial(self._look, kernel_id))
        ledger.on_end.append(functools.partial(self._ended, kernel_id))

    def _began(self, kernel_id: str, execution: Execution) -> None:
        if self._closed:
            return
        asked = self._edge.requested.get(kernel_id, {}).get(execution.msg_id)
        self._watches[kernel_id, execution.msg_id] = Watch(execution, asked)
        if asked is not None:
            for refusal in self._guard.allowance_of(kernel_id).for_execution(asked)[1]:
                self._edge.say(kernel_id, refusal, execution.header)
        self._look(kernel_id, execution)

    def _changed(self, kernel_id: str) -> None:
        for execution in list(self._edge.ledger(kernel_id).executions.values()):
            self._look(kernel_id, execution)

    def _ended(self, kernel_id: str, execution: Execution) -> None:
        watch = self._watches.pop((kernel_id, execution.msg_id), None)
        if watch is None:
            return
        watch.stop()
        if watch.standing.interrupted_at is not None and not execution.lost:
            self._guard.consequences.note(kernel_id, self._breach(kernel_id, watch, "interrupted"))

    # -- what is done -------------------------------------------------------------------------------

    def _look(self, kernel_id: str, execution: Execution) -> None:
        """See what is due for *execution*: when it began, when something changed, and when its timer is up."""
        watch = self._watches.get((kernel_id, execution.msg_id))
        if watch is None or watch.act is not None:
            return
        watch.stop()
        watch.standing, step = decide(watch.standing, execution, self._terms(kernel_id, watch), time.monotonic())
        if not isinstance(step, Wait):
            watch.act = asyncio.create_task(
                self._guarded(kernel_id, watch, self._act(kernel_id, watch, step)), name="kernelpool-clock"
            )
            self._acts.add(watch.act)
            watch.act.add_done_callback(self._acts.discard)
        elif step.seconds is not None:
            watch.timer = asyncio.get_running_loop().call_later(step.seconds, self._look, kernel_id, execution)

    async def _guarded(self, kernel_id: str, watch: Watch, act: Coroutine[Any, Any, None]) -> None:
        try:
            await act
        except Exception:
            log.exception("Kernel %s: what its execution time asks for could not be done", kernel_id)
        finally:
            watch.act = None
        if not self._closed:
            self._look(kernel_id, watch.execution)

    async def _act(self, kernel_id: str, watch: Watch, step: Step) -> None:
        execution, limits = watch.execution, self._guard.limits
        allowed, seen = (human(LIMIT, value) for value in self._figures(kernel_id, watch))
        match step:
            case Warn():
                text = f"Execution time: {seen} of {allowed} used."
                self._edge.say(kernel_id, text, execution.header)
                breach = self._breach(kernel_id, watch, "reported")
                figures = {"limit": LIMIT, "allowed": breach.allowed, "seen": breach.seen}
                self._events.emit("warned", kernel_id, now=breach.at, reason=text, **figures)
            case Report():
                text = f"Execution time: {allowed} allowed. It goes on: an interrupt would not reach its subshell."
                self._edge.say(kernel_id, text, execution.header)
                self._guard.consequences.note(kernel_id, self._breach(kernel_id, watch, "reported"))
            case Interrupt(again):
                if not again:
                    self._edge.say(
                        kernel_id,
                        f"Execution time: {allowed} allowed. Interrupted; if that does not help within "
                        f"{max(limits.grace, LEAST_GRACE):g} s, the kernel is {self._future(kernel_id)}.",
                        execution.header,
                    )
                kernel = self._kernel(kernel_id)
                if kernel is not None:
                    await kernel.interrupt_kernel()
            case Replace():
                await self._replace(kernel_id, watch)

    async def _replace(self, kernel_id: str, watch: Watch) -> None:
        """End the kernel's process, tell everybody whose cell is lost with it, and start the next one."""
        kernel = self._kernel(kernel_id)
        ledger = self._edge.ledger(kernel_id)
        if kernel is None or not await kernel.is_alive():
            ledger.clear()  # whoever ended the process cares for the next one
            return
        if await is_at_rest(kernel):
            ledger.end(watch.execution)  # word of that was lost
            return
        if self._kernel(kernel_id) is not kernel or ledger.find(watch.execution.msg_id) is not watch.execution:
            return
        restore = self._restores(kernel_id)
        breach = self._breach(kernel_id, watch, "killed")
        await self._guard.consequences.end_for(kernel_id, breach)
        self._edge.give_up(kernel_id, "ExecutionTimeout", self._last_words(breach, restore=restore))
        self._edge.declare_restarting(kernel_id)
        kernel.execution_state = "starting"
        try:
            outcome = await self._manager.bring_back(kernel_id, restore=restore)
        except Exception as error:
            self._stays_dead(kernel_id, breach, error)
            return
        self._guard.consequences.note(kernel_id, replace(breach, outcome=outcome))
        if restore and outcome != "restored":
            self._edge.say(kernel_id, "The checkpoint could not be restored: all variables are lost.", {})

    def _stays_dead(self, kernel_id: str, breach: Breach, error: Exception) -> None:
        log.warning("Kernel %s could not be restarted: %r", kernel_id, error)
        self._guard.consequences.note(kernel_id, breach)
        if kernel_id in self._manager:
            kernel = self._manager.get_kernel(kernel_id)
            kernel.execution_state, kernel.reason = "dead", str(breach)
            self._edge.declare_dead(kernel_id)
            self._events.emit("dead", kernel_id, now=time.time(), reason=str(breach))

    # -- parts --------------------------------------------------------------------------------------

    def _kernel(self, kernel_id: str) -> Any:
        """The kernel's manager; None while somebody else ends, replaces or restarts its process."""
        kernel = self._manager.get_kernel(kernel_id) if kernel_id in self._manager else None
        if kernel is None or not kernel.has_kernel or kernel.shutting_down:
            return None
        return kernel if getattr(kernel, "stays_dead_for", None) is None else None

    def _terms(self, kernel_id: str, watch: Watch) -> Terms:
        limits = self._guard.limits
        return Terms(
            self._allowance(kernel_id, watch).execution_timeout,
            limits.warn_at,
            limits.grace,
            reachable=watch.execution.subshell is None,
        )

    def _allowance(self, kernel_id: str, watch: Watch) -> Allowance:
        allowance = self._guard.allowance_of(kernel_id)
        return allowance if watch.asked is None else allowance.for_execution(watch.asked)[0]

    def _figures(self, kernel_id: str, watch: Watch) -> tuple[float, float]:
        allowed = self._allowance(kernel_id, watch).execution_timeout
        return allowed, watch.execution.ran(time.monotonic())

    def _breach(self, kernel_id: str, watch: Watch, outcome: str) -> Breach:
        allowed, seen = self._figures(kernel_id, watch)
        return Breach(LIMIT, allowed, seen, time.time(), outcome)

    def _restores(self, kernel_id: str) -> bool:
        return self._guard.limits.on_breach == "restore" and bool(self._manager.forking.checkpoints_of(kernel_id))

    def _future(self, kernel_id: str) -> str:
        return "restored from its last checkpoint" if self._restores(kernel_id) else "restarted and loses its variables"

    def _last_words(self, breach: Breach, *, restore: bool) -> str:
        end = (
            "The kernel goes back to its last checkpoint; what came after it is lost."
            if restore
            else "The kernel is restarted; its variables are lost."
        )
        return f"Execution time: {human(LIMIT, breach.allowed)} allowed, and the cell did not stop. {end}"


async def is_at_rest(kernel: Any) -> bool:
    """Whether the main shell of *kernel* runs nothing: it answers."""
    provisioner = getattr(kernel, "pooled", None)
    process = provisioner.claimed if provisioner is not None else None
    if process is not None:
        return bool(await process.check(AT_REST_TIMEOUT))
    client = kernel.client()
    client.start_channels(iopub=False, stdin=False, control=False, hb=False)
    try:
        asked = client.kernel_info()
        async with asyncio.timeout(AT_REST_TIMEOUT):
            while (await client.get_shell_msg())["parent_header"].get("msg_id") != asked:
                pass
    except (TimeoutError, Empty):
        return False
    finally:
        client.stop_channels()
    return True
