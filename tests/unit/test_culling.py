"""Which kernels are ended, when they are warned, and which are left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.culling import (
    NEVER,
    SHORT,
    Cull,
    Forgive,
    Host,
    KernelView,
    Policy,
    Recycle,
    Renew,
    Warn,
    due,
    plan,
)

ROOMY = Host(available=1 << 40)
IDLE = Policy(idle_timeout=100, warn_before=10)


def kernel(policy: Policy = IDLE, **facts) -> KernelView:
    return replace(KernelView("k", policy, born=0.0, since=0.0), **facts)


@pytest.mark.parametrize(
    "view, at",
    [
        (kernel(), 100),
        (kernel(since=50), 150),
        (kernel(busy=True), NEVER),
        (kernel(connections=1), NEVER),
        (kernel(replace(IDLE, connected=True), connections=1), 100),
        (kernel(kept_until=500), 500),
        (kernel(Policy(), kept_until=500), NEVER),
        (kernel(Policy(busy_timeout=30), busy=True, since=5), 35),
        (kernel(Policy(busy_timeout=30), busy=True, since=5, connections=2), 35),
        (kernel(Policy(busy_timeout=30)), NEVER),
        (kernel(Policy(max_life=60), since=55), 60),
        (kernel(Policy(max_life=60, idle_timeout=10), connections=1), 60),
        (kernel(Policy(max_life=60, idle_timeout=10)), 10),
    ],
)
def test_when_a_kernel_is_due(view, at):
    assert due(view, now=0)[0] == at


@pytest.mark.parametrize(
    "now, told, expected",
    [
        (50, None, []),
        (90, None, [Warn("k", "it is idle for 100 s", 100)]),
        (95, 100, []),
        (100, 100, [Cull("k", "it is idle for 100 s")]),
        (100, None, [Warn("k", "it is idle for 100 s", 110)]),
        (3600, None, [Warn("k", "it is idle for 100 s", 3610)]),
        (3609, 3610, []),
        (3610, 3610, [Cull("k", "it is idle for 100 s")]),
        (50, 100, [Forgive("k")]),
    ],
)
def test_warned_once_then_culled(now, told, expected):
    assert plan([kernel(told=told)], ROOMY, now) == expected


def test_one_whose_last_client_has_just_gone_is_warned_first():
    """It was idle for long, but not to be ended while somebody was connected."""
    watched = kernel(connections=1)
    assert plan([watched], ROOMY, 5000) == []
    alone = replace(watched, connections=0)
    assert plan([alone], ROOMY, 5001) == [Warn("k", "it is idle for 100 s", 5011)]
    assert due(replace(alone, told=5011), now=5002)[0] == 5011
    assert plan([replace(alone, told=5011, kept_until=5600)], ROOMY, 5011) == [Forgive("k")]


def test_where_nobody_wants_warnings_none_is_waited_for():
    assert plan([kernel(replace(IDLE, warn_before=0))], ROOMY, 100) == [Cull("k", "it is idle for 100 s")]


def test_a_timeout_shorter_than_the_warning_is_not_prolonged_to_it():
    assert plan([kernel(Policy(idle_timeout=2))], ROOMY, 0.5) == [Warn("k", "it is idle for 2 s", 2.5)]


def test_one_that_was_kept_alive_is_warned_again_of_its_new_end():
    assert plan([kernel(told=100, kept_until=105)], ROOMY, 99) == [Warn("k", "it is idle for 100 s", 105)]


def test_one_that_is_held_is_left_alone():
    assert plan([kernel(held=True)], ROOMY, 1000) == []


def test_for_want_of_memory_the_least_recently_used_idle_one_goes_and_no_other():
    forever = Policy()
    kernels = [
        kernel(forever, id="used", since=50),
        kernel(forever, id="oldest", since=10),
        kernel(forever, id="busy", since=0, busy=True),
        kernel(forever, id="watched", since=0, connections=1),
        kernel(forever, id="kept", since=0, kept_until=1000),
        kernel(forever, id="held", since=0, held=True),
    ]
    short = Host(available=10, reserve=20, pace=5)
    assert plan(kernels, short, 100) == [Warn("oldest", SHORT, 105, pressed=True)]
    assert plan(kernels, Host(available=20, reserve=20), 100) == []
    assert plan(kernels[2:], short, 100) == []
    kernels[1] = replace(kernels[1], pressed=100)
    assert plan(kernels, short, 101) == [], "that look came at once"
    assert plan(kernels, short, 105) == [Cull("oldest", SHORT)]
    assert plan(kernels, Host(available=20, reserve=20), 105) == [Forgive("oldest", pressed=True)]


@pytest.mark.parametrize(
    "since_then, expected",
    [
        ({"since": 103}, [Forgive("first", pressed=True), Warn("next", SHORT, 110, pressed=True)]),
        ({"kept_until": 600}, [Forgive("first", pressed=True), Warn("next", SHORT, 110, pressed=True)]),
        ({"connections": 1}, [Forgive("first", pressed=True), Warn("next", SHORT, 110, pressed=True)]),
        ({"busy": True, "since": 103}, [Forgive("first", pressed=True), Warn("next", SHORT, 110, pressed=True)]),
        ({"since": 20}, [Cull("first", SHORT)]),
    ],
)
def test_one_that_was_used_or_kept_since_its_warning_does_not_go_for_want_of_memory(since_then, expected):
    kernels = [kernel(Policy(), id="first", since=10, pressed=100), kernel(Policy(), id="next", since=50)]
    kernels[0] = replace(kernels[0], **since_then)
    assert plan(kernels, Host(available=10, reserve=20, pace=5), 105) == expected


def test_the_only_one_is_warned_again_for_want_of_memory_where_it_was_used():
    used = kernel(Policy(), since=103, pressed=100)
    assert plan([used], Host(available=10, reserve=20, pace=5), 105) == [Warn("k", SHORT, 110, pressed=True)]


def test_want_of_memory_waits_for_no_warning_where_nobody_wants_any():
    silent = kernel(Policy(warn_before=0))
    assert plan([silent], Host(available=10, reserve=20, pace=5), 105) == [Cull("k", SHORT)]


def test_users_kernels_stay_while_kernels_that_nobody_owns_go_for_want_of_memory():
    assert plan([kernel(Policy(), id="spare")], Host(available=10, reserve=20, regains=True), 200) == []


def test_memory_that_an_end_under_way_will_give_back_is_waited_for():
    kernels = [kernel(id="due", told=100), kernel(Policy(), id="spare")]
    assert plan(kernels, Host(available=10, reserve=20), 200) == [Cull("due", "it is idle for 100 s")]


@pytest.mark.parametrize(
    "view, renewed",
    [
        (kernel(Policy(), recycle=Recycle(age=60)), True),
        (kernel(Policy(), recycle=Recycle(age=60), busy=True), False),
        (kernel(Policy(), recycle=Recycle(age=61)), False),
        (kernel(Policy(), recycle=Recycle(memory=5), memory=5), True),
        (kernel(Policy(), recycle=Recycle(memory=6), memory=5), False),
        (kernel(Policy(), recycle=Recycle(uses=2), uses=2), True),
        (kernel(Policy(), recycle=Recycle(uses=2), uses=1), False),
        (kernel(Policy(), recycle=Recycle(uses=2), uses=2, busy=True), False),
        (kernel(Policy()), False),
    ],
)
def test_an_owners_kernel_is_renewed_only_where_it_asked_and_only_between_cells(view, renewed):
    assert [type(action) for action in plan([view], ROOMY, 60)] == ([Renew] if renewed else [])


VIEWS = st.builds(
    KernelView,
    id=st.uuids().map(str),
    policy=st.builds(
        Policy,
        idle_timeout=st.sampled_from([0, 1, 50]), busy_timeout=st.sampled_from([0, 1, 50]),
        max_life=st.sampled_from([0, 50]), connected=st.booleans(), warn_before=st.sampled_from([0, 10]),
    ),
    born=st.floats(0, 100), since=st.floats(0, 100), busy=st.booleans(), connections=st.integers(0, 2),
    kept_until=st.floats(0, 200), held=st.booleans(), told=st.none() | st.floats(0, 200),
    pressed=st.none() | st.floats(0, 200),
    memory=st.integers(0, 10), recycle=st.builds(Recycle, age=st.sampled_from([0, 50]), memory=st.sampled_from([0, 5])),
)  # fmt: skip


@given(st.lists(VIEWS, max_size=6), st.integers(0, 10), st.integers(0, 10), st.floats(0, 200))
def test_nothing_is_done_to_one_that_is_kept_held_or_used(kernels, available, reserve, now):
    actions = plan(kernels, Host(available, reserve), now)
    by_id = {view.id: view for view in kernels}
    for action in actions:
        view = by_id[action.id]
        assert not view.held
        if isinstance(action, Cull):
            assert view.kept_until <= now
            assert view.told is not None or view.pressed is not None or not view.policy.warn_before
            if view.busy:
                assert view.policy.busy_timeout or view.policy.max_life
            elif view.connections and not view.policy.connected:
                assert view.policy.max_life
        if isinstance(action, Renew):
            assert not view.busy
    ends = [action.id for action in actions if isinstance(action, Cull)]
    assert len(ends) == len(set(ends))
