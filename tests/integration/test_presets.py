"""Presets on real servers: a hub's server costs next to nothing until somebody uses it, and again afterwards."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from .browsers import browser
from .conftest import TOKEN, Server, eventually, gone

pytestmark = pytest.mark.integration

# What a code runner was asked to have: at least 2 kernels ready and 5 at most, idle 300 s, health every 30 s with 3
# retries, a backoff of 2 and 10 s for a probe, 600 s for what a websocket waits for, pings 30/10, and a wait of 30 s.
CODERUNNER = {
    "KernelPool": {"warm": 2, "max_warm": 5, "max_kernels": 5, "exhausted": "wait", "wait_timeout": 30},
    "KernelCuller": {"idle_timeout": 300, "connected": True},
    "KernelHealth": {"interval": 30, "retries": 3, "backoff": 2, "timeout": 10, "on_unresponsive": "restart"},
    "KernelLimits": {"execution_timeout": 600},
    "ServerApp": {"websocket_ping_interval": 30, "websocket_ping_timeout": 10},
}
# An extension that tells what a server goes by in the end.
SHOWS = """
import json
from types import SimpleNamespace
from jupyter_server.base.handlers import APIHandler
from tornado import web

def _load_jupyter_server_extension(app):
    class Settings(APIHandler):
        @web.authenticated
        def get(self):
            manager = app.kernel_manager
            parts = {
                "KernelPool": manager.pool, "KernelCuller": manager.culler.settings,
                "KernelHealth": manager.care.settings, "KernelLimits": manager.guard.limits,
                "ServerApp": SimpleNamespace(**app.web_app.settings),
            }
            wanted = json.loads(self.get_query_argument("wanted"))
            self.finish({part: {name: getattr(parts[part], name) for name in wanted[part]} for part in wanted})

    app.web_app.add_handlers(".*", [("/settings", Settings)])
"""


def test_hub_has_nothing_warm_before_the_first_kernel_and_nothing_left_when_unused(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    metrics = tmp_path / "hub.prom"
    server = kp_start("--KernelPool.preset=hub", "--KernelPool.recipe_idle=12", f"--KernelPool.metrics_file={metrics}")
    eventually(metrics.is_file, "metrics are written")
    assert server.ours() == [], "no supervisor, no template"
    pool = server.call("/kernelpool/v1/pool")[1]
    assert (pool["enabled"], pool["recipes"], pool["capabilities"]["supervisor"]["alive"]) == (True, [], False)
    kernel = server.start_kernel()
    server.wait_warm(1)
    processes = server.ours()
    hits = server.hit()
    second = server.start_kernel()
    assert server.hit() == hits + 1, "the next one comes from the pool"
    for each in (kernel, second):
        assert server.call(f"/api/kernels/{each}", "DELETE")[0] == 204
    eventually(lambda: gone(processes), "template, warm kernels and supervisor go")
    assert server.ours() == []
    third = server.start_kernel()
    assert server.run(third, "print(1)") == "1"
    server.wait_warm(1)


def test_coderunner_has_its_numbers(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.preset=coderunner", "--KernelPool.wait_timeout=1")
    server.wait_warm(2)
    pool = server.call("/kernelpool/v1/pool")[1]
    assert pool["totals"]["max_kernels"] == 5
    kernels = [server.start_kernel() for _ in range(5)]
    status, headers, refusal = server.exchange("/api/kernels", "POST", {"name": "python3"})
    assert (status, refusal["code"]) == (503, "exhausted"), "and the configuration's wait of 1 s holds"
    assert headers["Retry-After"]
    model = server.call(f"/kernelpool/v1/kernels/{kernels[0]}")[1]
    assert {name: value for name, value in model["limits"].items() if value} == {
        "execution_timeout": 600, "memory": 1 << 30, "output": 10 << 20, "cpu": 0.8,
    }  # fmt: skip
    assert "idle for 300 s" in model["cull"]["why"]


def test_coderunner_goes_by_all_numbers_that_were_asked_for(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "shows.py").write_text(SHOWS)
    server = kp_start("--KernelPool.preset=coderunner", extensions=("shows",), PYTHONPATH=str(tmp_path))
    wanted = quote(json.dumps({part: list(names) for part, names in CODERUNNER.items()}))
    assert server.call(f"/settings?wanted={wanted}") == (200, CODERUNNER)


def mute(server: Server, path: str) -> socket.socket:
    """A client that opens a websocket and then neither says anything nor answers pings."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: token {TOKEN}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b" 101 " in client.recv(4096).split(b"\r\n")[0]
    return client


def until_closed(client: socket.socket) -> float:
    """Read on until the server closes the connection; how many seconds that took."""
    began = time.monotonic()
    with client, contextlib.suppress(ConnectionError):
        while client.recv(65536):
            pass
    return time.monotonic() - began


def test_coderunner_disconnects_whoever_answers_no_pings(kp_start: Callable[..., Server]) -> None:
    """With shorter times than its own; a timeout as long as the interval, or shorter, ends nobody who answers."""
    server = kp_start(
        "--KernelPool.preset=coderunner",
        "--ServerApp.websocket_ping_interval=3",
        "--ServerApp.websocket_ping_timeout=2",
    )
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert until_closed(mute(server, f"/api/kernels/{kernel}/channels?session_id=mute")) < 25
        assert until_closed(mute(server, "/api/events/subscribe")) < 25
        assert tab.execute("print(1)") == "1", "who answers stays connected"
    assert server.log.count("does not answer pings") == 1


def test_pings_that_stock_is_told_hold(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        "--KernelPool.preset=coderunner", "--ServerApp.websocket_ping_interval=1",
        "--ServerApp.websocket_ping_timeout=1", "--ServerApp.tornado_settings={'ws_ping_interval': 1000000}",
    )  # fmt: skip
    server.wait_warm()
    kernel = server.start_kernel()
    client = mute(server, f"/api/kernels/{kernel}/channels?session_id=mute")
    client.settimeout(4)
    with pytest.raises(TimeoutError):
        until_closed(client)
