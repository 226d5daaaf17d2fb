"""A kernel that was left dead on purpose, and a restore that fails half way, in a server that runs here."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from jupyter_kernelpool.decisions import Host
from jupyter_kernelpool.errors import LaunchFailed

pytestmark = pytest.mark.integration


@pytest.fixture
def kp_config() -> dict[str, Any]:
    return {"warm": 1, "max_warm": 2}


@pytest.fixture
def kernel(jp_serverapp: Any, jp_asyncio_loop: Any, kp_fetch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The manager of a kernel in which x is 'kept', and what keeps that."""
    idle = Host(available_memory=1 << 40, busy=0.0)
    monkeypatch.setattr("jupyter_kernelpool.keeper.look_at_host", lambda: idle)
    manager = jp_serverapp.kernel_manager

    async def start() -> Any:
        await manager.start_pool()
        await manager.pool.warmed()
        response = await kp_fetch("POST", "/api/kernels", body="{}")
        kernel = manager.get_kernel(json.loads(response.body)["id"])
        await run(kernel, "x = 'kept'")
        return kernel

    return jp_asyncio_loop.run_until_complete(start())


async def run(kernel: Any, code: str) -> dict[str, Any]:
    """What *code* answers for the expression `x`."""
    client = kernel.client()
    client.start_channels()
    try:
        client.execute(code, user_expressions={"x": "x"})
        reply = await client.get_shell_msg(timeout=30)
        return dict(reply["content"]["user_expressions"].get("x", {}))
    finally:
        client.stop_channels()


async def value(kernel: Any) -> str:
    found = await run(kernel, "None")
    return str(found["data"]["text/plain"] if found["status"] == "ok" else found["ename"])


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def die(kernel: Any) -> None:
    """The kernel is ended as by a limit, and left dead."""
    kernel.stop_restarter()
    os.kill(kernel.pooled.pid, signal.SIGKILL)
    await until(lambda: kernel.pooled.has_ended)
    kernel.execution_state, kernel.reason = "busy", "it used too much memory"


async def test_kernel_that_was_left_dead_comes_back_and_its_front_ends_are_told(
    kernel: Any, kp_call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(kernel.parent.edge, "give_up", lambda _, name, text: told.append(name))
    kept = (await kp_call("POST", f"/kernels/{kernel.kernel_id}/checkpoints")).model["id"]
    await die(kernel)
    dead = (await kp_call("GET", f"/kernels/{kernel.kernel_id}")).model
    assert (dead["state"], dead["checkpoints"], told) == ("dead", [kept], [])
    reply = await kp_call("POST", f"/kernels/{kernel.kernel_id}/restore", {"checkpoint": kept})
    assert (reply.code, reply.model["execution_state"]) == (200, "idle")
    assert "reason" not in reply.model
    assert told == ["KernelDied"], "what the front ends were waiting for has gone"
    assert await value(kernel) == "'kept'"
    await kp_call("POST", f"/kernels/{kernel.kernel_id}/restore", {"checkpoint": kept})
    assert told == ["KernelDied"], "a living kernel's front ends notice nothing"

    pid = kernel.pooled.pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: kernel.pooled.claimed is not None and kernel.pooled.claimed.pid != pid)
    assert await value(kernel) == "NameError", "it is restarted by itself again"


@pytest.mark.parametrize("restarter", ["at work", "stopped"])
async def test_restore_that_fails_half_way_leaves_a_kernel_that_can_be_restored(
    kernel: Any, kp_call: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch, restarter: str
) -> None:
    pool = jp_serverapp.kernel_manager.pool
    kept = (await kp_call("POST", f"/kernels/{kernel.kernel_id}/checkpoints")).model["id"]
    await run(kernel, "x = 'later'")
    successors = []

    async def fail(process: Any, *_: Any) -> None:
        successors.append(process)
        raise LaunchFailed("it ended before it became a kernel", reason="gone")

    former = kernel.pooled.claimed
    with monkeypatch.context() as patch:
        patch.setattr(pool, "hand_over", fail)
        if restarter == "stopped":
            await die(kernel)
        refused = await kp_call("POST", f"/kernels/{kernel.kernel_id}/restore", {"checkpoint": kept})
    assert (refused.code, refused.model["code"]) == (502, "start_failed")
    for process in (former, *successors):
        await asyncio.wait_for(asyncio.shield(process.exited), 20)
    if restarter == "at work":
        await until(lambda: kernel.pooled.claimed not in (None, former))
        assert await value(kernel) == "NameError", "a fresh one"
    else:
        model = (await kp_call("GET", f"/kernels/{kernel.kernel_id}")).model
        assert (model["state"], model["checkpoints"]) == ("dead", [kept])
        assert (kernel.execution_state, kernel.reason) == ("busy", "it used too much memory"), "as it was"
        await asyncio.sleep(0.5)
        assert kernel.pooled.process is former, "nobody restarts it"
    assert (await kp_call("POST", f"/kernels/{kernel.kernel_id}/restore", {"checkpoint": kept})).code == 200
    assert await value(kernel) == "'kept'"


@pytest.mark.parametrize("route", ["fork", "checkpoints", "restore", "undo"])
async def test_what_is_asked_for_right_behind_a_restart_is_done(
    kernel: Any, kp_call: Any, kp_fetch: Any, jp_serverapp: Any, route: str
) -> None:
    """Jupyter answers when the next process has the id, which serves some milliseconds later."""
    kept = (await kp_call("POST", f"/kernels/{kernel.kernel_id}/checkpoints")).model["id"]
    if route == "undo":
        assert (await kp_call("PATCH", f"/kernels/{kernel.kernel_id}", {"undo_steps": 3})).code == 200
    expected = 200 if route in ("restore", "undo") else 201
    for _ in range(5):
        await jp_serverapp.kernel_manager.pool.warmed()
        assert (await kp_fetch("POST", f"/api/kernels/{kernel.kernel_id}/restart", body="")).code == 200
        body = {"checkpoint": kept} if route == "restore" else {}
        reply = await kp_call("POST", f"/kernels/{kernel.kernel_id}/{route}", body)
        assert reply.code == expected, reply.model
    assert await value(kernel) == ("'kept'" if expected == 200 else "NameError")


async def test_fork_that_fails_half_way_is_no_empty_kernel(
    kernel: Any, kp_call: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = jp_serverapp.kernel_manager
    forks = []

    async def fail(process: Any, *_: Any) -> None:
        forks.append(process)
        raise LaunchFailed("it ended before it became a kernel", reason="gone")

    with monkeypatch.context() as patch:
        patch.setattr(manager.pool, "hand_over", fail)
        for body in ({"name": "lost"}, {"name": "lost", "count": 2}):
            refused = await kp_call("POST", f"/kernels/{kernel.kernel_id}/fork", body)
            assert (refused.code, refused.model["code"]) == (502, "start_failed")
    assert len(forks) == 3
    for process in forks:
        await asyncio.wait_for(asyncio.shield(process.exited), 20)
    assert manager.list_kernel_ids() == [kernel.kernel_id]
    assert (await kp_call("POST", f"/kernels/{kernel.kernel_id}/fork", {"name": "lost"})).code == 201
    assert await value(kernel) == "'kept'"


async def test_restart_that_comes_between_wins_over_the_restore(
    kernel: Any, kp_call: Any, kp_fetch: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forking = jp_serverapp.kernel_manager.forking
    kept = (await kp_call("POST", f"/kernels/{kernel.kernel_id}/checkpoints")).model["id"]
    parked = forking.checkpoints[kept].parked
    made = []

    async def slow_fork(**options: Any) -> Any:
        assert (await kp_fetch("POST", f"/api/kernels/{kernel.kernel_id}/restart", body="")).code == 200
        made.append(await type(parked).fork(parked, **options))
        return made[0]

    monkeypatch.setattr(parked, "fork", slow_fork)
    refused = await kp_call("POST", f"/kernels/{kernel.kernel_id}/restore", {"checkpoint": kept})
    assert (refused.code, refused.model["reason"]) == (409, "not_running")
    await asyncio.wait_for(asyncio.shield(made[0].exited), 20)
    assert await value(kernel) == "NameError"
