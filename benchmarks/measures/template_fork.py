"""`template_fork`: how soon a kernel answers where none is warm, but the template lives."""

from __future__ import annotations

import time

from benchmarks.raw import RawClient
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row


async def measure_template_fork(run: Run) -> list[Row]:
    """POST /api/kernels → kernel_info reply over ZeroMQ, with an empty pool: a spawn and a fork."""
    rows: list[Row] = []
    async with run.servers("stock", "ours+empty") as (stock, ours):
        servers = {"stock": stock, "ours": ours}
        for server in servers.values():
            for _ in range(3):  # unmeasured: until the template is there
                await _start(server)
                await run.settle(server)
        for number, sides in take_turns(["stock", "ours"], run.rounds):
            for side in sides:
                await run.settle(stock, ours)
                rows.append({"round": number, "side": side, **await _start(servers[side])})
            run.show("template_fork", number, rows)
    return rows


async def _start(server: Server) -> Row:
    client = server.client
    before = await client.read_pool()
    began = time.perf_counter()
    kernel_id = await client.start_kernel()
    posted = time.perf_counter()
    with RawClient(server.connection_file(kernel_id)) as raw:
        raw.wait_for_kernel_info()
        done = time.perf_counter()
    after = await client.read_pool()
    await client.delete_kernel(kernel_id)
    from_pool = after.hits > before.hits if before and after else None
    return {
        "seconds": done - began,
        "post": posted - began,
        "kernel_info": done - posted,
        "from_pool": from_pool,
    }
