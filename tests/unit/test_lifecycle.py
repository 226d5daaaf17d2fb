"""States and moves: what is allowed, what is not, and the story that is kept."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.errors import InvalidTransition
from jupyter_kernelpool.lifecycle import LIVE, TRANSITIONS, Move, Record, State

S = State
# architecture.md's picture, written out. What is not here is forbidden.
ALLOWED = {
    (S.STARTING, S.WARM),
    (S.STARTING, S.ACTIVE),
    (S.STARTING, S.HELD),
    (S.STARTING, S.STOPPING),
    (S.STARTING, S.DEAD),
    (S.WARM, S.ACTIVE),
    (S.WARM, S.STOPPING),
    (S.WARM, S.DEAD),
    (S.ACTIVE, S.UNRESPONSIVE),
    (S.ACTIVE, S.HELD),
    (S.ACTIVE, S.STOPPING),
    (S.ACTIVE, S.DEAD),
    (S.UNRESPONSIVE, S.ACTIVE),
    (S.UNRESPONSIVE, S.STOPPING),
    (S.UNRESPONSIVE, S.DEAD),
    (S.HELD, S.ACTIVE),
    (S.HELD, S.STOPPING),
    (S.HELD, S.DEAD),
    (S.STOPPING, S.DEAD),
}
PAIRS = sorted(itertools.product(S, S))


def record_in(state: State) -> Record:
    record = Record(recipe="python3", way="spawn", born=1.0)
    record.story.append(Move(state, "put there", 1.0))
    return record


@pytest.mark.parametrize("here, there", sorted(ALLOWED))
def test_allowed_move_is_made_and_told(here, there):
    record = record_in(here)
    told = []
    record.on_move = lambda moved, move: told.append((moved, move))
    record.move(there, why="because", now=2.0)
    assert record.state is there
    assert record.story[-1] == Move(there, "because", 2.0)
    assert told == [(record, record.story[-1])]


@pytest.mark.parametrize("here, there", [pair for pair in PAIRS if pair not in ALLOWED])
def test_forbidden_move_is_refused_and_changes_nothing(here, there):
    record = record_in(here)
    record.on_move = lambda *_: pytest.fail("a move that was refused is told")
    before = list(record.story)
    with pytest.raises(InvalidTransition):
        record.move(there, why="because", now=2.0)
    assert record.story == before


def test_every_state_has_its_row():
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", sorted(LIVE))
def test_every_live_state_leads_to_stopping_and_to_death(state):
    assert {S.STOPPING, S.DEAD} <= TRANSITIONS[state]


def test_refusal_names_recipe_pid_reason_and_last_moves():
    record = Record(recipe="python3", way="template", born=1.0, pid=42)
    record.move(S.WARM, why="ready", now=2.0)
    record.move(S.ACTIVE, why="claimed", now=3.0)
    with pytest.raises(InvalidTransition) as refused:
        record.move(S.WARM, why="given back", now=4.0)
    for part in ("42", "'python3'", "active", "given back", "starting (asked for)", "warm (ready)", "(claimed)"):
        assert part in str(refused.value)


def test_story_begins_with_the_asking():
    record = Record(recipe="python3", way="cold", born=7.0)
    assert record.state is S.STARTING
    assert record.story == [Move(S.STARTING, "asked for", 7.0)]


def test_records_have_ids_and_stories_of_their_own():
    one, two = (Record(recipe="python3", way="cold", born=1.0) for _ in range(2))
    one.move(S.ACTIVE, why="started", now=2.0)
    assert one.id != two.id
    assert two.state is S.STARTING


@pytest.mark.parametrize("state", sorted(State))
def test_end_notes_the_death_once_whatever_came_before(state):
    record = record_in(state)
    length = len(record.story)
    record.end(why="exit code 1", now=2.0)
    record.end(why="exit code 2", now=3.0)
    assert record.state is S.DEAD
    if state is not S.DEAD:
        assert record.story[length:] == [Move(S.DEAD, "exit code 1", 2.0)]


@given(st.lists(st.sampled_from(State), max_size=30))
def test_kernel_that_had_an_owner_is_never_warm_again(wishes):
    record = Record(recipe="python3", way="template", born=0.0)
    for now, wish in enumerate(wishes):
        try:
            record.move(wish, why="wished", now=now)
        except InvalidTransition:
            continue
    states = [move.to for move in record.story]
    owned = [at for at, state in enumerate(states) if state in (S.ACTIVE, S.HELD, S.UNRESPONSIVE)]
    if owned:
        assert S.WARM not in states[owned[0] :]
    assert S.DEAD not in states[:-1]
