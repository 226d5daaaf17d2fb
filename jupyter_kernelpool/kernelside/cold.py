"""What an ipykernel that starts the stock way has of ours where its output has a limit: the streams, and what it holds.

It is as stock made it for the rest, and so where it can't be had: nothing here may keep a kernel from starting.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import zmq
from ipykernel.kernelapp import IPKernelApp

from . import pieces
from .channels import HELD

# No subclass: traitlets would file what comes by the command line under its name, and there are libraries that look for
# `IPKernelApp` in the configuration.


def hold_more(application: type[IPKernelApp] = IPKernelApp) -> None:
    """Have every *application* hold as many messages of iopub for each subscriber as our kernels do: the server, which
    holds few, goes by that."""
    bind = application._try_bind_socket

    @functools.wraps(bind)
    def bind_to_hold(self: Any, s: Any, port: int) -> int:
        if s is self.iopub_socket:
            with contextlib.suppress(zmq.ZMQError):
                s.setsockopt(zmq.SNDHWM, HELD)
        return int(bind(self, s, port))

    application._try_bind_socket = bind_to_hold  # type: ignore[method-assign]


def send_in_pieces(application: type[IPKernelApp] = IPKernelApp) -> None:
    """Have every *application* send what is printed in pieces, unless it is configured to use other streams."""
    init_io = application.init_io

    @functools.wraps(init_io)
    def init_io_in_pieces(self: Any) -> None:
        with contextlib.suppress(Exception):
            configured = "outstream_class" in (self.config.get(IPKernelApp.__name__) or {})
            if not configured and str(self.outstream_class) == pieces.STOCK:
                self.outstream_class = pieces.NAME
        init_io(self)

    application.init_io = init_io_in_pieces  # type: ignore[method-assign]
