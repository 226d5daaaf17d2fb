"""`burst`: a class that starts its notebooks in the same second."""

from __future__ import annotations

import time
from functools import partial

from benchmarks.measures.many import start_many
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row


async def measure_burst(run: Run) -> list[Row]:
    """100 sessions at once (10 when quick), to the first result of the last: stock and ours."""
    rows: list[Row] = []
    count = 10 if run.quick else 100
    async with run.servers("stock", "ours") as (stock, ours):
        servers = {"stock": stock, "ours": ours}
        for server in servers.values():
            await _burst(server, 1)  # once unmeasured
        for number, sides in take_turns(["stock", "ours"], rounds_for(run.rounds)):
            for side in sides:
                take = partial(_burst, servers[side], count)
                rows.append(await run.sample(number, side, take, (stock, ours)))
            run.show("burst", number, rows)
    return rows


def rounds_for(rounds: int) -> int:
    """A third of the rounds: one takes a minute or more and is made of a hundred kernels."""
    return max(1, rounds // 3)


async def _burst(server: Server, count: int) -> Row:
    before = await server.client.read_pool()
    began = time.perf_counter()
    async with start_many(server.client, count) as ended:
        times = sorted(end - began for end in ended)
        after = await server.client.read_pool()
    return {
        "kernels": count,
        "lost": count - len(times),
        "seconds": times[-1],
        "first": times[0],
        "from_pool": after.hits - before.hits if before and after else None,
        "each": times,
    }
