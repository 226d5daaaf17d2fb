"""What the harness reads from `GET /kernelpool/v1/pool`. Pure; tolerates missing fields."""

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
    last_error: str | None = None

    def is_ready(self, warm: int | None = None) -> bool:
        """Whether *warm* kernels (by default: all that the pool wants) are there, none starting."""
        wanted = warm if warm is not None else (1 if self.target is None else self.target)
        return self.starting == 0 and self.warm >= wanted


def was_hit(before: PoolView | None, after: PoolView | None) -> bool | None:
    """Whether the start between the two views got a kernel that was warm; None without a pool."""
    return None if before is None or after is None else before.warm > 0 and after.hits > before.hits


def was_forked(before: PoolView | None, after: PoolView | None) -> bool | None:
    """Whether the start between the two views got one that the empty pool made for it."""
    return None if before is None or after is None else before.warm == 0 and after.hits > before.hits


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
        last_error=next((text for recipe in recipes if (text := _error(recipe))), None),
    )


def _recipes(body: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    found = body.get("recipes") or ()
    values: Iterable[Any] = found.values() if isinstance(found, Mapping) else found
    return (value for value in values if isinstance(value, Mapping))


def _error(recipe: Mapping[str, Any]) -> str | None:
    error = recipe.get("last_error")
    return str(error.get("reason", error) if isinstance(error, Mapping) else error) if error else None


def _sum(recipes: Iterable[Mapping[str, Any]], body: Mapping[str, Any], name: str) -> int:
    counts = [recipe[name] for recipe in recipes if _is_count(recipe.get(name))]
    if counts:
        return sum(counts)
    totals = body.get("totals")
    count = totals.get(name) if isinstance(totals, Mapping) else None
    return count if isinstance(count, int) and _is_count(count) else 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
