"""Warm kernels are nobody's: no list, count, gauge, culler or activity check of stock's sees one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import Server, eventually
from .traces import traces, warm_processes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def running_gauge(server: Server) -> float:
    """The sum of stock's gauge of running kernels, from /metrics; 0 where it has no sample."""
    text = server.call("/metrics")[1]
    samples = [line for line in text.splitlines() if line.startswith("kernel_currently_running_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


def test_nothing_is_to_be_seen_before_a_user_comes(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    looked = 0

    def look() -> bool:
        nonlocal looked
        looked += 1
        status, answer = server.call("/api/status")
        assert status == 200, answer
        assert answer["kernels"] == 0
        assert answer["connections"] == 0
        assert server.call("/api/kernels") == (200, [])
        assert server.call("/api/sessions") == (200, [])
        assert running_gauge(server) == 0
        return bool(server.recipe().get("warm", 0) >= 2)

    eventually(look, "two kernels are warm")  # each look is beside a load, a launch or two warm kernels
    assert looked > 3
    assert look()
    server.start_kernel()
    assert server.call("/api/status")[1]["kernels"] == 1
    assert running_gauge(server) == 1


def test_refilling_is_no_activity(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    before = server.call("/api/status")[1]["last_activity"]
    server.wait_warm()  # asks /kernelpool/v1/pool all the time, too
    assert server.call("/api/status")[1]["last_activity"] == before


def shape(value: Any) -> Any:
    """Keys and types of a JSON value."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in sorted(value.items())}
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value).__name__


def test_models_of_a_claimed_kernel_have_stocks_keys(kp_server: Server, kp_start: Callable[..., Server]) -> None:
    stock = kp_start("--KernelPool.enabled=False")
    kp_server.wait_warm()
    hits = kp_server.hit()
    shapes = []
    for server in (kp_server, stock):
        status, headers, posted = server.exchange("/api/kernels", "POST", {"name": "python3"})
        assert status == 201
        assert headers["Location"] == f"/api/kernels/{posted['id']}"
        assert posted["connections"] == 0
        server.run(posted["id"], "1")
        session = server.start_session("folder.ipynb")
        answers = [
            posted,
            server.call(f"/api/kernels/{posted['id']}")[1],
            session,
            server.call(f"/api/sessions/{session['id']}")[1],
            server.call("/api/kernels")[1],
            server.call("/api/sessions")[1],
            server.call("/api/status")[1],
            server.call(f"/api/kernels/{posted['id']}/restart", "POST")[1],
        ]
        shapes.append([shape(answer) for answer in answers])
        assert server.call(f"/api/sessions/{session['id']}", "DELETE")[0] == 204
    assert shapes[0] == shapes[1]
    assert kp_server.hit() >= hits + 1


def test_last_activity_of_a_claimed_kernel_moves_when_it_works(kp_server: Server) -> None:
    kp_server.wait_warm()
    time.sleep(1)  # a kernel that was warm for a while is not "active since" then
    asked = time.time()
    kernel = kp_server.start_kernel()

    def last_activity() -> float:
        from datetime import datetime

        text = kp_server.call(f"/api/kernels/{kernel}")[1]["last_activity"]
        return datetime.fromisoformat(text).timestamp()

    assert last_activity() >= asked - 0.1
    first = last_activity()
    time.sleep(0.2)
    kp_server.run(kernel, "1")
    eventually(lambda: last_activity() > first, "stock's watcher heard the kernel", 5)


def test_culler_ends_claimed_kernels_and_never_warm_ones(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--MappingKernelManager.cull_idle_timeout=2", "--MappingKernelManager.cull_interval=1")
    server.wait_warm()
    kernel = server.start_kernel()
    server.run(kernel, "1")
    server.wait_warm()
    pid = server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"]
    warm = {process.pid for process in warm_processes(server)}
    assert len(warm) >= 2
    eventually(lambda: server.call("/api/kernels")[1] == [], "the claimed one is culled", 20)
    eventually(lambda: not psutil.pid_exists(pid), "its process ended", 10)
    time.sleep(4)  # idle for longer than the culler allows
    assert warm <= {process.pid for process in warm_processes(server)}
    before = server.hit()
    assert server.run(server.start_kernel(), "print(1)") == "1"
    assert server.hit() == before + 1


# jupyter_server looks once a minute whether it is used: `ServerApp.init_shutdown_no_activity`.
OFTEN = """
from tornado import ioloop

class Often(ioloop.PeriodicCallback):
    def __init__(self, callback, callback_time):
        super().__init__(callback, 2000 if callback_time == 60000 else callback_time)

ioloop.PeriodicCallback = Often
"""


def test_server_without_users_shuts_down_although_kernels_are_warm(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "often.py").write_text(OFTEN)
    server = kp_start(f"--config={tmp_path / 'often.py'}", "--ServerApp.shutdown_no_activity_timeout=10")
    server.wait_warm()
    before = traces(server)
    assert server.process is not None
    assert server.process.wait(60) == 0
    assert "shutting down" in server.log
    eventually(lambda: before.left() == [], "nothing is left", 5)
