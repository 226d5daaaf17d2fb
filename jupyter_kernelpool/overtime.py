"""From how long an execution runs to what is done about it: warn, interrupt, give it time, replace the process. Pure.

All times are seconds on the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jupyter_kernelpool.ledger import Execution

LEAST_GRACE = 0.25  # seconds until an interrupt that worked is heard of
LAST_GRACE = 1.0  # seconds after the second interrupt


@dataclass(frozen=True)
class Terms:
    """What holds for an execution: the seconds it is *allowed* (0: as many as it likes), the share of them at which
    its user is warned, the seconds it has to end once it was interrupted, and whether an interrupt can reach it."""

    allowed: float
    warn_at: float = 0.8
    grace: float = 3.0
    reachable: bool = True


@dataclass(frozen=True)
class Standing:
    """How far it came: *warned*, when it was interrupted, and once more; *done* if nothing is left to be done."""

    warned: bool = False
    done: bool = False
    interrupted_at: float | None = None
    again_at: float | None = None


@dataclass(frozen=True)
class Wait:
    """Look again in so many seconds; None: when something changes."""

    seconds: float | None


@dataclass(frozen=True)
class Warn:
    """Tell its user that it has not much time left."""


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
    if not terms.allowed:
        return standing, Wait(None)
    ran = execution.ran(now)
    if ran >= terms.allowed:
        if terms.reachable:
            return replace(standing, interrupted_at=now), Interrupt()
        return replace(standing, done=True), Report()
    warn_after = terms.warn_at * terms.allowed
    if ran >= warn_after and not standing.warned and terms.warn_at < 1.0:
        return replace(standing, warned=True), Warn()
    if execution.waits_since is not None:
        return standing, Wait(None)
    until = warn_after if ran < warn_after else terms.allowed
    return standing, Wait(until - ran)


def _after_interrupt(standing: Standing, interrupted_at: float, terms: Terms, now: float) -> tuple[Standing, Step]:
    grace = max(terms.grace, LEAST_GRACE)
    if standing.again_at is None:
        left = interrupted_at + grace - now
        return (standing, Wait(left)) if left > 0 else (replace(standing, again_at=now), Interrupt(again=True))
    left = standing.again_at + min(grace, LAST_GRACE) - now
    return (standing, Wait(left)) if left > 0 else (replace(standing, done=True), Replace())
