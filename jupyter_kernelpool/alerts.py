"""Alerts: is what happens on this server still as it usually is? Judged over a sliding window.

Pure: times are seconds since the epoch, passed in. Everything that is kept is bounded.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

BAD = frozenset({"timeout", "killed", "died"})  # ends of an execution that are not the user's own doing
MOST = 10_000
USUAL_OF = 50
USUAL_FROM = 5
SHORTEST = 0.05
PARDON = 30.0

HINTS = {
    "execution_failures": "Kernels die, are ended for a limit, or don't start. The server's log names each by its id.",
    "execution_timeouts": "Cells run longer than KernelLimits.execution_timeout. Raise it, or see what they wait for.",
    "reconnects": "A client loses its websocket again and again. Look at proxies' timeouts, and at the server's load.",
    "slow_starts": "Kernels start slowly. Look at load and free memory, and whether they come from the pool.",
    "slow_executions": "The same cells take longer than they did. Look at the load, throttled kernels, and storage.",
}


@dataclass(frozen=True)
class Lines:
    """What is still right: shares of all executions, reconnects of a session, and times the usual duration.

    *window* is in seconds. Of fewer than *least* observations in it, nothing is concluded.
    """

    window: float = 600.0
    failures: float = 0.1
    timeouts: float = 0.05
    reconnects: float = 3
    slowness: float = 2.0
    least: int = 10


@dataclass(frozen=True)
class Alert:
    """How one thing stands: *value* is None where there is too little to judge by, *since* when it began to fire."""

    name: str
    value: float | None
    threshold: float
    since: float | None

    @property
    def firing(self) -> bool:
        """Whether the line is crossed."""
        return self.since is not None

    @property
    def hint(self) -> str:
        """What to look at."""
        return HINTS[self.name]


class Usual:
    """How long things usually take: the median of the last ones with the same key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def compare(self, key: Hashable, seconds: float) -> float | None:
        """How many times the usual *seconds* are, None where the usual isn't known; they count for the next ones.

        What takes less than `SHORTEST` is taken to take that: the noise of a busy machine is no slowness.
        """
        known = self._known.setdefault(key, deque(maxlen=USUAL_OF))
        self._known.move_to_end(key)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        times = max(seconds, SHORTEST) / max(median(known), SHORTEST) if len(known) >= USUAL_FROM else None
        known.append(seconds)
        return times


class Watch:
    """Takes note of executions, starts and connections, and judges them."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self._ends: deque[tuple[float, str]] = deque(maxlen=MOST)
        self._slow: dict[str, deque[tuple[float, float]]] = {
            name: deque(maxlen=MOST) for name in ("slow_starts", "slow_executions")
        }
        self._usual = {"slow_starts": Usual(100), "slow_executions": Usual(1000)}
        self._sessions: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        self._restarts: OrderedDict[str, float] = OrderedDict()
        self._since: dict[str, float] = {}

    # -- what happens -------------------------------------------------------------------------------

    def ended(self, outcome: str, seconds: float, code: Hashable | None, now: float) -> None:
        """An execution ended; *code* stands for what was run, None where that is not known."""
        self._ends.append((now, outcome))
        if outcome == "ok" and code is not None:
            self._compare("slow_executions", code, seconds, now)

    def started(self, kind: Hashable, seconds: float, now: float) -> None:
        """A kernel is ready, *seconds* after it was asked for; *kind* is what it is fair to compare it with."""
        self._compare("slow_starts", kind, seconds, now)

    def start_failed(self, now: float) -> None:
        """A kernel did not start."""
        self._ends.append((now, "not_started"))

    def restarted(self, kernel_id: str, now: float) -> None:
        """The kernel's process is replaced: clients such as JupyterLab connect anew then, and that is no fault."""
        _remember(self._restarts, kernel_id, now)

    def connected(self, kernel_id: str, session: str, now: float) -> bool:
        """A client connects; whether that is a reconnect, not for a restart of the kernel."""
        key = kernel_id, session
        if key not in self._sessions:
            _remember(self._sessions, key, deque(maxlen=100))
            return False
        self._sessions.move_to_end(key)
        if now - self._restarts.get(kernel_id, 0.0) < PARDON:
            return False
        self._sessions[key].append(now)
        return True

    # -- what it amounts to -------------------------------------------------------------------------

    def judge(self, now: float) -> list[Alert]:
        """Every alert, firing or not."""
        lines, since = self.lines, now - self.lines.window
        ends = [outcome for at, outcome in _recent(self._ends, since)]
        executions = [outcome for outcome in ends if outcome != "not_started"]
        slow = {name: self._enough([times for _, times in _recent(noted, since)]) for name, noted in self._slow.items()}
        reconnects = max((sum(at > since for at in ats) for ats in self._sessions.values()), default=0)
        return [
            self._alert("execution_failures", _share(self._enough(ends), BAD | {"not_started"}), lines.failures, now),
            self._alert("execution_timeouts", _share(self._enough(executions), {"timeout"}), lines.timeouts, now),
            self._alert("reconnects", float(reconnects), lines.reconnects, now),
            *(self._alert(name, median(times) if times else None, lines.slowness, now) for name, times in slow.items()),
        ]

    def _alert(self, name: str, value: float | None, threshold: float, now: float) -> Alert:
        if value is not None and value > threshold:
            self._since.setdefault(name, now)
        else:
            self._since.pop(name, None)
        return Alert(name, value, threshold, self._since.get(name))

    def _enough(self, observed: list[V]) -> list[V]:
        return observed if len(observed) >= self.lines.least else []

    def _compare(self, name: str, key: Hashable, seconds: float, now: float) -> None:
        times = self._usual[name].compare(key, seconds)
        if times is not None:
            self._slow[name].append((now, times))


def _remember(known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > MOST:
        known.popitem(last=False)


def _recent(noted: deque[tuple[float, V]], since: float) -> Iterable[tuple[float, V]]:
    while noted and noted[0][0] <= since:
        noted.popleft()
    return noted


def _share(outcomes: list[str], bad: Iterable[str]) -> float | None:
    return sum(outcome in bad for outcome in outcomes) / len(outcomes) if outcomes else None
