"""A kernel id's identity: listeners, ports, key and connection file live as long as the id.

The server binds the five listeners of an id and hands dups of them to each process that serves it, one
after the other. So no port can be lost to a race, a client that connects early waits in the backlog
instead of for a reconnect, and a restart changes nothing that a client holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jupyter_client.connect import LocalPortCache

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
# As much as the system allows: where a kernel is dead and not restarted, each client's socket leaves one more
# connection here every 30 s (ZeroMQ's handshake timeout), and one that finds no room comes back a minute later.
BACKLOG = 4096


class Identity:
    """The listeners of one kernel id; *manager* is its KernelManager, which holds ports, key and file.

    *guard* is told of each socket file before it is made, so that none stays when the server is killed.
    """

    def __init__(self, manager: Any, guard: Callable[[Sequence[str]], None] = lambda paths: None) -> None:
        self._manager = manager
        self._guard = guard
        self._listeners: list[socket.socket] = []
        self._reserved: list[socket.socket] = []  # bound, and not listening: a process of stock's has the ports, or may
        self._entered_ports: list[int] = []

    @property
    def bound(self) -> bool:
        """Whether the listeners are ours to hand out."""
        return bool(self._listeners)

    def bind(self) -> bool:
        """Bind what is not bound: the manager's ports where it has some, free ones (entered there) else.

        False, and nothing bound, when that is not possible; the kernel then binds by itself, as stock.
        """
        if self.bound:
            return True
        if self._reserved and [one.getsockname()[1] for one in self._reserved] == self._ports():
            return self._listen_again()
        self._let_go()
        try:
            for channel in CHANNELS:
                self._listeners.append(self._bind_one(channel))
        except OSError:
            self._let_go()
            return False
        return True

    def descriptors(self) -> list[int]:
        """The listeners, in the order of `CHANNELS` (kernelside.channels has the same)."""
        return [listener.fileno() for listener in self._listeners]

    def release(self) -> None:
        """Stop listening, so that a process may bind the ports itself; the ports stay the id's.

        On Linux nobody else gets them meanwhile, however long that process takes: a socket that is bound and does not
        listen keeps its port from all who don't name it, and from nobody who sets SO_REUSEADDR, as libzmq does.
        """
        if all(self._reserve(listener) for listener in self._listeners):
            self._reserved += self._listeners
            self._listeners.clear()
        else:
            self._let_go()

    def ipc_paths(self) -> list[str]:
        """The socket files of an `ipc` identity."""
        manager = self._manager
        if manager.transport != "ipc":
            return []
        return [f"{manager.ip}-{getattr(manager, f'{channel}_port')}" for channel in CHANNELS]

    def close(self) -> None:
        """The id is gone: close listeners, give the ports back, remove ipc files."""
        self._let_go()
        if self._entered_ports:
            in_use = LocalPortCache.instance().currently_used_ports
            in_use.difference_update(self._entered_ports)
            self._entered_ports.clear()
        for path in self.ipc_paths():
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _ports(self) -> list[int]:
        return [getattr(self._manager, f"{channel}_port") for channel in CHANNELS]

    def _let_go(self) -> None:
        for one in (*self._listeners, *self._reserved):
            one.close()
        self._listeners.clear()
        self._reserved.clear()

    def _reserve(self, listener: socket.socket) -> bool:
        """Whether *listener* could be made to listen no more, and to keep its port."""
        if sys.platform != "linux" or self._manager.transport == "ipc":
            return False
        address = listener.getsockname()
        try:
            listener.shutdown(socket.SHUT_RD)
            listener.bind(address)  # one to which the system had given a port has lost it
        except OSError as error:
            return error.errno == errno.EINVAL  # it has it still
        return True

    def _listen_again(self) -> bool:
        """Take the ports back; false where a process listens there."""
        for place, listener in enumerate(self._reserved):
            try:
                listener.listen(BACKLOG)
            except OSError:
                for one in self._reserved[:place]:
                    self._reserve(one)
                return False
        self._listeners, self._reserved = self._reserved, []
        return True

    def _bind_one(self, channel: str) -> socket.socket:
        name = f"{channel}_port"
        port = getattr(self._manager, name)
        if self._manager.transport == "ipc":
            listener, port = self._bind_ipc(port)
        else:
            listener, port = self._bind_tcp(port)
        listener.setblocking(False)  # of the description, so also where libzmq accepts
        listener.listen(BACKLOG)
        setattr(self._manager, name, port)
        return listener

    def _bind_tcp(self, port: int) -> tuple[socket.socket, int]:
        """Listen on *port*; on a free one for 0, but none that a kernel has which is starting and not bound yet."""
        in_use = LocalPortCache.instance().currently_used_ports
        spoken_for: list[socket.socket] = []  # held meanwhile: else the system might offer them again
        try:
            while True:
                listener = self._listen_tcp(port)
                found = listener.getsockname()[1]
                if port or found not in in_use:
                    break
                spoken_for.append(listener)
        finally:
            for other in spoken_for:
                other.close()
        if found not in in_use:
            in_use.add(found)
            self._entered_ports.append(found)
        return listener, found

    def _listen_tcp(self, port: int) -> socket.socket:
        ip = self._manager.ip
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if sys.platform != "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((ip, port))
        except OSError:
            listener.close()
            raise
        return listener

    def _bind_ipc(self, port: int) -> tuple[socket.socket, int]:
        base = self._manager.ip
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if port > 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{base}-{port}")  # our own, of the process before
                listener.bind(f"{base}-{port}")
                return listener, port
            port = 1
            while os.path.exists(f"{base}-{port}"):
                port += 1
            self._guard([f"{base}-{port}"])
            listener.bind(f"{base}-{port}")
        except OSError:
            listener.close()
            raise
        return listener, port
