"""`held_cgroup` and `held_watchdog`: what an enforcer costs, and whether what it holds leaves its neighbour alone."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil

from benchmarks.measures.hub import cpu_seconds_of, use_of
from benchmarks.measures.scale import grow, idle_cpu
from benchmarks.measures.start import ONE
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row, percentile

ENFORCERS = ("cgroup", "watchdog")
KERNELS, KERNELS_WHEN_QUICK = 50, 16
LOOKS = 2
ROUNDS = 3
NEAR = "x = b'x' * (400 << 20)"
"""Two thirds of the memory that a kernel may have: more than half, and not enough for a warning."""
QUIET = 3.0
"""Seconds over which the neighbour is measured without a hog."""
WELL_BEGUN = 3.0
"""Seconds that a busy loop has before anything is measured: it is held from the second look on."""
HELD_FOR = 10.0
"""Seconds over which its cores are taken."""
LATER = 0.5
"""Seconds after which a hog begins: its client has gone by then, and would only contend for the machine."""
ENDED_WITHIN = 60.0
LOOK_EVERY = 0.1
TOLD_WITHIN = 3.0
"""Seconds after the end of a cell in which a limit is said to have been the cause; without a client no answer waits."""


@dataclass(frozen=True)
class Hog:
    """A cell that runs away. *ends*: a limit stops it; else it is only slowed down, and looked at for `HELD_FOR`.

    Beside the server's limits its kernel has these *limits*. *read*: its client stays, and reads what it prints.
    """

    code: str
    ends: bool = True
    read: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


TIMED = {"execution_timeout": 3.0}


FILLS = 'kept = []\nwhile len(kept) < 4096: kept.append(b"x" * (1 << 20))'
PRINTS = "while True: print('x' * 99)"
HOGS: Mapping[str, Hog] = {
    "memory": Hog(FILLS),
    "child": Hog(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {FILLS!r}])"),
    "forks": Hog(
        "import os\nme = os.getpid()\nfor _ in range(9): os.fork()\n"
        "if os.getpid() != me:\n    time.sleep(60)\n    os._exit(0)\ntime.sleep(60)"
    ),
    "loop": Hog("while True: pass", ends=False),
    "printer": Hog(PRINTS),
    "read": Hog(PRINTS, read=True),
    "files": Hog(
        "import os\nkept = []\nwhile True:\n    try:\n        kept.append(os.open(os.devnull, os.O_RDONLY))\n"
        "    except OSError:\n        time.sleep(0.01)",
        limits=TIMED,
    ),
    "sleep": Hog("time.sleep(1e9)", limits=TIMED),
    "deaf": Hog(
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\nwhile True: pass", limits=TIMED
    ),
}


async def measure_held(run: Run, enforcer: str) -> list[Row]:
    """CPU for holding 50 idle kernels (16 when quick), also with one of them near its limit, and with a cell that
    sleeps in each; `1+1` beside hogs.

    A server whose kernels *enforcer* holds, and one without limits beside it. The hogs fill the memory, themselves or
    in a child, fork, compute, print, without a client and with one, open files, sleep, and compute with SIGINT blocked,
    each in a kernel of its own; `1+1` is another kernel's, over its websocket, as long as they run.
    """
    live = KERNELS_WHEN_QUICK if run.quick else KERNELS
    async with run.servers("ours", f"ours+{enforcer}") as (unlimited, limited):
        kernels: list[str] = []
        others: list[str] = []
        await asyncio.gather(grow(unlimited, others, live), grow(limited, kernels, live))
        rows = await _watch(run, unlimited, limited, "limited", live)
        async with limited.client.channels(kernels[0]) as channels:
            await channels.execute(NEAR)
            rows += await _watch(run, unlimited, limited, "near", live)
            await channels.execute("del x")
        rows += await _beside_hogs(run, limited, kernels[0])
        await asyncio.gather(_send_to_sleep(unlimited, others), _send_to_sleep(limited, kernels))
        rows += await _watch(run, unlimited, limited, "astir", live)
    return rows


def _make(enforcer: str) -> Callable[[Run], Awaitable[list[Row]]]:
    async def measure(run: Run) -> list[Row]:
        return await measure_held(run, enforcer)

    measure.__doc__ = f"Kernels held by `{enforcer}`: what it costs, and `1+1` of a neighbour of what runs away."
    return measure


HELD: Mapping[str, Callable[[Run], Awaitable[list[Row]]]] = {f"held_{name}": _make(name) for name in ENFORCERS}
"""One for each enforcer of memory, processor and processes."""


async def _watch(run: Run, unlimited: Server, limited: Server, side: str, live: int) -> list[Row]:
    """What the server with limits uses more than the one without, over the same seconds."""
    await run.settle(unlimited, limited)
    rows: list[Row] = []
    for number in range(1 if run.quick else LOOKS):
        without, with_limits = await asyncio.gather(idle_cpu(unlimited), idle_cpu(limited))
        overhead = with_limits - without
        rows.append({"round": number, "side": side, "live": live, "idle_cpu": with_limits, "overhead": overhead})
        run.say(f"  {side}: watching {live} kernels takes {overhead * 100:.2f} % of a core")
    return rows


async def _send_to_sleep(server: Server, kernels: list[str]) -> None:
    """A cell runs in each of them, and does nothing."""
    for kernel_id in kernels:
        async with server.client.channels(kernel_id) as channels:
            await channels.send("import time; time.sleep(1e9)")
            await asyncio.sleep(LATER / 10)


async def _beside_hogs(run: Run, server: Server, neighbour: str) -> list[Row]:
    rows: list[Row] = []
    for number, sides in take_turns(["quiet", *HOGS], min(run.rounds, 1 if run.quick else ROUNDS)):
        for side in sides:
            take = partial(_take, server, neighbour, HOGS.get(side))
            rows.append(await run.sample(number, side, take, (server,)))
        run.show("1+1 beside", number, rows)
    return rows


async def _take(server: Server, neighbour: str, hog: Hog | None) -> Row:
    """Of `1+1` the median (`seconds`), `p99` and `count`; by how much the server's memory was `grown` at most; the
    `cores` of a hog that is only slowed down."""
    if hog is None:
        return await _compute(server, neighbour, asyncio.create_task(asyncio.sleep(QUIET)))
    async with _running(server, hog) as kernel_id:
        if hog.ends:
            return await _compute(server, neighbour, asyncio.create_task(_wait_until_held(server, kernel_id)))
        await asyncio.sleep(WELL_BEGUN)
        model = await _read(server, kernel_id)
        cores = asyncio.create_task(_measure_cores(model["pid"]))
        return {**await _compute(server, neighbour, cores), "cores": await cores}


async def _compute(server: Server, kernel_id: str, meanwhile: asyncio.Task[Any]) -> Row:
    """`1+1` back to back, as long as *meanwhile* takes."""
    process, each = psutil.Process(server.pid), []
    before = most = process.memory_info().rss
    try:
        async with server.client.channels(kernel_id) as channels:
            while not meanwhile.done():
                began = time.perf_counter()
                result = await channels.execute(ONE.code)
                each.append(time.perf_counter() - began)
                most = max(most, process.memory_info().rss)
                if not ONE.is_right(result):
                    raise RuntimeError(f"{ONE.code} gave {result!r}")
    finally:
        meanwhile.cancel()
    await meanwhile
    if not each:
        raise RuntimeError(f"{ONE.code} was not computed once meanwhile")
    seconds, slow = statistics.median(each), percentile(each, 99)
    return {"seconds": seconds, "p99": slow, "count": len(each), "grown": most - before}


@asynccontextmanager
async def _running(server: Server, hog: Hog) -> AsyncIterator[str]:
    """A kernel that has begun to run *hog*, and whose client has gone, unless it reads."""
    kernel_id = await server.client.start_kernel()
    try:
        if hog.limits:
            await server.client.request("PATCH", _door(kernel_id), {"limits": hog.limits})
        async with server.client.channels(kernel_id) as channels:
            await channels.execute(ONE.code)
            code = f"import time; time.sleep({LATER})\n{hog.code}"
            if hog.read:
                reading = asyncio.create_task(channels.execute(code))
                try:
                    yield kernel_id
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                return
            await channels.send(code)
            await asyncio.sleep(LATER / 2)
        await asyncio.sleep(LATER / 2)
        yield kernel_id
    finally:
        await server.client.delete_kernel(kernel_id)


async def _wait_until_held(server: Server, kernel_id: str) -> None:
    """Return when a limit has ended what runs in the kernel; raises `RuntimeError` where none does."""
    deadline, idle = time.monotonic() + ENDED_WITHIN, 0
    while True:
        model = await _read(server, kernel_id)
        ended = model["execution_state"] in ("idle", "dead")
        if model["breach"] is not None and ended:
            return
        idle += ended
        if time.monotonic() > deadline or idle * LOOK_EVERY > TOLD_WITHIN:
            raise RuntimeError("no limit has stopped what ran away")
        await asyncio.sleep(LOOK_EVERY)


async def _measure_cores(pid: int) -> float:
    """The cores that the process uses."""
    began, before = time.perf_counter(), cpu_seconds_of([pid])
    await asyncio.sleep(HELD_FOR)
    return use_of(before, cpu_seconds_of([pid])) / (time.perf_counter() - began)


async def _read(server: Server, kernel_id: str) -> dict[str, Any]:
    return dict(await server.client.request("GET", _door(kernel_id)))


def _door(kernel_id: str) -> str:
    return f"/kernelpool/v1/kernels/{kernel_id}"
