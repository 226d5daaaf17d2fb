"""From usage to steps: once for each crossing, with time to stop in between, and at once where it goes too far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.escalation import (
    QUIET,
    Interrupt,
    Kill,
    Note,
    Policy,
    Standing,
    Warn,
    escalate,
    note_refusals,
    note_throttling,
)

POLICY = Policy(warn_at=0.8, interrupts=True, grace=3.0, hard=1.1)
AT_ONCE = Policy(warn_at=0.8, interrupts=False, grace=3.0, hard=1.0)


def steps(uses, policy=POLICY, judge=escalate):
    """The names of the steps for *uses*, pairs of time and percent of the limit."""
    standing, found = Standing(), []
    for now, used in uses:
        options = {"now": now} if judge is escalate else {}
        standing, step = judge(standing, used=used, allowed=100.0, policy=policy, **options)
        found.append(type(step).__name__ if step is not None else "-")
    return " ".join(found)


@pytest.mark.parametrize(
    "uses, expected",
    [
        ([(0, 10), (1, 79), (2, 50)], "- - -"),
        ([(0, 80)], "Warn"),
        ([(0, 85), (1, 90), (2, 99), (3, 100)], "Warn - - -"),  # once for a crossing
        ([(0, 85), (1, 79), (2, 85)], "Warn - -"),  # not far enough below to be another one
        ([(0, 85), (1, 70), (2, 85)], "Warn - Warn"),
        ([(0, 101)], "Interrupt"),
        ([(0, 85), (1, 101), (2, 105), (3.9, 105), (4, 105)], "Warn Interrupt - - Kill"),
        ([(0, 101), (1, 50), (9, 101)], "Interrupt - Interrupt"),  # it stopped in time, and may try again
        ([(0, 101), (1, 98), (3.5, 101)], "Interrupt - Kill"),  # just below is not yet stopped
        ([(0, 101), (1, 98), (9, 99)], "Interrupt - -"),
        ([(0, 110)], "Kill"),
        ([(0, 85), (1, 200)], "Warn Kill"),
        ([(0, 101), (0.1, 111)], "Interrupt Kill"),
        ([(0, 101), (1, 50), (2, 85)], "Interrupt - Warn"),
    ],
)
def test_steps(uses, expected):
    assert steps(uses) == expected


@pytest.mark.parametrize(
    "uses, expected", [([(0, 85), (1, 101)], "Warn Kill"), ([(0, 100)], "Warn"), ([(0, 101)], "Kill")]
)
def test_without_interrupts_it_is_ended_at_once(uses, expected):
    assert steps(uses, AT_ONCE) == expected


def test_most_that_was_seen_is_remembered_until_it_is_calm():
    standing = Standing()
    for now, used in enumerate([101.0, 108.0, 104.0]):
        standing, _ = escalate(standing, used=used, allowed=100.0, policy=POLICY, now=now)
    assert standing.seen == 108.0
    standing, _ = escalate(standing, used=10.0, allowed=100.0, policy=POLICY, now=9)
    assert standing.seen == 10.0


def test_without_grace_it_is_ended_at_the_next_look():
    policy = Policy(grace=0.0)
    assert steps([(0, 101), (0, 101)], policy) == "Interrupt Kill"


@given(st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0, 130)), max_size=40))
def test_nobody_is_ended_who_was_not_interrupted_or_far_beyond(looks):
    standing, now, asked = Standing(), 0.0, None
    warned_below = True
    for passed, used in looks:
        now += passed
        standing, step = escalate(standing, used=used, allowed=100.0, policy=POLICY, now=now)
        if used < 100 * 0.95:
            asked = None
        match step:
            case Kill():
                assert used >= 110 or (asked is not None and now - asked >= POLICY.grace and used > 100)
                return
            case Interrupt():
                assert asked is None
                asked = now
            case Warn():
                assert 80 <= used <= 100
                assert warned_below, "it was below what is warned of since the last time"
        if used < 80 * 0.95:
            warned_below = True
        elif step is not None:
            warned_below = False


@pytest.mark.parametrize(
    "uses, expected",
    [
        ([(0, 10), (0, 85), (0, 90)], "- Warn -"),
        ([(0, 85), (0, 100), (0, 100)], "Warn Note -"),
        ([(0, 97), (0, 99), (0, 100)], "Warn Note -"),
        ([(0, 100), (0, 60), (0, 100)], "Note - Note"),
        ([(0, 100), (0, 90), (0, 100)], "Note - -"),
    ],
)
def test_what_the_system_refuses_is_noted_once_for_a_crossing(uses, expected):
    assert steps(uses, judge=note_refusals) == expected
    assert Note.__doc__


@pytest.mark.parametrize(
    "looks, told",
    [
        ([(0, False), (1, True)], [False, True]),
        ([(0, True), (1, True), (2, True)], [True, False, False]),
        ([(0, True), (1, False), (5, True)], [True, False, False]),
        ([(0, True), (QUIET, False), (QUIET + 1, True)], [True, False, True]),
        ([(0, True), (QUIET - 1, True), (QUIET + 1, False), (QUIET + 2, True)], [True, False, False, False]),
    ],
)
def test_slowing_down_is_told_once_until_it_was_quiet(looks, told):
    standing, found = Standing(), []
    for now, throttled in looks:
        standing, tell = note_throttling(standing, throttled=throttled, now=now)
        found.append(tell)
    assert found == told
