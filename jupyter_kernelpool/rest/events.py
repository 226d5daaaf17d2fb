"""GET /events: what happens to kernels, as it happens."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool.errors import NotFound, NotValid
from jupyter_kernelpool.events import Event, Events, Gap, read_types
from jupyter_kernelpool.rest import streams
from jupyter_kernelpool.rest.base import PREFIX
from jupyter_kernelpool.rest.models import Model, rfc3339

FILTERS = frozenset({"kernel", "type"})
OTHERS = frozenset({"token"})  # Jupyter's own


class EventsHandler(streams.EventStreamHandler):
    """The stream; a client that connects again is told what it missed, as far as that is remembered."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        manager = self.our_manager()
        unknown = set(self.request.query_arguments) - FILTERS - OTHERS
        if unknown:
            known = ", ".join(sorted(FILTERS))
            raise NotValid(f"{sorted(unknown)[0]} is no filter; there are {known}", field=sorted(unknown)[0])
        types = read_words(self.get_query_arguments("type"))
        for name in types - set(read_types()):
            raise NotValid(f"type = {name!r} must be one of {', '.join(read_types())}", field="type")
        kernels = {manager.forking.names.id_of(key) for key in read_words(self.get_query_arguments("kernel"))}
        for kernel_id in kernels:
            if kernel_id not in manager and all(event.kernel_id != kernel_id for event in manager.events.recent):
                raise NotFound(f"there is no kernel {kernel_id!r}, nor is one remembered", kernel=kernel_id)
        await self.stream(encoded(manager.events, read_last(self.last_event_id), kernels, types))


async def encoded(
    events: Events, after: int | None, kernels: set[str], types: set[str]
) -> AsyncGenerator[streams.Event]:
    """The events after number *after* of these kernels and types (of all, where there are none), to be sent."""
    following = events.follow(after)
    try:
        async for event in following:
            if isinstance(event, Gap):
                yield gap(event)
            elif (not kernels or event.kernel_id in kernels) and (not types or event.type in types):
                yield streams.Event(event.type, event_model(event), str(event.seq))
    finally:
        await following.aclose()


def event_model(event: Event) -> Model:
    """The contract's event, with the facts of its type."""
    common = {"seq": event.seq, "time": rfc3339(event.time), "type": event.type, "kernel_id": event.kernel_id}
    return {**common, "reason": event.reason, **event.facts}


def gap(missed: Gap) -> streams.Event:
    """What a client is told that was too slow, or away for too long."""
    how_many = "Some" if missed.lost is None else str(missed.lost)
    message = f"{how_many} events are missing here: they are no longer remembered"
    return streams.Event("warning", {"code": "gap", "message": message, "facts": {"lost": missed.lost}})


def read_words(values: list[str]) -> set[str]:
    """What a parameter lists that may be given more than once, and with commas."""
    return {word for value in values for word in value.split(",") if word}


def read_last(text: str | None) -> int | None:
    """The number of the last event that a client has seen; raises `NotValid`."""
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise NotValid(f"Last-Event-ID = {text!r} is not one that this stream gave", field="Last-Event-ID")
    return int(text)


ROUTES: list[tuple[Any, ...]] = [(PREFIX + "/events", EventsHandler)]
