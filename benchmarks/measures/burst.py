"""`burst`: a class that starts its notebooks in the same second."""

from __future__ import annotations

import asyncio
import time

from benchmarks.client import Client, Session
from benchmarks.run import Run, take_turns
from benchmarks.stats import Row


async def measure_burst(run: Run) -> list[Row]:
    """100 sessions at once (10 when quick), to the first result of the last: stock and ours."""
    rows: list[Row] = []
    count = 10 if run.quick else 100
    async with run.servers("stock", "ours") as (stock, ours):
        servers = {"stock": stock, "ours": ours}
        for server in servers.values():
            await _start_all(server.client, 1)  # once unmeasured
        for number, sides in take_turns(["stock", "ours"], rounds_for(run.rounds)):
            for side in sides:
                await run.settle(stock, ours)
                rows.append(
                    {"round": number, "side": side, **await _start_all(servers[side].client, count)}
                )
            run.show("burst", number, rows)
    return rows


def rounds_for(rounds: int) -> int:
    """A round takes a minute on a small machine, and averages over a hundred kernels by itself: a third will do."""
    return max(1, rounds // 3)


async def _start_all(client: Client, count: int) -> Row:
    began = time.perf_counter()
    started = await asyncio.gather(*(_start_one(client, began) for _ in range(count)))
    times = sorted(seconds for _, seconds in started)
    await delete_all(client, [session for session, _ in started])
    return {"kernels": count, "seconds": times[-1], "first": times[0], "each": times}


async def _start_one(client: Client, began: float) -> tuple[Session, float]:
    session = await client.start_session()
    async with client.channels(session.kernel_id) as channels:
        result = await channels.execute("1+1")
        seconds = time.perf_counter() - began
    if result != "2":
        raise RuntimeError(f"1+1 gave {result!r}")
    return session, seconds


async def delete_all(client: Client, sessions: list[Session]) -> None:
    """Delete the sessions, a few at a time."""
    for first in range(0, len(sessions), 10):
        await asyncio.gather(
            *(client.delete_session(session) for session in sessions[first : first + 10])
        )
