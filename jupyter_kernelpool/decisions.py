"""What to fill, evict, drain and load, computed without I/O from a view of the pool, a policy and `now`.

The keeper takes the view, calls `plan`, and carries out the actions. All times here are seconds on the
monotonic clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

STEADY_WINDOW = 15.0
STEADY_CLAIMS = 3
MEMORY_IS_SHORT = "memory is short"


class Stage(StrEnum):
    """How far a recipe's launcher is."""

    DOWN = "down"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Policy:
    """The numbers that decide; see the traits of `KernelPool` for their meaning."""

    max_warm_age: float = 3600.0
    max_warm_memory: int = 0  # bytes; 0: no bound
    recipe_idle: float = 3600.0
    settle: float = 0.3
    demand_window: float = 600.0
    burst: float = 5.0
    parallel_starts: int = 3
    reserve_memory: int = 512 * 1024 * 1024
    busy_cores: float = 0.9


@dataclass(frozen=True)
class Host:
    """What the machine has left: bytes of memory, and the share of its cores that is busy (0 to 1)."""

    available_memory: int
    busy: float


@dataclass(frozen=True)
class WarmView:
    """A warm kernel: its record's id, since when it is warm, and the bytes it has for itself, as last seen."""

    id: str
    since: float
    memory: int = 0


@dataclass(frozen=True)
class RecipeView:
    """A recipe as the pool sees it now.

    *claims* are the times of its claims, oldest first; *retry_at* is when a failing recipe may be tried
    again; *pinned* recipes (configured, or the default kernel's) stay loaded though nobody uses them.
    """

    key: str
    stage: Stage
    warm: Sequence[WarmView]
    starting: int
    waiting: int
    floor: int
    ceiling: int
    claims: Sequence[float]
    last_used: float
    retry_at: float = 0.0
    stale: bool = False
    pinned: bool = False
    draining: bool = False
    bytes_each: int = 32 * 1024 * 1024


@dataclass(frozen=True)
class View:
    """The whole pool. *users_starting* counts starts for users that are not ready yet; *last_start* is when
    the last of them was."""

    recipes: Sequence[RecipeView]
    host: Host
    users_starting: int
    last_start: float


@dataclass(frozen=True)
class Load:
    """Prepare the recipe's launcher (start its template)."""

    key: str


@dataclass(frozen=True)
class Launch:
    """Start *count* kernels of the recipe."""

    key: str
    count: int


@dataclass(frozen=True)
class Evict:
    """End one warm kernel."""

    key: str
    id: str
    why: str


@dataclass(frozen=True)
class Drain:
    """End all warm kernels and the template: what they were made from has changed."""

    key: str
    why: str


@dataclass(frozen=True)
class Unload:
    """Forget a recipe that nobody used for long."""

    key: str
    why: str


Action = Load | Launch | Evict | Drain | Unload


def target(recipe: RecipeView, policy: Policy, now: float) -> int:
    """How many warm kernels to keep: the most that were claimed in any burst of late, between floor and ceiling."""
    if recipe.draining or recipe.ceiling == 0:
        return 0
    recent = [at for at in recipe.claims if now - at <= policy.demand_window]
    burst = max((bisect_right(recent, at + policy.burst) - place for place, at in enumerate(recent)), default=0)
    return max(recipe.floor, min(burst, recipe.ceiling)) if recipe.ceiling >= recipe.floor else recipe.ceiling


def is_steady(claims: Sequence[float], now: float) -> bool:
    """Whether kernels are asked for all the time, so that a pause to load the template in never comes.

    Without it, one lost template would leave every later start cold for as long as the load lasts.
    """
    recent = [at for at in claims if now - at <= STEADY_WINDOW]
    return len(recent) >= STEADY_CLAIMS and now - recent[0] >= STEADY_WINDOW / 3


def backoff(failures: int, *, first: float = 1.0, most: float = 300.0) -> float:
    """Seconds to wait after the *failures*-th failure in a row (the caller adds jitter)."""
    return float(min(most, first * 2 ** max(0, failures - 1))) if failures else 0.0


def plan(view: View, policy: Policy, now: float) -> list[Action]:
    """What to do now. Waiting users come first, whatever the guards say; refilling waits for its turn."""
    actions: list[Action] = []
    waiting = any(recipe.waiting for recipe in view.recipes)
    settled = not waiting and view.users_starting == 0 and now - view.last_start >= policy.settle
    calm = settled and view.host.busy <= policy.busy_cores
    memory = view.host.available_memory - policy.reserve_memory
    room = policy.parallel_starts - sum(recipe.starting for recipe in view.recipes)
    for recipe in view.recipes:
        if recipe.stale:
            actions.append(Drain(recipe.key, "its environment changed"))
            continue
        if not recipe.pinned and not recipe.waiting and now - recipe.last_used > policy.recipe_idle:
            actions.append(Unload(recipe.key, "unused"))
            continue
        wanted = target(recipe, policy, now)
        expired = [warm for warm in recipe.warm if now - warm.since > policy.max_warm_age]
        actions += [Evict(recipe.key, warm.id, "older than max_warm_age") for warm in expired]
        grown = [warm for warm in recipe.warm if 0 < policy.max_warm_memory < warm.memory and warm not in expired]
        actions += [Evict(recipe.key, warm.id, "larger than max_warm_memory") for warm in grown]
        fresh = [warm for warm in recipe.warm if warm not in expired and warm not in grown]
        surplus = max(0, len(fresh) - max(wanted, 0))
        oldest = sorted(fresh, key=lambda warm: warm.since)[:surplus]
        actions += [Evict(recipe.key, warm.id, "no longer needed") for warm in oldest]
        if memory < 0 and fresh and not oldest:
            victim = min(fresh, key=lambda warm: warm.since)
            actions.append(Evict(recipe.key, victim.id, MEMORY_IS_SHORT))
            memory += recipe.bytes_each
        if now < recipe.retry_at or recipe.draining:
            continue
        if recipe.stage in (Stage.DOWN, Stage.FAILED) and (recipe.ceiling > 0 or recipe.waiting):
            if recipe.waiting or (memory > 0 and (settled or is_steady(recipe.claims, now))):
                actions.append(Load(recipe.key))
            continue
        if recipe.stage is not Stage.READY:
            continue
        for_users = max(0, recipe.waiting - recipe.starting)
        needed = calm and not recipe.starting and len(fresh) < wanted
        ahead = 1 if needed and memory >= recipe.bytes_each else 0  # one at a time
        count = max(0, min(room, for_users + ahead))
        if count:
            actions.append(Launch(recipe.key, count))
            room -= count
    return actions
