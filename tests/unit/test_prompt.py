"""What is under way with a kernel when the server stops, with stock's manager of all kernels above."""

from __future__ import annotations

import asyncio
import socket

import pytest
import zmq.asyncio
from jupyter_client.multikernelmanager import AsyncMultiKernelManager

from jupyter_kernelpool.prompt import WAITING, PromptKernelManager
from jupyter_kernelpool.testing import python_spec


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


SPEC = python_spec()


@pytest.mark.parametrize(
    "limited, argv, few",
    [(True, SPEC.argv, True), (False, SPEC.argv, False), (True, ["R", "{connection_file}"], False)],
    ids=["limited", "not limited", "another language"],
)
async def test_few_messages_wait_for_the_server_where_a_cold_kernel_holds_the_more(limited, argv, few):
    with zmq.asyncio.Context() as context, socket.create_server(("127.0.0.1", 0)) as listener:
        kernel = PromptKernelManager(context=context)
        kernel._kernel_spec = python_spec(argv)
        kernel.output_is_limited = lambda: limited
        assert (kernel.cold_command(argv) != argv) == few
        kernel.iopub_port = listener.getsockname()[1]
        stream = kernel.connect_iopub()
        assert stream.socket.rcvhwm == (WAITING if few else 1000)
        stream.close(linger=0)
