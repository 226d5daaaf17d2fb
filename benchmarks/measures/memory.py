"""`memory`: what an idle kernel costs that has numpy and pandas."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.measures.start import IMPORTS
from benchmarks.run import Run
from benchmarks.servers import Server
from benchmarks.stats import Row

IDLE = 2.0
"""Seconds a kernel has been idle when it is looked at."""
MOST = 10
"""Kernels looked at on each side: proportional memory depends on how many share."""


async def measure_memory(run: Run) -> list[Row]:
    """Bytes, PSS and private, of an idle kernel with numpy and pandas: stock and ours."""
    rows: list[Row] = []
    async with run.servers("stock", "ours+preload") as (stock, ours):
        for side, server in (("stock", stock), ("ours", ours)):
            pids = []
            for _ in range(min(run.rounds, MOST)):
                await run.settle(server)
                pids.append(await _start(server))
            await asyncio.sleep(IDLE)
            for number, pid in enumerate(pids):
                rows.append({"round": number, "side": side, **read_memory(pid)})
            seen = rows[-1]
            run.say(f"  memory: {side} {seen['pss'] / 1e6:.1f} MB PSS, {seen['private'] / 1e6:.1f} MB private")
    return rows


async def _start(server: Server) -> int:
    """A kernel that has imported numpy and pandas; its process's id."""
    session = await server.client.start_session()
    async with server.client.channels(session.kernel_id) as channels:
        await channels.execute(IMPORTS.code)
        return int(await channels.execute("import os; os.getpid()"))


def read_memory(pid: int) -> dict[str, int]:
    """Bytes of a process, from /proc: proportional (pss), its own (private), resident (rss)."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        fields[name.rstrip(":")] = int(size) * 1024
    return {
        "pss": fields["Pss"],
        "private": fields["Private_Clean"] + fields["Private_Dirty"],
        "rss": fields["Rss"],
    }
