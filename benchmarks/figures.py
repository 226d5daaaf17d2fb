"""The figures to reach: which numbers of which measure they are, and their goals. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from benchmarks.stats import find_ratio, find_value


class Unit(Enum):
    """What a value is, and so how it is written."""

    SECONDS = "s"
    BYTES = "B"
    CORES = "cores"


class Bound(Enum):
    """On which side of the limit a goal is met."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True)
class Goal:
    """A limit for `over / under` of two sides, or, without *under*, for one side's own value."""

    text: str
    over: str
    bound: Bound
    limit: float
    under: str | None = None
    ratio_to: str = ""
    """How the ratio reads after its `×`: "faster", "floor"."""
    statistic: str = "median"
    value: str | None = None

    @property
    def is_asserted(self) -> bool:
        """Whether `--assert` fails on it: only ratios carry from one machine to the next."""
        return self.under is not None


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value of a measure, the sides it compares, its goals."""

    title: str
    measure: str
    goals: tuple[Goal, ...]
    value: str = "seconds"
    unit: Unit = Unit.SECONDS
    statistic: str = "median"
    stock: str | None = "stock"
    ours: str = "ours"
    floor: str | None = None
    floor_is: str = ""
    ratio_to: str = ""
    """With this name the ratio of *ours* to *floor* is shown, where no goal is about it."""

    @property
    def is_in_readme(self) -> bool:
        """Whether who reads only the README is to see it: what each user notices, reached or not."""
        return (self.measure, self.value) in README


README = {
    ("start", "seconds"),
    ("imports", "seconds"),
    ("restart", "seconds"),
    ("template_fork", "seconds"),
    ("fork_arrays_1", "seconds"),
    ("restore", "seconds"),
    ("websocket", "seconds"),
    ("burst", "seconds"),
    ("memory", "private"),
    ("scale", "claim"),
    ("scale", "idle_cpu"),
    ("limits", "seconds"),
    ("hung", "claim"),
}
"""The measures, and the values of theirs, that the README shows; the documentation's page has all."""


@dataclass(frozen=True)
class Outcome:
    """What became of a goal: the number seen, and whether it is met (None: not measured)."""

    goal: Goal
    seen: float | None
    is_met: bool | None


def _within_floor(limit: float, floor: str = "floor", name: str = "floor") -> Goal:
    return Goal(f"≤ {limit:g} × {name}", "ours", Bound.AT_MOST, limit, under=floor, ratio_to=name)


def _faster(times: float) -> Goal:
    text = f"≥ {times:g} × faster"
    return Goal(text, "stock", Bound.AT_LEAST, times, under="ours", ratio_to="faster")


def _forks() -> list[Figure]:
    """Forks of live kernels: `os.fork` of a plain process with the same state says what the machine takes for it."""
    figures = []
    for kind in ("arrays", "objects"):
        for size in ("0.1", "1", "4"):
            goals: tuple[Goal, ...] = ()
            if (kind, size) == ("arrays", "1"):
                goals = (
                    Goal("p50 ≤ 25 ms", "ours", Bound.AT_MOST, 0.025),
                    Goal("p99 ≤ 60 ms", "ours", Bound.AT_MOST, 0.060, statistic="p99"),
                )
            figures.append(
                Figure(
                    f"fork of a live kernel with {size} GiB of {kind} → kernel_info",
                    f"fork_{kind}_{size}",
                    goals,
                    stock=None,
                    floor="floor",
                    floor_is="`os.fork`",
                    ratio_to="`os.fork`",
                )
            )
    for kind, goals in (("arrays", (Goal("≤ 5 ms", "ours", Bound.AT_MOST, 0.005),)), ("objects", ())):
        figures.append(
            Figure(
                f"the parent's pause, 1 GiB of {kind}",
                f"fork_{kind}_1",
                goals,
                value="pause",
                stock=None,
                floor="floor",
                floor_is="`os.fork`",
                ratio_to="`os.fork`",
            )
        )
    return figures


def _hub() -> list[Figure]:
    """An idle server as a hub has hundreds of: what each costs more than a stock one (`more`) counts."""
    figures = []
    for when, prefix in (("before its first kernel", "fresh"), ("after its last kernel", "later")):
        figures += [
            Figure(
                f"memory (PSS) of an idle server, preset `hub`, {when}",
                "hub",
                (Goal("≤ 10 MB more", "more", Bound.AT_MOST, 10e6),),
                value=f"{prefix}_memory",
                unit=Unit.BYTES,
                floor="more",
                floor_is="more",
            ),
            Figure(
                f"CPU of the same, {when}",
                "hub",
                (Goal("≤ 0.1 % of a core more", "more", Bound.AT_MOST, 0.001),),
                value=f"{prefix}_cpu",
                unit=Unit.CORES,
                floor="more",
                floor_is="more",
            ),
        ]
    return figures


def _held() -> list[Figure]:
    """What each enforcer costs and holds: each hog has a goal of its own, one of them is shown."""
    figures = []
    endless = {"memory": "fills the memory", "forks": "forks", "loop": "computes", "printer": "prints"}
    others = {
        "child": "has a child do so",
        "read": "prints to its client",
        "files": "opens files",
        "sleep": "sleeps",
        "deaf": "blocks SIGINT",
    }
    for enforcer in ("cgroup", "watchdog"):
        measure, by = f"held_{enforcer}", f"by `{enforcer}`"
        figures += [
            Figure(
                f"holding {{live}} idle kernels to limits {by}, one of them near its memory",
                measure,
                tuple(
                    Goal(f"{which}< 1 % of a core", side, Bound.AT_MOST, 0.01)
                    for side, which in (("near", ""), ("limited", "none near "), ("astir", "a cell in each "))
                ),
                value="overhead",
                unit=Unit.CORES,
                stock=None,
                ours="near",
                floor="limited",
                floor_is="none near",
            ),
            *(
                Figure(
                    f"`1+1` beside a kernel that {', '.join(hogs.values())} without end, held {by}",
                    measure,
                    tuple(
                        Goal(f"{hog} ≤ 2 ×", hog, Bound.AT_MOST, 2, under="quiet", ratio_to=f"without it ({hog})")
                        for hog in hogs
                    ),
                    stock=None,
                    ours=shown,
                    floor="quiet",
                    floor_is="without it",
                )
                for hogs, shown in ((endless, "loop"), (others, "deaf"))
            ),
            Figure(
                f"cores of the one that computes and may use 80 % of one, {by}",
                measure,
                (Goal("≤ 80 % of a core", "loop", Bound.AT_MOST, 0.8),),
                value="cores",
                unit=Unit.CORES,
                stock=None,
                ours="loop",
            ),
            Figure(
                f"memory that the server has more at most while one prints without a client, {by}",
                measure,
                tuple(
                    Goal(f"{hog} ≤ 64 MB", hog, Bound.AT_MOST, 64 * 2**20, statistic="max")
                    for hog in (*reversed(endless), *others)
                ),
                value="grown",
                unit=Unit.BYTES,
                statistic="max",
                stock=None,
                ours="printer",
            ),
        ]
    return figures


FIGURES: tuple[Figure, ...] = (
    Figure(
        "`POST /api/sessions` → first result",
        "start",
        (_within_floor(1.3), _faster(15)),
        floor="floor",
    ),
    Figure(
        "the same, to numpy and pandas usable",
        "imports",
        (_within_floor(1.3), _faster(20)),
        floor="floor",
    ),
    Figure("restart → first result", "restart", (_faster(10),)),
    Figure(
        "start with an empty pool (template fork) → kernel_info",
        "template_fork",
        (Goal("p50 ≤ 30 ms", "ours", Bound.AT_MOST, 0.030), _faster(10)),
    ),
    *_forks(),
    Figure("checkpoint of a kernel with 1 GiB of arrays", "checkpoint", (), stock=None),
    Figure(
        "private memory of the checkpoint",
        "checkpoint",
        (Goal("≤ 1 MB", "ours", Bound.AT_MOST, 1e6),),
        value="private",
        unit=Unit.BYTES,
        stock=None,
    ),
    Figure("page tables of the same", "checkpoint", (), value="page_tables", unit=Unit.BYTES, stock=None),
    Figure(
        "memory of {checkpoints} checkpoints of one kernel, a cell before each",
        "undo_points",
        (Goal("≤ 400 MB", "ours", Bound.AT_MOST, 400e6),),
        value="memory",
        unit=Unit.BYTES,
        stock=None,
    ),
    Figure(
        "restore in place → first result on the same websocket",
        "restore",
        (Goal("≤ 60 ms", "ours", Bound.AT_MOST, 0.060),),
        stock=None,
    ),
    Figure(
        "`1+1` over the websocket, back to back",
        "websocket",
        (_within_floor(1.5, "raw", "raw ZeroMQ"),),
        floor="raw",
        floor_is="raw ZeroMQ",
    ),
    Figure(
        "{kernels} kernels at once, to the first result of the last",
        "burst",
        (_faster(10),),
    ),
    Figure(
        "private memory of an idle kernel with numpy and pandas",
        "memory",
        (Goal("≤ 10 MB", "ours", Bound.AT_MOST, 10e6),),
        value="private",
        unit=Unit.BYTES,
    ),
    Figure("proportional memory (PSS) of the same", "memory", (), value="pss", unit=Unit.BYTES),
    Figure(
        "claim (`POST /api/kernels`) with {live} kernels in the server",
        "scale",
        (Goal("≤ 1.5 × with 10", "many", Bound.AT_MOST, 1.5, under="few", ratio_to="with 10"),),
        value="claim",
        stock=None,
        ours="many",
        floor="few",
        floor_is="with 10",
    ),
    Figure(
        "CPU of the idle server with {live} kernels",
        "scale",
        (Goal("< 5 % of a core", "many", Bound.AT_MOST, 0.05),),
        value="idle_cpu",
        unit=Unit.CORES,
        stock=None,
        ours="many",
        floor="few",
        floor_is="with 10",
    ),
    Figure(
        "holding {live} idle kernels to limits",
        "limits",
        (Goal("< 1 % of a core", "limited", Bound.AT_MOST, 0.01),),
        value="overhead",
        unit=Unit.CORES,
        stock=None,
        ours="limited",
    ),
    Figure(
        "`1+1` beside a kernel that computes and may use 80 % of a core",
        "limits",
        (Goal("≤ 2 × without it", "hog", Bound.AT_MOST, 2, under="quiet", ratio_to="without it"),),
        stock=None,
        ours="hog",
        floor="quiet",
        floor_is="without it",
    ),
    *_held(),
    Figure(
        "claim (`POST /api/kernels`) beside a hung kernel, the next warm one hung, too",
        "hung",
        (
            Goal("≤ 1.5 × without", "hung", Bound.AT_MOST, 1.5, under="none", ratio_to="without"),
            Goal("< 50 ms", "hung", Bound.AT_MOST, 0.050),
        ),
        value="claim",
        stock=None,
        ours="hung",
        floor="none",
        floor_is="without",
    ),
    Figure(
        "claim where the next warm kernel holds the interpreter's lock in C",
        "wedged",
        (Goal("< 50 ms", "wedged", Bound.AT_MOST, 0.050),),
        value="claim",
        stock=None,
        ours="wedged",
        floor="none",
        floor_is="without",
    ),
    *_hub(),
    Figure(
        "longest block of the event loop while 20 kernels start",
        "loop",
        (Goal("≤ 50 ms", "ours", Bound.AT_MOST, 0.050, statistic="max"),),
        statistic="max",
    ),
)


def judge(figure: Figure, summary: Mapping[str, Any]) -> list[Outcome]:
    """Each goal of *figure* against the summary of its measure."""
    return [_judge(figure, goal, summary) for goal in figure.goals]


def find_missed(measures: Mapping[str, Any]) -> list[str]:
    """A sentence for each asserted goal that a measure which was taken misses."""
    missed = []
    for figure in FIGURES:
        if figure.measure not in measures:
            continue
        summary = measures[figure.measure].get("summary", {})
        for outcome in judge(figure, summary):
            if outcome.goal.is_asserted and not outcome.is_met:
                seen = "not measured" if outcome.seen is None else f"{outcome.seen:.2f} ×"
                missed.append(f"{figure.measure}: {seen}, wanted {outcome.goal.text}")
    return missed


def _judge(figure: Figure, goal: Goal, summary: Mapping[str, Any]) -> Outcome:
    value = goal.value or figure.value
    if goal.under is None:
        seen = find_value(summary, goal.over, value, goal.statistic)
    else:
        seen = find_ratio(summary, value, goal.over, goal.under)
    if seen is None:
        return Outcome(goal, None, None)
    return Outcome(goal, seen, seen <= goal.limit if goal.bound is Bound.AT_MOST else seen >= goal.limit)
