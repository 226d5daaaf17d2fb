"""What happens to the kernels, the pool and the clients of a chaos run, steadily; never to the server itself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from benchmarks.chaos.clients import ORDERS
from benchmarks.chaos.samples import belongs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.chaos.clients import Person
    from benchmarks.chaos.house import House
    from benchmarks.chaos.journal import Journal

WEIGHTS = {
    "kill": 5.0, "segv": 2.0, "stop": 1.5, "stop and continue": 1.5, "cut": 4.0, "template": 1.0, "supervisor": 0.25,
    **dict.fromkeys(ORDERS, 1.5),
}  # fmt: skip
IN_USE = 0.7
"""Share of the faults that strike a kernel somebody works in."""
MOST_ORDERS = 2


class Faults:
    """Strikes at random, about every *every* seconds."""

    def __init__(
        self, house: House, people: Sequence[Person], journal: Journal, runtime: Path, seed: int, every: float
    ) -> None:
        self._house = house
        self._people = people
        self._journal = journal
        self._runtime = runtime
        self._choice = random.Random(seed)
        self._every = every
        self._stopped: set[int] = set()
        self._later: set[asyncio.Task[None]] = set()

    async def strike(self) -> None:
        """Strike until cancelled; whom it stopped then goes on."""
        try:
            while True:
                await asyncio.sleep(self._every * self._choice.uniform(0.5, 1.5))
                kind = self._choice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
                await self._do(kind)
        finally:
            for pid in self._stopped:
                self._signal(pid, signal.SIGCONT)

    async def _do(self, kind: str) -> None:
        if kind in ("template", "supervisor"):
            await self._strike_pool(kind)
        elif kind == "cut" or kind in ORDERS:
            working = [one for one in self._people if one.line is not None and len(one.orders) < MOST_ORDERS]
            if working:
                self._strike_person(kind, self._choice.choice(working))
        else:
            await self._strike_kernel(kind)

    def _strike_person(self, kind: str, person: Person) -> None:
        assert person.line is not None
        if kind != "cut":
            person.orders.append(kind)  # noted when it is done
        elif person.line.is_open:
            self._journal.struck(kind, person.line.kernel, f"client {person.number}")
            person.line.cut()

    async def _strike_pool(self, kind: str) -> None:
        status, pool = await self._house.call("look", "GET", "/kernelpool/v1/pool")
        if status != 200:
            return
        if kind == "supervisor":
            pids = [pool["capabilities"]["supervisor"]["pid"]]
        else:
            pids = [row["template"]["pid"] for row in pool["recipes"] if row.get("template")]
        for pid in pids:
            if pid and self._signal(pid, signal.SIGKILL):
                self._journal.struck(kind, None, f"pid {pid}")

    async def _strike_kernel(self, kind: str) -> None:
        kernels = self._house.used if self._choice.random() < IN_USE else self._house.kernels
        if not kernels:
            return
        kernel = self._choice.choice(sorted(kernels))
        status, model = await self._house.call("look", "GET", f"/kernelpool/v1/kernels/{kernel}")
        pid = model.get("pid") if status == 200 else None
        number = {"kill": signal.SIGKILL, "segv": signal.SIGSEGV}.get(kind, signal.SIGSTOP)
        if not pid or not self._signal(pid, number):
            return
        self._journal.struck(kind, kernel, f"pid {pid}")
        if number == signal.SIGSTOP:
            self._stopped.add(pid)
        if kind == "stop and continue":
            task = asyncio.create_task(self._go_on(pid, kernel))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _go_on(self, pid: int, kernel: str) -> None:
        await asyncio.sleep(self._choice.uniform(2, 8))
        if self._signal(pid, signal.SIGCONT):
            self._journal.struck("continue", kernel, f"pid {pid}")
        self._stopped.discard(pid)

    def _signal(self, pid: int, number: int) -> bool:
        """Signal a process of this run's server; never another that has the number by now."""
        if not belongs(pid, self._runtime):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False


def describe(faults: Sequence[Any]) -> dict[str, int]:
    """How many of each kind."""
    kinds = sorted({fault.kind for fault in faults})
    return {kind: sum(fault.kind == kind for fault in faults) for kind in kinds}
