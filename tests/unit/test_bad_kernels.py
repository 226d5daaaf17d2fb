"""A kernel over which a round stumbles keeps none of those after it waiting, and is told of once."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

from jupyter_kernelpool.care import Care
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.culler import Culler, KernelCuller
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lookout import KernelAlerts, Lookout


class FakeManager:
    """The server's: `bad`, of which nothing can be asked, comes before `good`."""

    def __init__(self):
        self.edge, self.events = Edge(), Events()
        self.good = SimpleNamespace(
            kernel_name="python3", owns_kernel=True, shutting_down=False, has_kernel=True, pooled=None, reason=""
        )
        self.pool = SimpleNamespace(settings_for=lambda name: SimpleNamespace(cull=()), all_settings=list)
        self.keeper = SimpleNamespace(host=SimpleNamespace(available_memory=1 << 40), regains_memory=False)
        self._pending_kernels, self._kernel_connections = {}, {}
        self.ended = []

    def list_kernel_ids(self):
        return ["bad", "good"]

    def __contains__(self, kernel_id):
        return True

    def __len__(self):
        return 2

    def get_kernel(self, kernel_id):
        if kernel_id == "bad":
            raise ValueError("it is bad")
        return self.good

    async def shutdown_kernel(self, kernel_id):
        self.ended.append(kernel_id)

    @property
    def meter(self):
        async def look(wanted):
            return {}

        return SimpleNamespace(look=look)


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.exc_info]


async def test_culler_ends_what_comes_after_a_kernel_that_fails(caplog):
    manager = FakeManager()
    culler = Culler(manager, KernelCuller(idle_timeout=0.05, warn_before=0))
    for kernel_id in ("bad", "good"):
        culler.began(kernel_id)
    await asyncio.sleep(0.1)
    for _ in range(3):
        await culler.go()
    assert manager.ended == ["good"] * 3
    assert told(caplog) == ["Culling stumbled over kernel bad; it goes on"]


async def test_culler_tells_once_of_a_kernel_that_can_not_be_ended(caplog, monkeypatch):
    manager = FakeManager()
    manager.list_kernel_ids = lambda: ["good"]
    culler = Culler(manager, KernelCuller(idle_timeout=0.05, warn_before=0))
    culler.began("good")
    monkeypatch.setattr(manager, "shutdown_kernel", lambda kernel_id: 1 / 0)
    await asyncio.sleep(0.1)
    for _ in range(3):
        await culler.go()
    assert told(caplog) == ["Culling stumbled over Cull of kernel good; it goes on"]


async def test_kernels_after_one_that_fails_are_nudged(caplog, monkeypatch):
    manager = FakeManager()
    chronicle = Chronicle(manager.events, manager.edge, Lookout(KernelAlerts()))
    care = Care(manager, KernelHealth(), manager.edge, manager.events, chronicle)
    nudged = asyncio.Queue()

    async def nudge(kernel_id, life):
        nudged.put_nowait(kernel_id)

    monkeypatch.setattr(care, "_nudge", nudge)
    for _ in range(3):
        await care.look()
        async with asyncio.timeout(5):
            assert await nudged.get() == "good"
        await asyncio.sleep(0.01)
    assert told(caplog) == ["The care for kernels stumbled over kernel bad; it goes on"]
    with contextlib.suppress(asyncio.CancelledError):
        await care.close()
