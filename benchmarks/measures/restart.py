"""`restart`: from POST …/restart to the first result, on the websocket that stays open."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.client import Channels, Client
from benchmarks.run import Run, take_turns
from benchmarks.stats import Row


async def measure_restart(run: Run) -> list[Row]:
    """POST …/restart → first result on the same websocket: stock and ours."""
    rows: list[Row] = []
    async with run.servers("stock", "ours") as servers, AsyncExitStack() as stack:
        kernels: dict[str, tuple[Client, str, Channels]] = {}
        for side, server in zip(("stock", "ours"), servers, strict=True):
            session = await server.client.start_session()
            channels = await stack.enter_async_context(server.client.channels(session.kernel_id))
            await channels.execute("1+1")
            kernels[side] = (server.client, session.kernel_id, channels)
            await _restart(*kernels[side])  # once unmeasured
        for number, sides in take_turns(["stock", "ours"], run.rounds):
            for side in sides:
                take = partial(_restart, *kernels[side])
                rows.append(await run.sample(number, side, take, servers))
            run.show("restart", number, rows)
    return rows


async def _restart(client: Client, kernel_id: str, channels: Channels) -> Row:
    await channels.execute("before = True")
    began = time.perf_counter()
    await client.restart_kernel(kernel_id)
    posted = time.perf_counter()
    result, again = await channels.execute_until_seen("'before' in globals()")
    done = time.perf_counter()
    if result != "False":
        raise RuntimeError(f"the restarted kernel still has its state: {result!r}")
    return {
        "seconds": done - began,
        "post": posted - began,
        "execute": done - posted,
        "repeated": again,
    }
