"""Whether something can be done to a kernel's process now: fork it, put another in its place; and why not.

Asked, or waited for a moment, before `forking` and `undo` do anything. Nothing is changed here.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from jupyter_kernelpool.errors import Busy, CannotFork, KernelPoolError, NotFound, WrongState
from jupyter_kernelpool.lineage import Lineage
from jupyter_kernelpool.process import Process

REST_TIMEOUT = 0.4
SERVING_TIMEOUT = 1.0
END_IS_TOLD_WITHIN = 0.2


class Forkable:
    """Which kernels of *manager*, the server's kernel manager, can be forked or replaced by a relative in *lineage*."""

    def __init__(self, manager: Any, lineage: Lineage) -> None:
        self._manager = manager
        self._lineage = lineage

    def why_not(self, kernel_id: str) -> str | None:
        """Why the kernel can't be forked, or None if it can."""
        try:
            self.process_of(kernel_id)
        except KernelPoolError as error:
            return str(error)
        return None

    def process_of(self, kernel_id: str) -> Process:
        """The process behind a kernel that can be forked now; else raises why not."""
        if kernel_id not in self._manager:
            raise NotFound(f"there is no kernel {kernel_id!r}", kernel=kernel_id)
        provisioner = getattr(self._manager.get_kernel(kernel_id), "pooled", None)
        process: Process | None = provisioner.claimed if provisioner is not None else None
        if process is None and provisioner is not None and provisioner.process is None:
            raise WrongState(f"kernel {kernel_id} is starting", reason="starting")
        if process is None:
            raise CannotFork(f"kernel {kernel_id} can't be forked: it was not started by the pool", reason="not_pooled")
        if not process.alive:
            raise WrongState(f"kernel {kernel_id} is dead", reason="dead")
        if process.unforkable is not None:
            raise CannotFork(f"kernel {kernel_id} can't be forked: {process.unforkable}", reason="unforkable")
        if not process.serving.done():
            raise WrongState(f"kernel {kernel_id} is starting", reason="starting")
        return process

    async def until_serving(self, kernel_id: str) -> None:
        """Wait until a process that was given to the kernel serves: Jupyter answers some milliseconds before, as when
        it was restarted."""
        kernel = self._manager.get_kernel(kernel_id) if kernel_id in self._manager else None
        provisioner = getattr(kernel, "pooled", None)
        process: Process | None = provisioner.claimed if provisioner is not None else None
        if process is not None and process.alive:
            await asyncio.wait([process.serving], timeout=SERVING_TIMEOUT)

    async def serving_process_of(self, kernel_id: str) -> Process:
        """As `process_of`, once it serves."""
        await self.until_serving(kernel_id)
        return self.process_of(kernel_id)

    def replaceable(self, kernel_id: str) -> Any:
        """The manager of a kernel in which another process may take the place of the present one; else raises why not.

        The present one may also have ended, or have been started cold after that: the kernel gets its state back then.
        """
        if kernel_id not in self._manager:
            raise NotFound(f"there is no kernel {kernel_id!r}", kernel=kernel_id)
        kernel = self._manager.get_kernel(kernel_id)
        provisioner = getattr(kernel, "pooled", None)
        has_relatives = self._lineage.find(kernel_id) is not None
        if provisioner is None or not (provisioner.lost_its_state and has_relatives):
            self.process_of(kernel_id)
        return kernel


async def until_at_rest(kernel: Any, timeout: float = REST_TIMEOUT) -> None:
    """Raise `Busy` if a cell runs or waits. The kernel says the former; the latter is told by its status, which
    may reach the server a moment after the reply has reached the client. A dead process runs nothing."""
    process = kernel.pooled.process if kernel.pooled is not None else None
    answers = True
    if isinstance(process, Process) and not await process.check(timeout):
        answers = False  # a cell computes, or the process has just ended, which its supervisor is about to tell
        await asyncio.wait([process.exited], timeout=END_IS_TOLD_WITHIN)
    deadline = time.monotonic() + REST_TIMEOUT
    while process is not None and process.poll() is None and not (answers and kernel.execution_state != "busy"):
        if not answers or time.monotonic() > deadline:
            raise Busy("a cell is running; interrupt it first, or wait")
        await asyncio.sleep(REST_TIMEOUT / 20)
