"""Promises of the pool that need a server with settings of its own to be seen."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psutil
import pytest

from .browsers import execution
from .conftest import Server, eventually, gone
from .test_clients import Browser, browser, pid_of, unpack
from .traces import listeners, warm_processes, write_spec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

COLD = ("--KernelPool.max_warm=0", "--KernelPool.warm=0")


def told(server: Server, kernel: str) -> dict[str, Any]:
    """What /kernelpool/v1/kernels says about *kernel*."""
    status, model = server.call(f"/kernelpool/v1/kernels/{kernel}")
    assert status == 200, model
    return dict(model)


def restart(server: Server, kernel: str) -> None:
    status, model = server.call(f"/api/kernels/{kernel}/restart", "POST")
    assert (status, model.get("id")) == (200, kernel), model


def comes_back(server: Server, kernel: str, former: int) -> int:
    """Wait until another process than *former* serves *kernel*; returns its pid."""
    return int(eventually(lambda: pid_of(server, kernel) not in (former, 0) and pid_of(server, kernel), "it is back"))


def test_environment_of_the_kernelspec_wins_over_the_servers(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    write_spec(tmp_path / "data", "own", env={"OVERRIDDEN": "2", "EXTENDED": "${INHERITED}:more"})
    server = kp_start(
        "--KernelPool.recipes={'own': {'warm': 1}}",
        JUPYTER_PATH=str(tmp_path / "data"), OVERRIDDEN="1", EXTENDED="1", INHERITED="kept",
    )  # fmt: skip
    server.wait_warm(1, "own")
    hits = server.recipe("own")["hits"]
    kernel = server.start_kernel(name="own")
    assert server.recipe("own")["hits"] == hits + 1
    names = ("OVERRIDDEN", "EXTENDED", "INHERITED")
    code = f"import os, subprocess, sys; print(*(os.environ[name] for name in {names}))"
    assert server.run(kernel, code) == "2 kept:more kept"
    child = "print(subprocess.check_output(['printenv', 'OVERRIDDEN'], text=True))"
    assert server.run(kernel, child) == "2", "children inherit it, too"


def test_a_restart_at_the_limit_is_no_new_kernel(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.max_kernels=1", "--KernelPool.exhausted=fail")
    server.wait_warm()
    kernel = server.start_kernel()
    first = pid_of(server, kernel)
    restart(server, kernel)
    second = comes_back(server, kernel, first)
    os.kill(second, signal.SIGKILL)
    comes_back(server, kernel, second)
    assert server.run(kernel, "print(6 * 7)") == "42"
    assert server.call("/api/kernels", "POST", {"name": "python3"})[0] == 503, "the limit still holds"
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    server.start_kernel()  # the restarts left nothing pending


def test_a_kernel_beyond_the_limit_is_cold_and_temporary_for_good(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.max_kernels=1", "--KernelPool.exhausted=temporary")
    server.wait_warm()
    first = server.start_kernel()
    server.wait_warm()
    hits = server.hit()
    second = server.start_kernel()
    assert server.run(second, "print(6 * 7)") == "42"
    assert (told(server, first)["temporary"], told(server, first)["way"]) == (False, "template")
    assert (told(server, second)["temporary"], told(server, second)["way"]) == (True, "cold")
    former = pid_of(server, second)
    restart(server, second)
    former = comes_back(server, second, former)
    assert server.run(second, "print(6 * 7)") == "42"
    assert (told(server, second)["temporary"], told(server, second)["way"]) == (True, "cold")
    os.kill(former, signal.SIGKILL)
    comes_back(server, second, former)
    assert (told(server, second)["temporary"], told(server, second)["way"]) == (True, "cold")
    assert server.hit() == hits, "none of it took a warm kernel"
    former = pid_of(server, first)
    restart(server, first)
    comes_back(server, first, former)
    assert (told(server, first)["temporary"], told(server, first)["way"]) == (False, "template")
    assert server.call(f"/api/kernels/{first}", "DELETE")[0] == 204
    assert server.call(f"/api/kernels/{second}", "DELETE")[0] == 204
    assert told(server, server.start_kernel())["temporary"] is False, "below the limit again"


def hear_restart(tab: Browser) -> None:
    """Wait until the websocket tells that the kernel is restarting, as stock's does after a kernel's death."""
    state = None
    while state != "restarting":
        frame = tab.socket.recv(timeout=30)
        assert isinstance(frame, bytes), "a binary frame"
        message = unpack(frame)
        if message["header"]["msg_type"] == "status":
            assert message["channel"] == "iopub"
            state = message["content"]["execution_state"]


def test_an_open_websocket_hears_that_the_killed_kernel_restarts(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    assert told(kp_server, kernel)["way"] == "template"
    with browser(kp_server, kernel) as first, browser(kp_server, kernel) as second:
        assert first.execute("x = 1; print(x)") == "1"
        assert second.execute("print(x)") == "1"
        for _ in range(2):  # its successor's end is told, too
            former = pid_of(kp_server, kernel)
            os.kill(former, signal.SIGKILL)
            hear_restart(first)
            hear_restart(second)
            comes_back(kp_server, kernel, former)
            assert first.execute("print('x' in globals())") == "False"
            assert second.execute("x = 1; print(x)") == "1"


def test_a_burst_of_starts_makes_as_many_kernels_of_their_own(kp_start: Callable[..., Server]) -> None:
    count = 24
    server = kp_start()
    server.wait_warm()
    barrier = Barrier(count)

    def post(_: int) -> tuple[int, Any]:
        barrier.wait()
        return server.call("/api/kernels", "POST", {"name": "python3"})

    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(post, range(count)))
    assert [status for status, _ in answers] == [201] * count, answers
    kernels = [kernel["id"] for _, kernel in answers]
    assert len(set(kernels)) == count
    assert {kernel["id"] for kernel in server.call("/api/kernels")[1]} == set(kernels)
    infos = [json.loads(server.connection_file(kernel).read_text()) for kernel in kernels]
    ports = [value for info in infos for name, value in info.items() if name.endswith("_port")]
    assert len(ports) == len(set(ports)) == 5 * count
    assert len({info["key"] for info in infos}) == count
    pids = [int(server.run(kernel, "import os; print(os.getpid())")) for kernel in kernels]
    assert len(set(pids)) == count
    assert pids == [pid_of(server, kernel) for kernel in kernels], "each answers on its own ports"


def end_by_sigterm(server: Server, way: str) -> dict[str, Any]:
    """What is to be seen when SIGTERM is sent to a kernel that started in *way*."""
    kernel = server.start_session("terminated.ipynb")["kernel"]["id"]
    assert told(server, kernel)["way"] == way
    left = server.root / "left.txt"
    with browser(server, kernel) as tab:
        tab.execute(f"import atexit; x = 1; atexit.register(lambda: open({str(left)!r}, 'w').write('done'))")
        former = psutil.Process(pid_of(server, kernel))
        info = json.loads(server.connection_file(kernel).read_text())
        former.send_signal(signal.SIGTERM)
        eventually(lambda: gone([former]), "the process ended")
        at_exit = left.exists()
        hear_restart(tab)
        comes_back(server, kernel, former.pid)
        fresh = tab.execute("'x' in globals()")
        session = tab.execute("import os; os.environ['JPY_SESSION_NAME'].rsplit('/', 1)[1]")
    return {
        "at_exit": at_exit,
        "fresh": fresh,
        "session": session,
        "same_connection": json.loads(server.connection_file(kernel).read_text()) == info,
        "kernels": [model["id"] == kernel for model in server.call("/api/kernels")[1]],
        "way": told(server, kernel)["way"] == way,
    }


def test_cells_of_two_kernels_run_at_the_same_time(kp_server: Server) -> None:
    kp_server.wait_warm()
    with browser(kp_server, kp_server.start_kernel()) as one, browser(kp_server, kp_server.start_kernel()) as other:
        for tab in (one, other):
            assert tab.execute("import time") == ""
        began = time.monotonic()
        cells = [(tab, tab.send("execute_request", execution("time.sleep(2)"))) for tab in (one, other)]
        for tab, cell in cells:
            assert tab.until_idle(cell)[0]["status"] == "ok"
        assert 2 <= time.monotonic() - began < 3.5, "one after the other they would take 4 seconds"


def test_sigterm_ends_a_claimed_kernel_as_it_ends_a_cold_one(kp_start: Callable[..., Server]) -> None:
    pooling = kp_start()
    pooling.wait_warm()
    claimed = end_by_sigterm(pooling, "template")
    pooling.stop()
    assert claimed == end_by_sigterm(kp_start(*COLD), "cold")
    assert (claimed["fresh"], claimed["kernels"], claimed["same_connection"]) == ("False", [True], True)


def reachable(process: psutil.Process) -> list[Any]:
    """The sockets of *process* that somebody else could find: on the network, or by a name in the system."""
    return [*process.net_connections("inet"), *named(process)]


def named(process: psutil.Process) -> list[Any]:
    connections: list[Any] = process.net_connections("unix")
    return [connection for connection in connections if connection.laddr]


def test_template_listens_on_nothing(kp_start: Callable[..., Server]) -> None:
    """And no socket of a warm kernel has a name in the system."""
    server = kp_start()
    for _ in range(2):  # the second time with a kernel claimed, and successors of it forked since
        server.wait_warm()
        warm = warm_processes(server)
        assert len(warm) >= 2
        assert reachable(psutil.Process(server.template())) == []
        assert [found for process in warm for found in named(process)] == []
        kernel = server.start_kernel()
        assert server.run(kernel, "print(6 * 7)") == "42"
        info = json.loads(server.connection_file(kernel).read_text())
        serves = {connection.laddr.port for connection in listeners(psutil.Process(pid_of(server, kernel)))}
        assert serves >= {value for name, value in info.items() if name.endswith("_port")}, "listeners are found"
