"""The descriptors that a kernel opens for itself: its loops', its threads', ZeroMQ's.

A fork must close its copies: peers would see no end, ports would stay taken, and an epoll descriptor is the
parent's own even in the child (so no loop may be closed there, and nothing unregistered). Which ones they are
is known from when they were made, from the live ZeroMQ sockets, and from the kernel's own addresses; what the
user opened stays.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any

import zmq

from .files import open_descriptors, same


class Machinery:
    """What this process opened between the making of this object and `note`."""

    def __init__(self) -> None:
        self._before = set(open_descriptors())
        self._objects: list[dict[str, Any]] = []
        self.noted: dict[int, os.stat_result] = {}

    def note(self, app: Any) -> None:
        """The kernel of *app* has been made: what is open now and was not before is its own."""
        self.noted = {fd: facts for fd, facts in open_descriptors().items() if fd not in self._before}
        # Whoever keeps this object keeps theirs: copied now, it costs a fork no touch of a page.
        for owner in (app, app.kernel):
            self._objects += [dict(vars(owner)), dict(owner._trait_values)]

    def find(self, app: Any, opened: dict[int, os.stat_result]) -> set[int]:
        """Those of the descriptors *opened* that are of *app*'s kernel.

        A fork closes them; the objects that hold them must not be used there again.
        """
        doomed = {fd for fd, facts in self.noted.items() if fd in opened and same(facts, opened[fd])}
        for context in (app.context, app.heartbeat.context):
            for zmq_socket in list(context._sockets):
                with contextlib.suppress(zmq.ZMQError):
                    doomed.add(zmq_socket.getsockopt(zmq.FD))  # a plain read, so it may be another thread's socket
        channels = getattr(app, "shell_channel_thread", None)
        if channels is not None and channels._manager is not None:
            for subshell in channels._manager._cache.values():
                doomed |= _descriptors_of_loop(subshell.io_loop.asyncio_loop)
        return (doomed | _connections_of(app, opened)) & opened.keys()


def _connections_of(app: Any, opened: dict[int, os.stat_result]) -> set[int]:
    """The sockets among *opened* that have one end at an address of the kernel's."""
    ports = set(app._ports.values())
    pipe = getattr(app.iopub_thread, "_pipe_port", None)
    tcp = {port for port in (*ports, pipe) if port}
    paths = {f"{app.ip}-{port}" for port in ports}
    found = set()
    for fd, facts in opened.items():
        if not stat.S_ISSOCK(facts.st_mode):
            continue
        try:
            probe = socket.socket(fileno=fd)
        except OSError:  # another thread closed it
            continue
        try:
            addresses = [probe.getsockname()]
            with contextlib.suppress(OSError):
                addresses.append(probe.getpeername())
            family = probe.family
        except OSError:
            continue
        finally:
            probe.detach()
        if family in (socket.AF_INET, socket.AF_INET6):
            if any(address[1] in tcp for address in addresses):
                found.add(fd)
        elif family == socket.AF_UNIX and paths.intersection(map(str, addresses)):
            found.add(fd)
    return found


def _descriptors_of_loop(loop: Any) -> set[int]:
    return {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}
