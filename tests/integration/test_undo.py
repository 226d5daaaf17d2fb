"""Undo: the state after each cell is kept where that is on, and the kernel goes back in place."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from .conftest import Server, eventually
from .test_clients import browser
from .test_forking import API, checkpoint, fork, pid_of, post

pytestmark = pytest.mark.integration


@pytest.fixture
def kernel(kp_server: Server) -> Iterator[str]:
    """A kernel whose last three cells can be undone."""
    kp_server.wait_warm(1)
    started = kp_server.start_kernel()
    assert change(kp_server, started, undo_steps=3)["undo"]["steps"] == 3
    yield started
    for each in kp_server.call("/api/kernels")[1]:
        kp_server.call(f"/api/kernels/{each['id']}", "DELETE")


def change(server: Server, kernel: str, **body: Any) -> Any:
    status, model = server.call(f"{API}/kernels/{kernel}", "PATCH", body)
    assert status == 200, model
    return model


def undo(server: Server, kernel: str, steps: int | None = None, expect: int = 200) -> Any:
    return post(server, f"/kernels/{kernel}/undo", None if steps is None else {"steps": steps}, expect)


def automatic(server: Server, kernel: str) -> list[str]:
    models = server.call(f"{API}/kernels/{kernel}/checkpoints")[1]["checkpoints"]
    return [model["id"] for model in models if model["automatic"]]


def test_cells_are_undone_on_the_same_websocket(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        for number in range(5):
            assert tab.execute(f"x = {number}; print(x)") == str(number)
        undone = undo(kp_server, kernel)
        assert undone["undo"] == {"steps": 3, "available": 2, "why": None}
        assert tab.execute("print(x)") == "3", "which is a cell itself"
        assert undo(kp_server, kernel, 3)["undo"]["available"] == 0
        assert tab.execute("x += 100; print(x)") == "101"
        assert undo(kp_server, kernel, 2, 409)["reason"] == "too_far"
        assert tab.execute("print(x)") == "101"
        undo(kp_server, kernel, 2)
        assert tab.execute("print(x)") == "1"


def test_as_many_are_kept_as_there_are_steps(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    for number in range(6):
        kp_server.run(client, f"x = {number}")
    undo(kp_server, kernel, 9, expect=409)  # it waits for what the kernel has to tell
    checkpoints = automatic(kp_server, kernel)
    assert len(checkpoints) == 4, "three steps, and the present state"
    kept = checkpoint(kp_server, kernel, name="by hand")
    assert change(kp_server, kernel, undo_steps=1)["undo"] == {"steps": 1, "available": 1, "why": None}
    assert automatic(kp_server, kernel) == checkpoints[-2:]
    assert change(kp_server, kernel, undo_steps=0)["undo"]["steps"] == 0
    assert server_checkpoints(kp_server, kernel) == [kept]
    kp_server.run(client, "x = 'no more'")
    assert undo(kp_server, kernel, expect=409)["reason"] == "undo_is_off"
    assert server_checkpoints(kp_server, kernel) == [kept]


def server_checkpoints(server: Server, kernel: str) -> list[str]:
    return list(server.call(f"{API}/kernels/{kernel}")[1]["checkpoints"])


def test_queued_cells_and_failing_cells_are_a_step_each(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 0")
    requests = [client.execute("x += 1", store_history=True) for _ in range(2)]
    requests.append(client.execute("x = -1; 1 / 0", store_history=True))
    replies = {client.get_shell_msg(timeout=20)["parent_header"]["msg_id"] for _ in requests}
    assert replies == set(requests)
    undo(kp_server, kernel)
    assert kp_server.run(kp_server.client(kernel), "print(x)") == "2"
    undo(kp_server, kernel, 2)
    assert kp_server.run(kp_server.client(kernel), "print(x)") == "1"


def test_what_runs_unseen_is_no_step(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 1")
    kp_server.run(client, "x = 2")
    client.execute_interactive("y = 1", store_history=False, timeout=20)
    client.execute("y = 2", silent=True)
    client.kernel_info(reply=True, timeout=20)
    undo(kp_server, kernel)
    assert kp_server.run(kp_server.client(kernel), "print(x)") == "1"


def test_undo_is_refused_while_a_cell_runs(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 1")
    client.execute("import time; time.sleep(4); x = 2")
    eventually(lambda: kp_server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    assert undo(kp_server, kernel, expect=409)["code"] == "busy"
    assert client.get_shell_msg(timeout=20)["content"]["status"] == "ok"
    assert kp_server.run(client, "print(x)") == "2"


def test_a_restart_a_restore_and_a_crash_are_undone(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        tab.execute("x = 'first'")
        kept = checkpoint(kp_server, kernel)
        tab.execute("x = 'second'")
        post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        assert tab.execute("print(x)") == "first"
        undo(kp_server, kernel, 2)
        assert tab.execute("print(x)") == "second"

        kp_server.wait_warm(1)
        assert kp_server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert tab.execute("x") == "NameError"
        undo(kp_server, kernel, 2)
        assert tab.execute("print(x)") == "second"

        kp_server.wait_warm(1)
        pid = pid_of(kp_server, kernel)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid_of(kp_server, kernel) not in (pid, 0), "it is restarted")
        assert tab.execute("x") == "NameError"
        undo(kp_server, kernel, 2)
        assert tab.execute("print(x)") == "second"


def test_what_can_not_be_kept_says_why(kp_server: Server, kernel: str) -> None:
    """A debugger's `os.fork` stands for whatever makes a fork wrong."""
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 1")
    kp_server.run(client, "import os; stock, os.fork = os.fork, lambda: stock(); x = 2")
    told = eventually(lambda: kp_server.call(f"{API}/kernels/{kernel}")[1]["undo"]["why"], "it is told")
    assert "debugger" in told
    assert kp_server.run(client, "print(x)") == "2"
    assert undo(kp_server, kernel)["undo"]["why"] is None
    assert kp_server.run(kp_server.client(kernel), "print(x)") == "1"


def test_the_trait_switches_it_on_and_forks_have_their_own(kp_start: Any) -> None:
    server = kp_start("--KernelPool.undo_steps=2")
    server.wait_warm(1)
    kernel = server.start_kernel()
    kp_client = server.client(kernel)
    for number in range(3):
        server.run(kp_client, f"x = {number}")
    (forked,) = fork(server, kernel)
    client = server.client(forked)
    server.run(client, "x = 'fork'")
    assert undo(server, forked, expect=200)["undo"]["available"] == 0
    assert server.run(server.client(forked), "print(x)") == "2"
    undo(server, kernel, 2)
    assert server.run(server.client(kernel), "print(x)") == "0"
    parked = [process for process in server.ours() if process.pid != pid_of(server, kernel)]
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: len([p for p in parked if psutil.pid_exists(p.pid)]) < len(parked), "its states end with it")


@pytest.mark.parametrize(
    "body, field",
    [
        ({"undo_steps": -1}, "undo_steps"),
        ({"undo_steps": 1001}, "undo_steps"),
        ({"undo_steps": None}, "undo_steps"),
        ({"undo": 1}, "undo"),
        ({"name": ""}, "name"),
    ],
)
def test_wrong_changes_are_named(kp_server: Server, kernel: str, body: Any, field: str) -> None:
    status, refused = kp_server.call(f"{API}/kernels/{kernel}", "PATCH", body)
    assert (status, refused["code"], refused["field"]) == (422, "not_valid", field)
    assert post(kp_server, f"/kernels/{kernel}/undo", {"steps": 0}, 422)["field"] == "steps"


def test_a_kernel_can_be_named(kp_server: Server, kernel: str) -> None:
    assert change(kp_server, kernel, name="analysis")["given_name"] == "analysis"
    assert change(kp_server, "analysis", name="study")["id"] == kernel
    assert kp_server.call(f"{API}/kernels/analysis")[0] == 404
    (forked,) = fork(kp_server, "study", name="analysis")
    status, refused = kp_server.call(f"{API}/kernels/{forked}", "PATCH", {"name": "study"})
    assert (status, refused["code"]) == (409, "name_taken")


def test_a_change_that_is_refused_in_part_changes_nothing(kp_server: Server, kernel: str) -> None:
    fork(kp_server, kernel, name="taken")
    change(kp_server, kernel, limits={"output": "400M"})

    def settings() -> Any:
        model = kp_server.call(f"{API}/kernels/{kernel}")[1]
        return model["given_name"], model["limits"], model["cull"], model["undo"]["steps"]

    before = settings()
    wish = {"limits": {"output": "300M"}, "undo_steps": 2, "recycle": {"age": 5000}, "keep_alive": 60}
    for refused, code in (
        ({**wish, "name": "taken"}, "name_taken"),
        ({**wish, "name": "free", "limits": {"output": "1T"}}, "loosens"),
        ({**wish, "name": "free", "limits": {"speed": 1}}, "not_valid"),
    ):
        status, answer = kp_server.call(f"{API}/kernels/{kernel}", "PATCH", refused)
        assert (status >= 400, answer["code"], settings()) == (True, code, before), answer
    changed = change(kp_server, kernel, **wish, name="free")
    assert (changed["given_name"], changed["limits"]["output"], changed["undo"]["steps"]) == ("free", 300 << 20, 2)


def test_what_checkpoints_cost_together_is_bounded(kp_start: Any) -> None:
    size = 30_000_000
    server = kp_start("--KernelPool.undo_steps=20", f"--KernelPool.max_checkpoint_memory={4 * size}")
    server.wait_warm(1)
    kernel = server.start_kernel()
    client = server.client(kernel)
    server.run(client, f"x = bytearray(b'1') * {size}")
    kept = checkpoint(server, kernel, name="kept")
    for number in range(8):
        server.run(client, f"x[:] = bytes([{number}]) * {size}; step = {number}")
    eventually(lambda: len(automatic(server, kernel)) <= 4, "what was changed since is kept as often as it fits")
    undo(server, kernel)
    assert server.run(server.client(kernel), "print(step, x[0], x[-1])") == "6 6 6"
    assert kept in server_checkpoints(server, kernel), "what has a name is not dropped for it"


def test_undo_of_a_kernel_that_can_not_be_forked_is_refused_with_the_reason(kp_start: Any) -> None:
    server = kp_start("--KernelPool.max_warm=0", "--KernelPool.warm=0", "--KernelPool.undo_steps=2")
    kernel = server.start_kernel()
    told = server.call(f"{API}/kernels/{kernel}")[1]["undo"]
    assert (told["steps"], told["available"]) == (2, 0)
    assert "not started by the pool" in told["why"]
    status, refused = server.call(f"{API}/kernels/{kernel}", "PATCH", {"undo_steps": 5})
    assert (status, refused["code"], refused["reason"]) == (501, "cannot_fork", "not_pooled")
    assert undo(server, kernel, expect=501)["reason"] == "not_pooled"
