"""The kernel websocket sends small messages at once, whatever connection class the server has."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from jupyter_kernelpool.bounded import Bounded
from jupyter_kernelpool.dead_kernels import DeadKernels
from jupyter_kernelpool.held_replies import HeldReplies
from jupyter_kernelpool.notices import Notices
from jupyter_kernelpool.pings import Pinged
from jupyter_kernelpool.traffic import Traffic
from jupyter_kernelpool.websocket import PooledWebsocketConnection, Prompt, over

pytestmark = pytest.mark.integration

COLD = {"KernelPool": {"warm": 0, "max_warm": 0}}


class Foreign(ZMQChannelsWebsocketConnection):
    """Another extension's connection class, which notes what passes through it."""

    seen: list[str] = []  # noqa: RUF012

    async def connect(self) -> None:  # type: ignore[override]
        self.seen.append("connect")
        await super().connect()

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        self.seen.append("incoming")
        super().handle_incoming_message(incoming_msg)


def server(ours: bool, **more: Any) -> dict[str, Any]:
    return {"ServerApp": {"jpserver_extensions": {"jupyter_kernelpool": ours}, **more}, **(COLD if ours else {})}


@pytest.fixture(autouse=True)
def forget_connections() -> Iterator[None]:
    yield
    Foreign.seen.clear()


@pytest.fixture
def connected(jp_serverapp: Any, jp_fetch: Callable[..., Any], jp_ws_fetch: Callable[..., Any]) -> Callable[[], Any]:
    """Opens a kernel websocket (`async with connected() as connection`): the server's end of it."""
    return lambda: open_websocket(jp_serverapp, jp_fetch, jp_ws_fetch)


@contextlib.asynccontextmanager
async def open_websocket(
    jp_serverapp: Any, jp_fetch: Callable[..., Any], jp_ws_fetch: Callable[..., Any]
) -> AsyncIterator[Any]:
    """A kernel, and the server's end of a websocket on which it has answered."""
    reply = await jp_fetch("api", "kernels", method="POST", body=json.dumps({"name": "python3"}))
    kernel = json.loads(reply.body)["id"]
    made: list[Any] = []
    chosen = jp_serverapp.web_app.settings["kernel_websocket_connection_class"]

    class Noted(chosen):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    jp_serverapp.web_app.settings["kernel_websocket_connection_class"] = Noted
    client = await jp_ws_fetch("api", "kernels", kernel, "channels")
    try:
        header = {"msg_id": "1", "msg_type": "kernel_info_request", "session": "s", "username": "", "version": "5"}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": {}}
        client.write_message(json.dumps(message))
        async with asyncio.timeout(30):
            while json.loads(await client.read_message())["msg_type"] != "kernel_info_reply":
                pass
        (only,) = made
        yield only
    finally:
        client.close()
        await jp_fetch("api", "kernels", kernel, method="DELETE")


def sends_at_once(connection: Any) -> bool:
    stream = connection.websocket_handler.ws_connection.stream
    return bool(stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


@pytest.mark.parametrize("jp_server_config", [server(True)])
async def test_our_websocket_sends_at_once(connected: Callable[[], Any]) -> None:
    async with connected() as connection:
        assert isinstance(connection, PooledWebsocketConnection)
        assert sends_at_once(connection)


@pytest.mark.parametrize("jp_server_config", [server(False)])
async def test_stock_still_lacks_nodelay(connected: Callable[[], Any]) -> None:
    """Fails when upstream sets TCP_NODELAY itself: the `set_nodelay` in jupyter_kernelpool/websocket.py can then go."""
    async with connected() as connection:
        assert not isinstance(connection, Prompt)
        assert not sends_at_once(connection)


@pytest.mark.parametrize("jp_server_config", [server(True, kernel_websocket_connection_class=Foreign)])
async def test_foreign_connection_class_keeps_its_behaviour(connected: Callable[[], Any]) -> None:
    async with connected() as connection:
        assert isinstance(connection, Foreign)
        assert Foreign.seen == ["connect", "incoming"]
        assert sends_at_once(connection)


def test_over_puts_ours_on_top_and_only_once() -> None:
    ours = over(Foreign)
    assert ours.__mro__[1:9] == (Prompt, Pinged, DeadKernels, HeldReplies, Notices, Traffic, Bounded, Foreign)
    assert over(ours) is ours
    assert over(PooledWebsocketConnection) is PooledWebsocketConnection
