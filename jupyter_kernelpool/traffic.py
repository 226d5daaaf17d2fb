"""Counts what goes over kernel websockets: the metrics' part of the edge."""

from __future__ import annotations

import time
from typing import Any

from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool import metrics
from jupyter_kernelpool.lookout import connected

GRACEFUL = frozenset({1000, 1001, 1005})  # closing codes: done, going away, no code given


class Traffic:
    """Mixin over any kernel websocket connection class of jupyter_server's."""

    websocket_handler: Any
    multi_kernel_manager: Any
    session_id: str
    kernel_id: str
    _open_since: float | None = None

    async def connect(self) -> None:
        """As stock."""
        try:
            connecting = super().connect()  # type: ignore[misc]
            self._count_sent()  # over whatever others have put in its way
            opened = connecting is not None  # stock's says None where it could not
            if opened:
                self._opened()
                await connecting
        except Exception:
            opened = False
            raise
        finally:
            metrics.CONNECTS.labels(outcome="opened" if opened else "failed").inc()

    def disconnect(self) -> Any:
        """As stock; called twice at times."""
        if self._open_since is not None:
            metrics.WEBSOCKETS.dec()
            metrics.CONNECTED.observe(time.monotonic() - self._open_since)
            self._open_since = None
            if self.websocket_handler.close_code not in GRACEFUL:
                metrics.WEBSOCKET_ERRORS.labels(kind="dropped").inc()
        return super().disconnect()  # type: ignore[misc]

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """As stock."""
        try:
            super().handle_incoming_message(incoming_msg)  # type: ignore[misc]
        except Exception:
            metrics.WEBSOCKET_ERRORS.labels(kind="incoming").inc()
            raise

    def _opened(self) -> None:
        self._open_since = time.monotonic()
        metrics.WEBSOCKETS.inc()
        connected(self.multi_kernel_manager, self.kernel_id, self.session_id)

    def _count_sent(self) -> None:
        """Count on the way out, whoever writes there."""
        handler = self.websocket_handler
        write = handler.write_message

        def counted(message: Any, binary: bool = False) -> Any:
            try:
                sent = write(message, binary)
            except WebSocketClosedError:
                metrics.WEBSOCKET_ERRORS.labels(kind="write").inc()
                raise
            if isinstance(message, bytes | str):
                metrics.WEBSOCKET_SENT.inc(len(message))
            return sent

        handler.write_message = counted
