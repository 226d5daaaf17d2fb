"""What checkpoints cost, and which of them go when that is too much."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psutil

from jupyter_kernelpool.memory import Memory, read_memory

LOOK_EVERY = 10.0
LOOK_AT_MOST_EVERY = 0.5

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class Kept:
    """A checkpoint's process. One that is *spare* (it has no name) may be dropped."""

    id: str
    pid: int
    spare: bool


@dataclass(frozen=True)
class Family:
    """A kernel (0 if it has no process) and its checkpoints, oldest first."""

    pid: int
    kept: tuple[Kept, ...]


def cost(family: Family, memory: Mapping[int, Memory]) -> int:
    """The bytes that would be free without the checkpoints of *family*; a little less where others share with it.

    Pages that the kernel has as well cost nothing. Those that it has changed since are shared by the checkpoints
    of before, so what each has for itself is not the whole.
    """
    kept = [memory[one.pid] for one in family.kept if one.pid in memory]
    shared_with_kernel = 0
    if family.pid in memory:
        shared_with_kernel = memory[family.pid].rss - memory[family.pid].pss
    return max(sum(one.uss for one in kept), sum(one.pss for one in kept) - shared_with_kernel)


def next_to_go(families: Iterable[Family], memory: Mapping[int, Memory], most: int) -> str | None:
    """The oldest spare checkpoint of the family that costs most, if all together cost more than *most* bytes."""
    costs = [(cost(family, memory), family) for family in families]
    if sum(each for each, _ in costs) <= most:
        return None
    for _, family in sorted(costs, key=lambda pair: pair[0], reverse=True):
        for one in family.kept:
            if one.spare:
                return one.id
    return None


class MemoryBound:
    """Has *drop* called while the checkpoints that *look* finds cost more than *most* bytes together.

    0 bytes stand for a quarter of the machine's memory.
    """

    def __init__(self, most: int, look: Callable[[], list[Family]], drop: Callable[[str], None]) -> None:
        self._most = most or psutil.virtual_memory().total // 4
        self._look = look
        self._drop = drop
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._told = False

    def poke(self) -> None:
        """There is one more."""
        self._poked.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kernelpool-checkpoint-memory")

    def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while families := self._look():
            self._poked.clear()
            await self._keep_to_bound(families)
            await asyncio.sleep(LOOK_AT_MOST_EVERY)
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._poked.wait()
            except TimeoutError:
                continue

    async def _keep_to_bound(self, families: list[Family]) -> None:
        while families:
            pids = {one.pid for family in families for one in family.kept} | {family.pid for family in families}
            memory = await asyncio.to_thread(read_memory, pids - {0})
            doomed = next_to_go(families, memory, self._most)
            if doomed is None:
                self._say_if_too_much(sum(cost(family, memory) for family in families))
                return
            log.info("Checkpoint %s is dropped: together they cost more than KernelPool.max_checkpoint_memory", doomed)
            self._drop(doomed)
            families = self._look()

    def _say_if_too_much(self, costs: int) -> None:
        too_much = costs > self._most
        if too_much and not self._told:
            log.warning(
                "Checkpoints with names cost %s bytes, more than KernelPool.max_checkpoint_memory = %s; drop some",
                costs, self._most,
            )  # fmt: skip
        self._told = too_much
