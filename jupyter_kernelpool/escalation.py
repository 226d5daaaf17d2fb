"""From what a kernel uses to what is done about it: warn, interrupt, give it time, kill. Pure.

One `Standing` for each kernel and limit says how far it went. All times are seconds on the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FULL = 0.98  # of what the system refuses more of: who was refused has often let go of something already
QUIET = 10.0  # seconds without being slowed down, after which the next time is told again
CALM = 0.95  # of the share that was crossed: below it the next crossing counts anew


@dataclass(frozen=True)
class Policy:
    """The steps; see the traits of `KernelLimits`. *hard* is the share of a limit at which nobody waits any longer."""

    warn_at: float = 0.8
    interrupts: bool = True
    grace: float = 3.0
    hard: float = 1.1


@dataclass(frozen=True)
class Standing:
    """How far a kernel went with one limit: *warned*, *over* since when, *interrupted* when, the most *seen*."""

    warned: bool = False
    over_since: float | None = None
    interrupted_at: float | None = None
    seen: float = 0.0


@dataclass(frozen=True)
class Warn:
    """Tell the user, once for each crossing, that the limit is near."""


@dataclass(frozen=True)
class Interrupt:
    """Interrupt what runs: the limit is crossed."""


@dataclass(frozen=True)
class Kill:
    """End the kernel: it was given time, or went too far."""


@dataclass(frozen=True)
class Note:
    """The limit was crossed, and the operating system refused more: nothing else has to be done."""


Step = Warn | Interrupt | Kill | Note


def escalate(
    standing: Standing, *, used: float, allowed: float, policy: Policy, now: float
) -> tuple[Standing, Step | None]:
    """What to do about a kernel that uses *used* of a resource of which it is *allowed* so much."""
    standing, share = _seen(standing, used), used / allowed
    if share <= 1.0:
        if share < CALM and (standing.over_since, standing.interrupted_at) != (None, None):
            standing = replace(standing, over_since=None, interrupted_at=None)
        if share < policy.warn_at * CALM:
            return _calm(standing, used), None
        if share >= policy.warn_at and not standing.warned:
            return replace(standing, warned=True), Warn()
        return standing, None
    if share >= policy.hard or not policy.interrupts:
        return replace(standing, warned=True), Kill()
    if standing.interrupted_at is None:
        since = standing.over_since if standing.over_since is not None else now
        return replace(standing, warned=True, over_since=since, interrupted_at=now), Interrupt()
    if now - standing.interrupted_at >= policy.grace:
        return standing, Kill()
    return standing, None


def note_refusals(standing: Standing, *, used: float, allowed: float, policy: Policy) -> tuple[Standing, Step | None]:
    """The same for a limit that the operating system holds by refusing more: warn when it is near, note when it
    is reached."""
    standing, share = _seen(standing, used), used / allowed
    if share < policy.warn_at * CALM:
        return _calm(standing, used), None
    if share >= FULL and standing.over_since is None:
        return replace(standing, warned=True, over_since=0.0), Note()
    if share >= policy.warn_at and not standing.warned:
        return replace(standing, warned=True), Warn()
    return standing, None


def _calm(standing: Standing, used: float) -> Standing:
    """Far from the limit: the next crossing is told anew. Most kernels are, at most looks: that is to cost nothing."""
    calm = not standing.warned and standing.over_since is None and standing.seen == used
    return standing if calm else replace(standing, warned=False, over_since=None, seen=used)


def _seen(standing: Standing, used: float) -> Standing:
    return replace(standing, seen=used) if used > standing.seen else standing


def note_throttling(standing: Standing, *, throttled: bool, now: float) -> tuple[Standing, bool]:
    """For a limit that is held by slowing down, and whether to tell of it: once, until it was not for a while."""
    if throttled:
        return replace(standing, warned=True, over_since=now), not standing.warned
    if standing.over_since is not None and now - standing.over_since >= QUIET:
        return Standing(), False
    return standing, False
