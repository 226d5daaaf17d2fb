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
from dataclasses import dataclass
from typing import Any

from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool.activity import HEADER, PARENT

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class Held:
    """A message that is held; *request* is the id of the cell that it is the answer to, None if it only came after."""

    stream: Any
    message: list[Any]
    request: str | None


class HeldReplies:
    """Mixin over any kernel websocket connection class of jupyter_server's that has `Notices`."""

    multi_kernel_manager: Any
    session: Any
    kernel_id: str
    find_replay: Any
    _awaited: dict[str, dict[str, Any]]
    _held_replies: deque[Held]  # in the order in which they came
    _settling: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held_replies = deque()

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """As stock, but for answers, and what comes after them."""
        is_shell = getattr(stream, "channel", stream) == "shell"
        request = self._request_of(outgoing_msg) if is_shell else None
        if not is_shell or (request is None and not self._held_replies):
            super().handle_outgoing_message(stream, outgoing_msg)  # type: ignore[misc]
            return
        self._held_replies.append(Held(stream, outgoing_msg, request))
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle(), name="kernelpool-held-replies")

    def give_up(self, ename: str, evalue: str) -> list[dict[str, Any]]:
        """As `Notices`; what is held was answered by the kernel itself."""
        self._pass_on(len(self._held_replies))
        return super().give_up(ename, evalue)  # type: ignore[misc, no-any-return]

    def disconnect(self) -> Any:
        """As stock; what is held is kept for the client, which has gone."""
        left = super().disconnect()  # type: ignore[misc]
        replay = self.find_replay()
        while self._held_replies:
            held = self._held_replies.popleft()
            if replay is not None:
                replay.append((getattr(held.stream, "channel", held.stream), held.message))
        return left

    async def _settle(self) -> None:
        """One look for all that is held when it begins: nothing waits for its turn."""
        while self._held_replies:
            count = len(self._held_replies)
            requests = [held.request for held in self._held_replies if held.request is not None]
            header = next((self._awaited[one] for one in requests if one in self._awaited), None)
            if header is not None:
                try:
                    await self.multi_kernel_manager.guard.settle(self.kernel_id, header)
                except Exception:
                    log.exception("Kernel %s: whether a limit ended a process of it could not be seen", self.kernel_id)
            self._pass_on(count)

    def _pass_on(self, count: int) -> None:
        """Let the first *count* go, or as many as there still are; but no answer that was given in the kernel's name
        meanwhile."""
        for _ in range(min(count, len(self._held_replies))):
            held = self._held_replies.popleft()
            if held.request is not None and held.request not in self._awaited:
                continue
            try:
                super().handle_outgoing_message(held.stream, held.message)  # type: ignore[misc]
            except (OSError, WebSocketClosedError):
                pass  # the client goes just now
            except Exception:
                log.exception("Kernel %s: an answer could not be passed on", self.kernel_id)

    def _answer(self, msg_ids: list[str], words: tuple[str, str]) -> None:
        """As `Notices`; what is held is answered."""
        held = {one.request for one in self._held_replies}
        super()._answer([msg_id for msg_id in msg_ids if msg_id not in held], words)  # type: ignore[misc]

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
