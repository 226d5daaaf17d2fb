"""Paging, input and models, as plain functions."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado import web

from jupyter_kernelpool.errors import NotFound, NotValid, PoolExhausted
from jupyter_kernelpool.memory import read_memory
from jupyter_kernelpool.recipes import Settings
from jupyter_kernelpool.rest.base import cut, error_body, read_cursor, read_limit
from jupyter_kernelpool.rest.models import quantile, rfc3339
from jupyter_kernelpool.rest.pools import is_outdated, read_changes
from jupyter_kernelpool.rest.stock import find_refusal

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@given(st.sets(KEYS), st.integers(1, 10))
def test_pages_give_each_thing_once_in_order(keys: set[str], limit: int) -> None:
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = cut(((key, key) for key in keys), limit=limit, after=read_cursor(cursor))
        assert len(page) <= limit
        seen += page
        if cursor is None:
            break
    assert seen == sorted(keys)


@given(st.text())
def test_a_wrong_cursor_is_refused(text: str) -> None:
    refused = None
    try:
        key = read_cursor(text)
    except NotValid as error:
        refused = error.facts["field"]
    assert refused == "cursor" or base64.urlsafe_b64decode(text).decode() == key


@pytest.mark.parametrize("text", ["0", "-1", "1001", "1e3", "", " 1", "\u0661", "9" * 5000, "1_0"])
def test_a_wrong_limit_is_refused(text: str) -> None:
    with pytest.raises(NotValid, match="limit"):
        read_limit(text)


@given(st.dictionaries(st.sampled_from(["warm", "min", "max", "preload", "limits", "x"]) | st.text(), JSON))
def test_changes_are_read_or_refused_by_name(body: dict[str, Any]) -> None:
    allowed = frozenset({"warm", "max", "preload"})
    refused = None
    try:
        changes = read_changes(body, allowed)
    except NotValid as error:
        refused = error.facts["field"]
    assert refused in body or set(changes) <= allowed


def test_min_means_warm() -> None:
    assert read_changes({"min": 3}, frozenset({"warm"})) == {"warm": 3}
    assert read_changes({"min": 3, "warm": 3}, frozenset({"warm"})) == {"warm": 3}
    with pytest.raises(NotValid, match="min = 3 and warm = 2"):
        read_changes({"min": 3, "warm": 2}, frozenset({"warm"}))


@pytest.mark.parametrize(
    "after, outdated",
    [
        (Settings(5, 9, ("json",), "x = 1"), False),
        (Settings(1, 2, (), "x = 1"), True),
        (Settings(1, 2, ("json",), ""), True),
        (Settings(0, 0, ("json",), "x = 1"), True),
    ],
)
def test_only_what_kernels_hold_outdates_them(after: Settings, outdated: bool) -> None:
    assert is_outdated(Settings(1, 2, ("json",), "x = 1"), after) is outdated


@pytest.mark.parametrize(
    "values, share, expected",
    [([], 0.5, None), ([3.0], 0.95, 3.0), ([4, 1, 3, 2], 0.5, 2), (range(1, 101), 0.95, 95)],
)
def test_quantiles(values: Any, share: float, expected: float | None) -> None:
    assert quantile(values, share) == expected


def test_times_are_rfc3339_in_utc() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"


def test_memory_of_a_process_that_ended_is_left_out() -> None:
    assert read_memory([1 << 22]) == {}


def test_errors_of_ours_tell_their_facts() -> None:
    body = error_body(404, NotFound("there is no recipe 'x'", recipe="x"))
    assert body == {
        "message": "there is no recipe 'x'",
        "reason": None,
        "code": "not_found",
        "hint": NotFound.hint,
        "delivered": False,
        "recipe": "x",
    }


def test_an_unexpected_exception_is_not_told() -> None:
    body = error_body(500, RuntimeError("secret"))
    assert "secret" not in json.dumps(body)
    assert (body["code"], body["delivered"]) == ("internal", "unknown")


@pytest.mark.parametrize("message", ["100 %", "%s", "%(x)d"])
def test_percent_signs_in_messages_survive(message: str) -> None:
    assert error_body(400, web.HTTPError(400, message))["message"] == message


def test_a_refusal_is_found_behind_the_exceptions_that_stock_makes_of_it() -> None:
    refusal = PoolExhausted("full", retry_after=5)
    middle, outer = web.HTTPError(503), web.HTTPError(500)
    middle.__cause__, outer.__cause__ = refusal, middle
    assert find_refusal(outer) is refusal
    assert find_refusal(web.HTTPError(500)) is None
