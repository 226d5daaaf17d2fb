"""The manager of one kernel, which Jupyter calls: what becomes of the kernel is told to the server's manager.

What it does differently from stock is in `prompt`.
"""

from __future__ import annotations

import time
from typing import Any

from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_events import EventLogger
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager
from traitlets import Type, default

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.behind import find_pid
from jupyter_kernelpool.errors import REFUSALS
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.prompt import PromptKernelManager
from jupyter_kernelpool.restarter import PromptRestarter


class PooledKernelManager(ServerKernelManager, PromptKernelManager):
    """The manager of one kernel; *pool* comes from the server's manager, without one it is stock."""

    restarter_class: Any = Type(
        default_value=PromptRestarter,
        klass="jupyter_client.ioloop.IOLoopKernelRestarter",
        config=True,
        help=AsyncIOLoopKernelManager.restarter_class.help,
    )
    temporary = False
    allowance: Allowance | None = None  # of a fork whose parent has limits of its own; until its first start

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Not by attribute: kernels that ran already are adopted while the server's manager is being made.
        pool = self.parent._trait_values.get("pool") if self.parent is not None else None
        self.pool = pool if isinstance(pool, KernelPool) else None
        self.temporary = bool(getattr(self.parent, "_next_is_temporary", False))

    @property
    def _server(self) -> Any:
        """The server's manager; None where that is not ours, and this one is used by itself."""
        return self.parent if hasattr(self.parent, "chronicle") else None

    def kernel_asked_for(self, kernel_id: str) -> None:
        if self._server is not None:
            self._server.chronicle.starts(kernel_id)

    def kernel_did_not_start(self, kernel_id: str, error: BaseException) -> None:
        if self._server is not None:
            ours = isinstance(error, Exception) and not isinstance(error, (*REFUSALS, NoSuchKernel))
            self._server.chronicle.start_failed(kernel_id, error, ours=ours)

    def kernel_did_not_come_back(self, error: Exception) -> None:
        if self._server is None or not self._server.pool.enabled:
            raise error
        self._server.care.aftermath.could_not_restart(self.kernel_id, error)

    def kernel_started(self) -> None:
        if self._server is None:
            return
        if self.pooled is None:
            self._begins_anew()  # ours tells sooner, see `kernel_has_process`
        if self.pooled is None or self.pooled.claimed is None:
            self._server.chronicle.awaits_life(self.kernel_id, "cold" if self.pooled is not None else "other")

    def kernel_restarts(self) -> None:
        (cause, reason), self.restarts_for = self.restarts_for or ("asked", ""), None
        if cause == "asked" and isinstance(self._restarter, PromptRestarter) and self._restarter.at_work:
            cause = "died"
        if self._server is not None:
            self._server.care.aftermath.restarts(self.kernel_id)
            self._server.chronicle.restarts(self.kernel_id, cause, reason)

    def _kernel_exited(self) -> None:
        super()._kernel_exited()
        if self._server is not None and not self.autorestart and not self.shutting_down:
            self._server.care.aftermath.exited(self.kernel_id)

    async def kernel_has_process(self, pid: int) -> None:
        if self._server is not None:
            inherited = getattr(getattr(self.provisioner, "process", None), "inherited", 0)
            await self._server.guard.hold(self.kernel_id, self.kernel_name, pid, inherited, self.allowance)
            self.allowance = None  # from here on the guard knows
            self._begins_anew()

    def output_is_limited(self) -> bool:
        if self._server is None or not self._server.pool.enabled:
            return False
        allowances = self._server.guard.allowances
        return bool(allowances.at_start(self.kernel_id, self.kernel_name, self.allowance).output)

    async def kernel_is_anothers(self) -> None:
        if self._server is None:
            return
        pid, guard = find_pid(self), self._server.guard
        if pid:
            await guard.hold(self.kernel_id, self.kernel_name, pid, own=self.allowance)
        else:
            guard.allowances.refuse_elsewhere(self.kernel_name)

    def _begins_anew(self) -> None:
        """It has another process: what was known of the one before is over."""
        self._server.culler.began(self.kernel_id)
        self.stays_dead_for = self.restarts_for = None
        self.reason = ""
        if getattr(self, "execution_state", "") == "dead":
            self.execution_state = "starting"
        self._server.care.has_process(self.kernel_id)

    async def stays_dead(self) -> bool:
        manager = self._server
        if self.stays_dead_for is not None or manager is None or not manager.pool.enabled:
            return self.stays_dead_for is not None
        if manager.care.aftermath.is_bringing_back(self.kernel_id) or await manager.guard.explain_end(self.kernel_id):
            return True
        return bool(manager.care.aftermath.stays_dead(self.kernel_id))

    def kernel_not_started(self, error: OSError) -> None:
        if self._server is not None:
            self._server.care.starts.failed(self.kernel_name, f"its command can't be executed: {error}")

    async def interrupt_kernel(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As stock; a cell that waited for input does so no more."""
        await super().interrupt_kernel(*args, **kwargs)
        if self._server is not None:
            self._server.edge.ledger(self.kernel_id).goes_on(time.monotonic())

    def what_ran_is_lost(self) -> None:
        if self._server is not None:
            text = f"The kernel {self.kernel_id} died while this ran; it was put back."
            self._server.edge.give_up(self.kernel_id, "KernelDied", text)

    def kernel_serves(self, process: Process) -> None:
        if self._server is not None:
            self._server.edge.clear(self.kernel_id)
            self._server.care.serves(self.kernel_id, beside=process.record.way != "whole")
            self._server.chronicle.serves(self.kernel_id, process.record.way)
            self._server.undo.serves(self.kernel_id, process)
            self._server.wishes.serves(self.kernel_id, process)

    @default("event_logger")
    def _default_event_logger(self) -> EventLogger:
        """As stock, but validates the server's event schemas once, not at each start (5 ms of it)."""
        shared: EventLogger | None = getattr(self.parent, "_kernel_event_logger", None)
        if shared is None or self.extra_event_schema_paths:
            shared = super()._default_event_logger()
            if self._server is not None and not self.extra_event_schema_paths:
                self._server._kernel_event_logger = shared
        return shared
