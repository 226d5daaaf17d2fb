"""Clients of the server's streams of events: ours over HTTP, Jupyter's over a websocket."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .conftest import TOKEN, Server, eventually

SCHEMA = "https://events.jupyter.org/jupyter_kernelpool/kernel/v1"


@dataclass
class Heard:
    """What a client heard so far: (name, data, id) of each event."""

    events: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def names(self, kernel: str | None = None) -> list[str]:
        """The names of the events of *kernel*, or of all kernels, in their order."""
        return [name for name, data, _ in list(self.events) if kernel in (None, data.get("kernel_id"))]

    def wait_for(self, condition: Callable[[Heard], Any], what: str, timeout: float = 30.0) -> Any:
        """Wait until *condition* holds of this; returns its value."""
        try:
            return eventually(lambda: condition(self), what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; heard {self.events}") from None

    def wait_for_event(self, name: str, kernel: str, count: int = 1) -> dict[str, Any]:
        """The data of event number *count* of that name and kernel."""

        def found(heard: Heard) -> Any:
            fitting = [data for each, data, _ in list(heard.events) if (each, data.get("kernel_id")) == (name, kernel)]
            return fitting[count - 1] if len(fitting) >= count else None

        return dict(self.wait_for(found, f"{count} × {name} of {kernel}"))


def came(event: dict[str, Any]) -> float:
    """When the event happened, as it says itself: seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).timestamp()


@contextlib.contextmanager
def follow(server: Server, query: str = "", last: str | None = None) -> Iterator[Heard]:
    """A client of `GET /events`."""
    heard = Heard()
    lines = [f"GET /kernelpool/v1/events{query} HTTP/1.0", f"Authorization: token {TOKEN}"]
    lines += ["Accept: text/event-stream", *([f"Last-Event-ID: {last}"] if last is not None else [])]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        reader = threading.Thread(target=_read, args=(connection, heard))
        reader.start()
        try:
            assert heard.open.wait(30)
            yield heard
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            reader.join(30)


def _read(connection: socket.socket, heard: Heard) -> None:
    with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as stream:
        assert stream.readline().split()[1] == b"200"
        while stream.readline().strip():
            pass
        heard.open.set()
        fields: dict[str, str] = {}
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif fields:
                heard.events.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
                fields = {}
    heard.ended.set()


@contextlib.contextmanager
def subscribe(server: Server) -> Iterator[Heard]:
    """A client of Jupyter's own `/api/events/subscribe`; it hears what is published with our schema."""
    heard = Heard()
    address = f"ws://127.0.0.1:{server.port}/api/events/subscribe"
    with connect(address, additional_headers={"Authorization": f"token {TOKEN}"}) as websocket:

        def read() -> None:
            with contextlib.suppress(ConnectionClosed):
                for message in websocket:
                    data = json.loads(message)
                    if data.get("schema_id") == SCHEMA:
                        heard.events.append((data["type"], data, None))

        reader = threading.Thread(target=read)
        reader.start()
        yield heard
    reader.join(30)
