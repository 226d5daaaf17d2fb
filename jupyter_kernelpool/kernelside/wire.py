"""Messages over a Unix stream socket: four bytes of length, then JSON; file descriptors ride along.

Both ends of every private socket of ours speak this: server and supervisor, server and template, server
and warm kernel. Standard library only. The functions here block; the server's asyncio end is
`jupyter_kernelpool.channel`.
"""

from __future__ import annotations

import array
import json
import socket
import struct
from typing import Any

HEADER = struct.Struct("!I")
MAX_FDS = 16
# What a user's kernel runs (`!command`, os.system) must not hold on to its sockets.
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
MAX_MESSAGE = 64 * 1024 * 1024


class WireError(Exception):
    """The other side sent something that is no message of ours."""


def encode(message: dict[str, Any]) -> bytes:
    """The bytes of *message*, length first."""
    body = json.dumps(message).encode()
    return HEADER.pack(len(body)) + body


class Decoder:
    """Turns received bytes into messages; keeps what is not whole yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take *data*; return the messages that are whole now, in order."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer)
            if size > MAX_MESSAGE:
                raise WireError(f"a message of {size} bytes is announced; {MAX_MESSAGE} is the most")
            end = HEADER.size + size
            if len(self._buffer) < end:
                break
            messages.append(json.loads(self._buffer[HEADER.size : end]))
            del self._buffer[:end]
        return messages


def send(sock: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    """Send *message* and dups of *fds*; blocks until all of it is handed over."""
    data = encode(message)
    sent = socket.send_fds(sock, [data], fds) if fds else 0
    if sent < len(data):
        sock.sendall(data[sent:])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and the file descriptors sent with it, or None when the other side is gone.

    Reads not a byte past the message, so descriptors stay with the message they came with.
    """
    fds: list[int] = []
    header = _exactly(sock, HEADER.size, fds)
    if header is None:
        return None
    (size,) = HEADER.unpack(header)
    if size > MAX_MESSAGE:
        raise WireError(f"a message of {size} bytes is announced; {MAX_MESSAGE} is the most")
    body = _exactly(sock, size, fds)
    if body is None:
        return None
    return json.loads(body), fds


def _exactly(sock: socket.socket, size: int, fds: list[int]) -> bytes | None:
    chunks = bytearray()
    room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
    while len(chunks) < size:
        try:
            data, ancillary, _flags, _address = sock.recvmsg(size - len(chunks), room, CLOSE_ON_EXEC)
        except ConnectionResetError:
            return None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                fds.extend(received)
        if not data:
            return None
        chunks += data
    return bytes(chunks)
