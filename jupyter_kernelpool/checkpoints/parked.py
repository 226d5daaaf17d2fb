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
from jupyter_kernelpool.launchers.base import Process, until_ready
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

    def __init__(self, recipe: str, supervision: Supervision) -> None:
        self.recipe = recipe
        self.pid = 0
        self.manifest: dict[str, Any] = {}
        self.alive = True
        self._supervision = supervision
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._forks = Forks("the checkpoint's process")
        self._channel: Channel | None = None

    @classmethod
    async def take(cls, process: Process, supervision: Supervision, *, timeout: float) -> Parked:
        """Park a fork of the kernel *process*; raises as `fork_live`."""
        parked = cls(process.record.recipe, supervision)
        ours, its = socket.socketpair()
        parked._channel = Channel(ours, parked._heard, parked._gone)
        try:
            with its:
                await process.park(its, become=False, timeout=timeout)
            async with asyncio.timeout(READY_TIMEOUT):
                await parked._ready
        except TimeoutError as error:
            parked.drop()
            raise LaunchFailed(f"the fork was not parked within {READY_TIMEOUT:g} s", reason="timeout") from error
        except BaseException:
            parked.drop()
            raise
        return parked

    async def fork(self, *, reseed: bool = False) -> Process:
        """A warm kernel that goes on from the kept state. Raises `LaunchFailed`."""
        if self._channel is None or not self.alive:
            raise LaunchFailed("the checkpoint's process is gone", reason="gone")
        ours, its = socket.socketpair()
        process = new_fork(self.recipe, self._supervision, ours)
        await self._forks.order(self._channel, process, its, timeout=READY_TIMEOUT, ahead=False, reseed=reseed)
        return process

    def drop(self) -> None:
        """End the parked process; its forks live on."""
        self.alive = False
        if self._channel is not None:
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
        if self._channel is not None:
            self._channel.close()
        if not self._ready.done():
            self._ready.set_exception(LaunchFailed("the fork ended while it was parking", reason="gone"))
            self._ready.exception()
