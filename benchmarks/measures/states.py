"""Kernels that hold much: what the measures of forks, checkpoints and restores begin with."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from benchmarks.client import Channels
from benchmarks.run import Run
from benchmarks.servers import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GIB = 1 << 30
ARRAYS = """
import numpy
state = [numpy.full({size} // 128, number) for number in range(16)]
"""
# Collected once at the end: else the next cell, or the first fork, would pay for the millions that are new.
OBJECTS = """
import gc
gc.disable()
state = [{{"id": number, "name": str(number)}} for number in range({size} // 280)]
gc.enable()
gc.collect()
"""
PLAIN_PROCESS = """
import os, struct, sys, time
for _ in sys.stdin:
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.write(writer, struct.pack("d", time.monotonic()))
        os._exit(0)
    paused = time.monotonic() - began
    (born,) = struct.unpack("d", os.read(reader, 8))
    print(born - began, paused, flush=True)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
"""


@dataclass(frozen=True)
class State:
    """*size* bytes of numpy arrays, or of dicts, numbers and strings."""

    kind: str
    size: int

    @property
    def code(self) -> str:
        """The cell that makes them, and leaves no result."""
        return {"arrays": ARRAYS, "objects": OBJECTS}[self.kind].format(size=self.size)


class PlainProcess:
    """A Python process that holds a state and forks itself on demand: what the operating system takes for it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def holding(cls, state: State) -> AsyncIterator[Self]:
        """One that holds *state*; ended on the way out."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            state.code + PLAIN_PROCESS,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            plain = cls(process)
            await plain.fork()  # once unmeasured: the state is there then
            yield plain
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def fork(self) -> tuple[float, float]:
        """Fork; seconds until the child runs, and seconds for which its parent stood still."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the plain process ended")
        born, paused = map(float, line.split())
        return born, paused


@asynccontextmanager
async def kernel_holding(run: Run, server: Server, state: State) -> AsyncIterator[tuple[str, Channels]]:
    """A kernel from the pool that holds *state*: its id, and an open websocket to it."""
    await run.settle(server)
    session = await server.client.start_session()
    async with server.client.channels(session.kernel_id) as channels:
        await channels.execute(state.code)
        yield session.kernel_id, channels
    await server.client.delete_session(session)
