"""`websocket`: `1+1`, back to back, over the websocket and over raw ZeroMQ."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack

from benchmarks.client import Channels
from benchmarks.raw import RawClient
from benchmarks.run import Run, take_turns
from benchmarks.stats import Row

IN_A_ROW = 50
WARM_UP = 10


async def measure_websocket(run: Run) -> list[Row]:
    """`1+1` back to back over the websocket: stock, ours, and raw ZeroMQ to the kernel of ours."""
    rows: list[Row] = []
    async with run.servers("stock", "ours") as (stock, ours), AsyncExitStack() as stack:
        clients: dict[str, Channels | RawClient] = {}
        for side, server in (("stock", stock), ("ours", ours)):
            session = await server.client.start_session()
            clients[side] = await stack.enter_async_context(
                server.client.channels(session.kernel_id)
            )
            if side == "ours":
                clients["raw"] = raw = stack.enter_context(
                    RawClient(server.connection_file(session.kernel_id))
                )
                raw.subscribe()
        for client in clients.values():
            await _execute_in_a_row(client, WARM_UP)
        for number, sides in take_turns(list(clients), run.rounds):
            for side in sides:
                await run.settle(stock, ours)
                each = await _execute_in_a_row(clients[side], IN_A_ROW)
                rows.append(
                    {
                        "round": number,
                        "side": side,
                        "seconds": statistics.median(each),
                        "each": each,
                    }
                )
            run.show("websocket", number, rows)
    return rows


async def _execute_in_a_row(client: Channels | RawClient, times: int) -> list[float]:
    each = []
    for _ in range(times):
        began = time.perf_counter()
        done = client.execute("1+1")
        result = await done if asyncio.iscoroutine(done) else done
        each.append(time.perf_counter() - began)
        if result != "2":
            raise RuntimeError(f"1+1 gave {result!r}")
    return each
