"""Kernels' websockets under a preset that sets pings: as often as `ServerApp.websocket_ping_interval` says, and with as
long to answer as `ServerApp.websocket_ping_timeout` does.

jupyter_server (`WebSocketMixin`) goes by `ws_ping_interval` and `ws_ping_timeout` of tornado's settings there, which
can't say this: it looks for the last answer when the next ping is due, so a timeout below the interval ends everybody.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tornado.ioloop import IOLoop, PeriodicCallback

from jupyter_kernelpool.presets import sets_pings

STOCKS_OWN = ("ws_ping_interval", "ws_ping_timeout")


class Pinged:
    """Mixin over any kernel websocket connection class of jupyter_server's that has `Bounded`."""

    websocket_handler: Any
    multi_kernel_manager: Any
    kernel_id: str
    log: Any
    _pending: int
    _read: int
    _pings: PeriodicCallback | None = None
    _answer_due: asyncio.TimerHandle | None = None

    def connect(self) -> Any:
        """As stock; stock's pings are replaced where the preset has its own."""
        handler = self.websocket_handler
        interval = handler.settings.get("websocket_ping_interval")
        preset = str(getattr(getattr(self.multi_kernel_manager, "pool", None), "preset", ""))
        if interval and sets_pings(preset) and not any(name in handler.settings for name in STOCKS_OWN):
            if handler.ping_callback is not None:
                handler.ping_callback.stop()
            self._pings = PeriodicCallback(self._ping, 1000 * interval)
            self._pings.start()
        return super().connect()  # type: ignore[misc]

    def disconnect(self) -> Any:
        """As stock; called twice at times."""
        if self._pings is not None:
            self._pings.stop()
        if self._answer_due is not None:
            self._answer_due.cancel()
        return super().disconnect()  # type: ignore[misc]

    def _ping(self) -> None:
        handler = self.websocket_handler
        if handler.ws_connection is None or handler.ws_connection.is_closing():
            return  # who closes it gives it some time, and then it is disconnected
        handler.ping(b"")
        timeout = handler.settings.get("websocket_ping_timeout")
        if timeout:
            asked, read = IOLoop.current().time(), self._read if self._pending else None
            self._answer_due = asyncio.get_running_loop().call_later(timeout, self._look_for_answer, asked, read)

    def _look_for_answer(self, asked: float, read: int | None) -> None:
        """*read* is what the client had read when it was *asked*, if more waited for it: it may still be at that."""
        handler = self.websocket_handler
        if handler.last_pong >= asked or (read is not None and read < self._read):
            return
        self.log.warning("Kernel %s: a client is disconnected, for it does not answer pings", self.kernel_id)
        handler.close()
