"""What warm kernels use though nobody asked anything of them: cores, and memory of their own."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from jupyter_kernelpool.memory import read_memory

RESTLESS = 0.3
RESTLESS_FOR = 5.0
MEASURE_EVERY = 30.0  # what warm kernels have for themselves: 1 ms each


class IdleUse:
    """What was measured of the warm kernels of one recipe.

    *restless* are the record ids of those that compute; *memory* is in bytes, by pid.
    """

    def __init__(self) -> None:
        self.restless: list[str] = []
        self.memory: dict[int, int] = {}
        self._cpu_seen: dict[str, tuple[float, float]] = {}
        self._memory_at = 0.0

    def measure(self, warm: Sequence[tuple[str, int]], now: float) -> None:
        """Measure those that are warm *now* (monotonic), each by record id and pid. Reads /proc: in a thread.

        Memory only every `MEASURE_EVERY` seconds.
        """
        self.restless = self._find_restless(warm, now)
        if now - self._memory_at > MEASURE_EVERY:
            self._memory_at = now
            self.memory = {pid: one.uss for pid, one in read_memory([pid for _, pid in warm]).items()}

    def _find_restless(self, warm: Sequence[tuple[str, int]], now: float) -> list[str]:
        """Warm kernels that used more than `RESTLESS` of a core for `RESTLESS_FOR` seconds."""
        found, seen = [], {}
        for record_id, pid in warm:
            try:
                times = psutil.Process(pid).cpu_times()
            except (psutil.Error, OSError, ValueError):
                continue
            used = times.user + times.system
            since, used_then = self._cpu_seen.get(record_id, (now, used))
            if now - since >= RESTLESS_FOR:
                if used - used_then > RESTLESS * (now - since):
                    found.append(record_id)
                since, used_then = now, used
            seen[record_id] = (since, used_then)
        self._cpu_seen = seen
        return found
