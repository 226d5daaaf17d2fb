"""Bounds by bytes what ZeroMQ holds of a kernel's output before the server's event loop gets to it.

ZeroMQ counts messages (a thousand for each subscriber), and a thousand images are a gigabyte. What does not fit waits
in the kernel, whose own bound is the higher for that (`kernelside/app.py`): no more is dropped than with stock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import zmq

MESSAGES = 64  # waiting for the server, whatever their size
BYTES = 16 << 20
FEWEST = 2  # with one, ZeroMQ's thread and the loop would wait for each other in turns


class Backlog:
    """That of one socket subscribed to iopub. Called in the loop's thread, like all that uses the socket.

    Large messages lower the number that may wait, and nothing raises it again: a queue that is full when its bound is
    raised may stay asleep, since libzmq (`pipe.cpp`) wakes its writer only whenever half the new bound was read.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._most = MESSAGES
        socket.setsockopt(zmq.RCVHWM, MESSAGES)  # reaches connections that there are: libzmq's `update_pipe_options`

    def heard(self, parts: Sequence[Any]) -> None:
        """A message came; more like it are expected."""
        most = fitting(sum(len(part) for part in parts))
        if most < self._most:
            self._most = most
            self._socket.setsockopt(zmq.RCVHWM, most)


def fitting(size: int) -> int:
    """How many messages of *size* bytes may wait."""
    return max(FEWEST, min(MESSAGES, BYTES // max(size, 1)))


def note(stream: Any, parts: Sequence[Any]) -> None:
    """*parts* came over *stream*, whose backlog is bounded if the kernel is the pool's."""
    backlog: Backlog | None = getattr(stream, "backlog", None)
    if backlog is not None:
        backlog.heard(parts)
