"""Checkpoints as parked processes: forks of a live kernel that wait, with its whole state, to be forked again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import Any

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.errors import CannotFork, LaunchFailed
from jupyter_kernelpool.launchers.base import Process, retrieve, until_ready
from jupyter_kernelpool.launchers.forks import Forks
from jupyter_kernelpool.lifecycle import Record
from jupyter_kernelpool.metrics import record_born
from jupyter_kernelpool.supervision import Supervision

READY_TIMEOUT = 30.0


def new_fork(recipe: str, supervision: Supervision, ours: socket.socket) -> Process:
    """The handle of a kernel process that is to be forked from a live kernel or a parked process."""
    record = Record(recipe=recipe, way="fork", born=time.time())
    record_born(record)
    return Process(record, supervision, ours)


async def fork_live(process: Process, supervision: Supervision, *, reseed: bool, timeout: float) -> Process:
    """Fork the kernel *process* into a warm kernel with its whole state.

    Raises `Busy`, `CannotFork`, `WrongState`, `LaunchFailed`; when cancelled, nothing is left behind.
    """
    ours, its = socket.socketpair()
    fork = new_fork(process.record.recipe, supervision, ours)
    try:
        with its:
            await process.park(its, become=True, reseed=reseed, timeout=timeout)
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
    async def take(cls, process: Process, supervision: Supervision, *, timeout: float) -> Parked:
        """Park a fork of the kernel *process*; raises as `fork_live`."""
        ours, its = socket.socketpair()
        parked = cls(process.record.recipe, supervision, ours)
        try:
            with its:
                await process.park(its, become=False, timeout=timeout)
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

    async def fork(self, *, reseed: bool = False) -> Process:
        """A warm kernel that goes on from the kept state. Raises `LaunchFailed`."""
        if not self.alive:
            raise LaunchFailed("the checkpoint's process is gone", reason="gone")
        ours, its = socket.socketpair()
        process = new_fork(self.recipe, self._supervision, ours)
        await self._forks.order(self._channel, process, its, timeout=READY_TIMEOUT, ahead=False, reseed=reseed)
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
