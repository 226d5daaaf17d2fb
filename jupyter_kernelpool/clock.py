"""The execution clock: a cell that runs longer than it may, or is silent for longer, is interrupted, and where that
does not help its kernel is replaced.

`overtime` says what comes next for one execution; here it is done, with one timer for each that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from queue import Empty
from typing import Any

from jupyter_kernelpool.allowance import Allowance, Breach, human
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.guard import Guard
from jupyter_kernelpool.ledger import Execution, Ledger
from jupyter_kernelpool.overtime import (
    LEAST_GRACE,
    RUNNING,
    SILENT,
    Interrupt,
    Replace,
    Report,
    Standing,
    Step,
    Terms,
    Wait,
    Warn,
    decide,
)
from jupyter_kernelpool.process import Process, taking_no_cells

MEASURES = {RUNNING: "Execution time", SILENT: "Time without output"}
AT_REST_TIMEOUT = 0.5
REPORTED_WITHIN = 5.0
SILENT_AFTER = 1.0  # seconds after which a kernel that does not say that it runs what it was asked to is taken to

log = logging.getLogger("jupyter_kernelpool")


@dataclass
class Watch:
    """One execution that runs: the limits that it asked for, what is under way for it."""

    execution: Execution
    asked: Any
    standing: Standing = field(default_factory=Standing)
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
        self._silences: dict[str, asyncio.TimerHandle] = {}  # of kernels that are to begin an execution
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
        for timer in self._silences.values():
            timer.cancel()
        self._silences.clear()
        for task in list(self._acts):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- what is heard ------------------------------------------------------------------------------

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        ledger.on_begin.append(functools.partial(self._began, kernel_id))
        ledger.on_pause.append(functools.partial(self._look, kernel_id))
        ledger.on_end.append(functools.partial(self._ended, kernel_id))
        ledger.on_expect.append(functools.partial(self._expect, kernel_id, ledger))

    def _expect(self, kernel_id: str, ledger: Ledger, seconds: float = SILENT_AFTER) -> None:
        if kernel_id not in self._silences and not self._closed:
            loop = asyncio.get_running_loop()
            self._silences[kernel_id] = loop.call_later(seconds, self._heed_silence, kernel_id, ledger)

    def _heed_silence(self, kernel_id: str, ledger: Ledger) -> None:
        del self._silences[kernel_id]
        kernel = self._kernel(kernel_id)
        process = process_of(kernel) if kernel is not None else None
        engaged = kernel is None or (process is not None and process.is_forking)
        seconds = ledger.presume(SILENT_AFTER, time.monotonic(), engaged=engaged)
        if seconds is not None:
            self._expect(kernel_id, ledger, seconds)

    def _began(self, kernel_id: str, execution: Execution) -> None:
        if self._closed:
            return
        asked = self._edge.requested.get(kernel_id, {}).get(execution.msg_id)
        self._watches[kernel_id, execution.msg_id] = Watch(execution, asked)
        if asked is not None:
            for refusal in self._guard.allowances.for_execution(kernel_id, asked)[1]:
                self._edge.say(kernel_id, refusal, execution.header)
        self._look(kernel_id, execution)

    def _changed(self, kernel_id: str) -> None:
        for execution in list(self._edge.ledger(kernel_id).executions.values()):
            self._look(kernel_id, execution)

    def _ended(self, kernel_id: str, execution: Execution) -> None:
        ledger = self._edge.ledger(kernel_id)
        if ledger.expected:
            self._expect(kernel_id, ledger)
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
        match step:
            case Warn(limit):
                allowed, seen = self._terms(kernel_id, watch).figures(limit, execution, time.monotonic())
                text = f"{MEASURES[limit]}: {human(limit, seen)} of {human(limit, allowed)} used."
                self._edge.say(kernel_id, text, execution.header)
                figures = {"limit": limit, "allowed": allowed, "seen": seen}
                self._events.emit("warned", kernel_id, now=time.time(), reason=text, **figures)
            case Report():
                text = f"{self._allows(kernel_id, watch)}. It goes on: an interrupt would not reach its subshell."
                self._edge.say(kernel_id, text, execution.header)
                self._guard.consequences.note(kernel_id, self._breach(kernel_id, watch, "reported"))
            case Interrupt(again):
                execution.limit = watch.standing.limit
                if not again:
                    self._edge.say(
                        kernel_id,
                        f"{self._allows(kernel_id, watch)}. Interrupted; if that does not help within "
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
        process = process_of(kernel)
        with taking_no_cells(process):  # what comes from now on is for the next process, and held until that serves
            await self._end(kernel_id, watch, process)

    async def _end(self, kernel_id: str, watch: Watch, process: Process | None) -> None:
        restore, breach = self._restores(kernel_id), self._breach(kernel_id, watch, "killed")
        await self._guard.consequences.end_for(kernel_id, breach)
        if process is not None:
            await asyncio.wait([process.exited], timeout=REPORTED_WITHIN)
        self._edge.give_up(kernel_id, "ExecutionTimeout", last_words(breach, restore=restore))
        self._edge.declare_restarting(kernel_id)
        self._manager.get_kernel(kernel_id).execution_state = "starting"
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
        allowance = self._allowance(kernel_id, watch)
        return Terms(
            allowance.execution_timeout,
            limits.warn_at,
            limits.grace,
            reachable=watch.execution.subshell is None,
            silence=allowance.idle_output_timeout,
        )

    def _allowance(self, kernel_id: str, watch: Watch) -> Allowance:
        allowance = self._guard.allowances.of(kernel_id)
        return allowance if watch.asked is None else allowance.for_execution(watch.asked)[0]

    def _allows(self, kernel_id: str, watch: Watch) -> str:
        return allows(self._breach(kernel_id, watch, ""))

    def _breach(self, kernel_id: str, watch: Watch, outcome: str) -> Breach:
        """Of the limit that the execution reached. What an interrupt makes it say does not undo its silence."""
        limit, now = watch.standing.limit, time.monotonic()
        allowed, seen = self._terms(kernel_id, watch).figures(limit, watch.execution, now)
        return Breach(limit, allowed, max(seen, allowed), time.time(), outcome)

    def _restores(self, kernel_id: str) -> bool:
        return self._guard.limits.on_breach == "restore" and bool(self._manager.forking.checkpoints_of(kernel_id))

    def _future(self, kernel_id: str) -> str:
        return "restored from its last checkpoint" if self._restores(kernel_id) else "restarted and loses its variables"


def allows(breach: Breach) -> str:
    """What the limit on time allows, as a sentence without its end."""
    return f"{MEASURES[breach.limit]}: {human(breach.limit, breach.allowed)} allowed"


def last_words(breach: Breach, *, restore: bool) -> str:
    """What everybody is told whose cell ran or waited in a process that was ended."""
    end = (
        "The kernel goes back to its last checkpoint; what came after it is lost."
        if restore
        else "The kernel is restarted; its variables are lost."
    )
    return f"{allows(breach)}, and the cell did not stop. {end}"


def process_of(kernel: Any) -> Process | None:
    """The pool's process behind *kernel*; None where it is stock's."""
    provisioner = getattr(kernel, "pooled", None)
    return provisioner.claimed if provisioner is not None else None


async def is_at_rest(kernel: Any) -> bool:
    """Whether the main shell of *kernel* runs nothing: it answers."""
    process = process_of(kernel)
    if process is not None:
        return await process.check(AT_REST_TIMEOUT)
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
