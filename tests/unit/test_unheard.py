"""Requests that a kernel has lost are found, whatever else it runs."""

from __future__ import annotations

import asyncio
import time

import pytest

from jupyter_kernelpool import unheard as unheard_module
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ledger import Ledger
from jupyter_kernelpool.unheard import Unheard


class FakeManager:
    """The server's, with one kernel `k`."""

    def __contains__(self, kernel_id):
        return kernel_id == "k"

    def get_kernel(self, kernel_id):
        return self


class House:
    """One kernel's ledger, who looks after it, and the requests that clients were told to be lost."""

    def __init__(self):
        self.edge, self.told, self.rests = Edge(), [], lambda: True
        self.unheard = Unheard(FakeManager(), self.edge)
        self.ledger: Ledger = self.edge.ledger("k")
        self.edge.enter("k", self)

    def ended(self, msg_id):
        self.told.append(msg_id)

    async def is_at_rest(self, kernel):
        return self.rests()

    def expect(self, msg_id):
        self.ledger.expect({"msg_id": msg_id, "msg_type": "execute_request"}, time.monotonic())

    def hear(self, state, msg_id, kind="execute_request"):
        self.ledger.heard("status", {"msg_id": msg_id, "msg_type": kind}, 1, state, time.monotonic())


@pytest.fixture
def kp_house(monkeypatch):
    monkeypatch.setattr(unheard_module, "LOST_AFTER", 0.3)
    monkeypatch.setattr(unheard_module, "AGAIN_AFTER", 0.1)
    house = House()
    monkeypatch.setattr(unheard_module, "is_at_rest", house.is_at_rest)
    yield house
    house.unheard._closed = True
    for timer in house.unheard._timers.values():
        timer.cancel()


async def eventually(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_request_that_was_lost_is_found_after_another_cell_ran_past_the_look(kp_house):
    kp_house.expect("a")
    kp_house.expect("b")
    kp_house.hear("busy", "b")
    await asyncio.sleep(0.6)  # it looks meanwhile
    assert kp_house.told == []
    kp_house.hear("idle", "b")
    await eventually(lambda: kp_house.told == ["b", "a"])
    assert not kp_house.ledger.owes


async def test_execution_that_is_presumed_to_run_is_found_lost(kp_house):
    kp_house.expect("a")
    kp_house.hear("busy", "a")
    kp_house.expect("b")
    await asyncio.sleep(0.6)
    kp_house.ledger.end(kp_house.ledger.running)
    kp_house.ledger.blame()
    assert kp_house.ledger.running.presumed
    await eventually(lambda: "b" in kp_house.told)
    assert kp_house.ledger.running is None


async def test_cells_that_wait_behind_short_ones_are_not_lost_though_the_kernel_rests_in_between(kp_house):
    names = [f"cell {number}" for number in range(40)]
    for name in names:
        kp_house.expect(name)
    for name in names:
        await asyncio.sleep(0.03)  # at rest in between, whenever somebody looks
        kp_house.hear("busy", name)
        kp_house.hear("idle", name)
    assert kp_house.told == names


@pytest.mark.parametrize("kind", ["comm_msg", "usage_request"])
async def test_widgets_that_move_keep_a_cell_behind_them_from_being_lost_and_what_control_says_does_not(kp_house, kind):
    kp_house.expect("a")
    for number in range(40):
        await asyncio.sleep(0.03)
        kp_house.hear("busy", f"{kind} {number}", kind)
        kp_house.hear("idle", f"{kind} {number}", kind)
    assert kp_house.told == ([] if kind == "comm_msg" else ["a"])
