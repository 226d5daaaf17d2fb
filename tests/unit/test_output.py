"""What of an execution's output its client gets, message by message."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.output import (
    ENVELOPE,
    MOST_NOTES,
    NOTE_SIZE,
    REMEMBERED,
    SMALL_UPDATE,
    Budget,
    Budgets,
    Cut,
    Drop,
    LeaveOut,
    Pass,
    Verdict,
    display_of,
    fitting,
    marker,
    note,
    shorten_error,
    size_of,
)

LIMIT = 1000
Message = tuple[str, int] | tuple[str, int, str]


def judge(messages: Sequence[Message], limit: int = LIMIT) -> list[Verdict]:
    budget = Budget()
    return [budget.judge(kind, size, limit, *display) for kind, size, *display in messages]


@pytest.mark.parametrize(
    "messages, verdicts",
    [
        pytest.param([("stream", 400), ("stream", 600)], [Pass(), Pass()], id="what fits passes"),
        pytest.param([("stream", 400), ("stream", 601)], [Pass(), Cut(600)], id="text is cut where the budget ends"),
        pytest.param([("stream", 5000), ("stream", 1)], [Cut(1000), Drop()], id="after the cut nothing comes"),
        pytest.param(
            [("stream", 1000), ("stream", 1), ("stream", 1)], [Pass(), Cut(0), Drop()], id="an exact fit is marked late"
        ),
        pytest.param([("display_data", 1001)], [LeaveOut(1001)], id="an image is whole or not at all"),
        pytest.param([("execute_result", 1001)], [LeaveOut(1001)], id="a result is whole or not at all"),
        pytest.param(
            [("stream", 500), ("display_data", 600), ("stream", 200)],
            [Pass(), LeaveOut(600), Pass()],
            id="what is small enough passes after an image that is left out",
        ),
        pytest.param(
            [("stream", 950), ("display_data", 600), ("display_data", 600)],
            [Pass(), Cut(0), Drop()],
            id="notes end with the budget",
        ),
        pytest.param(
            [*[("display_data", 9000)] * 12, ("stream", 100)],
            [LeaveOut(9000)] * 3 + [Cut(0)] + [Drop()] * 9,
            id="notes use the budget up",
        ),
        pytest.param(
            [("stream", 2000), ("error", 500), ("comm_msg", 10**9), ("status", 80), ("execute_input", 100)],
            [Cut(1000), Pass(), Pass(), Pass(), Pass()],
            id="what is no output passes",
        ),
        pytest.param(
            [("display_data", 300, "a"), *[("update_display_data", 300, "a")] * 50, ("stream", 700)],
            [Pass()] * 52,
            id="updates replace",
        ),
        pytest.param(
            [("display_data", 300, "a"), ("update_display_data", 400, "a"), ("stream", 601)],
            [Pass(), Pass(), Cut(600)],
            id="an update that is larger counts as far as it is",
        ),
        pytest.param(
            [("display_data", 300, "a"), ("stream", 9999), ("update_display_data", 320, "a")],
            [Pass(), Cut(700), Pass()],
            id="a progress bar goes on when the budget is used up",
        ),
        pytest.param(
            [("display_data", 300, "a"), ("update_display_data", SMALL_UPDATE + 1, "a")],
            [Pass(), LeaveOut(SMALL_UPDATE + 1)],
            id="an update that became an image has to fit",
        ),
        pytest.param(
            [("update_display_data", 300, "an earlier cell's"), ("stream", 1000)],
            [Pass(), Pass()],
            id="an update of an earlier cell's display replaces what is there",
        ),
        pytest.param(
            [*[("display_data", 900), ("clear_output", 20)] * 30, ("stream", 1000)],
            [Pass()] * 61,
            id="clear_output gives back",
        ),
        pytest.param(
            [("stream", 2000), ("clear_output", 20), ("stream", 10)],
            [Cut(1000), Pass(), Pass()],
            id="after clear_output there is room again",
        ),
    ],
)
def test_each_message_gets_its_verdict(messages: list[Message], verdicts: list[Verdict]) -> None:
    assert judge(messages) == verdicts


@pytest.mark.parametrize(
    "messages, goes_on",
    [
        pytest.param([("stream", 100)] * 20, False, id="twice the budget"),
        pytest.param([("stream", 100)] * 21, True, id="more than twice"),
        pytest.param([("stream", 10**9), ("stream", 900)], False, id="one that is huge is no loop"),
        pytest.param([("display_data", 10**9)] * 3, True, id="three that are huge are one"),
        pytest.param([("display_data", 100, "a"), *[("update_display_data", 100, "a")] * 900], False, id="updates"),
        pytest.param([("display_data", 900), ("clear_output", 20)] * 900, False, id="a plot that is drawn anew"),
        pytest.param([("comm_msg", 900)] * 900, False, id="widgets"),
    ],
)
def test_what_goes_on_is_told_from_what_is_large(messages: list[Message], goes_on: bool) -> None:
    budget = Budget()
    for kind, size, *display in messages:
        budget.judge(kind, size, LIMIT, *display)
    assert budget.goes_on(LIMIT) is goes_on


def test_copy_goes_on_by_itself() -> None:
    budget = Budget()
    budget.judge("display_data", 300, LIMIT, "a")
    copy = budget.copy()
    assert copy.judge("update_display_data", 500, LIMIT, "a") == Pass()
    assert (budget.kept, copy.kept) == (300, 500)
    assert budget.displays == {"a": 300}


def test_budget_of_an_execution_is_remembered_while_others_run() -> None:
    budgets = Budgets()
    budgets.of("thread that prints on").judge("stream", 2000, LIMIT)
    for number in range(REMEMBERED - 1):
        budgets.of(str(number))
    assert budgets.of("thread that prints on").marked
    for number in range(REMEMBERED):
        budgets.of(f"later {number}")
    assert not budgets.of("thread that prints on").marked


MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["stream", "display_data", "execute_result"]), st.integers(0, 3000)),
        st.tuples(
            st.sampled_from(["display_data", "update_display_data"]), st.integers(0, 90_000), st.sampled_from("ab")
        ),
        st.tuples(st.sampled_from(["comm_msg", "status", "error", "execute_input"]), st.integers(0, 3000)),
    ),
    max_size=60,
)


@given(MESSAGES, st.integers(1, 5000))
def test_what_is_appended_never_exceeds_the_budget(messages: list[Message], limit: int) -> None:
    appended = 0
    for (kind, size, *_), verdict in zip(messages, judge(messages, limit), strict=True):
        if kind in ("stream", "display_data", "execute_result"):
            appended += size if verdict == Pass() else verdict.room if isinstance(verdict, Cut) else 0
        assert isinstance(verdict, Pass) or kind not in ("comm_msg", "status", "error", "execute_input")
    assert appended <= limit


@given(MESSAGES, st.integers(1, 5000))
def test_what_is_left_out_is_told_and_ends_being_told(messages: list[Message], limit: int) -> None:
    verdicts = judge(messages, limit)
    cuts = [place for place, verdict in enumerate(verdicts) if isinstance(verdict, Cut)]
    assert len(cuts) <= 1
    notes = [place for place, verdict in enumerate(verdicts) if isinstance(verdict, LeaveOut)]
    for place in (place for place, verdict in enumerate(verdicts) if isinstance(verdict, Drop)):
        assert (cuts and cuts[0] < place) or sum(noted < place for noted in notes) == MOST_NOTES
    assert sum(isinstance(verdict, LeaveOut) for verdict in verdicts) <= min(MOST_NOTES, limit / NOTE_SIZE + 1)


@given(MESSAGES)
def test_two_connections_agree(messages: list[Message]) -> None:
    assert judge(messages) == judge(messages)


def test_each_message_counts_with_its_envelope() -> None:
    assert size_of([b"content", b"buffer"]) == ENVELOPE + 13


@given(st.text(max_size=60), st.integers(0, 200))
def test_text_that_is_cut_is_its_start_and_fits_as_sent(text: str, room: int) -> None:
    start = fitting(text, room)
    assert text.startswith(start)
    assert len(json.dumps(start, ensure_ascii=False).encode()) - 2 <= max(room, 0)
    if len(start) < len(text):  # and no character more would have fitted
        more = json.dumps(text[: len(start) + 1], ensure_ascii=False).encode()
        assert len(more) - 2 > room


def test_text_is_cut_between_characters() -> None:
    assert fitting("añb", 2) == "a"
    assert fitting("añb", 3) == "añ"
    assert fitting("a\x1b[31m", 5) == "a"
    assert fitting('\\"', 3) == "\\"
    assert fitting("\ud800 half a pair", 4) == "? ha"


@given(
    evalue=st.text(max_size=50) | st.integers(0, 300_000).map(lambda size: "é" * size),
    traceback=st.lists(st.integers(0, 200_000).map(lambda size: "\x1b" * size), max_size=4),
    limit=st.integers(1, 200_000),
)
def test_error_that_is_shortened_fits_and_says_so(evalue: str, traceback: list[str], limit: int) -> None:
    content = {"ename": "E", "evalue": evalue, "traceback": traceback}
    short = shorten_error(content, limit)
    assert short["ename"] == "E"
    assert evalue.startswith(short["evalue"])
    assert all(given.startswith(kept) for given, kept in zip(traceback, short["traceback"][:-1], strict=False))
    assert len(json.dumps(short, ensure_ascii=False).encode()) <= max(limit, SMALL_UPDATE) + 1000
    assert short["traceback"][-1] == marker(limit).strip()


def test_markers_name_the_limit() -> None:
    assert "output limit of 10 MB reached" in marker(10 << 20)
    assert "12 MB" in note(12 << 20, 10 << 20)


@pytest.mark.parametrize(
    "kind, content, display",
    [
        ("display_data", {"data": {}, "transient": {"display_id": "x"}}, "x"),
        ("update_display_data", {"data": {}, "transient": {"display_id": "x"}}, "x"),
        ("display_data", {"data": {"text/plain": "display_id"}, "transient": {}}, ""),
        ("display_data", {"data": {}}, ""),
        ("stream", {"text": "display_id"}, ""),
    ],
)
def test_display_is_known_by_its_id(kind: str, content: dict[str, object], display: str) -> None:
    assert display_of(kind, json.dumps(content).encode(), json.loads) == display


def test_only_the_first_outputs_that_are_left_out_have_a_note_each() -> None:
    limit = 1 << 20
    verdicts = judge([*[("display_data", 2 << 20)] * 30, ("stream", 100), ("stream", 1 << 20)], limit)
    assert verdicts[:MOST_NOTES] == [LeaveOut(2 << 20)] * MOST_NOTES
    assert verdicts[MOST_NOTES:-2] == [Drop()] * (30 - MOST_NOTES)
    assert verdicts[-2:] == [Pass(), Cut(limit - MOST_NOTES * NOTE_SIZE - 100)]
