"""`websocket`: `1+1`, back to back, over the websocket and over raw ZeroMQ."""

from __future__ import annotations

import statistics
import time
from functools import partial

from benchmarks.measures.start import ONE
from benchmarks.raw import RawClient
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

IN_A_ROW = 50
WARM_UP = 5


async def measure_websocket(run: Run) -> list[Row]:
    """`1+1` back to back over the websocket, stock and ours, and over ZeroMQ to ours' kernel."""
    rows: list[Row] = []
    async with run.servers("stock", "ours") as (stock, ours):
        stocks = (await stock.client.start_session()).kernel_id
        kernel = (await ours.client.start_session()).kernel_id
        # Each sample makes its own connection: nobody else listens to the kernel meanwhile.
        take = {
            "stock": partial(_over_websocket, stock, stocks),
            "ours": partial(_over_websocket, ours, kernel),
            "raw": partial(_over_zeromq, ours, kernel),
        }
        for number, sides in take_turns(list(take), run.rounds):
            rows += [await run.sample(number, side, take[side], (stock, ours)) for side in sides]
            run.show("websocket", number, rows)
    return rows


async def _over_websocket(server: Server, kernel_id: str) -> Row:
    each = []
    async with server.client.channels(kernel_id) as channels:
        for _ in range(WARM_UP + IN_A_ROW):
            began = time.perf_counter()
            result = await channels.execute(ONE.code)
            each.append(time.perf_counter() - began)
            _check(result)
    return _row(each)


async def _over_zeromq(server: Server, kernel_id: str) -> Row:
    each = []
    with RawClient(server.connection_file(kernel_id)) as raw:
        raw.subscribe()
        for _ in range(WARM_UP + IN_A_ROW):
            began = time.perf_counter()
            result = raw.execute(ONE.code)
            each.append(time.perf_counter() - began)
            _check(result)
    return _row(each)


def _check(result: str) -> None:
    if not ONE.is_right(result):
        raise RuntimeError(f"{ONE.code} gave {result!r}")


def _row(each: list[float]) -> Row:
    measured = each[WARM_UP:]
    return {"seconds": statistics.median(measured), "each": measured}
