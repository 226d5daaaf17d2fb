"""Kernels forked on order by a process that waits for that: a template, or a parked kernel."""

from __future__ import annotations

import itertools
import socket
from typing import Any

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.process import Process, until_ready


class Forks:
    """The forks that are under way; *maker* names the process in errors."""

    def __init__(self, maker: str) -> None:
        self._maker = maker
        self._under_way: dict[int, Process] = {}
        self._ids = itertools.count(1)

    async def order(
        self, channel: Channel, process: Process, its: socket.socket, *, timeout: float, **order: Any
    ) -> None:
        """Have the process behind *channel* fork *process*, and wait until it is warm; *its* is its socket's end.

        Raises `LaunchFailed`; whatever is raised, *process* has ended.
        """
        number = next(self._ids)
        self._under_way[number] = process
        try:
            with its:
                channel.send({"op": "fork", "id": number, **order}, [its.fileno()])
            await until_ready(process, timeout)
        except ConnectionError as error:
            process.discard(f"{self._maker} is gone")
            raise LaunchFailed(f"{self._maker} is gone", reason="gone") from error
        except BaseException:
            process.discard("the fork failed")
            raise
        finally:
            self._under_way.pop(number, None)

    def failed(self, message: dict[str, Any]) -> None:
        """The maker said `fork_failed`."""
        process = self._under_way.get(message["id"])
        if process is not None and not process.ready.done():
            process.ready.set_exception(LaunchFailed(f"{self._maker} could not fork: {message['error']}"))
