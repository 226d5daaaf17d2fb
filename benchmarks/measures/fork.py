"""`fork_…`: a fork of a live kernel, until the fork answers; and for how long its parent does not."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.client import Channels
from benchmarks.measures.states import GIB, PlainProcess, State, kernel_holding
from benchmarks.raw import RawClient
from benchmarks.run import QUIET, Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MARGIN = 0.1
"""Seconds after the fork's answer in which a pause of the parent still counts as the fork's."""
FEW = 10
"""Cells that run before the fork, to know how long one takes."""

# In the parent: how late a callback of its main loop is that is due every millisecond. Cells run on that loop, and
# a message that comes while it stands still waits.
TICKS = '''
class Ticks:
    period = 0.001

    def __init__(self):
        import asyncio, time
        self.clock, self.loop, self.late = time.monotonic, asyncio.get_event_loop(), []
        self.last, self.goes_on = self.clock(), True
        self.tick()

    def tick(self):
        now = self.clock()
        late = now - self.last - self.period
        if late > self.period:
            self.late.append((self.last, now, late))
        self.last = now
        if self.goes_on:
            self.loop.call_later(self.period, self.tick)

    def longest(self, began, ended):
        """How late the latest was of those that were due between *began* and *ended*."""
        return max((late for last, now, late in self.late if now >= began and last <= ended), default=0.0)

    def stop(self):
        self.goes_on = False

ticks = Ticks()
'''


def _make(kind: str, size: float) -> Callable[[Run], Awaitable[list[Row]]]:
    async def measure(run: Run) -> list[Row]:
        return await _measure(run, State(kind, int(size * GIB)))

    measure.__doc__ = f"Fork of a live kernel with {size:g} GiB of {kind}: ours, and os.fork of a plain process."
    return measure


FORKS: Mapping[str, Callable[[Run], Awaitable[list[Row]]]] = {
    f"fork_{kind}_{size:g}": _make(kind, size) for kind in ("arrays", "objects") for size in (0.1, 1, 4)
}
"""One for each kind and size of state, in GiB."""


async def _measure(run: Run, state: State) -> list[Row]:
    """POST …/fork → the fork's kernel_info reply over ZeroMQ, and the parent's pause in forks of their own.

    The parent is watched in forks of their own, since who watches it takes processor time.
    """
    name = f"fork of {state.size / GIB:.1g} GiB of {state.kind}"
    rows: list[Row] = []
    async with (
        run.servers("ours") as (server,),
        PlainProcess.holding(state) as plain,
        kernel_holding(run, server, state) as (parent, channels),
    ):
        await _fork(server, parent)  # once unmeasured
        take: dict[str, Callable[[], Awaitable[Row]]] = {
            "ours": lambda: _fork_and_watch(server, parent, channels),
            "floor": lambda: _fork_plainly(plain),
        }
        for number, sides in take_turns(list(take), run.rounds):
            rows += [await run.sample(number, side, take[side], (server,)) for side in sides]
            run.show(name, number, rows)
    return rows


async def _fork_plainly(plain: PlainProcess) -> Row:
    seconds, pause = await plain.fork()
    return {"seconds": seconds, "pause": pause}


async def _fork_and_watch(server: Server, parent: str, channels: Channels) -> Row:
    row = await _fork(server, parent)
    await asyncio.sleep(QUIET)
    row |= await _fork_seen_from_within(server, parent, channels)
    await asyncio.sleep(QUIET)
    row |= await _fork_seen_by_client(server, parent)
    return row


async def _fork(server: Server, parent: str) -> Row:
    """Seconds from the request to the fork's kernel_info reply."""
    began = time.monotonic()
    async with _forked(server, parent) as (kernel_id, posted):
        with RawClient(server.connection_file(kernel_id)) as raw:
            raw.wait_for_kernel_info()
            done = time.monotonic()
    return {"seconds": done - began, "post": posted - began, "kernel_info": done - posted}


async def _fork_seen_from_within(server: Server, parent: str, channels: Channels) -> Row:
    """`pause`: the longest time for which the parent's main loop stood still; `quiet`: the same without a fork."""
    await channels.execute(TICKS)
    await asyncio.sleep(QUIET)
    began = time.monotonic()
    async with _forked(server, parent) as (_, posted):
        await asyncio.sleep(MARGIN)
        ended = posted + MARGIN
        before = began - min(QUIET / 2, ended - began), began
        pause = float(await channels.execute(f"ticks.longest({began}, {ended})"))
        quiet = float(await channels.execute(f"ticks.longest{before}"))
        await channels.execute("ticks.stop()")
    return {"pause": pause, "quiet": quiet}


async def _fork_seen_by_client(server: Server, parent: str) -> Row:
    """`felt`: by how much the longest of cells back to back, during a fork, is longer than one before it is."""
    with RawClient(server.connection_file(parent)) as raw:
        raw.subscribe()
        seen: list[tuple[float, float]] = []
        is_over = threading.Event()
        cells = asyncio.create_task(asyncio.to_thread(_run_cells, raw, seen, is_over))
        try:
            while len(seen) < FEW and not cells.done():
                await asyncio.sleep(0.01)
            began = time.monotonic()
            async with _forked(server, parent) as (_, posted):
                await asyncio.sleep(MARGIN)
        finally:
            is_over.set()
            await cells
    usual = statistics.median(end - start for start, end in seen if end < began)
    longest = max(end - start for start, end in seen if end >= began and start <= posted + MARGIN)
    return {"felt": longest - usual, "cell": usual}


def _run_cells(raw: RawClient, seen: list[tuple[float, float]], is_over: threading.Event) -> None:
    while not is_over.is_set():
        began = time.monotonic()
        raw.execute("1")
        seen.append((began, time.monotonic()))


@asynccontextmanager
async def _forked(server: Server, parent: str) -> AsyncIterator[tuple[str, float]]:
    """A fork of *parent*, and when it was there; ended after."""
    kernel_id = await server.client.fork_kernel(parent)
    posted = time.monotonic()
    try:
        yield kernel_id, posted
    finally:
        await server.client.delete_kernel(kernel_id)
