"""Each alert of a real server, driven just past its line and just under. Lines on times are driven with a margin that a
busy machine does not use up; `tests/unit/test_alerts.py` draws them exactly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from .browsers import browser
from .conftest import Server, eventually
from .test_metrics import value
from .test_watching import executions

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

P = "jupyter_kernelpool_"


def alert(server: Server, name: str) -> dict[str, Any]:
    status, answer = server.call("/kernelpool/v1/alerts")
    assert status == 200
    return dict(next(one for one in answer["alerts"] if one["name"] == name))


def install(server: Server, name: str, *argv: str) -> None:
    folder = server.folder / "data" / "kernels" / name
    folder.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))


def fires(server: Server, name: str) -> bool:
    """Whether the alert fires, by REST; its gauge says the same."""
    firing = alert(server, name)["firing"]
    assert value(server, f"{P}alert_firing", alert=name) == firing
    return bool(firing)


def test_reconnects_of_one_session_fire_beyond_three_and_restarts_are_pardoned(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    kernel = server.start_kernel()

    def connect() -> None:
        with browser(server, kernel, session="tab") as tab:
            assert tab.execute("1 + 1") == "2"

    for _ in range(4):
        connect()
    assert (alert(server, "reconnects")["firing"], alert(server, "reconnects")["value"]) == (False, 3)
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    connect()
    assert alert(server, "reconnects")["value"] == 3
    kernel = server.start_kernel()
    for _ in range(5):
        connect()
    assert (alert(server, "reconnects")["firing"], alert(server, "reconnects")["value"]) == (True, 4)
    assert value(server, f"{P}alert_firing", alert="reconnects") == 1
    assert value(server, f"{P}session_reconnects") == 4
    assert "Alert reconnects: 4, more than 3" in server.log


def test_failures_fire_beyond_a_tenth_and_users_errors_are_none(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm()
    install(server, "absent", str(server.folder / "no" / "such" / "program"))
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        for _ in range(10):
            assert tab.execute("1/0") == "ZeroDivisionError"
        for _ in range(7):
            assert tab.execute("1 + 1") == "2"
        eventually(lambda: executions(server, "error") + executions(server, "ok") == 17, "seventeen have ended")
        assert alert(server, "execution_failures")["value"] == 0
    server.client(kernel).execute("import os, time; time.sleep(0.5); os._exit(1)")
    eventually(lambda: value(server, f"{P}restarts_total", cause="died") == 1, "it died, and is back")
    assert alert(server, "execution_failures")["value"] == pytest.approx(1 / 18)
    assert not fires(server, "execution_failures")
    assert server.call("/api/kernels", "POST", {"name": "absent"})[0] == 500
    assert fires(server, "execution_failures")
    found = alert(server, "execution_failures")
    assert found["value"] == pytest.approx(2 / 19)
    assert found["since"] is not None
    with browser(server, kernel) as tab:
        assert tab.execute("1 + 1") == "2"
    eventually(lambda: alert(server, "execution_failures")["value"] == 0.1, "a tenth, and no more")
    assert not fires(server, "execution_failures")
    assert "Alert execution_failures: 0.105, more than 0.1" in server.log
    assert "Alert execution_failures is over" in server.log


def test_timeouts_fire_beyond_a_twentieth(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelLimits.execution_timeout=3")
    server.wait_warm()
    with browser(server, server.start_kernel()) as tab:
        for _ in range(18):
            assert tab.execute("1 + 1") == "2"
        eventually(lambda: executions(server, "ok") == 18, "eighteen have ended")
        assert alert(server, "execution_timeouts")["value"] == 0
        tab.execute("import time; time.sleep(30)")
        eventually(lambda: executions(server, "timeout") == 1, "one took too long")
        assert alert(server, "execution_timeouts")["value"] == pytest.approx(1 / 19)
        assert fires(server, "execution_timeouts")
        assert not fires(server, "execution_failures"), "5 % are no failures yet"
        assert tab.execute("1 + 1") == "2"
        eventually(lambda: executions(server, "ok") == 19, "one more that is well")
    assert alert(server, "execution_timeouts")["value"] == 0.05
    assert not fires(server, "execution_timeouts")


def test_cells_that_take_longer_than_they_did_fire(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelAlerts.least=1")
    code = "import time, pathlib; time.sleep(float(pathlib.Path('seconds').read_text()))"
    with browser(server, server.start_kernel()) as tab:

        def run(seconds: float, times: int) -> None:
            before = executions(server, "ok")
            (server.root / "seconds").write_text(str(seconds))
            for _ in range(times):
                tab.execute(code)
            eventually(lambda: executions(server, "ok") == before + times, "they have ended")

        run(2.0, 5)
        assert alert(server, "slow_executions")["value"] is None, "there is nothing to compare them with"
        run(3.0, 1)
        assert 1 < alert(server, "slow_executions")["value"] < 2
        assert not fires(server, "slow_executions")
        run(6.0, 2)
        assert alert(server, "slow_executions")["value"] > 2
        assert fires(server, "slow_executions")
    assert value(server, f"{P}slowness_ratio", of="execution") > 2
    assert not fires(server, "slow_starts")
    assert code not in server.log


def test_starts_that_take_longer_than_they_did_fire(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelAlerts.least=1", "--KernelPool.max_warm=0", "--KernelPool.warm=0")
    seconds = server.folder / "seconds"
    script = f'sleep $(cat "{seconds}"); exec "{sys.executable}" -m ipykernel_launcher -f "$1"'
    install(server, "sleepy", "sh", "-c", script, "sleepy", "{connection_file}")

    def ready() -> float:
        return value(server, f"{P}events_total", type="ready")

    def start(delay: float, times: int) -> None:
        before = ready()
        seconds.write_text(str(delay))
        for _ in range(times):
            server.start_kernel(name="sleepy")
        eventually(lambda: ready() == before + times, "they are ready", 60)

    start(6.0, 5)
    assert alert(server, "slow_starts")["value"] is None, "there is nothing to compare them with"
    start(8.0, 1)
    assert 0 < alert(server, "slow_starts")["value"] < 2
    assert not fires(server, "slow_starts")
    start(24.0, 2)
    assert alert(server, "slow_starts")["value"] > 2
    assert fires(server, "slow_starts")
    assert value(server, f"{P}slowness_ratio", of="start") > 2
