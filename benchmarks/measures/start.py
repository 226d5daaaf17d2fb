"""`start` and `imports`: from POST /api/sessions to the first result, and the floor under both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.client import Client
from benchmarks.pool import was_hit
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

LONGEST = 120.0
"""Seconds after which a kernel that gave no result is taken as lost."""


@dataclass(frozen=True)
class Cell:
    """A cell, and how to know that what came back is its result."""

    code: str
    is_right: Callable[[str], bool]


ONE = Cell("1+1", lambda result: result == "2")
IMPORTS = Cell(
    "import numpy, pandas; (numpy.__version__, pandas.__version__)",
    lambda result: result.count("'") == 4,
)


async def measure_start(run: Run) -> list[Row]:
    """POST /api/sessions → first result of `1+1`: stock, ours, and the floor."""
    return await _measure(run, "start", "ours", ONE)


async def measure_imports(run: Run) -> list[Row]:
    """The same to numpy and pandas usable, which ours has preloaded."""
    return await _measure(run, "imports", "ours+preload", IMPORTS)


async def _measure(run: Run, name: str, variant: str, cell: Cell) -> list[Row]:
    rows: list[Row] = []
    async with run.servers("stock", variant, "nodelay") as (stock, ours, floor):
        # The floor: a kernel that runs and has imported already, and stock's websocket with TCP_NODELAY.
        ready = await floor.client.start_session()
        take: dict[str, Callable[[], Awaitable[Row]]] = {
            "stock": lambda: start(stock, cell),
            "ours": lambda: start(ours, cell),
            "floor": lambda: attach(floor.client, ready.kernel_id, cell),
        }
        for side in take:  # once unmeasured: files read, profile folders made, the floor's imports done
            await run.sample(-1, side, take[side], (stock, ours))
        for number, sides in take_turns(list(take), run.rounds):
            rows += [await run.sample(number, side, take[side], (stock, ours)) for side in sides]
            run.show(name, number, rows)
    return rows


async def attach(client: Client, kernel_id: str, cell: Cell) -> Row:
    """Seconds from opening a websocket to the first result in a kernel that is there."""
    began = time.perf_counter()
    async with asyncio.timeout(LONGEST), client.channels(kernel_id) as channels:
        opened = time.perf_counter()
        result = await channels.execute(cell.code)
        done = time.perf_counter()
    if not cell.is_right(result):
        raise RuntimeError(f"{cell.code!r} gave {result!r}")
    return {"seconds": done - began, "open": opened - began, "execute": done - opened}


async def start(server: Server, cell: Cell) -> Row:
    """Seconds from POST /api/sessions to the first result, and whether it was a pool hit."""
    client = server.client
    before = await client.read_pool()
    began = time.perf_counter()
    session = await client.start_session()
    posted = time.perf_counter()
    try:
        row = await attach(client, session.kernel_id, cell)
        row["post"] = posted - began
        row["seconds"] += row["post"]
        row["hit"] = was_hit(before, await client.read_pool())
    finally:
        await client.delete_session(session)
    return row
