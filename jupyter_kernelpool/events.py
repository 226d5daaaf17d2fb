"""What happens to kernels, told as events: on Jupyter's event logger, to whoever listens here, and to followers.

One schema for all of them, `events.yaml`; each has a type, a kernel id and, where there is one, a reason.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SCHEMA_ID = "https://events.jupyter.org/jupyter_kernelpool/kernel/v1"
SCHEMA_FILE = Path(__file__).parent / "events.yaml"
REMEMBERED = 4000

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class Event:
    """Number *seq* of this server's, at *time* (seconds since the epoch)."""

    seq: int
    time: float
    type: str
    kernel_id: str
    reason: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """A follower missed events: *lost* of them, None where nobody knows how many."""

    lost: int | None


class Events:
    """Hands events on in the order in which they happened, and remembers the last ones.

    Their numbers begin with *first*. Begun with the time, they only grow from one server to the next, so that a number
    of a server that has ended is known for one.
    """

    def __init__(self, first: int = 1) -> None:
        self.recent: deque[Event] = deque(maxlen=REMEMBERED)
        self.last = first - 1  # the number of the newest event
        self._before = first - 1
        self._numbers = itertools.count(first)
        self._listeners: list[Callable[[Event], None]] = []
        self._followers: set[asyncio.Event] = set()
        self._closed = False

    def emit(self, type: str, kernel_id: str, *, now: float, reason: str = "", **facts: Any) -> None:  # noqa: A002
        """Something happened to the kernel; *facts* are the fields that events of this type have besides."""
        if not kernel_id:
            return  # a warm kernel's life is nobody's business
        event = Event(next(self._numbers), now, type, kernel_id, reason, facts)
        self.last = event.seq
        self.recent.append(event)
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                log.exception("A listener to events failed at %s of kernel %s", type, kernel_id)
        self._wake()

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Have *listener* called with each event from now on; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def follow(self, after: int | None = None) -> AsyncGenerator[Event | Gap]:
        """The events after number *after*, or from now on, until `close`.

        A follower costs the same however slow it is: it reads from what is remembered, and is told of what it missed
        there.
        """
        news = asyncio.Event()
        self._followers.add(news)
        try:
            seen = self.last if after is None else after
            if not self._before <= seen <= self.last:  # another server's number
                yield Gap(None)
                seen = self._oldest - 1
            while True:
                news.clear()
                while seen < self.last:
                    if seen < self._oldest - 1:
                        lost, seen = self._oldest - 1 - seen, self._oldest - 1
                        yield Gap(lost)
                        continue
                    event = self.recent[seen + 1 - self._oldest]
                    seen = event.seq
                    yield event
                if self._closed:
                    return
                await news.wait()
        finally:
            self._followers.discard(news)

    def close(self) -> None:
        """Nothing more will happen: whoever follows comes to an end."""
        self._closed = True
        self._wake()

    @property
    def _oldest(self) -> int:
        """The number of the oldest event that is remembered; of the next one, if there is none."""
        return self.recent[0].seq if self.recent else self.last + 1

    def _wake(self) -> None:
        for news in self._followers:
            news.set()


@cache
def read_types() -> tuple[str, ...]:
    """Every type of event; reads a file at its first call."""
    schema = yaml.safe_load(SCHEMA_FILE.read_text("utf-8"))
    return tuple(schema["properties"]["type"]["enum"])


def publish_on(logger: Any) -> Callable[[Event], None]:
    """A listener that publishes on *logger*, a jupyter_events EventLogger."""
    if SCHEMA_ID not in logger.schemas:
        logger.register_event_schema(SCHEMA_FILE)

    def publish(event: Event) -> None:
        data = {"type": event.type, "kernel_id": event.kernel_id, "reason": event.reason, **event.facts}
        logger.emit(schema_id=SCHEMA_ID, data=data)

    return publish
