"""A circuit breaker for starts that always fail: after some failures in a row the next ones are refused at once, then
one is let through to try. Pure: times are seconds on the monotonic clock, passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_PAUSE = 300.0


@dataclass
class Breaker:
    """Of one kernelspec: *failures* in a row before it opens (0: never), *pause* seconds until a first trial.

    The pause doubles with each trial that fails. A trial that nobody tells the end of is over after *patience* seconds.
    """

    threshold: int
    pause: float
    patience: float = 60.0
    failures: int = 0
    reason: str = ""
    retry_at: float = 0.0
    trials: int = 0
    trial_began: float | None = None

    def state(self, now: float) -> str:
        """`closed` (starts go through), `open` (they are refused) or `half-open` (one may try)."""
        if not self.threshold or self.failures < self.threshold:
            return "closed"
        return "open" if now < self.retry_at else "half-open"

    def refusal(self, now: float) -> float | None:
        """None if a start may go on, which is then the trial if one is due; else in how many seconds to ask again."""
        state = self.state(now)
        if state == "closed":
            return None
        if state == "open":
            return self.retry_at - now
        if self.trial_began is not None and now - self.trial_began < self.patience:
            return max(1.0, min(self.pause, self.trial_began + self.patience - now))
        self.trial_began = now
        return None

    def failed(self, reason: str, now: float) -> bool:
        """A start failed for *reason*; whether the breaker opened for it. While it is open others are no news: they are
        the same kernel's, restarted.
        """
        state = self.state(now)
        self.reason = reason
        if state == "open":
            return False
        self.failures += 1
        if not self.threshold or self.failures < self.threshold:
            return False
        self.trials += state == "half-open"
        self.trial_began = None
        self.retry_at = now + min(max(self.pause, MOST_PAUSE), self.pause * 2.0 ** min(self.trials, 32))
        return True

    def succeeded(self) -> None:
        """A kernel answered."""
        self.failures, self.trials, self.reason, self.retry_at, self.trial_began = 0, 0, "", 0.0, None
