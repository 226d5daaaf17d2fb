"""Which kernelspecs' kernels can't be started: a breaker for each, so that nobody waits for what fails anyway."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from jupyter_kernelpool.breaker import Breaker
from jupyter_kernelpool.errors import StartsFail

log = logging.getLogger("jupyter_kernelpool")


class Starts:
    """The breakers of a server, by kernelspec; *make* makes one."""

    def __init__(self, make: Callable[[], Breaker]) -> None:
        self._make = make
        self.on_open: Callable[[], None] = lambda: None  # called before starts are refused
        self.breakers: dict[str, Breaker] = {}  # of kernelspecs whose last start failed

    def admit(self, kernel_name: str) -> None:
        """Raise `StartsFail` if starts of that kernelspec's kernels fail, and none is due to try again."""
        breaker = self.breakers.get(kernel_name)
        left = breaker.refusal(time.monotonic()) if breaker is not None else None
        if breaker is not None and left is not None:
            raise StartsFail(
                f"kernels of {kernel_name!r} can't be started; the last one: {breaker.reason}",
                kernel_name=kernel_name,
                retry_after=max(1.0, left),
            )

    def failed(self, kernel_name: str, reason: str) -> None:
        """A process of that kernelspec could not be started, or ended before it answered."""
        breaker = self.breakers.setdefault(kernel_name, self._make())
        if breaker.failed(reason, time.monotonic()):
            self.on_open()
            log.warning("Starts of %s are refused for a while, %s failed: %s", kernel_name, breaker.failures, reason)

    def succeeded(self, kernel_name: str) -> None:
        """A kernel of it answers."""
        breaker = self.breakers.pop(kernel_name, None)
        if breaker is not None and breaker.state(time.monotonic()) != "closed":
            log.info("Kernels of %s can be started again", kernel_name)
