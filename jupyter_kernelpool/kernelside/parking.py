"""When a serving kernel forks itself: on order, between two messages; where undo is on, after each cell.

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

ANSWER_TIMEOUT = 10.0


@dataclass
class ParkOrder:
    """One process to be made: a parked one, or with *become* a kernel; *fd* is its socket.

    *number* is the server's; None for one that nobody ordered, whose socket's other end, *servers*, the server
    has to be given.
    """

    number: Any
    become: bool
    reseed: bool
    fd: int
    servers: int = -1
    files: dict[str, Any] | None = None  # where to copy the working directory to, and how much of it at most

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self.fd, self.servers):
            if fd >= 0:
                os.close(fd)
        self.fd = self.servers = -1


class Parking:
    """Collects the orders of one kernel, says when one is due, and keeps its main shell still meanwhile."""

    def __init__(self) -> None:
        self.context: Context | None = None  # the one in which cells run, as the last message left it
        self.stopped_at = 0.0
        self._tell: Callable[..., None] = lambda **_: None
        self._waiting: list[ParkOrder] = []
        self._due: list[ParkOrder] = []
        self._keeps_each_cell = False
        self._skips_cell = False
        self._pings: list[Any] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._report: Callable[[dict[str, Any]], None] = lambda _: None
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
                if is_step(kernel.get_parent("shell")):
                    self._step_over()

        kernel.post_handler_hook = post_handler_hook

    def listen(
        self, orders: socket.socket, tell: Callable[..., None], report: Callable[[dict[str, Any]], None]
    ) -> None:
        """Obey what comes on *orders* from now on, answer with *tell*; on the main loop, once the kernel serves.

        *report* is given what came of a wish.
        """
        self._tell = tell
        self._report = report
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
        self._answer_pings()
        self._turnstile.open()

    def give_up(self, reason: str) -> None:
        """Nothing will come of any order."""
        given_up = [*self._due, *self._waiting]
        self._due, self._waiting = [], []
        for order in given_up:
            self._fail(order, "cancelled", reason)

    def let_go(self) -> None:
        """In a fork: the parent's socket and the orders that are left are not ours."""
        for order in [*self._waiting, *self._due]:
            order.close()
        self._waiting, self._due = [], []
        self._keeps_each_cell, self._skips_cell, self._pings, self._answers = False, False, [], {}
        self.stopped_at = 0.0
        if self._orders is not None:
            self._poll.unregister(self._orders)
            self._orders = None

    def _step_over(self) -> None:
        """A cell has run, and its idle status is not told yet."""
        skips, self._skips_cell = self._skips_cell, False
        if self._keeps_each_cell and not skips:
            self._keep_state()

    def _keep_state(self) -> None:
        """Have the present state kept before the next message.

        A server that does not read what it is told gets no more of them.
        """
        if self._orders is not None and select.select([], [self._orders], [], 0)[1]:
            servers, its = socket.socketpair()
            self._waiting.append(ParkOrder(None, False, False, its.detach(), servers.detach()))

    def skip_this_cell(self) -> None:
        """The state after the cell that runs is not to be kept."""
        self._skips_cell = True

    def ask(self, **wish: Any) -> dict[str, Any]:
        """Tell the server of a *wish*, and wait for what it says; on the main thread, in a cell.

        Raises `ConnectionError` when it does not say anything.
        """
        self._refuse_without_server()
        number = len(self._answers) + 1
        self._answers[number] = {}
        self._tell(event="wish", id=number, **wish)
        while not self._answers[number]:
            if not self._poll.poll(ANSWER_TIMEOUT * 1000):
                raise ConnectionError("The server does not answer.")
            self._read()
            self._refuse_without_server()
        return self._answers[number]

    def _refuse_without_server(self) -> None:
        if self._orders is None or os.getpid() != self._pid:
            raise ConnectionError("This kernel has no server behind it that could do that.")

    def _readable(self) -> None:
        self._read()
        if self._turnstile.locked():
            return  # a message is being handled: `_message_over` comes
        if not self._waiting:
            self._answer_pings()
        elif self._turnstile.shut():
            self._call()

    def _message_over(self) -> bool:
        """Whether the main shell has to stand still now; asked by the turnstile."""
        self._read()
        if self._waiting:
            return self._call()
        self._answer_pings()
        return False

    def _call(self) -> bool:
        """Stop the loop for what waits."""
        self._due += self._waiting
        self._waiting = []
        self.stopped_at = time.monotonic()
        asyncio.get_running_loop().stop()
        return True

    def _answer_pings(self) -> None:
        """An answer says that the kernel stands between two messages, and that it told of all forks until then."""
        while self._pings:
            self._tell(event="pong", id=self._pings.pop(0))

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
            become, reseed = bool(order.get("become", False)), bool(order.get("reseed", False))
            self._waiting.append(ParkOrder(order["id"], become, reseed, fds[0], files=order.get("files")))
            return
        for fd in fds:
            os.close(fd)
        match order["op"]:
            case "cancel_park":
                for waiting in [waiting for waiting in self._waiting if waiting.number == order["id"]]:
                    self._waiting.remove(waiting)
                    self._fail(waiting, "cancelled", "It was withdrawn before it happened.")
            case "keep":
                self._keeps_each_cell = bool(order["each_cell"])
                if order.get("now"):
                    self._keep_state()
            case "answer":
                self._answers[order["id"]] = order
            case "report":
                self._report(order)
            case "ping":
                self._pings.append(order["id"])

    def _stop_listening(self) -> None:
        """The server let go. The kernel serves on; its lifeline ends it if it has to."""
        if self._orders is not None:
            asyncio.get_running_loop().remove_reader(self._orders)
            self._poll.unregister(self._orders)
            self._orders = None
        for order in self._waiting:
            order.close()
        self._waiting = []

    def _fail(self, order: ParkOrder, code: str, reason: str) -> None:
        order.close()
        self._tell(event="park_failed", id=order.number, code=code, reason=reason, hint="")


def is_step(request: dict[str, Any]) -> bool:
    """Whether *request*, a message to the main shell, is a cell as people know it: what front ends run unseen
    (variable inspectors, say) is no step to undo."""
    content = request.get("content", {})
    return (
        request["header"]["msg_type"] == "execute_request"
        and not content.get("silent", False)
        and bool(content.get("store_history", True))
    )
