"""What the harness reads from `GET /kernelpool/v1/pool`. Pure, and tolerant of fields that come and go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PoolView:
    """The pool's counters, summed over its recipes."""

    hits: int
    misses: int
    warm: int
    starting: int
    target: int | None

    def is_ready(self, warm: int | None = None) -> bool:
        """Whether *warm* kernels (by default: as many as the pool wants, at least one) are there and none is starting."""
        wanted = warm if warm is not None else (1 if self.target is None else self.target)
        return self.starting == 0 and self.warm >= wanted


def read_pool(body: Mapping[str, Any]) -> PoolView:
    """Make a view from the route's JSON. Recipes may be a list, or a mapping from their names."""
    recipes = list(_recipes(body))
    targets = [recipe["target"] for recipe in recipes if _is_count(recipe.get("target"))]
    return PoolView(
        hits=_sum(recipes, body, "hits"),
        misses=_sum(recipes, body, "misses"),
        warm=_sum(recipes, body, "warm"),
        starting=_sum(recipes, body, "starting"),
        target=sum(targets) if targets else None,
    )


def _recipes(body: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    found = body.get("recipes") or ()
    values: Iterable[Any] = found.values() if isinstance(found, Mapping) else found
    return (value for value in values if isinstance(value, Mapping))


def _sum(recipes: Iterable[Mapping[str, Any]], body: Mapping[str, Any], name: str) -> int:
    counts = [recipe[name] for recipe in recipes if _is_count(recipe.get(name))]
    if counts:
        return sum(counts)
    totals = body.get("totals")
    count = totals.get(name) if isinstance(totals, Mapping) else None
    return count if isinstance(count, int) and _is_count(count) else 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
