"""`checkpoint`, `undo_points` and `restore`: a kept state of a kernel, what it costs, and the way back to it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import psutil

from benchmarks.client import Channels
from benchmarks.measures.memory import read_memory
from benchmarks.measures.states import GIB, State, kernel_holding
from benchmarks.run import Run
from benchmarks.servers import Server
from benchmarks.stats import Row

UNDO_POINTS = 100


async def measure_checkpoint(run: Run) -> list[Row]:
    """POST …/checkpoints of a kernel with 1 GiB of arrays: its time, and the memory of the parked process."""
    rows: list[Row] = []
    state = _state(run)
    async with run.servers("ours") as (server,), kernel_holding(run, server, state) as (kernel_id, channels):
        await _take_checkpoint(server, kernel_id, channels, state)  # once unmeasured
        for number in range(run.rounds):
            take = partial(_take_checkpoint, server, kernel_id, channels, state)
            rows.append(await run.sample(number, "ours", take, (server,)))
            run.show("checkpoint", number, rows)
            run.say(f"    {rows[-1]['private'] / 1e6:.2f} MB private")
    return rows


async def measure_undo_points(run: Run) -> list[Row]:
    """The memory of 100 checkpoints (10 when quick) of a kernel with 1 GiB of arrays, a cell before each."""
    rows: list[Row] = []
    count = 10 if run.quick else UNDO_POINTS
    options = (f"--KernelPool.max_checkpoints={count}",)
    async with (
        run.servers("ours", options=options) as (server,),
        kernel_holding(run, server, _state(run)) as (kernel_id, channels),
    ):
        await _take_undo_points(server, kernel_id, channels, 1)  # once unmeasured
        for number in range(rounds_for(run.rounds)):
            take = partial(_take_undo_points, server, kernel_id, channels, count)
            rows.append(await run.sample(number, "ours", take, (server,)))
            run.say(f"  undo_points {number + 1}: {count} take {rows[-1]['memory'] / 1e6:.0f} MB")
    return rows


async def measure_restore(run: Run) -> list[Row]:
    """POST …/restore of a kernel with 1 GiB of arrays → first result on the same websocket."""
    rows: list[Row] = []
    async with run.servers("ours") as (server,), kernel_holding(run, server, _state(run)) as (kernel_id, channels):
        checkpoint = await server.client.take_checkpoint(kernel_id)
        await _restore(server, kernel_id, channels, checkpoint)  # once unmeasured
        for number in range(run.rounds):
            take = partial(_restore, server, kernel_id, channels, checkpoint)
            rows.append(await run.sample(number, "ours", take, (server,)))
            run.show("restore", number, rows)
    return rows


def rounds_for(rounds: int) -> int:
    """A fifth of the rounds: one takes a hundred checkpoints."""
    return max(1, rounds // 5)


def _state(run: Run) -> State:
    return State("arrays", GIB // 10 if run.quick else GIB)


async def _take_checkpoint(server: Server, kernel_id: str, channels: Channels, state: State) -> Row:
    before = _processes_below(server.pid)
    began = time.monotonic()
    checkpoint = await server.client.take_checkpoint(kernel_id)
    seconds = time.monotonic() - began
    try:
        # The one that holds the state: the pool may have made a kernel in this moment, too.
        (parked,) = [pid for pid in _processes_below(server.pid) - before if read_memory(pid)["rss"] > state.size * 0.9]
        memory = read_memory(parked)
        tables = read_page_tables(parked)
        await channels.execute("1")
        after_cell = read_memory(parked)["private"]
    finally:
        await server.client.drop_checkpoint(checkpoint)
    return {
        "seconds": seconds,
        "private": memory["private"],
        "page_tables": tables,
        "pss": memory["pss"],
        "after_cell": after_cell,
    }


async def _take_undo_points(server: Server, kernel_id: str, channels: Channels, count: int) -> Row:
    """Memory is what all processes of the server use more, and so holds what the kernel's own cells changed."""
    before = _memory_below(server.pid)
    checkpoints = []
    try:
        began = time.monotonic()
        for number in range(count):
            await channels.execute(f"now = {number}")
            checkpoints.append(await server.client.take_checkpoint(kernel_id))
        seconds = time.monotonic() - began
        after = _memory_below(server.pid)
    finally:
        for checkpoint in checkpoints:
            await server.client.drop_checkpoint(checkpoint)
    return {
        "seconds": seconds,
        "checkpoints": count,
        "memory": sum(after) - sum(before),
        "page_tables": after[1] - before[1],
    }


async def _restore(server: Server, kernel_id: str, channels: Channels, checkpoint: str) -> Row:
    await channels.execute("before = True")
    began = time.monotonic()
    await server.client.restore_kernel(kernel_id, checkpoint)
    posted = time.monotonic()
    result, again = await channels.execute_until_seen("'before' in globals(), len(state)")
    done = time.monotonic()
    if result != "(False, 16)":
        raise RuntimeError(f"the kernel is not what it was: {result!r}")
    return {
        "seconds": done - began,
        "post": posted - began,
        "execute": done - posted,
        "repeated": again,
    }


def _processes_below(pid: int) -> set[int]:
    return {process.pid for process in psutil.Process(pid).children(recursive=True)}


def _memory_below(pid: int) -> tuple[int, int]:
    """Bytes of all processes of a server together, shared pages counted once: memory, and page tables."""
    pids = {pid, *_processes_below(pid)}
    return sum(read_memory(each)["pss"] for each in pids), sum(map(read_page_tables, pids))


def read_page_tables(pid: int) -> int:
    """Bytes of the operating system's that say where the pages of a process are."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmPTE:"):
            return int(line.split()[1]) * 1024
    return 0
