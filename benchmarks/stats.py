"""Statistics over the raw rows of a measure. Pure.

A row is a flat mapping with `round` (int), `side` ("stock", "ours", "floor", …) and the values that
were seen: numbers (seconds, bytes, counts), booleans (`hit`), or lists of numbers that are kept but
not summarised.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
Summary: TypeAlias = dict[str, Any]

KEYS = frozenset({"round", "side"})


def percentile(values: Sequence[float], percent: float) -> float:
    """The *percent*-th percentile of *values*, interpolated linearly between neighbours."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def describe(values: Sequence[float]) -> dict[str, float]:
    """Count, median, p99 and the extremes."""
    return {
        "n": len(values),
        "median": _tidy(statistics.median(values)),
        "p99": _tidy(percentile(values, 99)),
        "min": _tidy(min(values)),
        "max": _tidy(max(values)),
    }


def pair_ratios(rows: Iterable[Row], value: str, over: str, under: str) -> list[float]:
    """`over / under` for each round in which both sides have a positive *value*."""
    by_round: dict[int, dict[str, float]] = {}
    for row in rows:
        if _is_number(row.get(value)):
            by_round.setdefault(row["round"], {})[row["side"]] = float(row[value])
    return [
        _tidy(seen[over] / seen[under])
        for _, seen in sorted(by_round.items())
        if over in seen and under in seen and seen[under] > 0
    ]


def summarise(rows: Sequence[Row]) -> Summary:
    """The summary of one measure.

    `{"sides": {side: {value: {n, median, p99, min, max}}}, "ratios": {value: {"a/b": {…, pairs:
    […]}}}}`, where a boolean value becomes `{n, true}` and ratios are taken pair by pair, round by
    round.
    """
    sides: dict[str, dict[str, Any]] = {}
    for side in _unique(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        sides[side] = _describe_side(own)
    numbers = _unique(name for row in rows for name, value in row.items() if name not in KEYS and _is_number(value))
    ratios = {value: _ratios_of(rows, value, list(sides)) for value in numbers}
    return {"sides": sides, "ratios": {value: found for value, found in ratios.items() if found}}


def find_value(summary: Mapping[str, Any], side: str | None, value: str, statistic: str = "median") -> float | None:
    """One number of a summary, or None where it was not measured."""
    found = summary.get("sides", {}).get(side, {}).get(value, {}).get(statistic)
    return None if found is None else float(found)


def find_ratio(summary: Mapping[str, Any], value: str, over: str, under: str) -> float | None:
    """The median of the pairwise ratios `over / under`, or None where they were not measured."""
    found = summary.get("ratios", {}).get(value, {}).get(f"{over}/{under}", {}).get("median")
    return None if found is None else float(found)


def _describe_side(rows: Sequence[Row]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for name in _unique(name for row in rows for name in row if name not in KEYS):
        seen = [row[name] for row in rows if row.get(name) is not None]
        if seen and all(isinstance(value, bool) for value in seen):
            described[name] = {"n": len(seen), "true": sum(seen)}
        elif seen and all(_is_number(value) for value in seen):
            described[name] = describe(seen)
    return described


def _ratios_of(rows: Sequence[Row], value: str, sides: Sequence[str]) -> dict[str, Any]:
    ratios = {}
    for over, under in permutations(sides, 2):
        pairs = pair_ratios(rows, value, over, under)
        if pairs:
            ratios[f"{over}/{under}"] = {**describe(pairs), "pairs": pairs}
    return ratios


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tidy(number: float) -> float:
    return float(f"{number:.6g}")
