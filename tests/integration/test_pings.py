"""What jupyter_server's pings are for: whoever answers them stays connected, and whoever does not is let go."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.frames import Opcode

from .browsers import PROTOCOL, Browser, browser
from .conftest import TOKEN, Server, eventually
from .test_metrics import value

pytestmark = pytest.mark.integration

P = "jupyter_kernelpool_websocket_"
INTERVAL, TIMEOUT = 0.25, 3.0  # seconds; stock: 30 and 90


@pytest.fixture(scope="module")
def pinging(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that pings often, and soon has enough of who does not answer."""
    settings = {"ws_ping_interval": 1000 * INTERVAL, "ws_ping_timeout": 1000 * TIMEOUT}
    server = kp_servers(tmp_path_factory.mktemp("pinging"), f"--ServerApp.tornado_settings={settings}")
    server.wait_warm(1)
    yield server
    server.stop()


def count_pings(tab: Browser) -> list[Any]:
    """A list that grows with each ping that *tab* gets, and answers."""
    pings: list[Any] = []
    stock = tab.socket.process_event

    def process(event: Any) -> None:
        if event.opcode is Opcode.PING:
            pings.append(event)
        stock(event)

    tab.socket.process_event = process  # type: ignore[method-assign]
    return pings


def test_websocket_that_only_answers_pings_stays_open(pinging: Server) -> None:
    kernel = pinging.start_kernel()
    opened = value(pinging, f"{P}connects_total", outcome="opened")
    with browser(pinging, kernel) as tab:
        assert tab.execute("1 + 1") == "2"
        pings = count_pings(tab)
        began = time.monotonic()
        eventually(lambda: len(pings) >= 3 * TIMEOUT / INTERVAL, "it is pinged for long enough", 60)
        assert time.monotonic() - began > 2 * TIMEOUT
        assert tab.execute("2 + 2") == "4"
        assert value(pinging, f"{P}connects_total", outcome="opened") == opened + 1, "over the same websocket"


@contextlib.contextmanager
def mute(server: Server, kernel: str) -> Iterator[socket.socket]:
    """A client that says nothing once it is connected, and reads nothing: a machine that went to sleep."""
    lines = (
        f"GET /api/kernels/{kernel}/channels?session_id=mute HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}", f"Authorization: token {TOKEN}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}", "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {PROTOCOL}",
    )  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert b" 101 " in connection.recv(100)
        yield connection


def test_websocket_that_answers_no_ping_is_closed_and_what_it_is_sent_is_an_error(pinging: Server) -> None:
    def errors(kind: str) -> float:
        return value(pinging, f"{P}errors_total", kind=kind)

    kernel = pinging.start_kernel()
    write, dropped, log = errors("write"), errors("dropped"), len(pinging.log)
    with mute(pinging, kernel):
        eventually(lambda: value(pinging, f"{P}connections") == 1, "it is connected")
        # Tornado gives a client 5 seconds to close its end, too.
        pinging.client(kernel).execute("import time\nfor _ in range(300): print(_, flush=True); time.sleep(0.1)")
        eventually(lambda: errors("write") > write, "it is closed, and written to")
        assert "ping timeout" in pinging.log[log:]
        eventually(lambda: value(pinging, f"{P}connections") == 0, "it is given up")
        assert errors("dropped") == dropped + 1
    assert pinging.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "its cell goes on"
