"""`start` and `imports`: from POST /api/sessions to the first result, and the floor under both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.client import Client
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

ONE = "1+1"
IMPORTS = "import numpy, pandas; (numpy.__version__, pandas.__version__)"


def _is_two(result: str) -> bool:
    return result == "2"


def _is_versions(result: str) -> bool:
    return result.count("'") == 4


@dataclass(frozen=True)
class Cell:
    """A cell, and how to know that what came back is its result."""

    code: str
    is_right: Callable[[str], bool]


async def measure_start(run: Run) -> list[Row]:
    """POST /api/sessions → first result of `1+1`: stock, ours, and the floor."""
    return await _measure(run, "start", "ours", Cell(ONE, _is_two))


async def measure_imports(run: Run) -> list[Row]:
    """The same to numpy and pandas usable, which ours has preloaded."""
    return await _measure(run, "imports", "ours+preload", Cell(IMPORTS, _is_versions))


async def _measure(run: Run, name: str, variant: str, cell: Cell) -> list[Row]:
    rows: list[Row] = []
    async with run.servers("stock", variant) as (stock, ours):
        # The floor: a kernel of our server, whose websockets have TCP_NODELAY, that runs and has imported already.
        ready = await ours.client.start_session()
        await attach(ours.client, ready.kernel_id, cell)
        for server in (stock, ours):  # once unmeasured: files read, profile folders made
            await _start(server, cell)
        for number, sides in take_turns(["stock", "ours", "floor"], run.rounds):
            for side in sides:
                await run.settle(stock, ours)
                if side == "floor":
                    row = await attach(ours.client, ready.kernel_id, cell)
                else:
                    row = await _start(stock if side == "stock" else ours, cell)
                rows.append({"round": number, "side": side, **row})
            run.show(name, number, rows)
    return rows


async def attach(client: Client, kernel_id: str, cell: Cell) -> Row:
    """Seconds from opening a websocket to the first result in a kernel that is there."""
    began = time.perf_counter()
    async with client.channels(kernel_id) as channels:
        opened = time.perf_counter()
        result = await channels.execute(cell.code)
        done = time.perf_counter()
    if not cell.is_right(result):
        raise RuntimeError(f"{cell.code!r} gave {result!r}")
    return {"seconds": done - began, "open": opened - began, "execute": done - opened}


async def _start(server: Server, cell: Cell) -> Row:
    """Seconds from POST /api/sessions to the first result, and whether the pool had a kernel for it."""
    client = server.client
    before = await client.read_pool()
    began = time.perf_counter()
    session = await client.start_session()
    posted = time.perf_counter()
    row = await attach(client, session.kernel_id, cell)
    row["post"] = posted - began
    row["seconds"] += row["post"]
    after = await client.read_pool()
    row["hit"] = after.hits > before.hits if before and after else None
    await client.delete_session(session)
    return row
