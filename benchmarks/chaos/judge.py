"""What a chaos run has shown: executions that were lost, code that ran twice, figures that grow. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LOST = "lost"
OK = "ok"
HOUR = 3600.0
JUDGED_FROM = 600.0
"""Seconds that a run has to take before its slopes count: until then caches fill and modules are imported."""
SIGNIFICANT = 3.0
"""Standard errors that a slope has to be away from 0."""
BEFORE = 30.0
"""Seconds before an execution in which a fault may have to do with it."""


@dataclass
class Execution:
    """A cell that a client sent; seconds are those of the run."""

    id: str
    kernel: str
    client: int
    kind: str
    sent: float
    ended: float | None = None
    outcome: str = ""
    """`ok`, `error NAME`, `aborted`, or how else the client was told: `closed`, `restarting`, `dead`, …; or `lost`."""


@dataclass(frozen=True)
class Fault:
    """Something that was done to a kernel, or to all (None)."""

    kind: str
    at: float
    kernel: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Limit:
    """How much a figure may grow within half an hour before that is a leak."""

    figure: str
    unit: str
    floor: float


LIMITS = (
    Limit("processes", "", 4),
    Limit("server_fds", "", 24),
    Limit("supervisor_fds", "", 16),
    Limit("server_pss", " MiB", 24),
    Limit("supervisor_pss", " MiB", 8),
)

AT_REST = {"server_fds": 24, "server_threads": 16, "supervisor_fds": 4, "supervisor_threads": 0}
"""How much more there may be of each when no kernel is left than before the first one: a slope alone can hide what is
left of some of the faults, since each websocket and each kernel of the moment has descriptors, too."""


@dataclass(frozen=True)
class Slope:
    """A straight line through a figure's second half; *error* is the slope's standard error, both an hour."""

    figure: str
    unit: str
    first: float
    last: float
    slope: float
    error: float
    floor: float
    leaks: bool


@dataclass
class Verdict:
    """All that can make a run fail; empty is good."""

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unfounded: list[str] = field(default_factory=list)
    """Executions that were answered `ok` and never ran."""
    leaks: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Processes and files that were there when nothing should have been."""
    failures: list[str] = field(default_factory=list)
    """Promises that the clients saw broken: a wrong value, a request without an answer, a kernel that stays silent."""

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not (self.lost or self.twice or self.unfounded or self.leaks or self.left or self.failures)


def judge_executions(
    executions: Sequence[Execution], ran: Mapping[str, int], faults: Sequence[Fault], verdict: Verdict
) -> None:
    """Add to *verdict* what was lost, and what disagrees with *ran*: how often each execution's code began."""
    for execution in executions:
        times = ran.get(execution.id, 0)
        if execution.outcome in ("", LOST):
            verdict.lost.append(tell(execution, faults, times))
        if times > 1:
            verdict.twice.append(tell(execution, faults, times))
        if execution.outcome == OK and times == 0:
            verdict.unfounded.append(tell(execution, faults, times))


def tell(execution: Execution, faults: Iterable[Fault], times: int) -> str:
    """The story of *execution*: what it was, and what happened to its kernel around it."""
    end = execution.ended if execution.ended is not None else float("inf")
    about = [
        f"{fault.kind} at {fault.at:.1f}" + (f" ({fault.detail})" if fault.detail else "")
        for fault in faults
        if fault.kernel in (None, execution.kernel) and execution.sent - BEFORE <= fault.at <= end
    ]
    ended = f"{execution.ended:.1f}" if execution.ended is not None else "never"
    return (
        f"{execution.id} ({execution.kind}) of client {execution.client} in kernel {execution.kernel}: "
        f"sent {execution.sent:.1f}, ended {ended}, {execution.outcome or 'no outcome'}, began {times} times; "
        f"faults: {', '.join(about) or 'none'}"
    )


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the least-squares line through *points*, and its standard error, per unit of the first coordinate."""
    count = len(points)
    if count < 3:
        return 0.0, float("inf")
    middle = sum(x for x, _ in points) / count
    level = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    if spread == 0:
        return 0.0, float("inf")
    slope = sum((x - middle) * (y - level) for x, y in points) / spread
    rest = sum((y - level - slope * (x - middle)) ** 2 for x, y in points)
    return slope, (rest / (count - 2) / spread) ** 0.5


def measure_slope(samples: Sequence[Mapping[str, float]], limit: Limit, seconds: float) -> Slope | None:
    """The slope of a figure over the second half of a run of *seconds*; None where it was not seen.

    It leaks if it would grow by more than the limit's floor within half an hour, and that is no accident of the noise.
    """
    points = [
        (sample["at"], sample[limit.figure])
        for sample in samples
        if limit.figure in sample and sample["at"] >= seconds / 2
    ]
    if not points:
        return None
    slope, error = (value * HOUR for value in fit(points))
    grows = slope / 2 > limit.floor and slope > SIGNIFICANT * error
    return Slope(
        limit.figure,
        limit.unit,
        points[0][1],
        points[-1][1],
        slope,
        error,
        limit.floor,
        leaks=grows and seconds >= JUDGED_FROM,
    )


def judge_slopes(samples: Sequence[Mapping[str, float]], seconds: float, verdict: Verdict) -> list[Slope]:
    """The slopes of all figures; adds to *verdict* what leaks."""
    slopes = [slope for limit in LIMITS if (slope := measure_slope(samples, limit, seconds)) is not None]
    verdict.leaks += [
        f"{one.figure} grows by {one.slope / 2:.1f}{one.unit} in half an hour (allowed: {one.floor:g})"
        for one in slopes
        if one.leaks
    ]
    return slopes


def judge_rest(before: Mapping[str, float], after: Mapping[str, float], verdict: Verdict) -> None:
    """Add to *verdict* what is left at rest that was not there before."""
    more = {figure: after[figure] - before[figure] for figure in AT_REST if figure in before and figure in after}
    verdict.leaks += [
        f"{figure}: {more[figure]:g} more at rest than before (allowed: {allowed})"
        for figure, allowed in AT_REST.items()
        if more.get(figure, 0) > allowed
    ]


def count_outcomes(executions: Iterable[Execution]) -> Counter[str]:
    """How many executions ended in which way."""
    return Counter(execution.outcome or LOST for execution in executions)
