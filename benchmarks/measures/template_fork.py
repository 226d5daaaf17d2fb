"""`template_fork`: how soon a kernel answers where none is warm, but the template lives."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from benchmarks.pool import was_forked
from benchmarks.raw import RawClient
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

TRIES = 20


async def measure_template_fork(run: Run) -> list[Row]:
    """POST /api/kernels → kernel_info reply over ZeroMQ, pool empty: a spawn and a fork."""
    rows: list[Row] = []
    async with run.servers("stock", "ours+empty") as (stock, ours):
        servers = {"stock": stock, "ours": ours}
        for server in servers.values():
            await _warm_up(run, server)
        for number, sides in take_turns(["stock", "ours"], run.rounds):
            for side in sides:
                take = partial(_start_forked, servers[side])
                rows.append(await run.sample(number, side, take, (stock, ours)))
            run.show("template_fork", number, rows)
    return rows


async def _warm_up(run: Run, server: Server) -> None:
    """Unmeasured starts until one is forked: the template is there then."""
    for _ in range(TRIES):
        await run.settle(server)
        if (await _start(server))["hit"] in (True, None):
            return
        await asyncio.sleep(1)
    run.say("  no kernel was forked: these starts are cold")


async def _start_forked(server: Server) -> Row:
    """As `_start`; raises when a kernel was warm (made in a moment when the machine did nothing), to be taken again."""
    row = await _start(server)
    if row["hit"] is False:
        raise RuntimeError("the pool was not empty")
    return row


async def _start(server: Server) -> Row:
    client = server.client
    before = await client.read_pool()
    began = time.perf_counter()
    kernel_id = await client.start_kernel()
    posted = time.perf_counter()
    try:
        with RawClient(server.connection_file(kernel_id)) as raw:
            raw.wait_for_kernel_info()
            done = time.perf_counter()
        after = await client.read_pool()
    finally:
        await client.delete_kernel(kernel_id)
    return {
        "seconds": done - began,
        "post": posted - began,
        "kernel_info": done - posted,
        "hit": was_forked(before, after),
    }
