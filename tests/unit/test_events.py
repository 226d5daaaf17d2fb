"""Events are handed on in order, whatever their listeners do, and each fits the schema that is published with it."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
from jsonschema import ValidationError
from jupyter_events import EventLogger

from jupyter_kernelpool.events import REMEMBERED, SCHEMA_ID, Events, Gap, publish_on, read_types

LIMIT = {"limit": "memory", "allowed": 100.0, "seen": 120.0}
FACTS = {
    "starting": {},
    "ready": {"way": "template", "seconds": 0.02},
    "busy": {},
    "idle": {"status": "ok", "seconds": 1.5},
    "unresponsive": {"cause": "stopped"},
    "restarted": {"cause": "died"},
    "culling": {"seconds": 5.0},
    "culled": {"cause": "idle"},
    "warned": LIMIT,
    "breached": {**LIMIT, "outcome": "killed", "state_lost": True},
    "throttled": LIMIT,
    "forked": {"child": "c", "name": "kid", "checkpoint": "p"},
    "checkpointed": {"checkpoint": "p", "name": "one"},
    "restored": {"source": "p", "checkpoint": "p"},
    "dead": {},
}


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


def test_what_has_no_kernel_id_is_no_event():
    events = Events()
    events.emit("dead", "", now=1.0)
    assert not events.recent
    assert events.last == 0


def test_what_is_remembered_is_bounded():
    events = Events()
    for number in range(REMEMBERED + 5):
        events.emit("dead", str(number), now=1.0)
    assert len(events.recent) == REMEMBERED
    assert events.recent[0].kernel_id == "5"


# -- followers --------------------------------------------------------------------------------------


def emit(events, *kernels):
    for kernel in kernels:
        events.emit("busy", kernel, now=1.0)


async def take(following, count):
    """The next *count* of what a follower is given, events as their kernel ids."""
    async with asyncio.timeout(10):
        given = [await anext(following) for _ in range(count)]
    return [each if isinstance(each, Gap) else each.kernel_id for each in given]


async def test_a_follower_hears_what_happens_from_then_on():
    events = Events()
    emit(events, "before")
    following = events.follow()
    hearing = asyncio.ensure_future(take(following, 2))
    await asyncio.sleep(0)
    emit(events, "a", "b")
    assert await hearing == ["a", "b"]
    await following.aclose()


@pytest.mark.parametrize("after, heard", [(100, ["b", "c"]), (101, ["c"]), (99, ["a", "b", "c"])])
async def test_who_comes_back_goes_on_after_the_last_event_it_saw(after, heard):
    events = Events(first=100)
    emit(events, "a", "b", "c")
    assert await take(events.follow(after), len(heard)) == heard


@pytest.mark.parametrize("after", [5, 1000])
async def test_the_number_of_another_server_is_a_gap_and_what_is_remembered_follows(after):
    events = Events(first=100)
    emit(events, "a", "b")
    assert await take(events.follow(after), 3) == [Gap(None), "a", "b"]


async def test_a_slow_follower_is_told_how_much_it_missed_and_costs_no_memory():
    events = Events()
    following = events.follow(0)
    emit(events, "first")
    assert await take(following, 1) == ["first"]
    emit(events, *(str(number) for number in range(REMEMBERED + 7)))
    assert await take(following, 2) == [Gap(7), "7"]
    assert len(events.recent) == REMEMBERED
    await following.aclose()


async def test_followers_come_to_an_end_with_all_that_happened_before():
    events = Events()
    following = events.follow(0)
    emit(events, "a")
    events.close()
    assert [event.kernel_id async for event in following] == ["a"]
    assert not events._followers


async def test_a_follower_that_left_is_forgotten():
    events = Events()
    following = events.follow(0)
    emit(events, "a")
    await take(following, 1)
    assert len(events._followers) == 1
    await following.aclose()
    assert not events._followers


# -- the schema -------------------------------------------------------------------------------------


def test_every_type_has_its_facts_here():
    assert set(FACTS) == set(read_types())


@pytest.mark.parametrize("kind, facts", FACTS.items())
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


@pytest.mark.parametrize(
    "kind, facts",
    [
        ("no_such_type", {}),
        ("dead", {"no_such_fact": 1}),
        ("ready", {"way": "template"}),
        ("idle", {"status": "ok"}),
        ("idle", {"status": "ok", "seconds": "1"}),
        ("restarted", {}),
        ("culled", {}),
        ("culling", {}),
        ("breached", LIMIT),
        ("warned", {"limit": "memory"}),
        ("forked", {}),
        ("checkpointed", {}),
        ("restored", {}),
    ],
)
def test_event_without_the_facts_of_its_type_does_not_fit(kind, facts):
    logger = EventLogger()
    logger.register_handler(logging.StreamHandler(io.StringIO()))
    publish_on(logger)
    with pytest.raises(ValidationError):
        logger.emit(schema_id=SCHEMA_ID, data={"type": kind, "kernel_id": "k", "reason": "", **facts})


def test_schema_is_registered_once_for_all_servers_of_a_logger():
    logger = EventLogger()
    publish_on(logger)
    publish_on(logger)
    assert SCHEMA_ID in logger.schemas
