"""The websocket edge: no Nagle's algorithm between kernel and client, and no poll for a kernel just claimed.

Upstream workaround: jupyter_server never sets TCP_NODELAY on kernel websockets, so the second of two small
messages waits for the delayed acknowledgement of the first (40 ms on Linux). tornado sets it for HTTP
responses only. https://github.com/jupyter-server/jupyter_server/blob/main/jupyter_server/services/kernels/websocket.py
`tests/integration/test_websocket.py::test_stock_still_lacks_nodelay` fails when upstream does it, and this can go.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class Prompt:
    """Mixin over any kernel websocket connection class of jupyter_server's."""

    websocket_handler: Any
    kernel_manager: Any

    def connect(self) -> Any:
        """Called by the websocket handler once the connection is open; it awaits what this returns."""
        self.websocket_handler.set_nodelay(True)
        provisioner = getattr(self.kernel_manager, "pooled", None)
        process = provisioner.claimed if provisioner is not None else None
        if process is None or process.serving.done():
            return super().connect()  # type: ignore[misc]
        return asyncio.ensure_future(self._connect_once(process.serving))

    async def _connect_once(self, serving: asyncio.Future[None]) -> None:
        """Wait the few milliseconds that a claimed kernel needs to serve; stock would look again after 50."""
        with contextlib.suppress(Exception):  # a kernel that ended meanwhile is stock's business below
            await asyncio.shield(serving)
        if self.websocket_handler.ws_connection is not None:
            await super().connect()  # type: ignore[misc]


class PooledWebsocketConnection(Prompt, ZMQChannelsWebsocketConnection):
    """jupyter_server's own connection class with ours over it; works with any kernel manager."""


def over(connection_class: type) -> type:
    """*connection_class* with our mixin over it; itself if it has that already."""
    if issubclass(connection_class, Prompt):
        return connection_class
    return type(f"Pooled{connection_class.__name__}", (Prompt, connection_class), {})
