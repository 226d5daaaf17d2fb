"""Where limits on output can't be held, that is said."""

from __future__ import annotations

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from jupyter_kernelpool.rest.pool import why_unbounded
from jupyter_kernelpool.websocket import PooledWebsocketConnection, over

CLASS = "kernel_websocket_connection_class"


class Foreign(ZMQChannelsWebsocketConnection):
    """Another extension's."""


def test_output_is_bounded_where_ours_is_over_the_class() -> None:
    assert why_unbounded({CLASS: PooledWebsocketConnection}) is None
    assert why_unbounded({CLASS: over(Foreign), "page_config_data": {"serverSideExecution": "false"}}) is None


def test_class_that_was_set_after_ours_is_named() -> None:
    assert f"{__name__}.Foreign was set" in str(why_unbounded({CLASS: Foreign}))


def test_cells_that_run_in_the_server_are_named() -> None:
    settings = {CLASS: over(Foreign), "page_config_data": {"serverSideExecution": "true"}}
    assert "into the document" in str(why_unbounded(settings))
