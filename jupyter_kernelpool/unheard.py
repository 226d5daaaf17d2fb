"""Executions that a kernel was asked for and says nothing of, though it is at rest: it has lost them.

ipykernel does so where an interrupt comes while it takes a request up, before it says that it is busy: the request is
gone, and its client would wait for ever. That a kernel is at rest once says little: between two messages of a queue it
is, too. It has lost what two looks found, if it was heard to work on nothing in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from typing import Any

from jupyter_kernelpool.clock import is_at_rest
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ledger import Ledger

LOST_AFTER = 15.0  # seconds; a restart may hold what is asked for meanwhile for 10
AGAIN_AFTER = 5.0

log = logging.getLogger("jupyter_kernelpool")


class Unheard:
    """For all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, edge: Edge) -> None:
        self._manager = manager
        self._edge = edge
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._suspects: dict[str, tuple[float, set[str]]] = {}  # what the last look found, and when it had last worked
        self._acts: set[asyncio.Task[None]] = set()
        self._closed = False
        edge.on_ledger.append(self._follow)

    async def close(self) -> None:
        """The server stops."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for task in list(self._acts):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        ledger.on_expect.append(functools.partial(self._look_later, kernel_id, ledger, LOST_AFTER))

    def _look_later(self, kernel_id: str, ledger: Ledger, seconds: float) -> None:
        if kernel_id not in self._timers and not self._closed:
            loop = asyncio.get_running_loop()
            self._timers[kernel_id] = loop.call_later(seconds, self._look, kernel_id, ledger)

    def _look(self, kernel_id: str, ledger: Ledger) -> None:
        del self._timers[kernel_id]
        task = asyncio.create_task(self._ask(kernel_id, ledger), name="kernelpool-unheard")
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)

    async def _ask(self, kernel_id: str, ledger: Ledger) -> None:
        worked_at, former = self._suspects.pop(kernel_id, (0.0, set[str]()))
        try:
            overdue = ledger.unheard(time.monotonic() - LOST_AFTER)
            if overdue and kernel_id in self._manager and await is_at_rest(self._manager.get_kernel(kernel_id)):
                found = set(overdue).intersection(ledger.unheard(time.monotonic()))
                for msg_id in found & former if ledger.worked_at == worked_at else ():
                    log.warning("Kernel %s: it has lost a request to execute, and is at rest", kernel_id)
                    ledger.lose(msg_id)
                    for connection in self._edge.connections(kernel_id):
                        connection.ended(msg_id)
                self._suspects[kernel_id] = ledger.worked_at, found
        except Exception:
            log.exception("Kernel %s: whether it has lost a request could not be seen", kernel_id)
        if ledger.owes and kernel_id in self._manager:  # also while another runs: it may be lost all the same
            self._look_later(kernel_id, ledger, AGAIN_AFTER)
        else:
            self._suspects.pop(kernel_id, None)
