"""The people of the run: each works in one kernel at a time, cell after cell, and expects an answer to each."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornado.httpclient import HTTPError

from benchmarks.chaos.judge import LOST, OK
from benchmarks.chaos.line import Line

if TYPE_CHECKING:
    from benchmarks.chaos.house import House
    from benchmarks.chaos.journal import Journal
    from benchmarks.chaos.judge import Execution

THINK = (0.1, 1.5)
PRINTER = "while True: print('x' * 1000)"
ORDERS = {
    "exit": "import os; os._exit(3)",
    "gil": "import ctypes; ctypes.PyDLL(None).sleep(4)",
    "memory": "hoard = []\nwhile True: hoard.append(bytearray(16 << 20))",
    "printer": PRINTER,
    "timeout": "import time; time.sleep(60)",
    "slow": "for i in range(700): print(str(i) * 250)",
}
"""Faults that a cell brings about."""
CELLS = {
    "sum": (20, "1 + 1"),
    "sleep": (10, "import time; time.sleep(0.2)"),
    "print": (10, "for i in range(100): print(i, 'some text to be read by nobody')"),
    "exception": (6, "1 / 0"),
    "import": (6, "import decimal, sqlite3, xml.dom.minidom"),
}


class Person:
    """One client."""

    def __init__(self, number: int, house: House, journal: Journal, ran: Path, seed: int, patience: float) -> None:
        self.number = number
        self._house = house
        self._journal = journal
        self._ran = ran
        self._choice = random.Random(seed)
        self._patience = patience
        self.orders: list[str] = []
        """Faults that the next cells are to bring about."""
        self.line: Line | None = None
        self._leaving = False

    async def work(self, until: float) -> None:
        """Visit kernel after kernel, until the run's second *until*."""
        while self._journal.now < until:
            kernel = await self._house.take()
            self._leaving = False
            line = self.line = Line(self._house.client, self._journal, kernel)
            try:
                await self._visit(line, until)
            except (HTTPError, OSError) as error:
                self._journal.counts[f"websocket refused: {getattr(error, 'code', type(error).__name__)}"] += 1
                await asyncio.sleep(1)
            finally:
                self.line = None
                await line.close()
                line.settle_all("left")
                if self._leaving:
                    await self._house.drop(kernel)
                self._house.give(kernel)

    async def _visit(self, line: Line, until: float) -> None:
        for _ in range(self._choice.randint(4, 15)):
            if self._journal.now >= until or not await self._be_ready(line):
                return
            await asyncio.sleep(self._choice.uniform(*THINK))
            if line.is_open and line.fresh:
                await self._act(line)
            if self._leaving:
                return

    async def _be_ready(self, line: Line) -> bool:
        if line.dead:
            if self._choice.random() < 0.5:
                self._leaving = True
                return False
            line.dead = False
            await self._restart(line)
        if not line.is_open:
            if await self._is_dead(line):
                self._leaving = True
                return False
            await line.open()
        if not line.fresh and not await line.answers(self._patience) and line.is_open and not line.dead:
            self._leaving = True
            if await self._is_dead(line):
                return False
            _, model = await self._house.call("look", "GET", f"/kernelpool/v1/kernels/{line.kernel}")
            self._journal.failures.append(
                f"{self._journal.now:.1f}: kernel {line.kernel} did not answer within {self._patience:g} s: {model}"
            )
            return False
        return True

    async def _is_dead(self, line: Line) -> bool:
        """Whether the server says so, or knows the kernel no more: as a client sees it that lists them."""
        status, model = await self._house.call("list", "GET", f"/api/kernels/{line.kernel}")
        return status == 404 or (status == 200 and model["execution_state"] == "dead")

    async def _act(self, line: Line) -> None:
        if self.orders:
            await self._obey(line, self.orders.pop(0))
            return
        special = {
            self._queue: 5, self._interrupt: 3, self._restart: 2, self._restart_busy: 1, self._reopen: 3,
            self._fork: 1, self._go_back: 2, self._undo: 1,
        }  # fmt: skip
        names: list[Any] = [*CELLS, *special]
        weights = [weight for weight, _ in CELLS.values()] + list(special.values())
        chosen = self._choice.choices(names, weights)[0]
        if isinstance(chosen, str):
            await self._run(line, chosen, CELLS[chosen][1])
        else:
            await chosen(line)

    async def _send(self, line: Line, kind: str, code: str, limits: Any = None) -> Execution:
        execution = self._journal.sent(line.kernel, self.number, kind)
        mark = (
            "import os as _os\n"
            f"_mark = _os.open({str(self._ran)!r}, _os.O_WRONLY | _os.O_APPEND)\n"
            f"_os.write(_mark, b'{execution.id}\\n'); _os.close(_mark)\n"
        )
        await line.send(execution, mark + code, limits)
        return execution

    async def _await(self, line: Line, *executions: Execution) -> None:
        for execution in executions:
            left = execution.sent + self._patience - self._journal.now
            if not await line.wait(execution, max(1.0, left)):
                _, model = await self._house.call("look", "GET", f"/kernelpool/v1/kernels/{line.kernel}")
                self._journal.ended(execution, LOST)
                self._journal.odd.append(f"{self._journal.now:.1f}: {execution.id} is lost; its kernel: {model}")
                self._leaving = True

    async def _run(self, line: Line, kind: str, code: str, limits: Any = None) -> Execution:
        execution = await self._send(line, kind, code, limits)
        await self._await(line, execution)
        return execution

    async def _obey(self, line: Line, order: str) -> None:
        self._journal.struck(order, line.kernel)
        if order == "slow":
            line.stop_reading()
            asyncio.get_running_loop().call_later(self._choice.uniform(3, 8), line.go_on)
        await self._run(line, order, ORDERS[order], {"execution_timeout": 2} if order == "timeout" else None)

    async def _queue(self, line: Line) -> None:
        codes = ["1 + 1", "1 / 0" if self._choice.random() < 0.3 else "2", "import time; time.sleep(0.1)", "3"]
        await self._await(line, *[await self._send(line, "queued", code) for code in codes])

    async def _interrupt(self, line: Line) -> None:
        execution = await self._send(line, "interrupted", "import time; time.sleep(5)")
        await asyncio.sleep(self._choice.uniform(0, 1))
        await self._house.call("interrupt", "POST", f"/api/kernels/{line.kernel}/interrupt", {})
        await self._await(line, execution)

    async def _restart(self, line: Line) -> None:
        status, _ = await self._house.call("restart", "POST", f"/api/kernels/{line.kernel}/restart", {})
        line.settle_all("restarted by its client")
        line.fresh = False
        if status == 404:
            self._leaving = True

    async def _restart_busy(self, line: Line) -> None:
        await self._send(line, "restarted", "import time; time.sleep(5)")
        await asyncio.sleep(self._choice.uniform(0, 0.5))
        await self._restart(line)

    async def _reopen(self, line: Line) -> None:
        execution = await self._send(line, "reopened", "import time; time.sleep(0.5); print('done')")
        await line.close()
        await asyncio.sleep(self._choice.uniform(0, 2))
        await line.open()
        await self._await(line, execution)

    async def _fork(self, line: Line) -> None:
        began, news = self._journal.now, line.news
        if (await self._run(line, "before fork", f"value = {self.number}")).outcome != OK:
            return
        status, answer = await self._house.call("fork", "POST", f"/kernelpool/v1/kernels/{line.kernel}/fork", {})
        models = answer.get("kernels", []) if status == 200 else []
        if not models or "id" not in models[0]:
            self._explain("fork", status, answer, line, began, news)
            return
        fork = Line(self._house.client, self._journal, models[0]["id"])
        try:
            await fork.open()
            if await fork.answers(self._patience):
                await self._check(fork, "in fork", began, line.news - news + fork.news)
        except (HTTPError, OSError) as error:
            self._journal.counts[f"websocket refused: {getattr(error, 'code', type(error).__name__)}"] += 1
        finally:
            await fork.close()
            fork.settle_all("left")
            await self._house.call("delete fork", "DELETE", f"/api/kernels/{fork.kernel}")

    async def _go_back(self, line: Line) -> None:
        began, news = self._journal.now, line.news
        base = f"/kernelpool/v1/kernels/{line.kernel}"
        await self._run(line, "before checkpoint", f"value = {self.number}")
        status, answer = await self._house.call("checkpoint", "POST", f"{base}/checkpoints", {})
        if status != 200:
            self._explain("checkpoint", status, answer, line, began, news)
            return
        try:
            await self._run(line, "after checkpoint", "value = -1")
            body = {"checkpoint": answer["id"]}
            restored, told = await self._house.call("restore", "POST", f"{base}/restore", body)
            if restored == 200:
                await self._check(line, "restored", began, line.news - news)
            else:
                self._explain("restore", restored, told, line, began, news)
        finally:
            await self._house.call("drop checkpoint", "DELETE", f"/kernelpool/v1/checkpoints/{answer['id']}")

    async def _undo(self, line: Line) -> None:
        began, news = self._journal.now, line.news
        path = f"/kernelpool/v1/kernels/{line.kernel}"
        await self._house.call("undo on", "PATCH", path, {"undo_steps": 2})
        await self._run(line, "before undo", f"value = {self.number}")
        await asyncio.sleep(0.5)
        await self._run(line, "to undo", "value = -1")
        await asyncio.sleep(0.5)
        status, answer = await self._house.call("undo", "POST", f"{path}/undo", {})
        if status == 200:
            await self._check(line, "undone", began, line.news - news)
        else:
            self._explain("undo", status, answer, line, began, news)
        await self._house.call("undo off", "PATCH", path, {"undo_steps": 0})

    async def _check(self, line: Line, kind: str, began: float, news: int) -> None:
        """The kernel must have the value of before, unless a fault took its state away."""
        execution = await self._run(line, kind, "value")
        value = await line.result(execution) if execution.outcome == OK else ""
        if execution.outcome == OK and value != str(self.number):
            self._disagree(f"{execution.id} ({kind}): value is {value!r}, not {self.number}", line, began, news)

    def _explain(self, what: str, status: int, answer: Any, line: Line, began: float, news: int) -> None:
        if not (news - line.news or self._journal.hit_since(line.kernel, began - 30)):
            self._journal.odd.append(f"{self._journal.now:.1f}: {what} of {line.kernel}: {status} {answer!r}"[:600])

    def _disagree(self, text: str, line: Line, began: float, news: int) -> None:
        if news or not line.is_open or self._journal.hit_since(line.kernel, began - 30):
            self._journal.counts["value gone with its kernel"] += 1
        else:
            self._journal.failures.append(f"{self._journal.now:.1f}: {line.kernel}: {text}")
