"""What is under way with a kernel when the server stops, with stock's manager of all kernels above."""

from __future__ import annotations

import asyncio

import pytest
from jupyter_client.multikernelmanager import AsyncMultiKernelManager

from jupyter_kernelpool.prompt import PromptKernelManager


class SlowToEnd(PromptKernelManager):
    """A kernel without a process, which ends only at the second attempt."""

    pool = object()
    pooled = None
    attempts = 0

    async def _shutdown_kernel(self, **kw):
        self.attempts += 1
        await asyncio.sleep(60 if self.attempts == 1 else 0)


@pytest.mark.parametrize("restart", [False, True])
async def test_server_can_stop_after_a_shutdown_of_ours_was_cancelled_midway(restart):
    manager = AsyncMultiKernelManager()
    kernel, other = SlowToEnd(), SlowToEnd()
    other.attempts = 1
    for each in (kernel, other):
        each._attempted_start = True
        each.ready.set_result(None)
    manager._kernels.update(k=kernel, other=other)
    ours = asyncio.create_task(kernel.shutdown_kernel(restart=True) if restart else manager.shutdown_kernel("k"))
    while not (kernel.attempts or ours.done()):
        await asyncio.sleep(0.01)
    ours.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ours
    async with asyncio.timeout(10):
        await manager.shutdown_all()
    assert (kernel.attempts, other.attempts) == (2, 2)
    assert not manager.list_kernel_ids()
