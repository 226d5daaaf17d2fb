"""What the culler does, with a fake server's manager."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jupyter_kernelpool.culler import Culler, KernelCuller
from jupyter_kernelpool.culling import Recycle
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.keeper import Keeper
from jupyter_kernelpool.pool import KernelPool


class Kernel(SimpleNamespace):
    """One that started cold."""

    async def is_alive(self):
        return self.lives


class FakeManager:
    """The server's, with kernels that stock started."""

    def __init__(self, *kernel_ids):
        self.edge, self.events, self.pool = Edge(), Events(), KernelPool()
        self.keeper = Keeper(self.pool)
        self.meter = SimpleNamespace(look=self.look)
        self.kernels = {
            kernel_id: Kernel(kernel_name="python3", owns_kernel=True, pooled=None, reason="", lives=True)
            for kernel_id in kernel_ids
        }
        self._kernel_connections = {}
        self.restarted = []

    def __contains__(self, kernel_id):
        return kernel_id in self.kernels

    def list_kernel_ids(self):
        return list(self.kernels)

    def get_kernel(self, kernel_id):
        return self.kernels[kernel_id]

    async def look(self, kernel_ids):
        return {}

    async def shutdown_kernel(self, kernel_id):
        del self.kernels[kernel_id]

    async def restart_kernel(self, kernel_id):
        self.restarted.append(kernel_id)


@pytest.fixture
def kp_house():
    """A culler and its manager, which has two kernels, idle for a long time."""

    def make(**settings):
        manager = FakeManager("a", "b")
        culler = Culler(manager, KernelCuller(**settings))
        for kernel_id in manager.kernels:
            culler.began(kernel_id)
        return culler, manager

    return make


async def test_one_kernel_goes_for_memory_and_no_other_before_what_it_had_is_counted(kp_house):
    culler, manager = kp_house(reserve_memory=1 << 63, warn_before=0)
    await culler.go()
    await culler.go()
    assert len(manager.kernels) == 1
    manager.keeper._gave_up_at -= 60
    await culler.go()
    assert not manager.kernels


async def test_kernel_that_was_just_asked_for_a_cell_or_is_dead_does_not_begin_anew(kp_house):
    culler, manager = kp_house()
    for kernel_id in manager.kernels:
        culler.recycle(kernel_id, Recycle(age=1e-9))
    manager.edge.ledger("a").expect({"msg_id": "1", "msg_type": "execute_request"}, 0.0)
    manager.kernels["b"].lives = False
    await culler.go()
    assert manager.restarted == []
    manager.edge.ledger("a").answered("1")
    manager.kernels["b"].lives = True
    await culler.go()
    assert manager.restarted == ["a", "b"]
