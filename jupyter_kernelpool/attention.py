"""Which kernels the guard looks at now, and how soon again: often at those that do something near a limit, seldom at
all while nothing runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ledger import Execution, Ledger
from jupyter_kernelpool.limits.base import Reading, Subject
from jupyter_kernelpool.pace import SLOWER, Pace

RESTLESS = 0.05  # cores; a kernel in which nothing runs uses less
ALMOST = 0.9  # of an interval: a look that is a moment early is not put off by a whole quick one


class Attention:
    """For the kernels in *subjects*, the guard's own dict, by their last *readings*.

    *pace* is that of the guard's loop, *interval* gives the seconds from one look at all kernels to the next.
    """

    def __init__(
        self,
        subjects: Mapping[str, Subject],
        readings: Mapping[str, Reading],
        edge: Edge,
        pace: Pace,
        interval: Callable[[], float],
    ) -> None:
        self.sum_is_near = False
        self._subjects = subjects
        self._readings = readings
        self._edge = edge
        self._pace = pace
        self._interval = interval
        self._near: frozenset[str] = frozenset()  # kernels near a limit of theirs
        self._whole_at = 0.0  # when all kernels were looked at last
        edge.on_ledger.append(self._follow)

    def due(self, watched: dict[str, Subject]) -> dict[str, Subject]:
        """Those of *watched* to be looked at now: between the looks at all of them only those that do something near a
        limit, and those of which a cell is being closed.

        All are at each interval, and less often while nothing runs in the others.
        """
        now = time.monotonic()
        near = {kernel_id for kernel_id in self._near if self._is_astir(kernel_id)} | self._edge.closing.keys()
        often = not near or self.are_astir(watched.keys() - near)
        span = self._interval() * (ALMOST if often else SLOWER)
        if self.sum_is_near or not near or now >= self._whole_at + span:
            self._whole_at = now
            return watched
        return {kernel_id: subject for kernel_id, subject in watched.items() if kernel_id in near}

    def looked(self, at: Iterable[str], near: set[str]) -> None:
        """There was a look *at* these kernels, of which those in *near* are near a limit."""
        self._near = self._near - set(at) | near

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self._near -= {kernel_id}

    def is_near(self, watched: Iterable[str]) -> bool:
        """Whether one of them does something near a limit of its, or of the sum: one at rest takes no more."""
        return self.are_astir(watched if self.sum_is_near else self._near)

    def are_astir(self, kernel_ids: Iterable[str]) -> bool:
        """Whether something runs in one of them."""
        return any(self._is_astir(kernel_id) for kernel_id in kernel_ids)

    def _is_astir(self, kernel_id: str) -> bool:
        """Whether a cell runs in the kernel, or it computes all the same; not in one that has ended."""
        if kernel_id not in self._subjects:
            return False
        reading = self._readings.get(kernel_id)
        computes = reading is not None and reading.used.get("cpu", 1.0) > RESTLESS
        return computes or bool(self._edge.ledger(kernel_id).executions)

    def _follow(self, kernel_id: str, ledger: Ledger) -> None:
        def stir(_: Execution | None = None) -> None:
            if self.sum_is_near or kernel_id in self._near:
                self._pace.hurry()
            else:
                self._pace.stir()

        ledger.on_begin.append(stir)
        ledger.on_expect.append(stir)
