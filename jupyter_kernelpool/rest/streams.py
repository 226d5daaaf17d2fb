"""Server-sent events: a route's answer that goes on until its source ends or the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from tornado.iostream import StreamClosedError

from jupyter_kernelpool.rest.base import KernelPoolHandler

MEDIA_TYPE = "text/event-stream"
PING_EVERY = 15.0  # proxies close what is silent for 30 to 60 s


@dataclass(frozen=True)
class Event:
    """One event; *data* is sent as JSON. Its *id* is what a client that connects again says it has seen last."""

    name: str
    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        """As it is sent. JSON has no line breaks, so one line of data is enough."""
        lines = [f"id: {self.id}"] if self.id is not None else []
        lines += [f"event: {self.name}", f"data: {json.dumps(self.data, allow_nan=False)}"]
        return ("\n".join(lines) + "\n\n").encode()


class EventStreamHandler(KernelPoolHandler):
    """The base of routes that answer with a stream, where the client accepts one."""

    def initialize(self) -> None:
        self._client_gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def wants_stream(self) -> bool:
        """Whether the client asks for events rather than for JSON."""
        return MEDIA_TYPE in self.request.headers.get("Accept", "")

    @property
    def last_event_id(self) -> str | None:
        """The id of the last event that a client that connects again has seen."""
        return self.request.headers.get("Last-Event-ID")

    def on_connection_close(self) -> None:
        """Called by tornado when the client is gone before the answer has ended."""
        super().on_connection_close()
        if not self._client_gone.done():
            self._client_gone.set_result(None)

    async def stream(self, events: AsyncGenerator[Event], *, ping_every: float = PING_EVERY) -> None:
        """Answer with *events* until they end or the client is gone; they are closed then, wherever they wait.

        A `ping` keeps the connection alive while there are none for *ping_every* seconds. The next event is asked for
        when the last one has been sent, so a slow client holds back nobody's memory.
        """
        self.set_header("Content-Type", MEDIA_TYPE)
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")  # nginx would collect them
        began = time.monotonic()
        following: asyncio.Task[Event | None] | None = None
        try:
            await self.flush()
            while True:
                if following is None:
                    following = asyncio.create_task(_next(events), name="kernelpool-stream")
                waiting: set[asyncio.Future[Any]] = {following, self._client_gone}
                await asyncio.wait(waiting, timeout=ping_every, return_when=asyncio.FIRST_COMPLETED)
                if self._client_gone.done():
                    return
                event: Event | None = Event("ping", {"elapsed": time.monotonic() - began})
                if following.done():
                    event, following = following.result(), None
                if event is None:
                    break
                self.write(event.encode())
                await self.flush()
            await self.finish()
        except StreamClosedError:
            return
        finally:
            if following is not None:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await following
            await events.aclose()


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    return await anext(events, None)
