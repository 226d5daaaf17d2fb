"""Holds executions to their output limit as far as that needs no client: tells, interrupts, ends what prints on.

What each client gets of it is the business of its `gate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from jupyter_kernelpool.allowance import Breach, human
from jupyter_kernelpool.clock import is_at_rest
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.guard import Guard
from jupyter_kernelpool.ledger import Execution, Ledger
from jupyter_kernelpool.output import REMEMBERED, Budget, Pass

LIMIT = "output"
LEAST_GRACE = 0.5  # seconds until what was printed before the interrupt has come
PRINTS_ON = 0.1  # share of the limit that is more than last words
LOOK_EVERY = 0.05
ANSWERED_WITHIN = 0.1  # seconds in which an answer comes that was given before output that has come: on another channel

log = logging.getLogger("jupyter_kernelpool")


@dataclass
class Watched:
    """One execution: its budget, as a client has it that was there from the beginning, and what was done."""

    budget: Budget = field(default_factory=Budget)
    warned: bool = False
    noted: bool = False
    stopping: bool = False


class OutputWatch:
    """The output of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, guard: Guard, edge: Edge, events: Events) -> None:
        self._manager = manager
        self._guard = guard
        self._edge = edge
        self._events = events
        self._asked: dict[str, OrderedDict[str, Any]] = {}  # limits that the last executions asked for, by kernel
        self._stops: set[asyncio.Task[None]] = set()
        edge.on_ledger.append(self._follow)

    def limited(self, kernel_id: str) -> bool:
        """Whether the output of any execution of the kernel may have a limit."""
        asked = self._asked.get(kernel_id) or self._edge.requested.get(kernel_id)
        return bool(asked or self._guard.allowances.of(kernel_id).output)

    def limit_of(self, kernel_id: str, msg_id: str) -> int:
        """How much the execution may put out; 0: as much as it likes."""
        allowance = self._guard.allowances.of(kernel_id)
        for asked in (self._asked.get(kernel_id, {}), self._edge.requested.get(kernel_id, {})):
            if msg_id in asked:
                return allowance.for_execution(asked[msg_id])[0].output
        return allowance.output

    def budgets_of(self, kernel_id: str) -> dict[str, Budget]:
        """How far each running execution has come, by msg_id: for a client that was not there from the beginning."""
        executions = self._edge.ledger(kernel_id).executions
        return {msg_id: one.notes[LIMIT].budget for msg_id, one in executions.items() if LIMIT in one.notes}

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone."""
        self._asked.pop(kernel_id, None)

    async def close(self) -> None:
        """The server stops."""
        for task in list(self._stops):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- what is heard ------------------------------------------------------------------------------

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        ledger.on_begin.append(functools.partial(self._began, kernel_id))
        ledger.on_output.append(functools.partial(self._heard, kernel_id, ledger))

    def _began(self, kernel_id: str, execution: Execution) -> None:
        asked = self._edge.requested.get(kernel_id, {}).get(execution.msg_id)
        if asked is not None:  # remembered beyond its end, which a client may hear of later than the server
            remembered = self._asked.setdefault(kernel_id, OrderedDict())
            remembered[execution.msg_id] = asked
            if len(remembered) > REMEMBERED:
                remembered.popitem(last=False)

    def _heard(self, kernel_id: str, ledger: Ledger, execution: Execution, kind: str, size: int, display: str) -> None:
        limit = self.limit_of(kernel_id, execution.msg_id)
        if not limit:
            return
        watched: Watched = execution.notes.setdefault(LIMIT, Watched())
        verdict = watched.budget.judge(kind, size, limit, display)
        if not isinstance(verdict, Pass) and not watched.noted:
            watched.noted = True
            self._guard.consequences.note(kernel_id, _breach(execution, limit, "truncated"))
        elif watched.budget.kept >= self._guard.limits.warn_at * limit and not (watched.warned or watched.noted):
            watched.warned = True
            self._warn(kernel_id, execution, watched.budget.kept, limit)
        # A signal reaches the main shell only: what prints in a subshell is left out, and goes on.
        if watched.budget.goes_on(limit) and not watched.stopping and execution.subshell is None:
            watched.stopping = True
            task = asyncio.create_task(
                self._stop(kernel_id, ledger, execution, watched, limit), name="kernelpool-output"
            )
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    # -- what is done -------------------------------------------------------------------------------

    def _warn(self, kernel_id: str, execution: Execution, kept: int, limit: int) -> None:
        text = f"Output: {human(LIMIT, kept)} of {human(LIMIT, limit)} used."
        self._edge.say(kernel_id, text, execution.header)
        self._events.emit(
            "warned", kernel_id, now=time.time(), reason=text, limit=LIMIT, allowed=float(limit), seen=float(kept)
        )

    async def _stop(self, kernel_id: str, ledger: Ledger, execution: Execution, watched: Watched, limit: int) -> None:
        """Interrupt what prints on, and end the kernel if that does not help; its last words are let pass."""
        if await _ends(ledger, execution, ANSWERED_WITHIN):  # else the interrupt would hit the next cell
            return
        try:
            if await self._prints_on(kernel_id, ledger, execution, watched.budget, limit):
                await self._guard.consequences.kill(kernel_id, _breach(execution, limit, "killed"))
            else:
                watched.budget.produced, watched.stopping = limit, False
        except Exception:
            log.exception("Kernel %s: an execution that prints on could not be stopped", kernel_id)

    async def _prints_on(
        self, kernel_id: str, ledger: Ledger, execution: Execution, budget: Budget, limit: int
    ) -> bool:
        """Whether *execution* goes on printing after an interrupt."""
        grace = max(self._guard.limits.grace, LEAST_GRACE)
        breach = _breach(execution, limit, "interrupted")
        self._guard.consequences.note(kernel_id, breach)
        self._edge.say(
            kernel_id,
            f"{breach}. Interrupted; the kernel is ended if it prints on for {grace:g} s.",
            execution.header,
        )
        kernel = self._manager.get_kernel(kernel_id)
        await kernel.interrupt_kernel()
        if await _ends(ledger, execution, grace / 2):
            return False
        before = budget.produced
        if await _ends(ledger, execution, grace / 2) or budget.produced - before <= PRINTS_ON * limit:
            return False
        # At rest, it only has not yet been heard to the end.
        return not await is_at_rest(kernel) and _runs(ledger, execution)


def _runs(ledger: Ledger, execution: Execution) -> bool:
    """Not once it is answered, though more that it printed may be to come."""
    return ledger.find(execution.msg_id) is execution and not execution.answered


async def _ends(ledger: Ledger, execution: Execution, timeout: float) -> bool:
    """Whether the execution ends within *timeout* seconds, or its process does."""
    deadline = time.monotonic() + timeout
    while _runs(ledger, execution):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(LOOK_EVERY)
    return True


def _breach(execution: Execution, limit: int, outcome: str) -> Breach:
    return Breach(LIMIT, limit, execution.output, time.time(), outcome)
