"""The run's diary: every execution, every fault, everything odd, on one clock."""

from __future__ import annotations

import itertools
import time
from collections import Counter

from benchmarks.chaos.judge import Execution, Fault


class Journal:
    """Written by clients and faults, read by the judge."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._numbers = itertools.count(1)
        self.executions: list[Execution] = []
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.odd: list[str] = []
        """Worth a look, and no broken promise by itself."""

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def sent(self, kernel: str, client: int, kind: str) -> Execution:
        """A cell is about to be sent."""
        execution = Execution(f"x{next(self._numbers)}", kernel, client, kind, self.now)
        self.executions.append(execution)
        return execution

    def ended(self, execution: Execution, outcome: str) -> None:
        """What became of it; only the first word counts."""
        if not execution.outcome:
            execution.outcome, execution.ended = outcome, self.now

    def struck(self, kind: str, kernel: str | None = None, detail: str = "") -> None:
        """A fault has been done."""
        self.faults.append(Fault(kind, self.now, kernel, detail))

    def hit_since(self, kernel: str, moment: float) -> bool:
        """Whether a fault may have struck that kernel since *moment*."""
        return any(
            fault.at >= moment and fault.kernel in (None, kernel) and fault.kind != "template"
            for fault in reversed(self.faults[-400:])
        )
