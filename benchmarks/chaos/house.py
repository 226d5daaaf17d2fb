"""The kernels of the run: always as many as were asked for, each with one client at most."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tornado.httpclient import HTTPClientError, HTTPError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.chaos.journal import Journal
    from benchmarks.client import Client

LOOK_EVERY = 3.0
NO_ANSWER = 599


class House:
    """Who has which kernel, and what is asked of the server about them."""

    def __init__(self, client: Client, journal: Journal, wanted: int, choice: random.Random) -> None:
        self.client = client
        self._journal = journal
        self._wanted = wanted
        self._choice = choice
        self.kernels: set[str] = set()
        self.used: set[str] = set()
        self._starting = 0

    async def call(self, what: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and answer of a request, counted as *what*; one without an answer is a failure of the server's."""
        try:
            status, answer = 200, await self.client.request(method, path, body)
        except HTTPClientError as error:
            status, answer = error.code, error.response.body if error.response is not None else None
            if status == NO_ANSWER:
                self._journal.failures.append(f"{self._journal.now:.1f}: {method} {path} got no answer: {error}")
        except (HTTPError, OSError) as error:
            status, answer = NO_ANSWER, None
            self._journal.failures.append(f"{self._journal.now:.1f}: {method} {path} got no answer: {error}")
        self._journal.counts[f"{what} {status}"] += 1
        return status, answer

    async def fill(self) -> None:
        """Start kernels until there are enough."""
        while (missing := self._wanted - len(self.kernels) - self._starting) > 0:
            await asyncio.gather(*(self._start() for _ in range(min(4, missing))))

    async def keep(self) -> None:
        """Keep them, for as long as the run takes: what ended for good is replaced."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            status, models = await self.call("list", "GET", "/api/kernels")
            if status == 200:
                states = {model["id"]: model.get("execution_state") for model in models}
                for kernel in [one for one in self.kernels if one not in self.used]:
                    if states.get(kernel, "dead") == "dead":
                        await self.drop(kernel)
            await self.fill()

    async def take(self) -> str:
        """A kernel that nobody else uses."""
        while not (free := sorted(self.kernels - self.used)):
            await asyncio.sleep(0.2)
        kernel = self._choice.choice(free)
        self.used.add(kernel)
        return kernel

    def give(self, kernel: str) -> None:
        """Its client has gone."""
        self.used.discard(kernel)

    async def drop(self, kernel: str) -> None:
        """Delete a kernel that is of no more use."""
        if kernel in self.kernels:
            self.kernels.discard(kernel)
            await self.call("delete", "DELETE", f"/api/kernels/{kernel}")

    async def _start(self) -> None:
        self._starting += 1
        try:
            status, model = await self.call("start", "POST", "/api/kernels", {"name": "python3"})
            if status == 200:
                self.kernels.add(model["id"])
            else:
                await asyncio.sleep(1)
        finally:
            self._starting -= 1
