"""What to fill, evict, drain, load and unload: tables of cases. All times are seconds; it is NOW."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.decisions import (
    Drain,
    Evict,
    Host,
    Launch,
    Load,
    Policy,
    RecipeView,
    Stage,
    Unload,
    View,
    WarmView,
    backoff,
    plan,
    target,
)

NOW = 10_000.0
GIB = 1 << 30
MIB = 1 << 20
POLICY = Policy(max_warm_memory=100 * MIB)
CALM = Host(available_memory=8 * GIB, busy=0.1)
BUSY = Host(available_memory=8 * GIB, busy=0.95)
SHORT = Host(available_memory=POLICY.reserve_memory - 1, busy=0.1)
BARELY = Host(available_memory=POLICY.reserve_memory + 1, busy=0.1)


def warm(*ages: float) -> tuple[WarmView, ...]:
    """Warm kernels of those ages; the ids are their places."""
    return tuple(WarmView(str(place), NOW - age) for place, age in enumerate(ages))


def recipe(**changes) -> RecipeView:
    given = {
        "key": "k", "stage": Stage.READY, "warm": (), "starting": 0, "waiting": 0, "floor": 2, "ceiling": 8,
        "claims": (), "last_used": NOW - 10,
    }  # fmt: skip
    return RecipeView(**{**given, **changes})


def view(*recipes: RecipeView, host: Host = CALM, users_starting: int = 0, last_start: float = NOW - 60) -> View:
    return View(recipes=recipes, host=host, users_starting=users_starting, last_start=last_start)


CASES = {
    "missing kernels are made one at a time": (view(recipe()), [Launch("k", 1)]),
    "the next is made once the one before is there": (view(recipe(warm=warm(1))), [Launch("k", 1)]),
    "no second is made beside the first": (view(recipe(starting=1)), []),
    "a full recipe is left alone": (view(recipe(warm=warm(1, 2))), []),
    "one that is being made counts": (view(recipe(warm=warm(1), starting=1)), []),
    "floor 0 makes none ahead": (view(recipe(floor=0)), []),
    "ceiling 0 makes none": (view(recipe(floor=0, ceiling=0)), []),
    "ceiling 0 loads nothing": (view(recipe(floor=0, ceiling=0, stage=Stage.DOWN)), []),
    # users first
    "who waits is served": (view(recipe(waiting=1)), [Launch("k", 1)]),
    "all who wait are served, as far as parallel_starts goes": (view(recipe(waiting=9)), [Launch("k", 3)]),
    "a launch under way is for who waits": (view(recipe(waiting=2, starting=1)), [Launch("k", 1)]),
    "no launch for who will be served by one under way": (view(recipe(waiting=2, starting=2)), []),
    "who waits is served beside users' starts": (
        view(recipe(waiting=1), users_starting=1, last_start=NOW),
        [Launch("k", 1)],
    ),
    "who waits is served on a busy machine": (view(recipe(waiting=1), host=BUSY), [Launch("k", 1)]),
    "who waits is served when memory is short": (view(recipe(waiting=1), host=SHORT), [Launch("k", 1)]),
    "who waits is served by a recipe that keeps none": (view(recipe(floor=0, waiting=1)), [Launch("k", 1)]),
    "who waits gets a template, too": (view(recipe(stage=Stage.DOWN, waiting=1), users_starting=1), [Load("k")]),
    "who waits gets a template when memory is short": (
        view(recipe(stage=Stage.DOWN, waiting=1), host=SHORT),
        [Load("k")],
    ),
    "who waits comes before another recipe's refill": (
        view(recipe(key="a", starting=2), recipe(key="b", waiting=1)),
        [Launch("b", 1)],
    ),
    "nothing is launched beyond parallel_starts": (view(recipe(waiting=9, starting=3)), []),
    "parallel_starts counts all recipes": (
        view(recipe(key="a", waiting=3, starting=2), recipe(key="b", waiting=5)),
        [Launch("a", 1)],
    ),
    # refilling waits for its turn
    "nothing is made beside a user's start": (view(recipe(), users_starting=1), []),
    "nothing is made right after a user's start": (view(recipe(), last_start=NOW - POLICY.settle + 0.1), []),
    "refilling begins when the start has settled": (
        view(recipe(), last_start=NOW - POLICY.settle - 0.1),
        [Launch("k", 1)],
    ),
    "nothing is made on a busy machine": (view(recipe(), host=BUSY), []),
    "nothing is made when memory is short": (view(recipe(), host=SHORT), []),
    "nothing is made that memory has no room for": (view(recipe(bytes_each=GIB), host=BARELY), []),
    "no template is loaded beside a user's start": (view(recipe(stage=Stage.DOWN), users_starting=1), []),
    "no template is loaded when memory is short": (view(recipe(stage=Stage.DOWN), host=SHORT), []),
    # stages
    "a recipe that is down is loaded": (view(recipe(stage=Stage.DOWN)), [Load("k")]),
    "a failed one is loaded again": (view(recipe(stage=Stage.FAILED, retry_at=NOW - 1)), [Load("k")]),
    "a failed one is let be until retry_at": (view(recipe(stage=Stage.FAILED, retry_at=NOW + 1)), []),
    "launches wait for retry_at": (view(recipe(retry_at=NOW + 1)), []),
    "one that is loading is let be": (view(recipe(stage=Stage.LOADING)), []),
    "who waits for one that is loading waits": (view(recipe(stage=Stage.LOADING, waiting=2)), []),
    "a recipe that is draining gets nothing": (view(recipe(draining=True)), []),
    # going down
    "a kernel too old is replaced": (
        view(recipe(warm=warm(POLICY.max_warm_age + 1, 5))),
        [Evict("k", "0", "older than max_warm_age"), Launch("k", 1)],
    ),
    "a kernel too large is replaced": (
        view(recipe(warm=(WarmView("0", NOW - 5, 101 * MIB), WarmView("1", NOW - 5, 100 * MIB)))),
        [Evict("k", "0", "larger than max_warm_memory"), Launch("k", 1)],
    ),
    "surplus goes, the oldest first": (
        view(recipe(warm=warm(5, 40, 30))),
        [Evict("k", "1", "no longer needed")],
    ),
    "warm kernels go when the ceiling is lowered to 0": (
        view(recipe(warm=warm(5), floor=0, ceiling=0)),
        [Evict("k", "0", "no longer needed")],
    ),
    "memory that is short takes the oldest": (
        view(recipe(warm=warm(5, 40)), host=SHORT),
        [Evict("k", "1", "memory is short")],
    ),
    "memory takes one at a time": (
        view(recipe(key="a", warm=warm(5, 6)), recipe(key="b", warm=warm(7, 8)), host=SHORT),
        [Evict("a", "1", "memory is short")],
    ),
    "a changed environment drains, and nothing else": (
        view(recipe(stale=True, waiting=3, warm=warm(9999, 1, 1, 1))),
        [Drain("k", "its environment changed")],
    ),
    "unused recipes are unloaded": (
        view(recipe(last_used=NOW - POLICY.recipe_idle - 1, warm=warm(1, 2))),
        [Unload("k", "unused")],
    ),
    "pinned recipes stay": (
        view(recipe(last_used=NOW - POLICY.recipe_idle - 1, warm=warm(1, 2), pinned=True)),
        [],
    ),
    "a recipe somebody waits for stays": (
        view(recipe(last_used=NOW - POLICY.recipe_idle - 1, waiting=1)),
        [Launch("k", 1)],
    ),
    "one recipe's trouble is not another's": (
        view(recipe(key="a", stage=Stage.FAILED, retry_at=NOW + 9), recipe(key="b")),
        [Launch("b", 1)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_plan(case):
    given, expected = CASES[case]
    assert plan(given, POLICY, NOW) == expected


def test_nobody_made_ahead_takes_the_place_of_who_waits():
    recipes = recipe(key="a"), recipe(key="b", waiting=1)
    actions = plan(view(*recipes), dataclasses.replace(POLICY, parallel_starts=1), NOW)
    assert actions == [Launch("b", 1)]


def test_empty_pool_needs_nothing():
    assert plan(view(), POLICY, NOW) == []


def claims(*ages: float) -> tuple[float, ...]:
    return tuple(NOW - age for age in sorted(ages, reverse=True))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, 2),
        ({"floor": 0}, 0),
        ({"claims": claims(100)}, 2),
        ({"claims": claims(100, 101, 102)}, 3),
        ({"claims": claims(100, 101, 102, 104.9, 105)}, 5),
        ({"claims": claims(100, 101, 102, 300, 301, 302)}, 3),
        ({"claims": claims(*[100 + n / 10 for n in range(20)])}, 8),
        ({"claims": claims(*[590 + n for n in range(40)])}, 6),
        ({"claims": claims(700, 701, 702, 703)}, 2),
        ({"claims": claims(100, 101, 102), "ceiling": 0, "floor": 0}, 0),
        ({"claims": claims(100, 101, 102), "draining": True}, 0),
        ({"floor": 5, "ceiling": 3}, 3),
    ],
    ids=[
        "floor without claims", "floor 0", "one claim", "a burst of three", "a burst ends after 5 s",
        "two bursts do not add up", "ceiling", "claims older than the window do not count", "forgotten burst",
        "ceiling 0", "draining", "ceiling below floor",
    ],
)  # fmt: skip
def test_target(changes, expected):
    assert target(recipe(**changes), POLICY, NOW) == expected


@given(
    st.lists(st.floats(0, 1200), max_size=60).map(lambda ages: claims(*ages)),
    st.integers(0, 10),
    st.integers(0, 20),
)
def test_target_is_the_largest_burst_between_floor_and_ceiling(times, floor, more):
    found = target(recipe(claims=times, floor=floor, ceiling=floor + more), POLICY, NOW)
    recent = [at for at in times if NOW - at <= POLICY.demand_window]
    burst = max((len([at for at in recent if 0 <= at - start <= POLICY.burst]) for start in recent), default=0)
    assert found == (min(max(floor, burst), floor + more) if floor + more else 0)


@pytest.mark.parametrize(
    "failures, seconds",
    [(0, 0), (1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (9, 256), (10, 300), (11, 300), (1000, 300)],
)
def test_backoff_doubles_up_to_five_minutes(failures, seconds):
    assert backoff(failures) == seconds


def test_steady_demand_does_not_keep_a_lost_template_from_being_loaded():
    """Cold starts follow each other without a pause: there is none to wait for."""
    for claims, loaded in (([90.0, 93.0, 96.0, 99.0], True), ([98.0, 98.1, 98.2, 98.3], False), ([90.0, 99.0], False)):
        lost = recipe(stage=Stage.DOWN, claims=claims, last_used=99.0)
        busy = view(lost, users_starting=2, last_start=99.5)
        assert plan(busy, Policy(), 100.0) == ([Load(lost.key)] if loaded else []), claims
