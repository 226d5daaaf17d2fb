"""What checkpoints cost, and which go first. Numbers are pages."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from jupyter_kernelpool.checkpoints import memory
from jupyter_kernelpool.checkpoints.memory import Family, Kept, MemoryBound, cost, next_to_go
from jupyter_kernelpool.memory import Memory, read_memory

KERNEL = 1


def family(*pids: int, named: tuple[int, ...] = (), kernel: int = KERNEL) -> Family:
    return Family(kernel, tuple(Kept(f"c{pid}", pid, pid not in named) for pid in pids))


def test_what_the_kernel_has_as_well_costs_nothing() -> None:
    shared = dict.fromkeys((KERNEL, 10, 11, 12), Memory(rss=1000, pss=250, uss=0))
    assert cost(family(10, 11, 12), shared) == 0


def test_what_the_kernel_changed_since_is_counted_once_for_all_that_share_it() -> None:
    seen = {KERNEL: Memory(rss=1000, pss=1000, uss=1000), **dict.fromkeys((10, 11), Memory(rss=1000, pss=500, uss=0))}
    assert cost(family(10, 11), seen) == 1000


def test_what_each_has_for_itself_is_the_least() -> None:
    """Pages that the kernel shares with others (its template) must not hide it."""
    seen = {KERNEL: Memory(rss=1000, pss=100, uss=100), 10: Memory(rss=1000, pss=150, uss=40)}
    assert cost(family(10), seen) == 40


def test_of_a_kernel_without_a_process_all_counts() -> None:
    assert cost(family(10, kernel=0), {10: Memory(rss=1000, pss=900, uss=800)}) == 900


def test_the_oldest_spare_one_of_the_costliest_goes() -> None:
    seen = {
        10: Memory(100, 100, 100), 11: Memory(100, 100, 100),
        20: Memory(500, 500, 500), 21: Memory(500, 500, 500), 22: Memory(500, 500, 500),
    }  # fmt: skip
    families = [family(10, 11, kernel=0), family(20, 21, 22, named=(20,), kernel=0)]
    assert next_to_go(families, seen, 1000) == "c21"
    assert next_to_go(families, seen, 1700) is None
    assert next_to_go([family(10, 11, kernel=0), family(20, kernel=0, named=(20,))], seen, 600) == "c10"
    assert next_to_go([family(20, kernel=0, named=(20,))], seen, 100) is None


def test_memory_is_read_and_the_dead_are_left_out() -> None:
    found = read_memory([os.getpid(), 0x3FFFFFFF])
    assert list(found) == [os.getpid()]
    assert found[os.getpid()].rss >= found[os.getpid()].pss >= found[os.getpid()].uss > 0


async def test_the_bound_drops_until_it_is_kept_to(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(memory, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(memory, "LOOK_AT_MOST_EVERY", 0.0)
    there = {"c10": 10, "c11": 11, "c12": 12}
    size = [100]
    monkeypatch.setattr(
        memory, "read_memory", lambda pids: {pid: Memory(size[0], size[0], size[0]) for pid in pids if pid}
    )
    bound = MemoryBound(
        250,
        lambda: [family(*there.values(), named=(12,), kernel=0)] if there else [],
        lambda key: there.pop(key) and None,
    )
    bound.poke()
    while len(there) > 2:
        await asyncio.sleep(0.001)
    assert list(there) == ["c11", "c12"]
    size[0] = 300  # the kernel has changed more since
    while len(there) > 1:
        await asyncio.sleep(0.001)
    assert list(there) == ["c12"], "what has a name stays"
    while "drop some" not in caplog.text:
        await asyncio.sleep(0.001)
    bound.close()
