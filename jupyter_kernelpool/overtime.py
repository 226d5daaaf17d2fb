"""From how long an execution runs, or puts out nothing, to what is done about it: warn, interrupt, give it time,
replace the process. Pure.

All times are seconds on the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jupyter_kernelpool.ledger import Execution

RUNNING = "execution_timeout"
SILENT = "idle_output_timeout"
LEAST_GRACE = 0.25  # seconds until an interrupt that worked is heard of
LAST_GRACE = 1.0  # seconds after the second interrupt


@dataclass(frozen=True)
class Terms:
    """What holds for an execution: the seconds it is *allowed* to run, and those in which it may put out nothing (0: as
    many as it likes), the share of them at which its user is warned, the seconds it has to end once it was interrupted,
    and whether an interrupt can reach it."""

    allowed: float
    warn_at: float = 0.8
    grace: float = 3.0
    reachable: bool = True
    silence: float = 0.0

    def figures(self, limit: str, execution: Execution, now: float) -> tuple[float, float]:
        """The seconds that *limit* allows, and those it has used of them."""
        return (self.silence, execution.quiet(now)) if limit == SILENT else (self.allowed, execution.ran(now))


@dataclass(frozen=True)
class Standing:
    """How far it came: the limits of which its user was *warned*, the *limit* that it reached, when it was interrupted
    for that, and once more; *done* if nothing is left to be done."""

    warned: frozenset[str] = frozenset()
    limit: str = RUNNING
    done: bool = False
    interrupted_at: float | None = None
    again_at: float | None = None


@dataclass(frozen=True)
class Wait:
    """Look again in so many seconds; None: when something changes."""

    seconds: float | None


@dataclass(frozen=True)
class Warn:
    """Tell its user that it has not much time left before *limit*."""

    limit: str = RUNNING


@dataclass(frozen=True)
class Interrupt:
    """Interrupt it: its time is up, or once more, since it did not end."""

    again: bool = False


@dataclass(frozen=True)
class Report:
    """Tell that its time is up; an interrupt would hit another."""


@dataclass(frozen=True)
class Replace:
    """No interrupt helped: the kernel's process has to go."""


Step = Wait | Warn | Interrupt | Report | Replace


def decide(standing: Standing, execution: Execution, terms: Terms, now: float) -> tuple[Standing, Step]:
    """The next step for *execution*, and how far it came with that; *now* is on the monotonic clock."""
    if standing.done:
        return standing, Wait(None)
    if standing.interrupted_at is not None:
        return _after_interrupt(standing, standing.interrupted_at, terms, now)
    figures = {limit: terms.figures(limit, execution, now) for limit in (RUNNING, SILENT)}
    limited = {limit: (allowed, seen) for limit, (allowed, seen) in figures.items() if allowed}
    for limit, (allowed, seen) in limited.items():
        if seen >= allowed:
            if terms.reachable:
                return replace(standing, limit=limit, interrupted_at=now), Interrupt()
            return replace(standing, limit=limit, done=True), Report()
    for limit, (allowed, seen) in limited.items():
        if seen >= terms.warn_at * allowed and limit not in standing.warned and terms.warn_at < 1.0:
            return replace(standing, warned=standing.warned | {limit}), Warn(limit)
    if execution.waits_since is not None or not limited:
        return standing, Wait(None)
    return standing, Wait(min(_next(allowed, seen, terms.warn_at) for allowed, seen in limited.values()))


def _next(allowed: float, seen: float, warn_at: float) -> float:
    """Seconds until a warning may be due, or else the limit is reached."""
    return (warn_at * allowed if seen < warn_at * allowed else allowed) - seen


def _after_interrupt(standing: Standing, interrupted_at: float, terms: Terms, now: float) -> tuple[Standing, Step]:
    grace = max(terms.grace, LEAST_GRACE)
    if standing.again_at is None:
        left = interrupted_at + grace - now
        return (standing, Wait(left)) if left > 0 else (replace(standing, again_at=now), Interrupt(again=True))
    left = standing.again_at + min(grace, LAST_GRACE) - now
    return (standing, Wait(left)) if left > 0 else (replace(standing, done=True), Replace())
