"""The state comes back after a crash: an out-of-memory kill takes the kernel's process, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

from .conftest import Server, eventually, gone
from .test_clients import Browser, browser, execution
from .test_forking import API, checkpoint, fork, pid_of, post
from .test_transports import reconnected
from .test_undo import change, undo

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

AFTER = ("restarted", "restarted cold", "left dead")


@pytest.fixture(scope="module", params=AFTER)
def after(request: pytest.FixtureRequest) -> str:
    """What Jupyter does when the kernel's process has ended."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory, after: str) -> Iterator[Server]:
    options = [f"--PooledKernelManager.autorestart={after != 'left dead'}"]
    server = kp_servers(tmp_path_factory.mktemp("server"), *options)
    yield server
    server.stop()


@pytest.fixture
def kernel(server: Server) -> Iterator[str]:
    scale(server, warm=1, max=2)
    server.wait_warm(1)
    yield server.start_kernel()
    for each in server.call("/api/kernels")[1]:
        server.call(f"/api/kernels/{each['id']}", "DELETE")


def scale(server: Server, **settings: int) -> None:
    assert server.call(f"{API}/pools/python3", "PATCH", settings)[0] == 200


def run_out_of_memory(server: Server, kernel: str, tab: Browser, after: str) -> str:
    """The system kills the kernel in the middle of a cell; the id of its request."""
    pid = pid_of(server, kernel)
    if after == "restarted":
        server.wait_warm(1)
    if after == "restarted cold":
        scale(server, warm=0, max=0)
    request = tab.send("execute_request", execution("x = 'lost'\nwhile True: pass"))
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    os.kill(pid, signal.SIGKILL)
    if after == "left dead":
        eventually(lambda: server.call(f"{API}/kernels/{kernel}")[1]["state"] == "dead", "its end is known")
        return request
    eventually(lambda: pid_of(server, kernel) not in (pid, 0), "it is restarted")
    eventually(lambda: hears(tab), "the notebook hears it")
    assert tab.execute("x") == "NameError"
    way = server.call(f"{API}/kernels/{kernel}")[1]["way"]
    assert way == ("cold" if after == "restarted cold" else "template")
    return request


def hears(tab: Browser) -> bool:
    """Whether *tab* hears its kernel: a cold one may answer before ZeroMQ has connected it, as with stock."""
    with contextlib.suppress(TimeoutError):
        return bool(tab.until_idle(tab.send("kernel_info_request", {}), timeout=2)[0])
    return False


def carries_on(server: Server, kernel: str, tab: Browser, client: BlockingKernelClient, expected: str) -> None:
    """Whoever was connected before the crash goes on with the state that came back."""
    assert tab.execute("print(x)") == expected
    reconnected(client)
    assert server.run(client, "print(x)") == expected
    assert server.run(client, "x += '!'; print(x)") == f"{expected}!"
    assert tab.execute("print(x)") == f"{expected}!"
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "idle", "it rests")
    assert server.call(f"{API}/kernels/{kernel}")[1]["state"] == "active"


def test_last_checkpoint_is_restored_for_the_clients_of_before(server: Server, kernel: str, after: str) -> None:
    client = server.client(kernel)
    info = server.connection_file(kernel).read_text()
    with browser(server, kernel) as tab:
        tab.execute("x = 'first'")
        checkpoint(server, kernel)
        tab.execute("x = 'last'")
        last = checkpoint(server, kernel)
        for _ in range(2):  # a crash again, of the restored one
            run_out_of_memory(server, kernel, tab, after)
            post(server, f"/kernels/{kernel}/restore", {"checkpoint": last}, 200)
            carries_on(server, kernel, tab, client, "last")
    assert json.loads(server.connection_file(kernel).read_text()) == json.loads(info)
    (forked,) = fork(server, kernel)
    assert server.run(forked, "print(x)") == "last!", "it is a kernel of the pool again"
    client.execute("while True: pass")
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    assert server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    assert client.get_shell_msg(timeout=20)["content"]["ename"] == "KeyboardInterrupt"


def test_crash_is_undone_like_a_cell(server: Server, kernel: str, after: str) -> None:
    change(server, kernel, undo_steps=3)
    client = server.client(kernel)
    with browser(server, kernel) as tab:
        tab.execute("x = 'first'")
        tab.execute("x = 'last'")
        run_out_of_memory(server, kernel, tab, after)
        if after != "left dead":
            tab.execute("y = 1")
        # Of what runs in a kernel that started cold nothing is kept: the state of before is one step away.
        undo(server, kernel, 3 if after == "restarted" else 1)
        carries_on(server, kernel, tab, client, "last")
        undo(server, kernel, 5, expect=409)
        undo(server, kernel, 3)
        assert tab.execute("print(x)") == "last", "cells are kept again"


@pytest.mark.parametrize("after", ["restarted"], indirect=True)
def test_a_cell_restores_the_last_checkpoint_after_the_crash(server: Server, kernel: str, after: str) -> None:
    with browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        checkpoint(server, kernel)
        run_out_of_memory(server, kernel, tab, after)
        tab.execute("%restore")
        assert tab.execute("print(x)") == "kept"


def test_a_relative_is_taken_back_after_the_crash(server: Server, kernel: str, after: str) -> None:
    client = server.client(kernel)
    with browser(server, kernel) as tab:
        tab.execute("x = 'mine'")
        (forked,) = fork(server, kernel)
        server.run(forked, "x = 'of the fork'")
        run_out_of_memory(server, kernel, tab, after)
        post(server, f"/kernels/{kernel}/restore", {"kernel": forked}, 200)
        carries_on(server, kernel, tab, client, "of the fork")
    assert server.run(forked, "print(x)") == "of the fork"


def test_what_is_no_relative_is_refused_after_the_crash_too(server: Server, kernel: str, after: str) -> None:
    server.wait_warm(1)
    stranger = server.start_kernel()
    own, other = checkpoint(server, kernel), checkpoint(server, stranger)
    with browser(server, kernel) as tab:
        run_out_of_memory(server, kernel, tab, after)
    before = server.call(f"{API}/kernels/{kernel}")[1]
    for body in ({"checkpoint": other}, {"kernel": stranger}):
        assert post(server, f"/kernels/{kernel}/restore", body, 409)["code"] == "not_related"
    assert post(server, f"/kernels/{kernel}/restore", {"checkpoint": "nothing"}, 404)["code"] == "not_found"
    now = server.call(f"{API}/kernels/{kernel}")[1]
    assert (now["pid"], now["state"], now["checkpoints"]) == (before["pid"], before["state"], [own])


@pytest.mark.parametrize("after", ["left dead"], indirect=True)
def test_clients_that_tried_for_hours_are_back_at_once(server: Server, kernel: str, after: str) -> None:
    """ZeroMQ gives a connection up that nobody greets within 30 s, and makes another: all wait to be accepted."""
    info = json.loads(server.connection_file(kernel).read_text())
    with browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        kept = checkpoint(server, kernel)
        run_out_of_memory(server, kernel, tab, after)
        for name in ("shell", "iopub", "stdin", "control", "hb"):
            for _ in range(300):
                with contextlib.closing(socket.socket()) as one:
                    one.settimeout(5)
                    one.connect(("127.0.0.1", info[f"{name}_port"]))
        post(server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        assert tab.execute("print(x)") == "kept"
        assert server.run(kernel, "print(x)") == "kept"


@pytest.mark.parametrize("after", ["left dead"], indirect=True)
def test_dead_kernel_without_relatives_stays_dead_and_says_so(server: Server, kernel: str, after: str) -> None:
    with browser(server, kernel) as tab:
        run_out_of_memory(server, kernel, tab, after)
    server.wait_warm(1)
    stranger = server.start_kernel()
    refused: Any = post(server, f"/kernels/{kernel}/restore", {"kernel": stranger}, 409)
    assert (refused["code"], refused["reason"]) == ("wrong_state", "dead")


@pytest.mark.parametrize("after", ["left dead"], indirect=True)
def test_what_the_dead_process_left_ends_when_another_takes_its_place(server: Server, kernel: str, after: str) -> None:
    """A command, and a pool's workers, which a checkpoint keeps from seeing the end of their parent."""
    server.run(kernel, "import multiprocessing as m, subprocess; pool = m.get_context('fork').Pool(2)")
    kept = checkpoint(server, kernel)
    code = "command = subprocess.Popen(['sleep', '600']); print(command.pid, *[p.pid for p in pool._pool])"
    left = [psutil.Process(int(pid)) for pid in server.run(kernel, code).split()]
    with browser(server, kernel) as tab:
        run_out_of_memory(server, kernel, tab, after)
        assert not any(gone([one]) for one in left)
        post(server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        eventually(lambda: gone(left), "they ended")
        assert tab.execute("'command' in globals()") == "False"


@pytest.mark.parametrize("after", ["left dead"], indirect=True)
def test_cell_that_ran_in_the_dead_process_ends_with_an_error(server: Server, kernel: str, after: str) -> None:
    kept = checkpoint(server, kernel)
    with browser(server, kernel) as tab:
        request = run_out_of_memory(server, kernel, tab, after)
        post(server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        reply, _ = tab.until_idle(request)
        assert (reply["status"], reply["ename"]) == ("error", "KernelDied")
        assert tab.execute("print('at work')") == "at work"


@pytest.mark.parametrize("on_breach", ["kill", "restore"])
def test_kernel_that_was_ended_for_a_limit_has_its_last_checkpoint(
    kp_start: Callable[..., Server], on_breach: str
) -> None:
    server = kp_start("--KernelLimits.memory=400M", f"--KernelLimits.on_breach={on_breach}")
    server.wait_warm(1)
    kernel = server.start_kernel()
    client = server.client(kernel)
    with browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        kept = checkpoint(server, kernel)
        pid = pid_of(server, kernel)
        tab.send("execute_request", execution("x = bytearray(b'1') * 900_000_000\nwhile True: pass"))
        if on_breach == "kill":
            eventually(lambda: server.call(f"/api/kernels/{kernel}")[1].get("reason"), "it is ended, and says why")
            assert server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "dead"
            restored = post(server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
            assert (restored["execution_state"], "reason" in restored) == ("idle", False)
        else:
            eventually(lambda: pid_of(server, kernel) not in (pid, 0), "it is restored by itself")
            eventually(lambda: hears(tab), "the notebook hears it")
        carries_on(server, kernel, tab, client, "kept")
