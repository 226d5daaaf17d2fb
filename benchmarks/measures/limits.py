"""`limits`: what it costs to hold kernels to limits, and whether a hog that is held leaves its neighbour alone."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.measures.scale import grow, idle_cpu
from benchmarks.measures.start import ONE
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KERNELS = 50
IN_A_ROW = 50
HOG = "while True: pass"
BEGUN = 3.0
"""Seconds that the hog has before anything is measured: it is held from the second look on."""


async def measure_limits(run: Run) -> list[Row]:
    """CPU of the server with 50 idle kernels, without limits and with them (16 when quick); `1+1` beside a hog.

    The hog computes for ever in a kernel that may use 80 % of a core; `1+1` is another kernel's, over its websocket.
    """
    live = 16 if run.quick else KERNELS
    rows: list[Row] = []
    async with run.servers("ours", "ours+limits") as (unlimited, limited):
        await asyncio.gather(grow(unlimited, [], live), grow(limited, [], live))
        await run.settle(unlimited, limited)
        for number in range(max(1, run.rounds // 3)):
            idle = {"unlimited": await idle_cpu(unlimited), "limited": await idle_cpu(limited)}
            overhead = idle["limited"] - idle["unlimited"]
            rows += [
                {"round": number, "side": side, "live": live, "idle_cpu": cores, "overhead": overhead}
                for side, cores in idle.items()
            ]
            run.say(f"  limits: watching {live} idle kernels takes {overhead * 100:.2f} % of a core")
        rows += await _beside_a_hog(run, limited)
    return rows


async def _beside_a_hog(run: Run, server: Server) -> list[Row]:
    rows: list[Row] = []
    neighbour = (await server.client.start_session()).kernel_id
    for number, sides in take_turns(["quiet", "hog"], run.rounds):
        for side in sides:
            take = partial(_compute, server, neighbour, hog=side == "hog")
            rows.append(await run.sample(number, side, take, (server,)))
        run.show("limits", number, rows)
    return rows


async def _compute(server: Server, kernel_id: str, *, hog: bool) -> Row:
    async with _hog(server, wanted=hog), server.client.channels(kernel_id) as channels:
        each = []
        for _ in range(IN_A_ROW):
            began = time.perf_counter()
            result = await channels.execute(ONE.code)
            each.append(time.perf_counter() - began)
            if not ONE.is_right(result):
                raise RuntimeError(f"{ONE.code} gave {result!r}")
    return {"seconds": statistics.median(each), "each": each}


@asynccontextmanager
async def _hog(server: Server, *, wanted: bool) -> AsyncIterator[None]:
    if not wanted:
        yield
        return
    kernel_id = await server.client.start_kernel()
    async with server.client.channels(kernel_id) as channels:
        computing = asyncio.create_task(channels.execute(HOG))
        try:
            await asyncio.sleep(BEGUN)
            yield
        finally:
            computing.cancel()
            with suppress(asyncio.CancelledError, RuntimeError):
                await computing
            await server.client.delete_kernel(kernel_id)
