"""`hung`, `wedged`: whether a claim is as quick beside kernels that hang."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import psutil

from benchmarks.measures.scale import claim
from benchmarks.measures.start import ONE, attach
from benchmarks.run import Run, take_turns
from benchmarks.servers import Server
from benchmarks.stats import Row

WEDGE = signal.SIGRTMIN  # which a kernel leaves as its template has it
WEDGEABLE = f"""
import ctypes, signal
signal.signal({int(WEDGE)}, lambda *_: ctypes.PyDLL(None).sleep(3600))
"""
TAKES_HOLD = 0.2
ENDS_WITHIN = 5.0


async def measure_hung(run: Run) -> list[Row]:
    """A claim on ours with a stopped (SIGSTOP) kernel in use and one in the pool, and with none that hangs.

    In the pool it is the one that would be claimed next. Both servers have a kernel in use, which hangs in one of them
    all the time.
    """
    rows: list[Row] = []
    async with run.servers("ours", "ours") as (none, hung):
        await _start(none)
        kernel = await _find_process(hung, await _start(hung))
        with stopped(kernel):
            take = {"none": partial(claim, none), "hung": partial(_claim_beside_hung, hung, kernel)}
            for side in take:  # once unmeasured
                await run.sample(-1, side, take[side], (none, hung))
            for number, sides in take_turns(list(take), run.rounds):
                rows += [await run.sample(number, side, take[side], (none, hung)) for side in sides]
                run.show("hung", number, rows, "claim")
    return rows


async def measure_wedged(run: Run) -> list[Row]:
    """A claim on ours where the warm kernel that would be claimed next is not stopped, but holds the interpreter's lock
    in C for ever, and where none does.
    """
    rows: list[Row] = []
    async with run.servers("ours", options=(f"--KernelPool.init_code={WEDGEABLE}",)) as (ours,):
        take = {"none": partial(claim, ours), "wedged": partial(_claim_where_next_is_wedged, ours)}
        for side in take:  # once unmeasured
            await run.sample(-1, side, take[side], (ours,))
        for number, sides in take_turns(list(take), run.rounds):
            rows += [await run.sample(number, side, take[side], (ours,)) for side in sides]
            run.show("wedged", number, rows, "claim")
    return rows


async def _claim_where_next_is_wedged(server: Server) -> Row:
    warm = await _find_warm(server)
    if len(warm) < 2:
        raise RuntimeError(f"{len(warm)} kernels are warm: one to wedge and one to claim are needed")
    warm[0].send_signal(WEDGE)
    await asyncio.sleep(TAKES_HOLD)
    row = await claim(server)
    try:
        await asyncio.to_thread(warm[0].wait, ENDS_WITHIN)
    except psutil.TimeoutExpired as error:
        raise RuntimeError("the kernel that was to be wedged is still there: the claim did not meet it") from error
    return row


async def _claim_beside_hung(server: Server, kernel: psutil.Process) -> Row:
    warm = await _find_warm(server)
    if len(warm) < 2:
        raise RuntimeError(f"{len(warm)} kernels are warm: one to stop and one to claim are needed")
    with stopped(warm[0]):
        row = await claim(server)
        if kernel.status() != psutil.STATUS_STOPPED:
            raise RuntimeError("the kernel that was to hang beside the claim runs")
    return row


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Inside, *process* hangs: it was sent SIGSTOP. It may be gone by the end."""
    process.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.resume()


async def _start(server: Server) -> str:
    """A kernel in use, that answered a client; its id."""
    kernel_id = await server.client.start_kernel()
    await attach(server.client, kernel_id, ONE)
    return kernel_id


async def _find_process(server: Server, kernel_id: str) -> psutil.Process:
    model = await server.client.request("GET", f"/kernelpool/v1/kernels/{kernel_id}")
    return psutil.Process(model["pid"])


async def _find_warm(server: Server) -> list[psutil.Process]:
    """The pool's warm kernels, the one that is claimed first in front: what is neither in use nor makes others."""
    kernels = (await server.client.request("GET", "/kernelpool/v1/kernels"))["kernels"]
    pool = await server.client.request("GET", "/kernelpool/v1/pool")
    others = {kernel["pid"] for kernel in kernels}
    others |= {recipe["template"]["pid"] for recipe in pool["recipes"] if recipe["template"]}
    supervisor = psutil.Process(pool["capabilities"]["supervisor"]["pid"])
    warm = [process for process in supervisor.children() if process.pid not in others]
    return sorted(warm, key=lambda process: process.create_time())
