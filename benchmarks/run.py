"""What a measure is given: how long to go on, the servers, a voice."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tornado.httpclient import HTTPError

from benchmarks.servers import Server, start_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from benchmarks.stats import Row

T = TypeVar("T")

ATTEMPTS = 3
SETTLE_TIMEOUT = 120.0

QUIET = 0.3
"""Seconds without work before each sample: the last one's end is not measured with the next."""


class PoolNotFull(Exception):
    """The pool does not fill up: to measure it would say nothing."""


@dataclass(frozen=True)
class Run:
    """One run of the harness."""

    rounds: int
    quick: bool = False
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """One line of progress."""
        print(text, file=sys.stderr, flush=True)

    def show(self, name: str, number: int, rows: list[Row], value: str = "seconds") -> None:
        """One line for a round that is over: each side with its *value* in milliseconds."""
        seen = "   ".join(
            f"{row['side']} {row[value] * 1000:.1f} ms" + " (no hit)" * (row.get("hit") is False)
            for row in rows
            if row["round"] == number
        )
        self.say(f"  {name} {number + 1}: {seen}")

    @asynccontextmanager
    async def servers(
        self,
        *variants: str,
        options: tuple[str, ...] = (),
        extensions: Mapping[str, str] | None = None,
    ) -> AsyncIterator[list[Server]]:
        """Running servers of these variants, in this order."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(
                    start_server(self.stand_ins.get(name, name), options=options, extensions=extensions)
                )
                for name in variants
            ]

    async def settle(self, *servers: Server) -> None:
        """Return when every pool is full, and still is after a quiet moment; else `PoolNotFull`."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while True:
            for server in servers:
                await server.client.wait_until_warm(server.warm)
            await asyncio.sleep(QUIET)
            views = [(await server.client.read_pool(), server.warm) for server in servers]
            if all(view is None or view.is_ready(warm) for view, warm in views):
                return
            if time.monotonic() > deadline:
                problems = [view.last_error for view, _ in views if view and view.last_error]
                raise PoolNotFull(f"after {SETTLE_TIMEOUT:.0f} s: {'; '.join(problems) or views}")

    async def sample(
        self, number: int, side: str, take: Callable[[], Awaitable[Row]], servers: Sequence[Server]
    ) -> Row:
        """One row: what *take* sees once *servers* have settled.

        Stock Jupyter now and then loses a port to another process, and its kernel with it. So a
        sample that fails is taken again, twice at most, and the row says how often (`failed`).
        """
        for failed in range(ATTEMPTS):
            await self.settle(*servers)
            try:
                row = await take()
            except (HTTPError, OSError, RuntimeError, TimeoutError) as error:
                self.say(f"  {side} {number + 1} failed: {type(error).__name__}: {error}")
                if failed == ATTEMPTS - 1:
                    raise
            else:
                return {"round": number, "side": side, "failed": failed, **row}
        raise AssertionError("unreachable")


def take_turns(items: list[T], rounds: int) -> Iterator[tuple[int, list[T]]]:
    """Each round with the items in an order that turns, so that none is always first."""
    for number in range(rounds):
        first = number % len(items)
        yield number, items[first:] + items[:first]
