"""What of a kernel's output one client gets, where it has a limit: of iopub and of answers, as `output` judges."""

from __future__ import annotations

from typing import Any

from jupyter_client.session import DELIM

from jupyter_kernelpool.output import (
    ENVELOPE,
    ERRORS,
    OUTPUT,
    SMALL_UPDATE,
    Budget,
    Budgets,
    Cut,
    Drop,
    LeaveOut,
    Pass,
    Verdict,
    display_of,
    fitting,
    marker,
    note,
    shorten_error,
    size_of,
)
from jupyter_kernelpool.output_watch import OutputWatch

HEADER, PARENT, METADATA, CONTENT = range(4)  # of a message's body: without identities and signature


class Gate:
    """One client's. It outlives the client's connection: what comes meanwhile is counted for the next one."""

    def __init__(self, kernel_id: str, session: Any, watch: OutputWatch) -> None:
        """*session* reads and signs the kernel's messages."""
        self.session = session
        self._kernel_id = kernel_id
        self._watch = watch
        self._budgets = Budgets()
        for msg_id, budget in watch.budgets_of(kernel_id).items():
            self._budgets.take(msg_id, budget)

    @property
    def limits(self) -> bool:
        """Whether anything may have to be left out."""
        return self._watch.limited(self._kernel_id)

    def judge(self, parts: list[Any]) -> list[Any] | None:
        """A message of iopub, or an answer, as ZeroMQ gave it: what the client gets instead, None for nothing.

        Raises one of `messages.NO_MESSAGE` for what is none.
        """
        identities, message = self.session.feed_identities(parts)
        body = message[1:]
        judged = self.judge_body(body)
        if judged is body:
            return parts
        return None if judged is None else [*identities, DELIM, self.session.sign(judged[: CONTENT + 1]), *judged]

    def judge_body(self, body: list[Any]) -> list[Any] | None:
        """The same for header, parent's header, metadata, content and buffers."""
        kind = self.session.unpack(body[HEADER])["msg_type"]
        if kind not in OUTPUT and kind not in ERRORS and kind != "clear_output":
            return body
        msg_id = str(self.session.unpack(body[PARENT]).get("msg_id", ""))
        limit = self._watch.limit_of(self._kernel_id, msg_id)
        if not limit:
            return body
        size = size_of(body[CONTENT:])
        if kind in ERRORS:
            return self._shortened(body, size, limit)
        display = display_of(kind, body[CONTENT], self.session.unpack)
        return self._carry_out(self._judge(msg_id, kind, size, limit, display), kind, body, limit)

    def _judge(self, msg_id: str, kind: str, size: int, limit: int, display: str) -> Verdict:
        budget: Budget = self._budgets.of(msg_id)
        return budget.judge(kind, size, limit, display)

    def _carry_out(self, verdict: Verdict, kind: str, body: list[Any], limit: int) -> list[Any] | None:
        match verdict:
            case Pass():
                return body
            case Drop():
                return None
            case Cut(room):
                content = self.session.unpack(body[CONTENT]) if kind == "stream" else {"text": ""}
                text = fitting(str(content["text"]), room - ENVELOPE) + marker(limit)
                return self._as_stream(body, content.get("name", "stderr"), text)
            case LeaveOut(size):
                return self._as_stream(body, "stderr", note(size, limit))

    def _shortened(self, body: list[Any], size: int, limit: int) -> list[Any]:
        """An error as it is, or as much of it as fits; also where it is the answer to its cell."""
        if size <= max(limit, SMALL_UPDATE):
            return body
        content = self.session.unpack(body[CONTENT])
        if "ename" not in content:
            return body  # the answer to a cell that ended well has what its client asked for
        return [*body[:CONTENT], self.session.pack(shorten_error(content, limit))]

    def _as_stream(self, body: list[Any], name: str, text: str) -> list[Any]:
        """*text* in place of the message."""
        header = {**self.session.unpack(body[HEADER]), "msg_type": "stream"}
        pack = self.session.pack
        return [pack(header), body[PARENT], pack({}), pack({"name": name, "text": text})]
