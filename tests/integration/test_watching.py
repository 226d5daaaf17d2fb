"""What an operator is told of real kernels and clients: metrics, and the file for node_exporter."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .browsers import browser, execution
from .conftest import PATIENCE, Server, eventually
from .test_metrics import value

pytestmark = pytest.mark.integration

P = "jupyter_kernelpool_"


def executions(server: Server, outcome: str) -> float:
    return value(server, f"{P}execution_seconds_count", outcome=outcome)


def errors(server: Server) -> dict[str, float]:
    """Those cells that came to no good end, by kind; the kinds that there were."""
    kinds = ("exception", "interrupted", "timeout", "killed", "died", "cancelled", "aborted")
    counted = {kind: value(server, f"{P}execution_errors_total", kind=kind) for kind in kinds}
    return {kind: number for kind, number in counted.items() if number}


def test_cells_are_counted_for_how_they_ended(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelLimits.execution_timeout=4")
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        tab.execute("print('x' * 5000)")
        eventually(lambda: executions(server, "ok") == 1, "ok")
        assert value(server, f"{P}execution_output_bytes_sum") >= 5000
        assert tab.execute("1/0") == "ZeroDivisionError"
        eventually(lambda: executions(server, "error") == 1, "error")
        tab.execute("import time; time.sleep(30)")
        eventually(lambda: executions(server, "timeout") == 1, "timeout")
    assert value(server, f"{P}breaches_total", limit="execution_timeout", outcome="interrupted") == 1
    server.client(kernel).execute("import os, time; time.sleep(0.5); os._exit(1)")
    eventually(lambda: executions(server, "died") == 1, "died")
    eventually(lambda: value(server, f"{P}restarts_total", cause="died") == 1, "the restart")
    client = server.client(kernel)
    client.execute("import time; time.sleep(30)")
    while client.get_iopub_msg(timeout=PATIENCE)["msg_type"] != "execute_input":
        pass  # `busy` alone may be of what the client asked as it connected
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "busy")
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    eventually(lambda: executions(server, "cancelled") == 1, "cancelled")
    assert value(server, f"{P}restarts_total", cause="asked") == 1
    assert {one: executions(server, one) for one in ("ok", "error", "timeout", "killed", "died", "cancelled")} == {
        "ok": 1, "error": 1, "timeout": 1, "killed": 0, "died": 1, "cancelled": 1,
    }  # fmt: skip
    assert errors(server) == {"exception": 1, "timeout": 1, "died": 1, "cancelled": 1}


def test_errors_that_are_no_exceptions_are_told_from_those(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelHealth.recovery=never", "--KernelLimits.output=10k")
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        first = tab.send("execute_request", execution("import time; print('runs', flush=True); time.sleep(30)"))
        behind = tab.send("execute_request", execution("2 + 2"))
        while tab.receive()["header"]["msg_type"] != "stream":
            pass
        assert server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
        assert tab.until_idle(first)[0]["ename"] == "KeyboardInterrupt"
        assert tab.until_idle(behind)[0]["status"] == "aborted"
        eventually(lambda: errors(server) == {"interrupted": 1, "aborted": 1}, "the interrupt and what it cost")
        assert tab.execute("raise ValueError('KeyboardInterrupt')") == "ValueError"
        eventually(lambda: errors(server).get("exception") == 1, "an exception")
        tab.execute("while True: print('x' * 100)")
        eventually(lambda: errors(server).get("killed") == 1, "ended for a limit")
        tab.send("execute_request", execution("import os, time; time.sleep(0.5); os._exit(1)"))
        eventually(lambda: errors(server).get("died") == 1, "the process ended")
        eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "dead", "it stays dead")
        assert tab.ask("execute_request", execution("3 + 3"))["status"] == "aborted"
    assert errors(server) == {"interrupted": 1, "aborted": 2, "exception": 1, "killed": 1, "died": 1}
    assert executions(server, "error") == 2, "of which one was interrupted"


def test_forks_checkpoints_and_restores_are_measured_and_refusals_counted(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    path = f"/kernelpool/v1/kernels/{kernel}"
    assert kp_server.call(f"{path}/fork", "POST", {})[0] == 201
    checkpoint = kp_server.call(f"{path}/checkpoints", "POST", {})[1]["id"]
    assert kp_server.call(f"{path}/restore", "POST", {"checkpoint": checkpoint})[0] == 200
    for operation in ("fork", "checkpoint", "restore"):
        assert value(kp_server, f"{P}forking_seconds_count", operation=operation) == 1
        assert 0 < value(kp_server, f"{P}forking_seconds_sum", operation=operation) < 30
    other = kp_server.start_kernel()
    assert kp_server.call(f"{path}/restore", "POST", {"kernel": other})[0] == 409
    assert value(kp_server, f"{P}forking_failures_total", operation="restore", code="not_related") == 1
    assert value(kp_server, f"{P}forking_seconds_count", operation="restore") == 1


def test_websockets_are_counted_from_their_opening_to_their_end(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    kernel = server.start_kernel()

    def now(name: str, **labels: str) -> float:
        return value(server, f"{P}websocket_{name}", **labels)

    with browser(server, kernel, session="tab") as tab:
        assert tab.execute("1 + 1") == "2"
        assert now("connections") == now("connects_total", outcome="opened") == 1
        sent = now("sent_bytes_total")
        tab.execute("print('x' * 100_000)")
        assert 100_000 < now("sent_bytes_total") - sent < 110_000
    eventually(lambda: now("duration_seconds_count") == 1, "it is closed")
    assert now("connections") == now("reconnects_total") == now("errors_total", kind="dropped") == 0
    with browser(server, kernel, session="tab") as tab:
        assert tab.execute("1 + 1") == "2"
        assert now("reconnects_total") == 1
        tab.socket.close_socket()
    eventually(lambda: now("errors_total", kind="dropped") == 1, "it was dropped")
    eventually(lambda: now("connections") == 0, "none is open")
    with browser(server, kernel, session="another"):
        eventually(lambda: now("connections") == 1, "the third is open")
    assert now("reconnects_total") == 1
    assert now("connects_total", outcome="failed") == 0


def test_a_message_that_cannot_be_read_is_counted(kp_server: Server) -> None:
    def counted() -> float:
        return value(kp_server, f"{P}websocket_errors_total", kind="incoming")

    kernel, before = kp_server.start_kernel(), counted()
    with browser(kp_server, kernel) as tab:
        assert tab.execute("1 + 1") == "2"
        assert counted() == before
        tab.socket.send("text, where the protocol has none")
        eventually(lambda: counted() == before + 1, "it is counted")
    with browser(kp_server, kernel) as tab:
        assert tab.execute("2 + 2") == "4", "the kernel has nothing to do with that"
    assert counted() == before + 1


def test_metrics_file_is_there_while_the_server_is(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "jupyter-ada.prom"
    server = kp_start("--KernelPool.metrics_file=" + str(tmp_path / "jupyter-$HUB_USER.prom"), HUB_USER="ada")
    eventually(file.exists, "the file is there")
    server.start_kernel()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert (f"{P}websocket_connections", (("server", "jupyter-ada"),)) in samples
    assert all(name.startswith(P) for name, _ in samples)
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    assert not file.exists()
