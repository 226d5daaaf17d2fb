"""The server's end of a private socket: messages of `kernelside.wire`, on the event loop, without blocking."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jupyter_kernelpool.kernelside import wire

if sys.platform == "linux":
    import fcntl
    import termios

log = logging.getLogger("jupyter_kernelpool")
READ_SIZE = 65536


class Channel:
    """Calls *on_message* for each message and *on_close* once, when the other side is gone or talks nonsense.

    A message that says `"fds": n` came with n descriptors: they are its "descriptors" then, and belong to whoever
    takes the message. Must be made on the event loop. Sending is synchronous (what the socket's buffer does not
    take is sent as soon as it does), so a caller can decide and send without an await in between.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[dict[str, Any]], None],
        on_close: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_close = on_close
        self._decoder = wire.Decoder()
        self._unsent = bytearray()
        self._descriptors: list[int] = []
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send *message* with dups of *fds*. Raises `ConnectionError` when the other side is gone."""
        if self.closed:
            raise ConnectionResetError("the other side is gone")
        data = wire.encode(message)
        try:
            if fds:
                if self._unsent:
                    raise ConnectionError("the other side is too slow to be handed descriptors")
                sent = socket.send_fds(self._sock, [data], list(fds))
            elif self._unsent:
                sent = 0
            else:
                sent = self._sock.send(data)
        except BlockingIOError as full:
            if fds:
                raise ConnectionError("the other side is too slow to be handed descriptors") from full
            sent = 0
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.add_writer(self._sock.fileno(), self._write)

    @property
    def is_unread(self) -> bool:
        """Whether the other side has not read all that it was sent; false where that can't be told."""
        if self.closed or sys.platform != "linux":
            return False
        if self._unsent:
            return True
        try:
            # For Unix sockets, too, if undocumented: `unix_outq_len` in Linux' net/unix/af_unix.c. A message that was
            # read in part counts.
            (left,) = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return False
        return bool(left)

    def close(self) -> None:
        """Let go; the other side sees the end of file. `on_close` is not called for it."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            while self._descriptors:
                os.close(self._descriptors.pop())

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._lost()
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, READ_SIZE, wire.MAX_FDS, wire.CLOSE_ON_EXEC)
            self._descriptors += descriptors
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        try:
            messages = self._decoder.feed(data)
        except (ValueError, wire.WireError):
            log.exception("A private socket carried something that is no message; it is closed")
            self._lost()
            return
        for message in messages:
            if not self.closed:  # by the message before
                count = message.get("fds", 0)
                if count:
                    message["descriptors"], self._descriptors = self._descriptors[:count], self._descriptors[count:]
                self._on_message(message)

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._on_close()
