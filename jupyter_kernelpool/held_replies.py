"""The answer to a cell, kept back until it is told what a limit did to the kernel meanwhile.

A cell that crossed a limit may be over before anybody looked, as where the operating system kills a process that it had
started, or gives it no more. What is said of it belongs into that cell, and a client takes it for that until it has the
answer (JupyterLab: until it has both the answer and `idle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool.cell_ends import CellEnd, read_end
from jupyter_kernelpool.messages import HEADER, NO_MESSAGE, PARENT

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class Held:
    """A message that is held; *end* is that of the cell that it is the answer to, None if it only came after."""

    stream: Any
    message: list[Any]
    end: CellEnd | None

    @property
    def request(self) -> str | None:
        """The cell's id."""
        return str(self.end.header["msg_id"]) if self.end is not None else None


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
        end = self._end_of(outgoing_msg) if is_shell else None
        if not is_shell or (end is None and not self._held_replies):
            super().handle_outgoing_message(stream, outgoing_msg)  # type: ignore[misc]
            return
        self._held_replies.append(Held(stream, outgoing_msg, end))
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
            ends = [held.end for held in self._held_replies if held.end is not None]
            end = next((one for one in ends if one.header["msg_id"] in self._awaited), None)
            if end is not None:
                try:
                    await self.multi_kernel_manager.guard.settle(self.kernel_id, end)
                except Exception:
                    log.exception("Kernel %s: what a limit did to it could not be seen", self.kernel_id)
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

    def _end_of(self, message: list[Any]) -> CellEnd | None:
        """The end of the cell that *message* is the answer to, if that is to be held; None, else."""
        guard = getattr(self.multi_kernel_manager, "guard", None)
        if guard is None or not guard.looks_at_ends(self.kernel_id):
            return None
        with contextlib.suppress(*NO_MESSAGE):
            _, parts = self.session.feed_identities(message)
            header = self._awaited.get(str(self.session.unpack(parts[PARENT])["msg_id"]))
            if header is not None and self.session.unpack(parts[HEADER])["msg_type"] == "execute_reply":
                end = read_end(parts, self.session.unpack, header)
                return end if guard.is_worth_a_look(self.kernel_id, end) else None
        return None
