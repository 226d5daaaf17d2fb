"""How many kernels may run: `KernelPool.max_kernels`, with starts that are pending counted; and in what turn.

Synchronous but for the waiting; whoever is refused or gives up leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from jupyter_kernelpool.errors import PoolExhausted


class Admission:
    """Admits starts, in order, while *running* kernels and pending starts are below *limit* (0: no limit).

    *exhausted* says what happens at the limit: `wait` (up to *timeout* seconds, then refused), `fail`
    (refused at once) or `temporary` (admitted beyond the limit, and marked).
    """

    def __init__(self, limit: int, exhausted: str, timeout: float, running: Callable[[], int]) -> None:
        self.limit = limit
        self.exhausted = exhausted
        self.timeout = timeout
        self.pending = 0
        self._running = running
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return sum(1 for waiter in self._waiters if not waiter.done())

    @property
    def full(self) -> bool:
        return self.limit > 0 and self._running() + self.pending >= self.limit

    async def enter(self) -> bool:
        """Count a start as pending; true if it is temporary. Raises `PoolExhausted`. Pair with `leave`."""
        if not self.full and not self.waiting:
            self.pending += 1
            return False
        if self.exhausted == "temporary":
            self.pending += 1
            return True
        if self.exhausted == "fail":
            raise self._refusal("are running")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self.timeout):
                await waiter
        except TimeoutError as error:
            if waiter.done() and not waiter.cancelled():
                return False  # the place came in the same moment as the timeout
            raise self._refusal(f"are running, and none ended within {self.timeout:g} s") from error
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # the place was given to somebody who no longer wants it
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return False

    def leave(self) -> None:
        """The start that `enter` counted is over (the kernel runs, or it failed)."""
        self.pending -= 1
        self.freed()

    def freed(self) -> None:
        """A kernel ended or a start failed: let in who waits longest."""
        while self._waiters and not self.full:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.pending += 1
                waiter.set_result(None)

    def _refusal(self, why: str) -> PoolExhausted:
        return PoolExhausted(f"{self.limit} kernels (KernelPool.max_kernels) {why}", retry_after=5, limit=self.limit)


class Turns:
    """Lets one start go on in each turn of the event loop.

    A start computes for some milliseconds before it first waits. A hundred that arrive at once would keep the loop
    from everybody else for as long as they take together.
    """

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def mine(self) -> None:
        """Return at once if nobody had this turn of the loop yet, else in a later one, in the order of asking."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next, loop)
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # else it was cancelled
                waiter.set_result(None)
                loop.call_soon(self._next, loop)
                return
        self._taken = False
