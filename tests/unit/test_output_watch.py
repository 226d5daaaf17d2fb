"""What prints on is interrupted, and its kernel ended if that does not help; with a kernel that is none."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from jupyter_kernelpool import output_watch
from jupyter_kernelpool.allowance import Allowance, Breach
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.output_watch import OutputWatch

KERNEL = "kernel"
LIMIT = 1000
GRACE = 0.5


class Limits:
    grace = GRACE
    warn_at = 0.8


class Guard:
    """Notes what it is told."""

    limits = Limits()

    def __init__(self, output: int) -> None:
        self.consequences = self
        self.allowance = Allowance(output=output)
        self.noted: list[str] = []

    @property
    def allowances(self) -> Any:
        """Those of all kernels: this one has `of`."""
        return self

    def of(self, kernel_id: str) -> Allowance:
        return self.allowance

    def note(self, kernel_id: str, breach: Breach) -> None:
        self.noted.append(breach.outcome)

    async def kill(self, kernel_id: str, breach: Breach) -> None:
        self.note(kernel_id, breach)


class Printer:
    """A kernel's manager, and what runs in the kernel."""

    def __init__(self, output: int = LIMIT, subshell: str | None = None) -> None:
        self.edge, self.events, self.guard = Edge(), Events(), Guard(output)
        self.watch = OutputWatch(self, self.guard, self.edge, self.events)  # type: ignore[arg-type]
        self.header = {"msg_id": "cell", "msg_type": "execute_request", "subshell_id": subshell}
        self.interrupts = 0
        self.on_interrupt: Any = lambda: None

    def get_kernel(self, kernel_id: str) -> Printer:
        return self

    async def interrupt_kernel(self) -> None:
        self.interrupts += 1
        self.on_interrupt()

    def publish(self, kind: str, size: int = 100, *, state: str | None = None, display: str = "") -> None:
        self.edge.ledger(KERNEL).heard(kind, self.header, size, state, time.monotonic(), display)

    def begin(self) -> None:
        self.publish("status", state="busy")

    def end(self) -> None:
        self.publish("status", state="idle")

    def prints(self, times: int) -> None:
        for _ in range(times):
            self.publish("stream")

    @property
    def told(self) -> str:
        return " ".join(text for text, _ in self.edge.unread.get(KERNEL, []))


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(kernel: Any) -> bool:
        return False

    monkeypatch.setattr(output_watch, "is_at_rest", never)


async def settle(printer: Printer) -> None:
    """Wait until nothing is under way."""
    await asyncio.sleep(0)
    await asyncio.gather(*printer.watch._stops)


async def test_user_is_warned_then_it_is_cut_then_interrupted() -> None:
    printer = Printer()
    printer.begin()
    printer.prints(8)
    assert "Output: 800 bytes of 1000 bytes used." in printer.told
    assert [event.type for event in printer.events.recent] == ["warned"]
    printer.prints(3)
    assert printer.guard.noted == ["truncated"]
    printer.on_interrupt = printer.end
    printer.prints(10)
    await settle(printer)
    assert printer.guard.noted == ["truncated", "interrupted"]
    assert printer.interrupts == 1
    assert "prints on" in printer.told


async def test_cell_that_prints_on_after_the_interrupt_is_ended() -> None:
    printer = Printer()
    printer.begin()
    printer.prints(21)

    async def go_on() -> None:
        while "killed" not in printer.guard.noted:
            printer.publish("stream", 200)
            await asyncio.sleep(0.02)

    going = asyncio.create_task(go_on())
    async with asyncio.timeout(20):
        await going
    await settle(printer)
    assert printer.guard.noted == ["truncated", "interrupted", "killed"]
    assert printer.interrupts == 1


async def test_cell_that_is_answered_is_not_interrupted_whatever_is_still_to_be_heard_of_it() -> None:
    """The interrupt would hit the next one."""
    printer = Printer()
    printer.begin()
    printer.prints(21)
    await asyncio.sleep(0)
    printer.edge.ledger(KERNEL).answered("cell")  # on its own channel, it has overtaken the rest
    printer.prints(50)
    await settle(printer)
    assert printer.guard.noted == ["truncated"]
    assert printer.interrupts == 0


async def test_last_words_after_the_interrupt_end_no_kernel() -> None:
    printer = Printer()
    printer.begin()
    printer.on_interrupt = lambda: printer.publish("stream", 50)
    printer.prints(21)
    await settle(printer)
    assert printer.guard.noted == ["truncated", "interrupted"]
    printer.prints(11)  # and more than last words later: from the beginning
    await settle(printer)
    assert printer.guard.noted == ["truncated", "interrupted", "interrupted"]


async def test_kernel_that_is_at_rest_is_not_ended_for_what_is_still_to_be_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def at_rest(kernel: Any) -> bool:
        return True

    monkeypatch.setattr(output_watch, "is_at_rest", at_rest)
    printer = Printer()
    printer.begin()
    printer.prints(21)
    await asyncio.sleep(GRACE * 0.75)
    printer.prints(20)
    await settle(printer)
    assert "killed" not in printer.guard.noted


async def test_subshell_is_cut_and_never_interrupted() -> None:
    printer = Printer(subshell="sub")
    printer.begin()
    printer.prints(100)
    await settle(printer)
    assert printer.guard.noted == ["truncated"]
    assert printer.interrupts == 0


async def test_updates_and_widgets_are_no_sign_of_a_loop() -> None:
    printer = Printer()
    printer.begin()
    printer.publish("display_data", 300, display="bar")
    for _ in range(1000):
        printer.publish("update_display_data", 300, display="bar")
        printer.publish("comm_msg", 300)
    await settle(printer)
    assert printer.guard.noted == []


async def test_nothing_happens_without_a_limit() -> None:
    printer = Printer(output=0)
    printer.begin()
    printer.prints(1000)
    await settle(printer)
    assert printer.guard.noted == []
    assert not printer.watch.limited(KERNEL)
    assert printer.watch.budgets_of(KERNEL) == {}


async def test_what_an_execution_asked_for_holds_beyond_its_end() -> None:
    printer = Printer(output=0)
    printer.edge.request(KERNEL, "cell", {"output": 500})
    assert printer.watch.limited(KERNEL)
    assert printer.watch.limit_of(KERNEL, "cell") == 500
    printer.begin()
    printer.prints(6)
    assert printer.guard.noted == ["truncated"]
    printer.end()
    assert printer.watch.limit_of(KERNEL, "cell") == 500, "a client may hear the rest of it later"
    assert printer.watch.limit_of(KERNEL, "another") == 0
    printer.watch.forget(KERNEL)
    assert not printer.watch.limited(KERNEL)


async def test_close_leaves_no_stop_under_way() -> None:
    printer = Printer()
    printer.begin()
    printer.prints(21)
    await asyncio.sleep(0)
    await printer.watch.close()
    assert not printer.watch._stops
