"""Checkpoints as parked processes: forks of a live kernel that wait, with its whole state, to be forked again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.copies import Order
from jupyter_kernelpool.errors import CannotFork, LaunchFailed
from jupyter_kernelpool.launchers.forks import Forks
from jupyter_kernelpool.lifecycle import Record
from jupyter_kernelpool.metrics import record_born
from jupyter_kernelpool.process import Process, retrieve, until_ready
from jupyter_kernelpool.supervision import Supervision

READY_TIMEOUT = 30.0


def new_fork(recipe: str, supervision: Supervision, ours: socket.socket) -> Process:
    """The handle of a kernel process that is to be forked from a live kernel or a parked process."""
    record = Record(recipe=recipe, way="fork", born=time.time())
    record_born(record)
    return Process(record, supervision, ours)


async def fork_live(
    process: Process, supervision: Supervision, *, reseed: bool, timeout: float, files: Order | None = None
) -> Process:
    """Fork the kernel *process* into a warm kernel with its whole state, and with *files* of its own.

    Raises `Busy`, `CannotFork`, `WrongState`, `LaunchFailed`; when cancelled, nothing is left behind.
    """
    ours, its = socket.socketpair()
    fork = new_fork(process.record.recipe, supervision, ours)
    try:
        with its:
            await process.park(its, become=True, reseed=reseed, timeout=timeout, files=_message(files))
        await until_ready(fork, READY_TIMEOUT)
    except BaseException:
        fork.discard("the fork failed")
        raise
    return fork


class Parked:
    """A parked fork of a live kernel, held by its private socket."""

    def __init__(self, recipe: str, supervision: Supervision, ours: socket.socket) -> None:
        """*ours* is the server's end of its socket; it is there when `ready` returns."""
        self.recipe = recipe
        self.pid = 0
        self.manifest: dict[str, Any] = {}
        self.alive = True
        self._supervision = supervision
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(retrieve)
        self._forks = Forks("the checkpoint's process")
        self._channel = Channel(ours, self._heard, self._gone)

    @classmethod
    async def take(
        cls, process: Process, supervision: Supervision, *, timeout: float, files: Order | None = None
    ) -> Parked:
        """Park a fork of the kernel *process*, with *files* of its own; raises as `fork_live`."""
        ours, its = socket.socketpair()
        parked = cls(process.record.recipe, supervision, ours)
        try:
            with its:
                await process.park(its, become=False, timeout=timeout, files=_message(files))
            await parked.ready()
        except BaseException:
            parked.drop()
            raise
        return parked

    async def ready(self) -> None:
        """Wait until it waits for orders. Raises `CannotFork`, `LaunchFailed`; it is to be dropped then."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await asyncio.shield(self._ready)
        except TimeoutError as error:
            raise LaunchFailed(f"the fork was not parked within {READY_TIMEOUT:g} s", reason="timeout") from error

    def when_ready(self, call: Callable[[int], None]) -> None:
        """Have *call* called with its pid once it waits for orders, if it gets there."""
        self._ready.add_done_callback(lambda _: call(self.pid) if self.pid else None)

    async def fork(self, *, reseed: bool = False, files: Order | None = None) -> Process:
        """A warm kernel that goes on from the kept state, with *files* of its own: as they are now.

        Raises `LaunchFailed`, `TooLarge`, `CopyFailed`.
        """
        if not self.alive:
            raise LaunchFailed("the checkpoint's process is gone", reason="gone")
        ours, its = socket.socketpair()
        process = new_fork(self.recipe, self._supervision, ours)
        order = {"ahead": False, "reseed": reseed, "files": _message(files)}
        await self._forks.order(self._channel, process, its, timeout=READY_TIMEOUT, **order)
        return process

    def drop(self) -> None:
        """End the parked process; its forks live on."""
        self.alive = False
        self._channel.close()
        pid, self.pid = self.pid, 0
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _heard(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "ready":
                pid = self.pid = int(message["pid"])
                self._supervision.watch(pid, lambda _: self._ended(pid))
                self.manifest = message["manifest"]
                if not self._ready.done():
                    self._ready.set_result(None)
            case "unfit":
                if not self._ready.done():
                    self._ready.set_exception(CannotFork(message["reason"], reason=message.get("kind", "unfit")))
            case "fork_failed":
                self._forks.failed(message)

    def _ended(self, pid: int) -> None:
        if self.pid == pid:
            self.pid = 0  # not ours to signal any longer
            self._gone()

    def _gone(self) -> None:
        self.alive = False
        self._channel.close()
        if not self._ready.done():
            self._ready.set_exception(LaunchFailed("the fork ended while it was parking", reason="gone"))


def _message(files: Order | None) -> dict[str, object] | None:
    return files.as_message() if files is not None else None
