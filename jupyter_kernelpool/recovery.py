"""What follows the end of a kernel's process: another one, now or later, or none. Pure.

Times are seconds on the monotonic clock.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MOST_PAUSE = 60.0


class Recovery(StrEnum):
    """Which ends of a kernel's process are followed by a new one."""

    NEVER = "never"
    ON_FAILURE = "on_failure"  # all but exit code 0
    ALWAYS = "always"


@dataclass(frozen=True)
class Policy:
    """See the traits of `KernelHealth`. *limit* restarts within *window* seconds at most; None: somebody else counts.

    Of processes that never answered, or not for *window* seconds before they fell silent, *fruitless* may follow one
    another, however long each took. *source* is the trait that both come from. The second restart waits *first*
    seconds, each later one *factor* times as long.
    """

    recovery: Recovery = Recovery.ALWAYS
    limit: int | None = None
    fruitless: int | None = None
    source: str = "KernelHealth.restart_limit"
    window: float = 60.0
    first: float = 1.0
    factor: float = 2.0


@dataclass(frozen=True)
class Restart:
    """A new process takes the place after *pause* seconds."""

    pause: float


@dataclass(frozen=True)
class Stay:
    """The kernel stays dead until its user restarts it; *why* is for people."""

    why: str


def decide(ends: Sequence[float], *, failed: bool, policy: Policy, now: float, fruitless: int = 0) -> Restart | Stay:
    """What follows an end *now*, after earlier ones at *ends*; *failed* is false for an exit code of 0.

    *fruitless* processes in a row, with this one, ended without an answer, or soon fell silent.
    """
    if policy.recovery is Recovery.NEVER:
        return Stay("its recovery is set to never")
    if policy.recovery is Recovery.ON_FAILURE and not failed:
        return Stay("its recovery is set to on_failure, and this was none")
    lately = sum(1 for at in ends if now - at < policy.window) + 1
    if policy.limit is not None and lately > policy.limit:
        return Stay(f"it ended {lately} times within {policy.window:g} s, and {policy.source} is {policy.limit}")
    if policy.fruitless is not None and fruitless > policy.fruitless:
        return Stay(
            f"none of its last {fruitless} processes answered for {policy.window:g} s, "
            f"and {policy.source} is {policy.fruitless}"
        )
    count = max(lately, fruitless)
    if count == 1:
        return Restart(0.0)
    return Restart(min(MOST_PAUSE, policy.first * policy.factor ** min(count - 2, 64)))


def is_crash(code: int | None) -> bool:
    """Whether a process that ended with *code* failed by itself; signals that others send to end it are no crash."""
    return code is not None and code not in (0, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP)


def describe_end(code: int | None) -> str:
    """*code*, an exit code or a negative signal, in words."""
    if code is None:
        return "for a reason unknown"
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by the signal {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
