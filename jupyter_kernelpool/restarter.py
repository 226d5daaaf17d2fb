"""Auto-restart that does not wait for the next poll: the supervisor tells at once that a kernel ended."""

from __future__ import annotations

import asyncio

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter


class PromptRestarter(AsyncIOLoopKernelRestarter):
    """Stock's restarter, whose polls don't overlap and can be called for."""

    _busy = False
    _poke: asyncio.Task[None] | None = None

    async def poll(self) -> None:  # type: ignore[override]
        """As stock, but never two at once: a restart may take longer than the interval.

        Nor does it look after a kernel of the pool that runs as it should, whose end is reported: with 500 kernels
        the polls took 3 % of a core.
        """
        if self._busy or self._is_settled():
            return
        self._busy = True
        try:
            # Whoever shuts it down meanwhile, or restarts it, has seen to it: another process would be one too many.
            if not await self._stays_dead() and not self.kernel_manager.shutting_down:
                await self._look()
        finally:
            self._busy = False

    async def _look(self) -> None:
        try:
            await super().poll()
        except Exception as error:
            # jupyter_client stopped this restarter before the restart, and begins anew only after a start.
            if not hasattr(self.kernel_manager, "kernel_did_not_come_back"):
                raise
            self.kernel_manager.kernel_did_not_come_back(error)

    async def _stays_dead(self) -> bool:
        """Whether the kernel ended for a limit that it crossed: restarting it would bring it there again."""
        manager = self.kernel_manager
        if not hasattr(manager, "stays_dead") or await manager.is_alive():
            return False
        return bool(await manager.stays_dead())

    @property
    def at_work(self) -> bool:
        """Whether it looks after the kernel just now: a restart meanwhile is its own."""
        return self._busy

    @property
    def gives_up_next(self) -> bool:
        """Whether it has restarted the kernel as often as it may: at the next end Jupyter forgets it."""
        return bool(self._restarting) and self._restart_count >= self.restart_limit

    def _is_settled(self) -> bool:
        provisioner = getattr(self.kernel_manager, "pooled", None)
        process = provisioner.claimed if provisioner is not None else None
        return process is not None and process.alive and not self._initial_startup and not self._restarting

    def poke(self) -> None:
        """The kernel ended: look now, if it is being watched at all."""
        if self._pcallback is not None and not self.kernel_manager.shutting_down:
            self._poke = asyncio.ensure_future(self.poll())
