"""`hub`: what an idle server costs more with the preset `hub` than a stock one, for a machine has hundreds of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import psutil

from benchmarks.measures.memory import read_memory
from benchmarks.measures.start import ONE, attach
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

IDLE, IDLE_WHEN_QUICK = 30.0, 15.0
"""Seconds over which the idle servers' CPU time is taken: as many times 15, after which the resting keeper turns."""
QUIET = 3.0
"""Seconds without a request before that: what the last one began is over."""
FEWEST = 3
AT_REST_WITHIN = 120.0
"""Seconds for an unused server to give up its template and supervisor (they go after 10 and some 10)."""
LOOK_EVERY = 1.0


async def measure_hub(run: Run) -> list[Row]:
    """Memory and CPU of an idle server, stock and preset hub: before a first kernel, and after the last.

    Each pair of servers is new, and looked at over the same seconds. What they cost is that of the server's process
    and all below it. `more` is what ours costs more than the stock server beside it.
    """
    rows: list[Row] = []
    seconds = IDLE_WHEN_QUICK if run.quick else IDLE
    for number, sides in take_turns(["stock", "ours"], max(FEWEST, run.rounds // 3)):
        variants = ["ours+hub" if side == "ours" else side for side in sides]
        async with run.servers(*variants) as servers:
            fresh = await _look_at(servers, "fresh", seconds)
            for server in servers:
                await _use(server)
            for server in servers:
                await _wait_until_at_rest(server)
            later = await _look_at(servers, "later", seconds)
        pair = {side: {**first, **second} for side, first, second in zip(sides, fresh, later, strict=True)}
        pair["more"] = find_more(pair["ours"], pair["stock"])
        rows += [{"round": number, "side": side, **values} for side, values in pair.items()]
        _show(run, number, pair["more"])
    return rows


def find_more(ours: Row, stock: Row) -> Row:
    """What *ours* has more of than *stock*, value by value; less is negative."""
    return {name: ours[name] - stock[name] for name in ours}


def use_of(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """CPU seconds used between two looks, each by process: all of one that came, nothing of one that went."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def cpu_seconds_of(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of each of these processes so far, by id; finer than /proc's ticks."""
    return {pid: time.clock_gettime(_cpu_clock(pid)) for pid in pids}


async def _look_at(servers: Sequence[Server], prefix: str, seconds: float) -> list[Row]:
    """A row for each server, all over the same *seconds*."""
    await asyncio.sleep(QUIET)
    began = time.perf_counter()
    before = [cpu_seconds_of(_pids(server)) for server in servers]
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began
    rows = []
    for server, used_before in zip(servers, before, strict=True):
        pids = _pids(server)
        used = use_of(used_before, cpu_seconds_of(pids))
        memory = sum(read_memory(pid)["pss"] for pid in pids)
        rows.append({f"{prefix}_memory": memory, f"{prefix}_cpu": used / took, f"{prefix}_processes": len(pids)})
    return rows


async def _use(server: Server) -> None:
    """Start a first kernel, run a cell in it, let the pool get ready for the next one, and end it."""
    kernel_id = await server.client.start_kernel()
    await attach(server.client, kernel_id, ONE)
    view = await server.client.wait_until_warm(1)
    if view is not None and not view.is_ready(1):
        raise RuntimeError(f"the first kernel was followed by no warm one: {view.last_error or view}")
    await server.client.delete_kernel(kernel_id)


async def _wait_until_at_rest(server: Server) -> None:
    """Return when no process is left below the server's."""
    deadline = time.monotonic() + AT_REST_WITHIN
    while len(left := _pids(server)) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(left) - 1} processes are left below a server that nobody uses")
        await asyncio.sleep(LOOK_EVERY)


def _pids(server: Server) -> list[int]:
    return [server.pid, *(process.pid for process in psutil.Process(server.pid).children(recursive=True))]


def _cpu_clock(pid: int) -> int:
    """The clock of the CPU time of a process, all threads: what glibc's clock_getcpuclockid(3) gives."""
    return ~pid << 3 | 2


def _show(run: Run, number: int, more: Row) -> None:
    seen = (
        f"{when} {more[f'{when}_memory'] / 1e6:.1f} MB, {more[f'{when}_cpu'] * 100:.3f} %"
        for when in ("fresh", "later")
    )
    run.say(f"  hub {number + 1}: more than stock: {'; '.join(seen)} of a core")
