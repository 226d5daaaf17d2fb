"""%fork, %checkpoint, %restore and %undo, as a notebook's cells have them: without a token."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from queue import Empty
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from .conftest import Server, eventually
from .test_clients import browser, execution, unpack
from .test_forking import API, checkpoint, pid_of
from .test_transports import reconnected

pytestmark = pytest.mark.integration


@pytest.fixture
def kernel(kp_server: Server) -> Iterator[str]:
    kp_server.wait_warm(1)
    yield kp_server.start_kernel()
    for each in kp_server.call("/api/kernels")[1]:
        kp_server.call(f"/api/kernels/{each['id']}", "DELETE")


def run(client: BlockingKernelClient, code: str) -> tuple[str, dict[str, Any]]:
    """The id of the request, and the content of its reply."""
    request = client.execute(code)
    while True:
        reply = client.get_shell_msg(timeout=30)
        if reply["parent_header"]["msg_id"] == request:
            return request, reply["content"]


def told(client: BlockingKernelClient, request: str) -> list[str]:
    """What the displays of the cell *request* show, first and at last."""
    shown: dict[str, list[str]] = {}
    while True:
        try:
            message = client.get_iopub_msg(timeout=30)
        except Empty:
            raise AssertionError(f"nothing came of it: {shown}") from None
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] in ("display_data", "update_display_data"):
            content = message["content"]
            texts = shown.setdefault(content["transient"]["display_id"], [])
            texts.append(content["data"]["text/plain"])
            if message["msg_type"] == "update_display_data":
                return texts


def test_fork_is_made_when_the_cell_has_ended(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    request, reply = run(client, "%fork trial --count 2\nx = 'set after the magic'")
    assert reply["status"] == "ok", reply
    first, last = told(client, request)
    assert "when this cell has ended" in first
    forks = re.findall(r"Forked: kernel (\S+) \((\S+)\)", last)
    assert [name for _, name in forks] == ["trial-1", "trial-2"]
    for forked, _ in forks:
        assert kp_server.run(forked, "print(x)") == "set after the magic"
    assert kp_server.run(client, "print(x)") == "set after the magic"
    _, reply = run(client, "%fork trial-1")
    assert (reply["ename"], "trial-1" in reply["evalue"]) == ("UsageError", True), "the cell that asks is told at once"


def test_checkpoint_and_restore(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    request, _ = run(client, "x = 10\n%checkpoint ten")
    assert told(client, request)[-1] == "Checkpoint ten"
    (kept,) = kp_server.call(f"{API}/kernels/{kernel}/checkpoints")[1]["checkpoints"]
    assert kept["name"] == "ten"
    assert run(client, "%checkpoint ten")[1]["ename"] == "UsageError"
    run(client, "x = 99")
    pid = pid_of(kp_server, kernel)
    request, reply = run(client, "%restore ten")
    assert reply["status"] == "ok", reply
    eventually(lambda: pid_of(kp_server, kernel) not in (0, pid), "another process serves")
    reconnected(client)
    assert kp_server.run(client, "print(x)") == "10"
    assert run(client, "%restore nothing")[1]["ename"] == "UsageError"
    assert kp_server.run(client, "print(x)") == "10"


def test_fork_may_be_reseeded_and_become_what_the_kernel_is(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    run(client, "import random; random.seed(1)")
    forks = []
    for code in ("%fork best", "%fork --reseed"):
        request, reply = run(client, code)
        assert reply["status"] == "ok", reply
        forks += re.findall(r"Forked: kernel (\S+)", told(client, request)[-1])
    draw = "print(random.random())"
    equal, fresh = (kp_server.run(each, draw) for each in forks)
    assert kp_server.run(client, draw) == equal != fresh
    kp_server.run(forks[0], "x = 'of the best'")
    kp_server.run(forks[1], "x = 'of the other'")
    for source, expected in (("best", "of the best"), (forks[1], "of the other")):
        pid = pid_of(kp_server, kernel)
        assert run(client, f"%restore {source}")[1]["status"] == "ok"
        eventually(lambda pid=pid: pid_of(kp_server, kernel) not in (0, pid), "another process serves")  # type: ignore[misc]
        reconnected(client)
        assert kp_server.run(client, "print(x)") == expected


def test_restore_is_told_in_the_notebook(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        tab.execute("x = 1")
        checkpoint(kp_server, kernel, name="one")
        tab.execute("x = 2")
        request = tab.send("execute_request", execution("%restore one"))
        while (message := unpack(tab.socket.recv(timeout=30)))["header"]["msg_type"] != "update_display_data":  # type: ignore[arg-type]
            pass
        assert message["content"]["data"]["text/plain"] == "Restored: one"
        assert message["parent_header"]["msg_id"] == request
        assert tab.execute("print(x)") == "1"
        for number in range(3):
            tab.execute(f"x = {number}")
            assert tab.execute("%restore one") == ""
            assert tab.execute("print(x)") == "1", "what comes right behind it is for the restored kernel"


def test_a_restore_that_fails_leaves_the_kernel_at_work(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        tab.execute("x = 1")
        kept = checkpoint(kp_server, kernel, name="one")
        request = tab.send("execute_request", execution("x = 2\n%restore one\nimport time; time.sleep(1)"))
        queued = tab.send("execute_request", execution("print(x)"))
        time.sleep(0.5)
        assert kp_server.call(f"{API}/checkpoints/{kept}", "DELETE")[0] == 204
        while (message := unpack(tab.socket.recv(timeout=30)))["header"]["msg_type"] != "update_display_data":  # type: ignore[arg-type]
            assert message["parent_header"]["msg_id"] in (request, queued)
        assert "failed" in message["content"]["data"]["text/plain"]
        assert tab.execute("print(x)") == "2"


def test_cells_behind_a_restore_are_aborted_and_told_so(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 1")
    checkpoint(kp_server, kernel)
    pid = pid_of(kp_server, kernel)
    requests = [client.execute(code) for code in ("import time; time.sleep(1)\n%restore", "x = 2", "x = 3")]
    replies = {}
    while set(requests) - set(replies):
        reply = client.get_shell_msg(timeout=30)
        replies[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
    assert [replies[request] for request in requests] == ["ok", "aborted", "aborted"]
    eventually(lambda: pid_of(kp_server, kernel) not in (0, pid), "another process serves")
    reconnected(client)
    assert kp_server.run(client, "print(x)") == "1"


def test_undo_is_switched_on_and_goes_back(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    assert "undo is off" in run(client, "%undo")[1]["evalue"]
    assert run(client, "%undo on 5")[1]["status"] == "ok"
    for number in range(3):
        run(client, f"x = {number}")
    assert "too far" in run(client, "%undo 9")[1]["evalue"]
    pid = pid_of(kp_server, kernel)
    assert run(client, "x = 'in the cell of the magic'\n%undo 2")[1]["status"] == "ok"
    eventually(lambda: pid_of(kp_server, kernel) not in (0, pid), "another process serves")
    reconnected(client)
    assert kp_server.run(client, "print(x)") == "0"
    run(client, "%undo off")
    assert kp_server.call(f"{API}/kernels/{kernel}")[1]["undo"] == {"steps": 0, "available": 0, "why": None}


@pytest.mark.parametrize(
    "code", ["%fork a b", "%fork a/b", "%checkpoint a/b", "%fork --count 0", "%undo -3", "%undo x", "%undo on 100000"]
)
def test_wrong_use_is_a_usage_error_and_changes_nothing(kp_server: Server, kernel: str, code: str) -> None:
    client = kp_server.client(kernel)
    assert run(client, code)[1]["ename"] == "UsageError"
    assert len(kp_server.call("/api/kernels")[1]) == 1


def test_a_users_own_fork_and_a_thread_are_refused(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    code = """
import concurrent.futures, os
def ask():
    try:
        get_ipython().run_line_magic('fork', '')
    except Exception as error:
        return str(error)
with concurrent.futures.ThreadPoolExecutor() as pool:
    print('main shell only' in pool.submit(ask).result())
ours, its = os.pipe()
if os.fork() == 0:
    os.write(its, ask().encode()); os._exit(0)
print('no server' in os.read(ours, 1000).decode())
"""
    assert kp_server.run(client, code).split() == ["True", "True"]
    assert len(kp_server.call("/api/kernels")[1]) == 1


def test_magics_can_be_switched_off(kp_start: Any) -> None:
    server = kp_start("--KernelPool.magics=False")
    server.wait_warm(1)
    client = server.client(server.start_kernel())
    assert "KernelPool.magics" in run(client, "%fork")[1]["evalue"]
