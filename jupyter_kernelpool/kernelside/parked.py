"""A parked process that was forked from a live kernel: the whole of its user state, and nothing that runs.

One thread, no event loop, no ZeroMQ socket. It waits for orders as a template does, and each of its forks
becomes a kernel that goes on from the state of the moment.
"""

from __future__ import annotations

import gc
import os
import socket
import traceback
from contextvars import Context
from typing import Any

from . import wire
from .fork import tell_unfit
from .inheritance import Inheritance
from .lifeline import hold
from .lives import Life
from .template import assert_single_threaded, serve_forks


class Parked:
    """The life of a parked process; it ends in its forks, or when the server lets go."""

    def __init__(self, inheritance: Inheritance, orders: socket.socket) -> None:
        self.context: Context | None = None
        self._inheritance = inheritance
        self._orders = orders
        self._collects = gc.isenabled()

    def run(self) -> Life:
        """Say `ready`, then fork on order; returns in a fork."""
        gc.disable()  # a collection would copy every page that holds an object
        try:
            assert_single_threaded()
        except Exception as error:
            tell_unfit(self._orders, error, "threads")
            os._exit(1)
        manifest = self._inheritance.manifest.as_message()
        try:
            wire.send(self._orders, {"event": "ready", "pid": os.getpid(), "manifest": manifest})
            return serve_forks(self._orders, self._born)
        except OSError:  # the server let go, or its supervisor was killed
            os._exit(0)
        except BaseException:
            # Not the interpreter's end: what the kernel registered for its own would delete its temporary folders, and
            # wait for ever for locks that threads of the kernel held.
            traceback.print_exc()
            os._exit(1)

    def _born(self, orders: socket.socket, order: dict[str, Any]) -> Life:
        try:
            os.setsid()
            hold(self._inheritance.lifeline)
            if order.get("files") is not None:
                wire.send(orders, {"event": "copying"})
                self._inheritance.copy_files(order["files"], orders.fileno())
            self._inheritance.own_files()
            life = self._inheritance.next_life(orders, become=True, reseed=bool(order.get("reseed", False)))
            if self._collects:
                gc.enable()
            return life
        except BaseException as error:
            tell_unfit(orders, error)
            os._exit(1)
