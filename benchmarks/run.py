"""What a measure is given: how long to go on, the servers, a voice."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from benchmarks.servers import Server, start_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from benchmarks.stats import Row

T = TypeVar("T")

QUIET = 0.3
"""Seconds without work before each sample, so that the end of the last one is not measured with the next."""


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
            f"{row['side']} {row[value] * 1000:.1f} ms{'' if row.get('hit') is not False else ' (no hit)'}"
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
                    start_server(
                        self.stand_ins.get(name, name), options=options, extensions=extensions
                    )
                )
                for name in variants
            ]

    async def settle(self, *servers: Server) -> None:
        """Return when every pool is full again and it has been quiet for a moment."""
        for server in servers:
            await server.client.wait_until_warm()
        await asyncio.sleep(QUIET)


def take_turns(items: list[T], rounds: int) -> Iterator[tuple[int, list[T]]]:
    """Each round with the items in an order that turns, so that none is always first."""
    for number in range(rounds):
        first = number % len(items)
        yield number, items[first:] + items[:first]
