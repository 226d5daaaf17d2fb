"""`scale`: whether a claim is as quick in a server with many kernels, and what they cost idle."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from pathlib import Path

from benchmarks.measures.start import ONE, attach
from benchmarks.pool import was_hit
from benchmarks.run import Run
from benchmarks.servers import Server
from benchmarks.stats import Row

IDLE = 10.0
"""Seconds over which the idle server's CPU time is taken."""
AT_ONCE = 4


async def measure_scale(run: Run) -> list[Row]:
    """A claim on ours with 10 and with 500 live kernels (40 when quick).

    A claim is POST /api/kernels; the time to a first result is kept beside it.

    Few, then many, then few again, so that a machine that grows slower meanwhile does not count
    against the many.
    """
    few, many = (10, 40) if run.quick else (10, 500)
    half = run.rounds // 2
    async with run.servers("ours") as (ours,):
        kernels: list[str] = []
        rows = await _at(run, ours, kernels, "few", few, range(half))
        rows += await _at(run, ours, kernels, "many", many, range(run.rounds))
        rows += await _at(run, ours, kernels, "few", few, range(half, run.rounds))
    return rows


async def _at(run: Run, server: Server, kernels: list[str], side: str, live: int, rounds: range) -> list[Row]:
    if not rounds:
        return []
    run.say(f"  scale: to {live} live kernels")
    await grow(server, kernels, live)
    await _shrink(server, kernels, live)
    await run.settle(server)
    busy = await idle_cpu(server)
    rows: list[Row] = []
    for number in rounds:
        row = await run.sample(number, side, partial(claim, server), (server,))
        rows.append({**row, "live": live, "idle_cpu": busy})
        run.show("scale", number, rows, "claim")
    run.say(f"  scale: idle with {live} kernels, the server uses {busy * 100:.1f} % of a core")
    return rows


async def claim(server: Server) -> Row:
    """Seconds of a POST /api/kernels (`claim`), and on to the first result; the kernel is ended after."""
    client = server.client
    before = await client.read_pool()
    began = time.perf_counter()
    kernel_id = await client.start_kernel()
    claimed = time.perf_counter()
    try:
        row = await attach(client, kernel_id, ONE)
        row["hit"] = was_hit(before, await client.read_pool())
    finally:
        await client.delete_kernel(kernel_id)
    row["claim"] = claimed - began
    row["seconds"] += row["claim"]
    return row


async def grow(server: Server, kernels: list[str], live: int) -> None:
    """Start kernels, some at once, until there are *live* in *kernels*."""
    while len(kernels) < live:
        count = min(AT_ONCE, live - len(kernels))
        kernels += await asyncio.gather(*(server.client.start_kernel() for _ in range(count)))


async def _shrink(server: Server, kernels: list[str], live: int) -> None:
    while len(kernels) > live:
        count = min(AT_ONCE, len(kernels) - live)
        gone = [kernels.pop() for _ in range(count)]
        await asyncio.gather(*(server.client.delete_kernel(kernel_id) for kernel_id in gone))


async def idle_cpu(server: Server) -> float:
    """Cores the server's process (not the pool's supervisor) uses while nothing is asked of it."""
    before, began = _cpu_seconds(server.pid), time.perf_counter()
    await asyncio.sleep(IDLE)
    return (_cpu_seconds(server.pid) - before) / (time.perf_counter() - began)


def _cpu_seconds(pid: int) -> float:
    # The name, which may hold spaces, ends at the last parenthesis; user and system time are fields
    # 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
