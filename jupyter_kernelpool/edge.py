"""The clients of each kernel, as far as they come through the server's websockets: who is told what, beside what
the kernel itself says. Core code speaks to them through here and knows nothing of websockets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from jupyter_kernelpool.ledger import Execution, Ledger


class Connection(Protocol):
    """A client's connection to a kernel: `websocket.Prompt`."""

    def say(self, text: str, parent: dict[str, Any]) -> None:
        """Show *text* as a line of stderr of the cell with the header *parent* ({}: of the one it waits for)."""

    def give_up(self, ename: str, evalue: str) -> list[dict[str, Any]]:
        """End every execution that this client waits for with that error; the headers of those."""

    def ended(self, msg_id: str) -> None:
        """The kernel has ended the execution with that id, and is to have answered it."""

    def declare_restarting(self) -> None:
        """Say that the kernel is restarted without having been asked, as jupyter_server does when one died."""


class Edge:
    """Ledgers and connections by kernel id."""

    def __init__(self) -> None:
        self._connections: dict[str, list[Connection]] = {}
        self._ledgers: dict[str, Ledger] = {}
        self.on_ledger: list[Callable[[str, Ledger], None]] = []  # whoever listens to every kernel's
        self.requested: dict[str, dict[str, Any]] = {}  # limits in the metadata of execute requests, by kernel and id
        self.last_words: dict[str, tuple[str, str]] = {}  # with what the executions of a process were given up last
        # Headers of cells that have just ended, the answer still held back: what is said now is said in them.
        self.closing: dict[str, dict[str, Any]] = {}
        self.unread: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # said while no client was there

    def ledger(self, kernel_id: str) -> Ledger:
        """What runs in the kernel; made when it is first asked for."""
        if kernel_id not in self._ledgers:
            ledger = self._ledgers[kernel_id] = Ledger()
            ledger.on_end.append(lambda execution: self._ended(kernel_id, execution))
            for listener in self.on_ledger:
                listener(kernel_id, ledger)
        return self._ledgers[kernel_id]

    def enter(self, kernel_id: str, connection: Connection) -> None:
        """A client is connected: it gets what was said while nobody was."""
        self._connections.setdefault(kernel_id, []).append(connection)
        for text, parent in self.unread.pop(kernel_id, []):
            connection.say(text, parent)

    def leave(self, kernel_id: str, connection: Connection) -> None:
        """The client is gone."""
        with contextlib.suppress(ValueError):
            self._connections.get(kernel_id, []).remove(connection)

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone."""
        self.clear(kernel_id)
        self._connections.pop(kernel_id, None)
        self._ledgers.pop(kernel_id, None)
        self.unread.pop(kernel_id, None)
        self.last_words.pop(kernel_id, None)

    def clear(self, kernel_id: str) -> None:
        """The kernel's process is gone or replaced: nothing of what it was asked runs any more."""
        self.requested.pop(kernel_id, None)
        if kernel_id in self._ledgers:
            self._ledgers[kernel_id].clear()

    def request(self, kernel_id: str, msg_id: str, limits: Any) -> None:
        """*limits* were asked for in the metadata of an execute request; whoever holds them reads `requested`."""
        self.requested.setdefault(kernel_id, {})[msg_id] = limits

    def connections(self, kernel_id: str) -> list[Connection]:
        """Who is connected now."""
        return list(self._connections.get(kernel_id, []))

    def say(self, kernel_id: str, text: str, parent: dict[str, Any] | None = None) -> None:
        """Show *text* to every client of the kernel, in the cell that is just being closed, or runs, or *parent*'s; to
        the next client if there is none now."""
        if parent is None:
            running = self.ledger(kernel_id).running
            parent = self.closing.get(kernel_id) or (running.header if running is not None else {})
        connections = self.connections(kernel_id)
        for connection in connections:
            connection.say(text, parent)
        if not connections:
            self.unread.setdefault(kernel_id, []).append((text, parent))
            del self.unread[kernel_id][:-20]

    def give_up(self, kernel_id: str, ename: str, evalue: str) -> None:
        """The process is gone: every execution that a client waits for ends with that error; also for one that is away,
        when it comes back."""
        self.last_words[kernel_id] = ename, evalue
        for connection in self.connections(kernel_id):
            connection.give_up(ename, evalue)
        self.clear(kernel_id)

    def declare_restarting(self, kernel_id: str) -> None:
        """Tell every client that the server restarts the kernel."""
        for connection in self.connections(kernel_id):
            connection.declare_restarting()

    def _ended(self, kernel_id: str, execution: Execution) -> None:
        self.requested.get(kernel_id, {}).pop(execution.msg_id, None)
        if not execution.lost:
            for connection in self.connections(kernel_id):
                connection.ended(execution.msg_id)
