"""What is known of each kernel over all its processes: whether it answers, how its processes ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jupyter_kernelpool import metrics
from jupyter_kernelpool.health import Standing

log = logging.getLogger("jupyter_kernelpool")


@dataclass(eq=False)
class Comeback:
    """A kernel's next process, which is made here and not by the restarter. Until it has *begun*, whoever restarts the
    kernel is quicker, and it is off."""

    begun: bool = False


@dataclass
class Life:
    """What is known of one kernel, over all its processes.

    *end* says how its process ended, until there is another one. It *stays* dead, or is restarted not before
    *restart_at*; with *coming_back* that is done here, and not by the restarter. At *answered_at* its present
    process last answered a nudge, or began to serve; *fruitless* ones in a row ended before that, or soon fell silent.
    *lost* is why it does not answer (`unresponsive`, `died`), and since when, until it answers again or is given up.
    """

    born: float
    standing: Standing = field(default_factory=Standing)
    ends: list[float] = field(default_factory=list)
    end: str | None = None
    stays: bool = False
    restart_at: float = 0.0
    coming_back: Comeback | None = None
    answered_at: float | None = None
    fruitless: int = 0
    silent_since: float = 0.0
    lost: tuple[str, float] | None = None

    def recovered(self) -> None:
        """The kernel answers; if it had fallen silent or died, that took so long."""
        if self.lost is not None:
            (cause, since), self.lost = self.lost, None
            metrics.RECOVERY.labels(cause=cause).observe(time.monotonic() - since)

    def replaced(self) -> None:
        """Somebody restarts the kernel, or has: what was to be done here after a pause is off."""
        if self.coming_back is not None and not self.coming_back.begun:
            self.coming_back = None


class Lives:
    """Those of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._known: dict[str, Life] = {}

    @property
    def kernel_ids(self) -> frozenset[str]:
        """Whose they are."""
        return frozenset(self._known)

    def items(self) -> Iterable[tuple[str, Life]]:
        """All of them, by kernel id."""
        return self._known.items()

    def find(self, kernel_id: str) -> Life | None:
        """The kernel's, if anything is known of it."""
        return self._known.get(kernel_id)

    def begin(self, kernel_id: str) -> Life:
        """That of a kernel which may not be the manager's yet."""
        return self._known.setdefault(kernel_id, Life(time.monotonic()))

    def of(self, kernel_id: str) -> Life:
        """That of a kernel of the manager's, who may have adopted it."""
        known = self._known.get(kernel_id)
        if known is not None:
            return known
        life = self.begin(kernel_id)
        if not self._manager.get_kernel(kernel_id).owns_kernel:
            life.standing = Standing(answered=True)
            metrics.ADOPTED.inc()
            log.info("Kernel %s ran already, and is shown and looked after from now on", kernel_id)
        return life

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self._known.pop(kernel_id, None)
