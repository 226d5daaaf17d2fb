"""The server's handle on its supervisor: what it promises when things end, on either side."""

import asyncio
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_kernelpool import supervision as supervision_module
from jupyter_kernelpool.errors import LaunchFailed, SupervisorGone
from jupyter_kernelpool.supervision import Supervision

TIMEOUT = 20.0


class Ends:
    """Exit codes as they are reported."""

    def __init__(self):
        self.codes: dict[int, asyncio.Future[int]] = {}

    def of(self, supervision: Supervision, pid: int) -> asyncio.Future[int]:
        self.codes[pid] = asyncio.get_running_loop().create_future()
        supervision.watch(pid, self.codes[pid].set_result)
        return self.codes[pid]


@pytest.fixture
def kp_supervision(jp_asyncio_loop):
    supervision = Supervision(logging.getLogger("test"))
    yield supervision
    jp_asyncio_loop.run_until_complete(supervision.close())


async def sleeper(supervision: Supervision) -> int:
    return await supervision.spawn(["sleep", "1000"], env=dict(os.environ), cwd="/", settings=None)


async def gone(pid: int) -> None:
    """Wait until the process is gone, whoever's child it is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ready, _, _ = await asyncio.to_thread(select.select, [fd], [], [], TIMEOUT)
    os.close(fd)
    assert ready, f"process {pid} lives on"


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def within(awaitable, seconds: float = TIMEOUT):
    return await asyncio.wait_for(asyncio.shield(awaitable), seconds)


async def test_supervisor_starts_with_the_first_order(kp_supervision):
    assert not kp_supervision.alive
    pid = await sleeper(kp_supervision)
    assert kp_supervision.alive
    assert children(kp_supervision.pid) == {pid}


async def test_orders_at_the_same_time_start_one_supervisor(kp_supervision):
    pids = await asyncio.gather(*(sleeper(kp_supervision) for _ in range(5)))
    assert children(kp_supervision.pid) == set(pids)


async def test_exit_is_told_to_the_watcher(kp_supervision):
    pid = await sleeper(kp_supervision)
    end = Ends().of(kp_supervision, pid)
    os.kill(pid, signal.SIGTERM)
    assert await within(end) == -signal.SIGTERM


async def test_spawn_that_fails_says_why(kp_supervision):
    with pytest.raises(LaunchFailed, match=r"FileNotFoundError.*/no/such/program"):
        await kp_supervision.spawn(["/no/such/program"], env={}, cwd="/", settings=None)
    assert kp_supervision.alive


async def test_lost_supervisor_is_told_to_every_watcher_and_replaced(kp_supervision):
    pid = await sleeper(kp_supervision)
    first = kp_supervision.pid
    end = Ends().of(kp_supervision, pid)
    os.kill(first, signal.SIGKILL)
    assert await within(end) == -signal.SIGKILL
    await gone(pid)
    assert not kp_supervision.alive
    await sleeper(kp_supervision)
    assert kp_supervision.pid != first


async def test_order_under_way_when_the_supervisor_is_lost_fails(kp_supervision):
    await kp_supervision.start()
    os.kill(kp_supervision.pid, signal.SIGSTOP)
    order = asyncio.create_task(sleeper(kp_supervision))
    await asyncio.sleep(0)
    os.kill(kp_supervision.pid, signal.SIGKILL)
    with pytest.raises(SupervisorGone):
        await within(order)


async def test_what_is_tracked_and_guarded_is_told_to_the_next_supervisor(kp_supervision, tmp_path):
    file = tmp_path / "connection.json"
    file.write_text("{}")
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        pid = await sleeper(kp_supervision)
        end = Ends().of(kp_supervision, pid)
        kp_supervision.guard([str(file)])
        kp_supervision.track(process.pid)
        os.kill(kp_supervision.pid, signal.SIGKILL)
        await within(end)
        assert process.poll() is None, "a kernel that the server started itself has not lost its server"
        await kp_supervision.start()
        assert file.exists()
        await kp_supervision.close()
        assert await asyncio.to_thread(process.wait, TIMEOUT) == -signal.SIGKILL
        assert not file.exists()
    finally:
        process.kill()
        process.wait()


async def test_supervisor_that_does_not_come_up_is_said_at_once_and_tried_again(kp_supervision, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(supervision_module.sys, "executable", "/bin/false")
        with pytest.raises(SupervisorGone):
            await within(kp_supervision.start(), supervision_module.START_TIMEOUT / 2)
    await kp_supervision.start()
    assert kp_supervision.alive


async def test_supervisor_that_cannot_be_run_is_said(kp_supervision, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(supervision_module.sys, "executable", "/no/such/python")
        with pytest.raises(SupervisorGone, match="/no/such/python"):
            await kp_supervision.start()
    await kp_supervision.start()


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_cancelled_spawn_leaves_no_process(kp_supervision, turns):
    await kp_supervision.start()
    order = asyncio.create_task(sleeper(kp_supervision))
    for _ in range(turns):
        await asyncio.sleep(0)
    order.cancel()
    await asyncio.wait([order])
    pid = await sleeper(kp_supervision)  # an order after it: the other is carried out by now
    for left in children(kp_supervision.pid) - {pid}:
        await gone(left)


async def test_closing_ends_every_process_and_tells_its_watcher(kp_supervision):
    pid = await sleeper(kp_supervision)
    end = Ends().of(kp_supervision, pid)
    await kp_supervision.close()
    assert await within(end) == -signal.SIGKILL
    await gone(pid)
    assert not kp_supervision.alive


async def test_closing_fails_an_order_under_way(kp_supervision):
    await kp_supervision.start()
    order = asyncio.create_task(sleeper(kp_supervision))
    await asyncio.sleep(0)
    await kp_supervision.close()
    with pytest.raises(SupervisorGone):
        await within(order)


async def test_closing_twice_or_before_the_start_is_nothing(kp_supervision):
    await kp_supervision.close()
    await kp_supervision.start()
    await kp_supervision.close()
    await kp_supervision.close()


async def test_supervisor_ends_when_its_server_is_killed(tmp_path):
    code = """
import asyncio, logging, os, signal
from jupyter_kernelpool.supervision import Supervision

async def main():
    supervision = Supervision(logging.getLogger())
    supervision.guard([GUARDED])
    pid = await supervision.spawn(["sleep", "1000"], env=dict(os.environ), cwd="/", settings=None)
    print(supervision.pid, pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    guarded = tmp_path / "connection.json"
    guarded.write_text("{}")
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code.replace("GUARDED", repr(str(guarded))), stdout=subprocess.PIPE
    )
    out = await asyncio.wait_for(server.stdout.readline(), TIMEOUT)
    assert await server.wait() == -signal.SIGKILL
    for pid in map(int, out.split()):
        await gone(pid)
    assert not guarded.exists()
    server._transport.close()
