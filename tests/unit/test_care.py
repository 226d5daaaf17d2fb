"""What is found of kernels by who looks after them, with a fake server's manager."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from jupyter_kernelpool import care as care_module
from jupyter_kernelpool.care import Care
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.health import Verdict
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lookout import KernelAlerts, Lookout
from jupyter_kernelpool.nudge import Reply


class FakeManager:
    """The server's, with the kernels *kernel_ids*, which may have gone."""

    def __init__(self, *kernel_ids):
        self.kernel = SimpleNamespace(owns_kernel=True, execution_state="idle", provisioner=None)
        self.kernel_ids, self.forgotten, self._pending_kernels = list(kernel_ids), [], {}
        self.culler = SimpleNamespace(forget=self.forgotten.append)

    def __contains__(self, kernel_id):
        return kernel_id in self.kernel_ids

    def list_kernel_ids(self):
        return self.kernel_ids

    def get_kernel(self, kernel_id):
        return self.kernel


def care_of(manager):
    events, edge = Events(), Edge()
    return Care(manager, KernelHealth(), edge, events, Chronicle(events, edge, Lookout(KernelAlerts()))), edge


async def test_cell_that_begins_while_a_kernel_waits_to_be_asked_makes_it_busy_not_wedged(monkeypatch):
    manager = FakeManager("k")
    care, edge = care_of(manager)
    header = {"msg_id": "1", "msg_type": "execute_request"}

    async def nudge(kernel, waits, look):
        await asyncio.sleep(0)
        edge.ledger("k").heard("status", header, 1, "busy", time.monotonic())
        return Reply(control=False, heartbeat=True, states=[], info={}, seconds=None)

    monkeypatch.setattr(care_module, "nudge", nudge)
    assert await care._ask("k", manager.kernel, care._lives.begin("k"), [0.1]) is Verdict.BUSY


async def test_adopted_kernel_that_vanished_is_forgotten_by_the_culler_too():
    manager = FakeManager()
    care, _ = care_of(manager)
    care._lives.begin("k")
    await care.look()
    assert manager.forgotten == ["k"]
