"""When a loop looks again: soon while something is near its limit, late while nothing happens, at once on request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

QUICKER = 5.0  # times, while something is near
SLOWER = 4.0


class Pace:
    """For one loop. *interval*, in seconds, is asked for anew each time: it may be configured while the loop runs."""

    def __init__(self, interval: Callable[[], float]) -> None:
        self._interval = interval
        self._stirred = asyncio.Event()  # something begins
        self._hurried = asyncio.Event()  # a look is waited for
        self._waiting: list[asyncio.Future[None]] = []  # for the next look to be over
        self._under_way: list[asyncio.Future[None]] | None = None  # who waits for the look that is under way

    def stir(self) -> None:
        """Something begins: nothing is at rest any more."""
        self._stirred.set()

    def hurry(self) -> None:
        """Have a look begin now."""
        self._hurried.set()
        self._stirred.set()

    async def next_look(self) -> None:
        """Have a look begin now, and wait for its end."""
        look = asyncio.get_running_loop().create_future()
        self._waiting.append(look)
        self.hurry()
        await look

    async def present_look(self) -> None:
        """Wait for the end of the look that is under way, if one is."""
        if self._under_way is not None:
            look = asyncio.get_running_loop().create_future()
            self._under_way.append(look)
            await look

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Around each look: whoever waits for one that begins now is told of its end."""
        waiting, self._waiting = self._waiting, []
        self._under_way = waiting
        self._hurried.clear()
        try:
            yield
        finally:
            self._under_way = None
            for look in waiting:
                if not look.done():
                    look.set_result(None)

    def end(self) -> None:
        """There is nothing to look at any more: nobody is to wait for that."""
        with self.look():
            pass

    async def pause(self, *, near: bool, is_astir: Callable[[], bool]) -> None:
        """Until the next look; *is_astir* is asked after an interval, without which it is not worth one yet."""
        self._stirred.clear()
        interval = self._interval()
        if await _happens(self._hurried, interval / (QUICKER if near else 1.0)) or near or is_astir():
            return
        await _happens(self._stirred, interval * (SLOWER - 1.0))


async def _happens(event: asyncio.Event, within: float) -> bool:
    """Whether the event happens within so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await event.wait()
    return event.is_set()
