"""The websocket edge. Today: no Nagle's algorithm between kernel and client.

Upstream workaround: jupyter_server never sets TCP_NODELAY on kernel websockets, so the second of two small
messages waits for the delayed acknowledgement of the first (40 ms on Linux). tornado sets it for HTTP
responses only. https://github.com/jupyter-server/jupyter_server/blob/main/jupyter_server/services/kernels/websocket.py
`tests/test_websocket.py::test_stock_still_lacks_nodelay` fails when upstream does it, and this can go.
"""

from __future__ import annotations

from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


class NoDelay:
    """Mixin over any kernel websocket connection class of jupyter_server's."""

    websocket_handler: Any

    def connect(self) -> Any:
        """Called by the websocket handler once the connection is open."""
        self.websocket_handler.set_nodelay(True)
        return super().connect()  # type: ignore[misc]


class PooledWebsocketConnection(NoDelay, ZMQChannelsWebsocketConnection):
    """jupyter_server's own connection class with ours over it; works with any kernel manager."""


def over(connection_class: type) -> type:
    """*connection_class* with our mixin over it; itself if it has that already."""
    if issubclass(connection_class, NoDelay):
        return connection_class
    return type(f"Pooled{connection_class.__name__}", (NoDelay, connection_class), {})
