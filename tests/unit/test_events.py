"""Events are handed on in order, whatever their listeners do, and each fits the schema that is published with it."""

from __future__ import annotations

import io
import json
import logging

import pytest
from jupyter_events import EventLogger

from jupyter_kernelpool.events import REMEMBERED, SCHEMA_ID, Events, publish_on

LIMIT = {"limit": "memory", "allowed": 100.0, "seen": 120.0}


def test_listeners_hear_events_in_the_order_in_which_they_happened():
    events, heard = Events(), []
    events.listen(lambda event: heard.append((event.seq, event.type)))
    for kind in ("warned", "breached", "dead"):
        events.emit(kind, "k", now=1.0)
    assert heard == [(1, "warned"), (2, "breached"), (3, "dead")]
    assert [event.type for event in events.recent] == ["warned", "breached", "dead"]


def test_failing_listener_keeps_no_other_from_hearing(caplog):
    events, heard = Events(), []

    def fails(event):
        raise RuntimeError("no")

    events.listen(fails)
    events.listen(heard.append)
    events.emit("dead", "k", now=1.0, reason="why")
    assert [event.reason for event in heard] == ["why"]
    assert "dead of kernel k" in caplog.text


def test_listener_that_was_taken_off_hears_no_more():
    events, heard = Events(), []
    stop = events.listen(heard.append)
    events.emit("dead", "k", now=1.0)
    stop()
    events.emit("dead", "k", now=2.0)
    assert len(heard) == 1


def test_what_is_remembered_is_bounded():
    events = Events()
    for number in range(REMEMBERED + 5):
        events.emit("dead", str(number), now=1.0)
    assert len(events.recent) == REMEMBERED
    assert events.recent[0].kernel_id == "5"


@pytest.mark.parametrize(
    "kind, facts",
    [
        ("warned", LIMIT),
        ("throttled", LIMIT),
        ("breached", {**LIMIT, "outcome": "killed", "state_lost": True}),
        ("dead", {}),
    ],
)
def test_event_is_published_on_jupyters_logger_and_fits_the_schema(kind, facts):
    stream, logger = io.StringIO(), EventLogger()
    logger.register_handler(logging.StreamHandler(stream))
    events = Events()
    events.listen(publish_on(logger))
    events.emit(kind, "k", now=1.0, reason="why", **facts)
    published = json.loads(stream.getvalue())
    assert published["__schema__"] == SCHEMA_ID
    assert {name: published[name] for name in ("type", "kernel_id", "reason", *facts)} == {
        "type": kind, "kernel_id": "k", "reason": "why", **facts,
    }  # fmt: skip


def test_schema_is_registered_once_for_all_servers_of_a_logger():
    logger = EventLogger()
    publish_on(logger)
    publish_on(logger)
    assert SCHEMA_ID in logger.schemas
