"""Forks, checkpoints and restores through REST, of real kernels on a real server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import PATIENCE, Server, eventually
from .test_clients import browser
from .test_transports import reconnected

pytestmark = pytest.mark.integration

API = "/kernelpool/v1"


def post(server: Server, path: str, body: Any = None, expect: int = 201, timeout: float = PATIENCE) -> Any:
    status, model = server.call(API + path, "POST", body, timeout)
    assert status == expect, model
    return model


def fork(server: Server, kernel: str, **body: Any) -> list[str]:
    return [each["id"] for each in post(server, f"/kernels/{kernel}/fork", body)["kernels"]]


def checkpoint(server: Server, kernel: str, **body: Any) -> str:
    return str(post(server, f"/kernels/{kernel}/checkpoints", body)["id"])


def pid_of(server: Server, kernel: str) -> int:
    return int(server.call(f"{API}/kernels/{kernel}")[1]["pid"])


# -- forks ------------------------------------------------------------------------------------------


def test_forks_go_on_from_the_state_and_apart(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 10")
    (first,), (second,) = fork(kp_server, kernel), fork(kp_server, kernel)
    assert kp_server.run(first, "x = x + 5; print(x)") == "15"
    assert kp_server.run(second, "x = x * 2; print(x)") == "20"
    assert kp_server.run(client, "print(x)") == "10"
    assert {kernel, first, second} <= {each["id"] for each in kp_server.call("/api/kernels")[1]}


def test_several_forks_have_names_and_a_lineage(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "value = 'kept'")
    reply = post(kp_server, f"/kernels/{kernel}/fork", {"count": 3, "name": "try"})
    assert [each["given_name"] for each in reply["kernels"]] == ["try-1", "try-2", "try-3"]
    assert all(each["lineage"] == {"parent": kernel, "checkpoint": None} for each in reply["kernels"])
    assert set(reply["manifest"]) >= {"shared", "lost", "warnings"}
    for each in reply["kernels"]:
        assert kp_server.run(each["id"], "print(value)") == "kept"
    assert kp_server.call(f"{API}/kernels/try-2")[1]["id"] == reply["kernels"][1]["id"]
    status, refused = kp_server.call(f"{API}/kernels/{kernel}/fork", "POST", {"name": "try-2"})
    assert (status, refused["code"]) == (409, "name_taken")
    (again,) = fork(kp_server, "try-1", name="try-1-again")
    nodes = {node["id"]: node for node in kp_server.call(f"{API}/lineage")[1]["nodes"]}
    assert nodes[again]["parent"] == reply["kernels"][0]["id"]
    assert nodes[reply["kernels"][0]["id"]]["parent"] == kernel
    assert nodes[kernel]["parent"] is None


def test_a_fork_is_a_kernel_like_any_other(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "x = 1")
    (forked,) = fork(kp_server, kernel)
    client = kp_server.client(forked)
    with browser(kp_server, forked) as tab:
        assert tab.execute("print(x)") == "1"
        request = client.execute("while True: pass")
        eventually(lambda: kp_server.call(f"/api/kernels/{forked}")[1]["execution_state"] == "busy", "it runs")
        time.sleep(0.3)  # busy is told before the code runs
        assert kp_server.call(f"/api/kernels/{forked}/interrupt", "POST")[0] == 204
        reply = client.get_shell_msg(timeout=20)
        assert (reply["parent_header"]["msg_id"], reply["content"]["ename"]) == (request, "KeyboardInterrupt")
        kp_server.wait_warm(1)
        assert kp_server.call(f"/api/kernels/{forked}/restart", "POST")[0] == 200
        assert tab.execute("x") == "NameError", "a restart gives a fresh kernel"
    pid = pid_of(kp_server, forked)
    assert kp_server.call(f"/api/kernels/{forked}", "DELETE")[0] == 204
    eventually(lambda: not psutil.pid_exists(pid), "its process ended")
    assert kp_server.run(kernel, "print(x)") == "1"


def test_a_fork_outlives_its_parent(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "x = 'left'")
    (forked,) = fork(kp_server, kernel)
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    assert kp_server.run(forked, "print(x)") == "left"
    nodes = {node["id"]: node["alive"] for node in kp_server.call(f"{API}/lineage")[1]["nodes"]}
    assert nodes == {**nodes, kernel: False, forked: True}


def test_a_running_cell_is_waited_for_and_not_disturbed(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    client.execute("import time; time.sleep(2); done = True")
    eventually(lambda: kp_server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    began = time.monotonic()
    status, refused = kp_server.call(f"{API}/kernels/{kernel}/fork", "POST", {"timeout": 0.2})
    assert (status, refused["code"]) == (409, "busy")
    assert time.monotonic() - began < 1.5
    (forked,) = fork(kp_server, kernel)
    assert kp_server.run(forked, "print(done)") == "True"
    assert client.get_shell_msg(timeout=20)["content"]["status"] == "ok"


def test_what_can_not_be_forked_says_why(kp_server: Server, kernel: str, kp_start: Any) -> None:
    capabilities = kp_server.call(f"{API}/kernels/{kernel}")[1]["capabilities"]
    assert capabilities == {"fork": {"available": True, "why": None}}
    assert kp_server.call(f"{API}/kernels/nothing/fork", "POST")[0] == 404
    cold = kp_start("--KernelPool.max_warm=0", "--KernelPool.warm=0")
    stock = cold.start_kernel()
    status, refused = cold.call(f"{API}/kernels/{stock}/fork", "POST")
    assert (status, refused["code"], refused["reason"]) == (501, "cannot_fork", "not_pooled")
    told = cold.call(f"{API}/kernels/{stock}")[1]["capabilities"]["fork"]
    assert told == {"available": False, "why": refused["message"]}


@pytest.mark.parametrize(
    "code, reason, undone",
    [
        ("import os; stock, os.fork = os.fork, lambda: stock()", "debugger", "os.fork = stock"),
        (
            "import sys; hazards = sys.modules['_jupyter_kernelpool.hazards']\n"
            "stock, hazards.cuda_is_initialised = hazards.cuda_is_initialised, lambda _: True",
            "cuda",
            "hazards.cuda_is_initialised = stock",
        ),
    ],
    ids=["debugger", "cuda"],
)
def test_what_does_not_survive_a_fork_is_a_reason_to_refuse(
    kp_server: Server, kernel: str, code: str, reason: str, undone: str
) -> None:
    """A replaced `os.fork` is how an attached debugger shows; no GPU is needed to say that CUDA is in use."""
    client = kp_server.client(kernel)
    kp_server.run(client, f"x = 1\n{code}")
    for path in ("fork", "checkpoints"):
        refused = post(kp_server, f"/kernels/{kernel}/{path}", {}, 501)
        assert (refused["code"], refused["reason"]) == ("cannot_fork", reason)
    assert [each["id"] for each in kp_server.call("/api/kernels")[1]] == [kernel]
    kp_server.run(client, undone)
    assert kp_server.run(fork(kp_server, kernel)[0], "print(x)") == "1"


@pytest.mark.parametrize("pooled, reason", [(True, "unforkable"), (False, "not_pooled")])
def test_kernel_of_another_language_is_not_forked_and_says_why(kp_start: Any, pooled: bool, reason: str) -> None:
    settings = {"other": {"launcher": "whole", "warm": 1 if pooled else 0}}
    server = kp_start(f"--KernelPool.recipes={settings!r}")
    place = server.folder / "data" / "kernels" / "other"
    place.mkdir(parents=True)
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Other", "language": "other"}))
    if pooled:
        server.wait_warm(1, "other")
    kernel = server.start_session("notebook.ipynb", name="other")["kernel"]["id"]
    told = server.call(f"{API}/kernels/{kernel}")[1]
    assert told["way"] == ("whole" if pooled else "cold")
    before = server.call("/api/kernels")[1]
    for path, body in (("fork", {}), ("checkpoints", {}), ("undo", {})):
        refused = post(server, f"/kernels/{kernel}/{path}", body, 409 if path == "undo" else 501)
        if path != "undo":
            assert (refused["code"], refused["reason"]) == ("cannot_fork", reason)
            assert told["capabilities"]["fork"] == {"available": False, "why": refused["message"]}
    server.wait_warm(1)
    other = checkpoint(server, server.start_kernel())
    assert post(server, f"/kernels/{kernel}/restore", {"checkpoint": other}, 501)["reason"] == reason
    assert {each["id"] for each in before} < {each["id"] for each in server.call("/api/kernels")[1]}
    assert server.run(kernel, "print(6 * 7)") == "42", "it is as it was"


@pytest.mark.parametrize(
    "body, field",
    [
        ({"count": 0}, "count"),
        ({"count": 101}, "count"),
        ({"count": True}, "count"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": 3}, "name"),
        ({"reseed": "yes"}, "reseed"),
        ({"timeout": -1}, "timeout"),
        ({"files": "moved"}, "files"),
        ({"files": ["copy"]}, "files"),
        ({"atomic": 1}, "atomic"),
    ],
)
def test_wrong_fields_are_named(kp_server: Server, kernel: str, body: Any, field: str) -> None:
    status, refused = kp_server.call(f"{API}/kernels/{kernel}/fork", "POST", body)
    assert (status, refused["code"], refused["field"]) == (422, "not_valid", field)


# -- checkpoints ------------------------------------------------------------------------------------


def test_restore_puts_the_kernel_back_for_the_clients_it_has(kp_server: Server, kernel: str) -> None:
    client = kp_server.client(kernel)
    with browser(kp_server, kernel) as tab:
        assert tab.execute("x = 10; print(x)") == "10"
        kept = checkpoint(kp_server, kernel, name="ten")
        assert tab.execute("x = 99; print(x)") == "99"
        before = kp_server.connection_file(kernel).read_text()
        pid = pid_of(kp_server, kernel)
        restored = post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        assert restored["id"] == kernel
        assert tab.execute("print(x)") == "10", "on the same websocket"
        assert kp_server.connection_file(kernel).read_text() == before
        assert pid_of(kp_server, kernel) != pid
        assert not psutil.pid_exists(pid)
        reconnected(client)
        assert kp_server.run(client, "print(x)") == "10"
        for value in (1, 2):  # a checkpoint is not used up
            tab.execute(f"x = {value}")
            post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
            assert tab.execute("print(x)") == "10"


def test_cells_that_are_sent_while_it_is_restored_are_all_answered(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "x = 'kept'")
    kept = checkpoint(kp_server, kernel)
    answers: list[int] = []
    ended = threading.Event()

    def restore_again_and_again() -> None:
        while not ended.is_set():
            answers.append(kp_server.call(f"{API}/kernels/{kernel}/restore", "POST", {"checkpoint": kept})[0])
            time.sleep(0.05)

    restoring = threading.Thread(target=restore_again_and_again)
    with browser(kp_server, kernel) as tab:
        restoring.start()
        try:
            number = 0
            while answers.count(200) < 10:
                number += 1
                assert tab.execute(f"print(x, {number})") == f"kept {number}"
        finally:
            ended.set()
            restoring.join()
    assert set(answers) <= {200, 409}


def test_the_best_of_three_forks_is_taken_back(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "x = 1")
    forks = fork(kp_server, kernel, count=3)
    for number, each in enumerate(forks):
        kp_server.run(each, f"x = {number} * 100")
    with browser(kp_server, kernel) as tab:
        post(kp_server, f"/kernels/{kernel}/restore", {"kernel": forks[2]}, 200)
        assert tab.execute("print(x)") == "200"
    assert kp_server.run(forks[2], "print(x)") == "200", "the fork lives on"


def test_only_relatives_are_restored_and_only_between_cells(kp_server: Server, kernel: str) -> None:
    kp_server.wait_warm(1)
    stranger = kp_server.start_kernel()
    kept = checkpoint(kp_server, stranger)
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 'mine'")
    for body in ({"checkpoint": kept}, {"kernel": stranger}):
        refused = post(kp_server, f"/kernels/{kernel}/restore", body, 409)
        assert refused["code"] == "not_related"
    own = checkpoint(kp_server, kernel)
    client.execute("import time; time.sleep(3)")
    eventually(lambda: kp_server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    assert post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": own}, 409)["code"] == "busy"
    assert client.get_shell_msg(timeout=20)["content"]["status"] == "ok"
    assert kp_server.run(client, "print(x)") == "mine"
    assert post(kp_server, f"/kernels/{kernel}/restore", {}, 422)["field"] == "checkpoint"
    assert post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": "nothing"}, 404)["code"] == "not_found"


def test_checkpoints_are_listed_forked_and_dropped(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "x = 'then'")
    kept = checkpoint(kp_server, kernel, name="then")
    kp_server.run(kernel, "x = 'now'")
    (listed,) = kp_server.call(f"{API}/kernels/{kernel}/checkpoints")[1]["checkpoints"]
    assert (listed["id"], listed["name"], listed["kernel_id"], listed["durable"]) == (kept, "then", kernel, False)
    assert 0 < listed["bytes"] < 20_000_000
    assert kp_server.call(f"{API}/kernels/{kernel}")[1]["checkpoints"] == [kept]
    assert post(kp_server, f"/kernels/{kernel}/checkpoints", {"name": "then"}, 409)["code"] == "name_taken"
    (forked,) = [each["id"] for each in post(kp_server, f"/checkpoints/{kept}/fork")["kernels"]]
    assert kp_server.run(forked, "print(x)") == "then"
    assert kp_server.call(f"{API}/kernels/{forked}")[1]["lineage"] == {"parent": kernel, "checkpoint": kept}
    assert kp_server.call(f"{API}/checkpoints/{kept}", "DELETE")[0] == 204
    assert kp_server.call(f"{API}/checkpoints/{kept}")[0] == 404
    assert kp_server.run(forked, "print(x)") == "then"
    assert kp_server.run(kernel, "print(x)") == "now"


def test_checkpoint_uses_no_processor_and_outlives_a_restart(kp_server: Server, kernel: str) -> None:
    kp_server.run(kernel, "x = 'then'")
    kept = checkpoint(kp_server, kernel)
    (parked,) = [process for process in kp_server.ours() if process.pid not in pids_but_parked(kp_server)]
    before = parked.cpu_times()
    time.sleep(1)
    assert parked.cpu_times() == before
    assert parked.num_threads() == 1
    assert parked.net_connections() == []
    kp_server.wait_warm(1)
    assert kp_server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
    assert kp_server.run(kernel, "print(x)") == "then"
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: not alive(parked), "it ends with its kernel")
    assert kp_server.call(f"{API}/checkpoints/{kept}")[0] == 404


def pids_but_parked(server: Server) -> set[int]:
    """Those of the supervisor, the template, the kernels and the warm ones, which have threads."""
    known = {server.supervisor().pid, server.template()}
    return known | {process.pid for process in server.ours() if process.num_threads() > 1}


def test_the_oldest_without_a_name_makes_room(kp_start: Any) -> None:
    server = kp_start("--KernelPool.max_checkpoints=2")
    server.wait_warm(1)
    kernel = server.start_kernel()
    kept = checkpoint(server, kernel, name="kept")
    checkpoint(server, kernel)
    third = checkpoint(server, kernel)
    listed = [one["id"] for one in server.call(f"{API}/kernels/{kernel}/checkpoints")[1]["checkpoints"]]
    assert listed == [kept, third]
    assert server.call(f"{API}/checkpoints/{third}", "DELETE")[0] == 204
    checkpoint(server, kernel, name="also kept")
    assert post(server, f"/kernels/{kernel}/checkpoints", {}, 409)["reason"] == "too_many"


def test_a_checkpoint_outlives_the_crash_of_its_kernel(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        tab.execute("x = 'before'")
        kept = checkpoint(kp_server, kernel)
        kp_server.wait_warm(1)
        pid = pid_of(kp_server, kernel)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid_of(kp_server, kernel) not in (pid, 0), "it is restarted")
        assert tab.execute("x") == "NameError"
        post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        assert tab.execute("print(x)") == "before"


def test_nothing_of_forks_is_left_when_the_server_is_killed(kp_start: Any) -> None:
    server = kp_start()
    server.wait_warm(1)
    kernel = server.start_kernel()
    fork(server, kernel, count=2)
    checkpoint(server, kernel)
    ours = server.ours()
    assert len(ours) >= 6, "supervisor, template, three kernels and a parked one"
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(alive(process) for process in ours), "all ended")
    eventually(lambda: not list(Path(server.runtime).glob("kernel-*")), "no connection file is left")


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# -- what fails in the middle, and what can not be forked -------------------------------------------


def test_forks_that_find_no_place_are_answered_in_theirs(kp_start: Any) -> None:
    server = kp_start("--KernelPool.max_kernels=3", "--KernelPool.exhausted=fail")
    server.wait_warm(1)
    kernel = server.start_kernel()
    server.run(kernel, "x = 1")
    reply = post(server, f"/kernels/{kernel}/fork", {"count": 4, "name": "try", "files": "copy"})
    first, second, *failed = reply["kernels"]
    assert [server.run(each["id"], "print(x)") for each in (first, second)] == ["1", "1"]
    assert [(each["error"]["code"], each["error"]["limit"]) for each in failed] == [("exhausted", 3)] * 2
    assert all(each["error"]["retry_after"] > 0 for each in failed)
    assert reply["manifest"]["copied"]["to"] == [first["folder"], second["folder"]]
    copied = {str(path) for path in server.runtime.glob("kernelpool-copy-*")}
    assert {first["folder"], second["folder"]} <= copied
    eventually(lambda: len(list(server.runtime.glob("kernelpool-copy-*"))) == 2, "no more copies are left")

    status, headers, refused = server.exchange(f"{API}/kernels/{kernel}/fork", "POST", {"name": "try-3"})
    assert (status, refused["code"], "Retry-After" in headers) == (503, "exhausted", True)
    assert server.call(f"/api/kernels/{first['id']}", "DELETE")[0] == 204
    assert post(server, f"/kernels/{kernel}/fork", {"name": "try-3"})["kernels"][0]["given_name"] == "try-3"


@pytest.mark.parametrize("source", ["kernel", "checkpoint"])
def test_atomic_forks_are_all_or_none(kp_start: Any, source: str) -> None:
    server = kp_start("--KernelPool.max_kernels=3", "--KernelPool.exhausted=fail")
    server.wait_warm(1)
    kernel = server.start_kernel()
    path = f"/kernels/{kernel}/fork"
    if source == "checkpoint":
        path = f"/checkpoints/{checkpoint(server, kernel)}/fork"
    files = set(server.runtime.glob("kernel-*"))
    before = {process.pid for process in server.ours()}
    server.call("/kernelpool/v1/pools/python3", "PATCH", {"warm": 0, "max": 1})
    refused = post(server, path, {"count": 3, "name": "try", "atomic": True}, 503)
    assert refused["code"] == "exhausted"
    assert [each["id"] for each in server.call("/api/kernels")[1]] == [kernel]
    nodes = [node["id"] for node in server.call(f"{API}/lineage")[1]["nodes"] if node["kind"] == "kernel"]
    assert nodes == [kernel]
    assert set(server.runtime.glob("kernel-*")) == files
    eventually(lambda: {process.pid for process in server.ours()} <= before, "no process is left")
    reply = post(server, path, {"count": 2, "name": "try", "atomic": True})
    assert [each["given_name"] for each in reply["kernels"]] == ["try-1", "try-2"], "the names are free again"


def test_dead_kernel_is_not_forked_and_its_checkpoint_is_there(kp_start: Any) -> None:
    server = kp_start("--PooledKernelManager.autorestart=False")
    server.wait_warm(1)
    kernel = server.start_kernel()
    server.run(kernel, "x = 'kept'")
    kept = checkpoint(server, kernel)
    pid = pid_of(server, kernel)
    os.kill(pid, signal.SIGKILL)
    capability = f"{API}/kernels/{kernel}"
    why = eventually(lambda: server.call(capability)[1]["capabilities"]["fork"]["why"], "its end is known")
    assert "dead" in why
    for path, body in ((f"/kernels/{kernel}/fork", {}), (f"/kernels/{kernel}/checkpoints", {})):
        refused = post(server, path, body, 409)
        assert (refused["code"], refused["reason"], refused["message"]) == ("wrong_state", "dead", why)
    (model,) = post(server, f"/checkpoints/{kept}/fork")["kernels"]
    assert server.run(model["id"], "print(x)") == "kept"


def test_starting_kernel_is_not_forked_and_starts_all_the_same(kp_start: Any) -> None:
    server = kp_start("--KernelPool.warm=0")
    eventually(lambda: server.recipe().get("template"), "the template is there")
    kernel = server.start_kernel()
    kept = checkpoint(server, kernel)
    template = psutil.Process(server.template())
    template.suspend()  # the restart waits for a fork of it
    restarted: list[int] = []
    restart = threading.Thread(
        target=lambda: restarted.append(server.call(f"/api/kernels/{kernel}/restart", "POST")[0])
    )
    restart.start()
    try:
        capability = f"{API}/kernels/{kernel}"
        eventually(
            lambda: "starting" in str(server.call(capability)[1]["capabilities"]["fork"]["why"]), "it is starting"
        )
        for path, body in (("fork", {}), ("checkpoints", {}), ("restore", {"checkpoint": kept})):
            refused = post(server, f"/kernels/{kernel}/{path}", body, 409)
            assert (refused["code"], refused["reason"]) == ("wrong_state", "starting"), path
    finally:
        template.resume()
        restart.join()
    assert restarted == [200]
    eventually(lambda: server.call(capability)[1]["capabilities"]["fork"]["available"], "it has started")
    assert server.run(fork(server, kernel)[0], "print(6 * 7)") == "42"


def test_name_that_is_taken_leaves_all_as_it_was(kp_server: Server, kernel: str) -> None:
    fork(kp_server, kernel, name="try-2")
    before = {each["id"] for each in kp_server.call("/api/kernels")[1]}
    for body in ({"name": "try-2"}, {"name": "try", "count": 3}, {"name": kernel}):
        assert post(kp_server, f"/kernels/{kernel}/fork", body, 409)["code"] == "name_taken"
    kept = checkpoint(kp_server, kernel)
    assert post(kp_server, f"/checkpoints/{kept}/fork", {"name": "try-2"}, 409)["code"] == "name_taken"
    assert {each["id"] for each in kp_server.call("/api/kernels")[1]} == before
    (model,) = post(kp_server, f"/kernels/{kernel}/fork", {"name": "try-1"})["kernels"]
    assert model["given_name"] == "try-1", "the refused ones reserved nothing"
