"""How a kernel is, from what answered when it was asked: busy, hung, stopped, wedged or dead; and when it is asked
again. Pure.

A `Standing` says what is known of one kernel. Times are seconds on the monotonic clock, but for `Standing.checked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

MOST_INTERVAL = 600.0
START_INTERVAL = 1.0
LOG_EVERY = 10
STOPPED = frozenset("Tt")
ENDED = frozenset("ZXx")
GONE = "gone"


class Verdict(StrEnum):
    """What a kernel was found to be."""

    UNKNOWN = "unknown"  # not asked yet, or it could not be asked
    STARTING = "starting"  # does not answer yet
    RESPONSIVE = "responsive"
    BUSY = "busy"  # runs a cell, for however long: nothing is wrong with it
    WEDGED = "wedged"  # something in it, in C, holds the interpreter: its heartbeat alone answers
    STOPPED = "stopped"  # by a signal: SIGSTOP and the like
    HUNG = "hung"  # nothing of it answers
    DEAD = "dead"  # its process has ended


ON_UNRESPONSIVE = ("report", "interrupt", "restart")
ANSWERS = frozenset({Verdict.RESPONSIVE, Verdict.BUSY})
UNRESPONSIVE = frozenset({Verdict.WEDGED, Verdict.STOPPED, Verdict.HUNG})
WHY = {
    Verdict.STARTING: "It has not answered yet.",
    Verdict.WEDGED: "Only its heartbeat answers: something in it, outside Python, keeps everything else waiting.",
    Verdict.STOPPED: "Its process is stopped, by a signal such as SIGSTOP.",
    Verdict.HUNG: "Neither its control channel nor its heartbeat answers.",
    Verdict.DEAD: "Its process has ended.",
}


@dataclass(frozen=True)
class Policy:
    """When kernels are asked; see the traits of `KernelHealth`. *backoff* is what pauses grow by at each failure."""

    interval: float = 30.0
    backoff: float = 2.0
    start_timeout: float = 60.0


@dataclass(frozen=True)
class Answers:
    """What came back from one nudge.

    *states* are those of its process (`usage.Stat.state`, or `GONE`) at each look; empty if it has none here. *running*
    says whether it runs a cell; None where nobody knows.
    """

    control: bool
    heartbeat: bool
    states: Sequence[str] = ()
    running: bool | None = False


@dataclass(frozen=True)
class Standing:
    """What is known of a kernel's health.

    *failures* are nudges in a row that it did not answer; *total* is how often it failed in its life, by silence or by
    its process's end. *due* is when it is asked next, *checked* when it was asked last (since the epoch). *answered*:
    its present process did so before; *beside*: also while a cell ran, so that silence means something then.
    """

    verdict: Verdict = Verdict.UNKNOWN
    why: str = ""
    failures: int = 0
    total: int = 0
    due: float = 0.0
    checked: float | None = None
    answered: bool = False
    beside: bool = False


def judge(answers: Answers, *, beside: bool) -> Verdict:
    """What a kernel is that answered so; *beside* says that it is known to answer while it runs a cell.

    Whoever was stopped only now and then, as by a limit on processor time, is not taken for stopped.
    """
    if answers.control:
        return Verdict.BUSY if answers.running else Verdict.RESPONSIVE
    if answers.states and (answers.states[-1] == GONE or answers.states[-1] in ENDED):
        return Verdict.DEAD
    if answers.heartbeat:
        return Verdict.BUSY if answers.running is not False and not beside else Verdict.WEDGED
    if answers.states and all(state in STOPPED for state in answers.states):
        return Verdict.STOPPED
    return Verdict.HUNG


def note(standing: Standing, verdict: Verdict, *, age: float, policy: Policy, now: float, wall: float) -> Standing:
    """The standing of a kernel that was found *verdict*, *age* seconds after its process began.

    One that has not answered yet is given `Policy.start_timeout` to start.
    """
    if verdict in ANSWERS:
        return replace(
            standing, verdict=verdict, why="", failures=0, due=now + policy.interval, checked=wall, answered=True
        )
    may_be_starting = not standing.answered and age < policy.start_timeout
    if may_be_starting and verdict in (Verdict.WEDGED, Verdict.HUNG):
        verdict = Verdict.STARTING
        return replace(standing, verdict=verdict, why=WHY[verdict], due=now + START_INTERVAL, checked=wall)
    if verdict is Verdict.UNKNOWN:
        return replace(standing, due=now + policy.interval, checked=wall)
    failures = standing.failures + 1
    return replace(
        standing,
        verdict=verdict,
        why=WHY[verdict],
        failures=failures,
        total=standing.total + (failures == 1 and verdict is not Verdict.DEAD),  # ends are counted as such
        due=now + pause(failures, policy),
        checked=wall,
    )


def pause(failures: int, policy: Policy) -> float:
    """Seconds until a kernel that was silent *failures* times in a row is asked again."""
    longest = max(policy.interval, MOST_INTERVAL)
    return min(longest, policy.interval * policy.backoff ** min(failures, 64))


def is_told(failures: int) -> bool:
    """Whether the log tells of this failure: the first of a row, and then one in ten."""
    return failures % LOG_EVERY == 1


def split(timeout: float, retries: int, backoff: float) -> list[float]:
    """How long to wait after each of 1 + *retries* questions, *timeout* seconds together, growing by *backoff*."""
    weights = [backoff**turn for turn in range(retries + 1)]
    return [timeout * weight / sum(weights) for weight in weights]
