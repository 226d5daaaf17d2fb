"""What happens to kernels, told as events: on Jupyter's event logger, and to whoever listens here.

One schema for all of them, `events.yaml`; each has a type, a kernel id and, where there is one, a reason.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_ID = "https://events.jupyter.org/jupyter_kernelpool/kernel/v1"
SCHEMA_FILE = Path(__file__).parent / "events.yaml"
REMEMBERED = 1000

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


class Events:
    """Hands events on in the order in which they happened, and remembers the last ones."""

    def __init__(self) -> None:
        self.recent: deque[Event] = deque(maxlen=REMEMBERED)
        self._numbers = itertools.count(1)
        self._listeners: list[Callable[[Event], None]] = []

    def emit(self, type: str, kernel_id: str, *, now: float, reason: str = "", **facts: Any) -> None:  # noqa: A002
        """Something happened to the kernel; *facts* are the fields that events of this type have besides."""
        event = Event(next(self._numbers), now, type, kernel_id, reason, facts)
        self.recent.append(event)
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                log.exception("A listener to events failed at %s of kernel %s", type, kernel_id)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Have *listener* called with each event from now on; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


def publish_on(logger: Any) -> Callable[[Event], None]:
    """A listener that publishes on *logger*, a jupyter_events EventLogger."""
    if SCHEMA_ID not in logger.schemas:
        logger.register_event_schema(SCHEMA_FILE)

    def publish(event: Event) -> None:
        data = {"type": event.type, "kernel_id": event.kernel_id, "reason": event.reason, **event.facts}
        logger.emit(schema_id=SCHEMA_ID, data=data)

    return publish
