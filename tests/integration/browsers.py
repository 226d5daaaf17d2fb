"""The kernel connection of a JupyterLab tab: its protocol over a real websocket."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect

from .conftest import TOKEN, Server

PROTOCOL = "v1.kernel.websocket.jupyter.org"


def pack(
    channel: str,
    kind: str,
    content: dict[str, Any],
    session: str,
    more: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """A message as JupyterLab sends it: offsets, channel and the four parts, little-endian, in one frame.

    *more* goes into its header.
    """
    header = {
        "msg_id": f"{time.monotonic_ns():x}", "username": "", "session": session, "date": "2024-01-01T00:00:00Z",
        "msg_type": kind, "version": "5.4", **(more or {}),
    }  # fmt: skip
    parts = [channel.encode(), *(json.dumps(part).encode() for part in (header, {}, metadata or {}, content))]
    offsets = [8 * (2 + len(parts))]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return b"".join(number.to_bytes(8, "little") for number in (len(offsets), *offsets)) + b"".join(parts)


def unpack(frame: bytes) -> dict[str, Any]:
    count = int.from_bytes(frame[:8], "little")
    offsets = [int.from_bytes(frame[8 * place : 8 * place + 8], "little") for place in range(1, count + 1)]
    parts = [frame[begin:end] for begin, end in itertools.pairwise(offsets)]
    names = ("header", "parent_header", "metadata", "content")
    return {"channel": parts[0].decode(), **{n: json.loads(p) for n, p in zip(names, parts[1:5], strict=True)}}


class Browser:
    """The kernel connection of a JupyterLab tab."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self.socket = socket
        self.session = session
        self.header: dict[str, Any] = {}  # what the headers of its requests have besides
        self.metadata: dict[str, Any] = {}
        self.aside: list[dict[str, Any]] = []  # what came of another request while one was waited for

    def send(self, kind: str, content: dict[str, Any], channel: str = "shell") -> str:
        frame = pack(channel, kind, content, self.session, self.header, self.metadata)
        self.socket.send(frame)
        return str(unpack(frame)["header"]["msg_id"])

    def receive(self, timeout: float = 30) -> dict[str, Any]:
        """The next message."""
        frame = self.socket.recv(timeout=timeout)
        assert isinstance(frame, bytes), "a binary frame"
        return unpack(frame)

    def until_asked(self) -> None:
        """Wait until the kernel asks for input."""
        while self.receive()["channel"] != "stdin":
            pass

    def until_idle(self, request: str, timeout: float = 30) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The content of the reply to *request*, and what was published for it."""
        reply: dict[str, Any] | None = None
        published = []
        idle = False
        early = [message for message in self.aside if _parent(message) == request]
        self.aside = [message for message in self.aside if _parent(message) != request]
        while reply is None or not idle:
            message = early.pop(0) if early else self.receive(timeout)
            if _parent(message) != request:
                self.aside.append(message)
                continue
            if message["channel"] == "iopub":
                published.append(message)
                idle = idle or message["content"].get("execution_state") == "idle"
            else:
                reply = message["content"]
        return reply, published

    def ask(self, kind: str, content: dict[str, Any], channel: str = "shell") -> dict[str, Any]:
        return self.until_idle(self.send(kind, content, channel))[0]

    def execute(self, code: str) -> str:
        """What *code* prints or returns; its error, else."""
        reply, published = self.until_idle(self.send("execute_request", execution(code)))
        if reply["status"] == "error":
            return str(reply["ename"])
        texts = [message["content"].get("text") or message["content"].get("data", {}).get("text/plain", "")
                 for message in published if message["header"]["msg_type"] in ("stream", "execute_result")]  # fmt: skip
        return "".join(texts).strip()


def _parent(message: dict[str, Any]) -> str:
    return str(message["parent_header"].get("msg_id"))


@contextlib.contextmanager
def browser(server: Server, kernel: str, session: str = "") -> Iterator[Browser]:
    """A tab; with the *session* of one that was closed it is that one, which connects again."""
    session = session or f"{time.monotonic_ns():x}"
    address = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels?session_id={session}"
    headers = {"Authorization": f"token {TOKEN}"}
    with connect(address, subprotocols=[PROTOCOL], additional_headers=headers, max_size=None) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == PROTOCOL
        yield Browser(socket, session)


def execution(code: str) -> dict[str, Any]:
    return {
        "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True,
        "stop_on_error": True,
    }  # fmt: skip
