"""Limits are read from what people write, or refused with a reason; they are tightened, loosened only on purpose."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.allowance import (
    LEAST_OPEN_FILES,
    LIMITS,
    Allowance,
    Breach,
    human,
    read_limit,
    read_limits,
    read_size,
)
from jupyter_kernelpool.errors import Loosens, NotValid


@pytest.mark.parametrize(
    "given, size",
    [
        (0, 0), (600, 600), (1.5, 1), ("600", 600), ("600M", 600 << 20), ("1.5GiB", 3 << 29), ("1.5 gb", 3 << 29),
        ("512KiB", 512 << 10), (" 2 T ", 2 << 40), ("10b", 10), ("0", 0), ("1k", 1024),
    ],
)  # fmt: skip
def test_sizes_are_bytes_or_text_in_powers_of_1024(given, size):
    assert read_size(given) == size


@pytest.mark.parametrize(
    "given", ["", "much", "-1", "-5M", "1e9", "5X", "M", "1.5.2G", -1, -0.5, math.nan, math.inf, True, None, [], {}]
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(NotValid, match="size"):
        read_size(given)


@pytest.mark.parametrize(
    "name, given, value",
    [
        ("memory", "600M", 600 << 20), ("output", "10M", 10 << 20), ("cpu", 0.8, 0.8), ("cpu", 2, 2.0),
        ("execution_timeout", 30, 30.0), ("processes", 100, 100), ("processes", 100.0, 100),
        ("open_files", LEAST_OPEN_FILES, LEAST_OPEN_FILES), ("open_files", 0, 0),
        *((name, None, 0) for name in LIMITS),
    ],
)  # fmt: skip
def test_limits_are_read_and_null_is_none(name, given, value):
    assert read_limit(name, given) == value


@pytest.mark.parametrize(
    "name, given",
    [
        ("memory", -1), ("memory", "lots"), ("output", math.nan), ("cpu", -0.1), ("cpu", math.nan), ("cpu", math.inf),
        ("cpu", "2"), ("cpu", True), ("processes", 1.5), ("processes", -1), ("open_files", LEAST_OPEN_FILES - 1),
        ("execution_timeout", "30s"),
    ],
)  # fmt: skip
def test_wrong_limit_is_refused_with_its_name(name, given):
    with pytest.raises(NotValid, match=name) as caught:
        read_limit(name, given)
    assert caught.value.facts["field"] == name


def test_unknown_limit_and_what_is_no_object_are_refused():
    with pytest.raises(NotValid, match="'disk' is no limit"):
        read_limits({"memory": 1, "disk": 2})
    with pytest.raises(NotValid, match="must be an object"):
        read_limits(["memory"])


def test_change_that_allows_less_or_limits_for_the_first_time_tightens():
    allowance = Allowance(memory=1000)
    assert allowance.tightened({"memory": 500, "cpu": 2.0}) == Allowance(memory=500, cpu=2.0)
    assert allowance.tightened({"memory": 1000}) == allowance


@pytest.mark.parametrize("value", [1001, 0])
def test_change_that_allows_more_or_everything_loosens(value):
    with pytest.raises(Loosens) as caught:
        Allowance(memory=1000, cpu=1.0).tightened({"cpu": 0.5, "memory": value})
    assert (caught.value.facts["limit"], caught.value.facts["allowed"]) == ("memory", 1000)


@given(st.dictionaries(st.sampled_from(LIMITS), st.integers(0, 10**9)), st.dictionaries(st.sampled_from(LIMITS),
       st.integers(0, 10**9)))  # fmt: skip
def test_nothing_is_ever_looser_after_it_was_tightened(present, changes):
    before = Allowance().changed(present)
    try:
        after = before.tightened(changes)
    except Loosens:
        return
    for name in before.limited:
        assert 0 < getattr(after, name) <= getattr(before, name)


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("memory", 600 << 20, "600 MB"), ("memory", 3 << 29, "1.5 GB"), ("output", 12, "12 bytes"),
        ("cpu", 0.8, "0.8 cores"), ("execution_timeout", 30.0, "30 s"), ("processes", 100, "100"),
    ],
)  # fmt: skip
def test_values_are_written_for_people(name, value, text):
    assert human(name, value) == text


def test_breach_says_what_was_used_and_allowed_and_whose_sum_it_was():
    breach = Breach("open_files", 256, 256, 0.0, "refused")
    assert str(breach) == "open files limit: 256 used, 256 allowed"
    together = Breach("memory", 1 << 30, 3 << 29, 0.0, "killed", "all kernels")
    assert str(together) == "memory limit of all kernels: 1.5 GB used together, 1 GB allowed"


def test_model_has_every_limit_and_null_where_there_is_none():
    assert Allowance(memory=5).as_model() == {**dict.fromkeys(LIMITS), "memory": 5}
