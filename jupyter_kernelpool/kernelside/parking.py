"""Orders to a serving kernel: to park (fork itself) when no message is being handled, or after a cell.

The server's socket is read on the kernel's main loop, and once more whenever a message of the main shell is
over: an order that came while a cell blocked the loop then goes before the cells that are queued.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from . import wire
from .turnstile import Turnstile, stand_between_messages


@dataclass
class ParkOrder:
    """One process to be made: a parked one, or with *become* a kernel; *fd* is its socket."""

    number: Any
    become: bool
    after_cell: bool
    reseed: bool
    fd: int


class Parking:
    """Collects the orders of one kernel, says when one is due, and keeps its main shell still meanwhile."""

    def __init__(self) -> None:
        self.context: Context | None = None  # the one in which cells run, as the last message left it
        self.stopped_at = 0.0
        self._tell: Callable[..., None] = lambda **_: None
        self._armed: list[ParkOrder] = []
        self._due: list[ParkOrder] = []
        self._orders: socket.socket | None = None
        self._poll = select.poll()
        self._pid = os.getpid()
        self._hooked = False
        self._turnstile = Turnstile(self._message_over)

    def attend(self, kernel: Any) -> None:
        """Learn when *kernel* has handled a message of its main shell; before its `start`."""
        self._turnstile = Turnstile(self._message_over)
        stand_between_messages(kernel, self._turnstile)
        if self._hooked:
            return
        self._hooked = True
        stock, main = kernel.post_handler_hook, threading.main_thread().ident

        def post_handler_hook() -> None:
            stock()
            if threading.get_ident() == main:  # else it is a subshell's
                self.context = copy_context()
                if kernel.get_parent("shell")["header"]["msg_type"] == "execute_request":
                    self._cell_over()

        kernel.post_handler_hook = post_handler_hook

    def listen(self, orders: socket.socket, tell: Callable[..., None]) -> None:
        """Obey what comes on *orders* from now on, answer with *tell*; on the main loop, once the kernel serves."""
        self._tell = tell
        self._pid = os.getpid()
        self._orders = orders
        self._poll.register(orders, select.POLLIN)
        asyncio.get_running_loop().add_reader(orders, self._readable)

    @property
    def stands_still(self) -> bool:
        """Whether the loop was stopped for orders; the main shell is then shut until `go_on`."""
        return self.stopped_at > 0

    def next_due(self) -> ParkOrder | None:
        """Take the next order to carry out, once the loop has stopped."""
        return self._due.pop(0) if self._due else None

    def go_on(self) -> None:
        """Let the next message in; the loop has to be started again."""
        self.stopped_at = 0.0
        self._turnstile.open()

    def give_up(self, reason: str) -> None:
        """Nothing will come of any order."""
        given_up = [*self._due, *self._armed]
        self._due, self._armed = [], []
        for order in given_up:
            self._fail(order, "cancelled", reason)

    def let_go(self) -> None:
        """In a fork: the parent's socket and the orders that are left are not ours."""
        for order in [*self._armed, *self._due]:
            os.close(order.fd)
        self._armed, self._due = [], []
        self.stopped_at = 0.0
        if self._orders is not None:
            self._poll.unregister(self._orders)
            self._orders = None

    def _readable(self) -> None:
        self._read()
        if any(not order.after_cell for order in self._armed) and self._turnstile.shut():
            self._call()

    def _message_over(self) -> bool:
        """Whether the main shell has to stand still now; asked by the turnstile."""
        self._read()
        return bool(self._armed) and self._call()

    def _cell_over(self) -> None:
        """A cell has run, and its idle status is not told yet: the first order that waits for one is due after it.

        What comes later is meant for the next cell, since who gave it may have seen this one's end.
        """
        self._read()
        for order in self._armed:
            if order.after_cell:
                order.after_cell = False
                return

    def _call(self) -> bool:
        """Stop the loop for what is due; false if nothing is."""
        due = [order for order in self._armed if not order.after_cell]
        if not due:
            return False
        self._armed = [order for order in self._armed if order.after_cell]
        self._due += due
        self.stopped_at = time.monotonic()
        asyncio.get_running_loop().stop()
        return True

    def _read(self) -> None:
        if os.getpid() != self._pid:  # the user's own fork
            return
        while self._orders is not None and self._poll.poll(0):
            try:
                received = wire.receive(self._orders)
            except (OSError, wire.WireError):
                received = None
            if received is None:
                self._stop_listening()
                return
            self._obey(*received)

    def _obey(self, order: dict[str, Any], fds: list[int]) -> None:
        if order["op"] == "park" and len(fds) == 1:
            self._armed.append(
                ParkOrder(
                    number=order["id"],
                    become=bool(order.get("become", False)),
                    after_cell=order.get("when", "idle") == "after_cell",
                    reseed=bool(order.get("reseed", False)),
                    fd=fds[0],
                )
            )
            return
        for fd in fds:
            os.close(fd)
        if order["op"] == "cancel_park":
            for armed in [armed for armed in self._armed if armed.number == order["id"]]:
                self._armed.remove(armed)
                self._fail(armed, "cancelled", "It was withdrawn before it happened.")
        elif order["op"] == "ping":
            self._tell(event="pong")

    def _stop_listening(self) -> None:
        """The server let go. The kernel serves on; its lifeline ends it if it has to."""
        if self._orders is not None:
            asyncio.get_running_loop().remove_reader(self._orders)
            self._poll.unregister(self._orders)
            self._orders = None
        for order in self._armed:
            os.close(order.fd)
        self._armed = []

    def _fail(self, order: ParkOrder, code: str, reason: str) -> None:
        os.close(order.fd)
        self._tell(event="park_failed", id=order.number, code=code, reason=reason, hint="")
