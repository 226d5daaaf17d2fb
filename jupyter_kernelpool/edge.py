"""The clients of each kernel, as far as they come through the server's websockets: who is told what, beside what
the kernel itself says. Core code speaks to them through here and knows nothing of websockets.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from jupyter_kernelpool.ledger import Ledger


class Connection(Protocol):
    """A client's connection to a kernel: `websocket.Prompt`."""

    def say(self, text: str, parent: dict[str, Any]) -> None:
        """Show *text* as a line of stderr of the cell with the header *parent* ({}: of none)."""

    def give_up(self, ename: str, evalue: str) -> list[dict[str, Any]]:
        """End every execution that this client waits for with that error; the headers of those."""

    def declare_dead(self) -> None:
        """Say that the kernel is dead, as jupyter_server does when restarts failed."""


class Edge:
    """Ledgers and connections by kernel id."""

    def __init__(self) -> None:
        self._connections: dict[str, list[Connection]] = {}
        self._ledgers: dict[str, Ledger] = {}
        self.unread: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # said while no client was there

    def ledger(self, kernel_id: str) -> Ledger:
        """What runs in the kernel; made when it is first asked for."""
        return self._ledgers.setdefault(kernel_id, Ledger())

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
        self._connections.pop(kernel_id, None)
        self._ledgers.pop(kernel_id, None)
        self.unread.pop(kernel_id, None)

    def connections(self, kernel_id: str) -> list[Connection]:
        """Who is connected now."""
        return list(self._connections.get(kernel_id, []))

    def say(self, kernel_id: str, text: str, parent: dict[str, Any] | None = None) -> None:
        """Show *text* to every client of the kernel, in the cell that runs, or *parent*'s; to the next one if there
        is none now."""
        if parent is None:
            running = self.ledger(kernel_id).running
            parent = running.header if running is not None else {}
        connections = self.connections(kernel_id)
        for connection in connections:
            connection.say(text, parent)
        if not connections:
            self.unread.setdefault(kernel_id, []).append((text, parent))
            del self.unread[kernel_id][:-20]

    def give_up(self, kernel_id: str, ename: str, evalue: str) -> None:
        """The process is gone: every execution that a client waits for ends with that error."""
        for connection in self.connections(kernel_id):
            connection.give_up(ename, evalue)
        self.ledger(kernel_id).clear()

    def declare_dead(self, kernel_id: str) -> None:
        """Tell every client that the kernel is dead."""
        for connection in self.connections(kernel_id):
            connection.declare_dead()
