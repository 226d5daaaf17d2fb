"""What a kernel published while its client was away, kept for the client's return; in bounds, unlike upstream's list.

jupyter_server/services/kernels/kernelmanager.py `start_buffering`: "TODO: the buffer should likely be a memory bounded
queue".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from jupyter_client.session import DELIM

from jupyter_kernelpool.allowance import human
from jupyter_kernelpool.gate import Gate
from jupyter_kernelpool.messages import NO_MESSAGE
from jupyter_kernelpool.output import OUTPUT

COMMS = frozenset({"comm_msg"})
OVERHEAD = 700  # bytes that a message costs in Python besides its parts


class Kept(list[Any]):
    """The parts of a message that was kept: it has passed its gate."""


class Replay:
    """Messages by channel, as jupyter_server appends and replays them.

    Beyond *limit* bytes (0: no limit) the oldest output goes first, then the oldest of what widgets say; answers,
    states, errors and the opening and closing of comms stay. *gate* holds output to its limit.
    """

    def __init__(self, limit: int, session: Any) -> None:
        """*session* reads and signs the kernel's messages."""
        self.gate: Gate | None = None
        self.awaited: dict[str, dict[str, Any]] = {}  # headers of the requests that the client waits for
        self.refused: dict[str, tuple[dict[str, Any], str, str]] = {}  # and that it is to be told are not run, by id
        self._limit = limit
        self._session = session
        self._messages: dict[int, tuple[str, list[Any]]] = {}  # by number, in the order in which they came
        self._outputs: deque[tuple[int, int, str]] = deque()  # number, size and request of what may go
        self._comms: deque[tuple[int, int, str]] = deque()
        self._size = 0
        self._next = 0
        self._shortened: set[str] = set()  # requests of which something is missing, and that say so

    def append(self, message: tuple[str, list[Any]]) -> None:
        """Keep *message*, channel and parts; called by jupyter_server."""
        channel, parts = message
        kind, request = "", ""
        if channel in ("iopub", "shell"):  # an error is also in the answer to its cell
            try:
                if self.gate is not None and self.gate.limits:
                    judged = self.gate.judge(parts)
                    if judged is None:
                        return
                    parts = judged
                kind, request = self._read(parts)
            except NO_MESSAGE:
                pass  # it says so itself when it is replayed
        size = _cost(parts)
        self._messages[self._next] = (channel, Kept(parts))
        self._size += size
        if kind in OUTPUT:
            self._outputs.append((self._next, size, request))
        elif kind in COMMS:
            self._comms.append((self._next, size, request))
        self._next += 1
        self._shrink()

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        return iter(self._messages.values())

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def _read(self, parts: list[Any]) -> tuple[str, str]:
        _, message = self._session.feed_identities(parts)
        return self._session.unpack(message[1])["msg_type"], self._session.unpack(message[2]).get("msg_id", "")

    def _shrink(self) -> None:
        while self._limit and self._size > self._limit and (self._outputs or self._comms):
            number, size, request = (self._outputs or self._comms).popleft()
            channel, parts = self._messages[number]
            self._size -= size
            if request in self._shortened:
                del self._messages[number]
                continue
            self._shortened.add(request)
            told = self._notice(parts)
            self._messages[number] = (channel, told)  # where the first of it was
            self._size += _cost(told)

    def _notice(self, parts: list[Any]) -> list[Any]:
        """A message in the place of the first one that went."""
        _, message = self._session.feed_identities(parts)
        pack = self._session.pack
        text = f"… some output is left out: {human('output', self._limit)} are kept while no client is connected\n"
        header = {**self._session.unpack(message[1]), "msg_type": "stream"}
        body = [pack(header), message[2], pack({}), pack({"name": "stderr", "text": text})]
        return Kept([DELIM, self._session.sign(body), *body])


def _cost(parts: list[Any]) -> int:
    return OVERHEAD + sum(len(part) for part in parts)
