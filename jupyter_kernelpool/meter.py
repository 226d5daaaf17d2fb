"""What the server's kernels use: read in a thread, remembered on the event loop, told to REST and Prometheus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

from jupyter_kernelpool import metrics
from jupyter_kernelpool.usage import Reading, Root, cores, read_usage

MOMENT = 0.2  # seconds over which cores are measured for somebody who can't wait; the system counts in 0.01 s
STALE = 15.0
LOOK_AT_LIFE_EVERY = 0.5

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class Usage:
    """What a kernel uses. *cores* are those it used since it was last looked at, None at the first look; *peak* is the
    most private memory, in bytes, that its present process was seen with.
    """

    reading: Reading
    cores: float | None
    peak: int


class Meter:
    """Measures the kernels of *manager*, which may be any kernel manager; *ours* are the processes of the pool."""

    def __init__(self, manager: Any, ours: Callable[[], Iterable[int]] = tuple) -> None:
        self._manager = manager
        self._ours = ours
        self._seen: dict[str, Usage] = {}

    # -- single kernels -----------------------------------------------------------------------------

    async def look(
        self, kernel_ids: Collection[str], since: Reading | None = None, *, roughly: bool = False
    ) -> dict[str, Usage]:
        """What those of *kernel_ids* use that have a process on this machine, and cores used since *since*.

        *roughly*: kernels that did nothing since the last look have the memory that they had then.
        """
        roots = self.roots()
        self._seen = {kernel_id: usage for kernel_id, usage in self._seen.items() if kernel_id in self._manager}
        wanted = {kernel_id: roots[kernel_id] for kernel_id in kernel_ids if kernel_id in roots}
        if not wanted:
            return {}
        others = {root.pid for root in roots.values()}.union(self._ours())
        known = {kernel_id: usage.reading for kernel_id, usage in self._seen.items()} if roughly else {}
        readings = await asyncio.to_thread(read_usage, wanted, others, known)
        return {kernel_id: self._note(kernel_id, reading, since) for kernel_id, reading in readings.items()}

    async def measure(self, kernel_id: str) -> Usage | None:
        """The same of one kernel, whose cores are measured if they are not known; None if it has no process here."""
        usage = (await self.look([kernel_id])).get(kernel_id)
        if usage is not None and usage.cores is None:
            await asyncio.sleep(MOMENT)
            usage = (await self.look([kernel_id], usage.reading)).get(kernel_id)
        return usage

    async def follow(self, kernel_id: str, interval: float) -> AsyncIterator[Usage]:
        """The same every *interval* seconds, with the cores since the one before, until Jupyter forgets the kernel.

        While it has no process, at a restart, nothing comes.
        """
        previous = await self.measure(kernel_id)
        if previous is not None:
            yield previous
        while await self._lives_for(kernel_id, interval):
            since = previous.reading if previous is not None else None
            usage = (await self.look([kernel_id], since)).get(kernel_id)
            if usage is not None:
                previous = usage
                yield usage

    # -- all together -------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether there are kernels, or were at the last sample."""
        return bool(self._seen or self._manager.list_kernel_ids())

    async def sample(self) -> None:
        """Tell Prometheus what all kernels use together; called by the keeper."""
        try:
            tell_prometheus(await self.look(self._manager.list_kernel_ids(), roughly=True))
        except Exception:
            log.exception("What the kernels use could not be read")

    # -- parts --------------------------------------------------------------------------------------

    def roots(self) -> dict[str, Root]:
        """The process of each kernel that has one on this machine, by kernel id."""
        found = {}
        for kernel_id in self._manager.list_kernel_ids():
            root = find_root(getattr(self._manager.get_kernel(kernel_id), "provisioner", None))
            if root is not None:
                found[kernel_id] = root
        return found

    def _note(self, kernel_id: str, reading: Reading, since: Reading | None) -> Usage:
        seen = self._seen.get(kernel_id)
        if seen is None or seen.reading.process != reading.process:
            metrics.KERNELS_CPU.inc(reading.cpu)
            self._seen[kernel_id] = Usage(reading, None, reading.private)
            return Usage(reading, cores(since, reading) if since is not None else None, reading.private)
        peak = max(seen.peak, reading.private)
        known = self._cores(seen, reading)
        if reading.at > seen.reading.at:  # else another thread read later, and was here before
            metrics.KERNELS_CPU.inc(max(0.0, reading.cpu - seen.reading.cpu))
            self._seen[kernel_id] = Usage(reading, known, peak)
        return Usage(reading, cores(since, reading) if since is not None else known, peak)

    @staticmethod
    def _cores(seen: Usage, reading: Reading) -> float | None:
        passed = reading.at - seen.reading.at
        if passed < MOMENT / 2:
            return seen.cores
        return cores(seen.reading, reading) if passed < STALE else None

    async def _lives_for(self, kernel_id: str, seconds: float) -> bool:
        """Wait *seconds*; false as soon as Jupyter has forgotten the kernel."""
        deadline = time.monotonic() + seconds
        while kernel_id in self._manager:
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            await asyncio.sleep(min(left, LOOK_AT_LIFE_EVERY))
        return False


def find_root(provisioner: Any) -> Root | None:
    """The process that *provisioner* runs on this machine; None if there is none."""
    process = getattr(provisioner, "process", None)
    if not isinstance(provisioner, LocalProvisioner) or process is None or not provisioner.pid:
        return None
    ended = process.exit_code if hasattr(process, "exit_code") else process.returncode
    return Root(provisioner.pid, getattr(process, "inherited", 0)) if ended is None else None


def tell_prometheus(usages: Mapping[str, Usage]) -> None:
    """Set the gauges to the sum of *usages*."""
    readings = [usage.reading for usage in usages.values()]
    metrics.KERNELS_MEMORY.set(sum(one.private for one in readings))
    metrics.KERNELS_PROCESSES.set(sum(one.processes for one in readings))
    metrics.KERNELS_FDS.set(sum(one.fds for one in readings))
    metrics.KERNELS_GPU_MEMORY.set(sum(gpu.memory for one in readings for gpu in one.gpu))
