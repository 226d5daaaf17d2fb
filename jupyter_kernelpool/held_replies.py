"""The answer to a cell, kept back until it is told what a limit did to the kernel meanwhile.

Where the operating system kills a process that a cell had started, the cell is over within milliseconds. What is said
of it belongs into that cell, and a client takes it for that until it has the answer (JupyterLab: until it has both the
answer and `idle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Any

from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool.activity import HEADER, PARENT

log = logging.getLogger("jupyter_kernelpool")


class HeldReplies:
    """Mixin over any kernel websocket connection class of jupyter_server's that has `Notices`."""

    multi_kernel_manager: Any
    session: Any
    kernel_id: str
    find_replay: Any
    _awaited: dict[str, dict[str, Any]]
    _held_replies: deque[tuple[Any, list[Any]]]  # with what came after them, in order
    _settling: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held_replies = deque()

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """As stock, but for answers, and what comes after them."""
        if getattr(stream, "channel", stream) != "shell" or not (
            self._held_replies or self._request_of(outgoing_msg) is not None
        ):
            super().handle_outgoing_message(stream, outgoing_msg)  # type: ignore[misc]
            return
        self._held_replies.append((stream, outgoing_msg))
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle(), name="kernelpool-held-replies")

    def disconnect(self) -> Any:
        """As stock; what is held is kept for the client, which has gone."""
        left = super().disconnect()  # type: ignore[misc]
        replay = self.find_replay()
        while self._held_replies:
            stream, message = self._held_replies.popleft()
            if replay is not None:
                replay.append((getattr(stream, "channel", stream), message))
        return left

    async def _settle(self) -> None:
        while self._held_replies:
            request = self._request_of(self._held_replies[0][1])
            if request is not None:
                try:
                    await self.multi_kernel_manager.guard.settle(self.kernel_id, self._awaited[request])
                except Exception:
                    log.exception("Kernel %s: whether a limit ended a process of it could not be seen", self.kernel_id)
                if not self._held_replies:
                    return  # its client has gone
            stream, message = self._held_replies.popleft()
            if request is None or request in self._awaited:  # else it was answered in the kernel's name meanwhile
                with contextlib.suppress(OSError, WebSocketClosedError):  # the client goes just now
                    super().handle_outgoing_message(stream, message)  # type: ignore[misc]

    def _request_of(self, message: list[Any]) -> str | None:
        """The id of the cell that *message* is the answer to, if that is to be held; None, else."""
        guard = getattr(self.multi_kernel_manager, "guard", None)
        if guard is None or not guard.kills_at_once(self.kernel_id):
            return None
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
            _, parts = self.session.feed_identities(message)
            msg_id = str(self.session.unpack(parts[PARENT])["msg_id"])
            if self.session.unpack(parts[HEADER])["msg_type"] == "execute_reply" and msg_id in self._awaited:
                return msg_id
        return None
