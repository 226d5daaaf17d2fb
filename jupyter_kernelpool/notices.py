"""What clients are told beside their kernel's own words, and what their messages tell of it: the websocket's part."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from typing import Any

from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_msg_to_ws_v1,
)
from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.messages import CONTENT, HEADER, NO_MESSAGE, PARENT

V1 = "v1.kernel.websocket.jupyter.org"
REMEMBERED = 100
REFUSED_AFTER = 0.1
ANSWER_WITHIN = 3.0  # seconds after an execution ended in which its reply is to have come
NOT_ANSWERED = (
    "NotAnswered",
    "The kernel has ended this without an answer, as it does where an interrupt comes just when a cell begins or ends. "
    "It may not have run.",
)


def read_incoming(subprotocol: Any, message: Any) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """Channel, header and metadata of what a client sent over its websocket."""
    if subprotocol == V1:
        channel, parts = deserialize_msg_from_ws_v1(message)
        return channel, json.loads(bytes(parts[0])), json.loads(bytes(parts[2]))
    read = deserialize_binary_message(message) if isinstance(message, bytes) else json.loads(message)
    return read.get("channel", "shell"), read.get("header", {}), read.get("metadata", {})


def channel_of(frame: bytes) -> str:
    """The channel of a message as it is sent to a client, in the protocol v1; read alone, for outputs may be large."""
    begin, end = (int.from_bytes(frame[place : place + 8], "little") for place in (8, 16))
    return frame[begin:end].decode("utf-8") if end - begin < len("control") + 1 else ""


def read_requested_limits(metadata: Any) -> Any:
    """The limits that an execute request asks for itself, unchecked: `kernelpool.limits` of its metadata, or None."""
    own = metadata.get("kernelpool") if isinstance(metadata, dict) else None
    return own.get("limits") if isinstance(own, dict) else None


class Notices:
    """Mixin over any kernel websocket connection class of jupyter_server's: an `edge.Connection`."""

    websocket_handler: Any
    multi_kernel_manager: Any
    session: Any
    kernel_id: str
    write_own: Any
    find_replay: Any
    _judging: bool  # what is being written came through `handle_outgoing_message`, or is our own
    _subprotocol: Any = None
    _awaited: dict[str, dict[str, Any]]  # headers of execute requests that the client waits for, by msg_id
    _ended: deque[str]  # the last ones that were answered in the kernel's name
    _refused: dict[str, tuple[dict[str, Any], str, str]]  # those that are not run, and the error that says so

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._awaited = {}
        self._ended = deque(maxlen=REMEMBERED)
        self._refused = {}

    @property
    def edge(self) -> Edge | None:
        """The server's, if its kernel manager is ours."""
        return getattr(self.multi_kernel_manager, "edge", None)

    def remember_protocol(self) -> None:
        """To be called while the client is connected."""
        self._subprotocol = self.subprotocol

    @property
    def subprotocol(self) -> Any:
        """As stock's; others' connection classes have none. None is the protocol of old, in JSON.

        Remembered when the client has gone: what it sent, and was held, would be read in the protocol of old, where the
        first bytes of v1 ask for gigabytes.
        """
        with contextlib.suppress(Exception):  # not connected, or no more
            self._subprotocol = self.websocket_handler.selected_subprotocol
        return self._subprotocol

    async def connect(self) -> None:
        """As stock; afterwards the client is told of what concerns it; what it waited for when it left is answered."""
        replay = self.find_replay()
        if replay is not None:
            self._awaited, self._refused = replay.awaited, replay.refused
        connected = super().connect()  # type: ignore[misc]
        if connected is not None:
            await connected
        if self.edge is not None and self.websocket_handler.ws_connection is not None:  # else it has gone meanwhile
            self.edge.enter(self.kernel_id, self)
            self._answer_refused()
            self._answer_soon(list(self._awaited), self.edge.last_words.get(self.kernel_id, NOT_ANSWERED))

    def disconnect(self) -> Any:
        """As stock; what the client waits for is kept with what is kept for it."""
        if self.edge is not None:
            self.edge.leave(self.kernel_id, self)
        left = super().disconnect()  # type: ignore[misc]
        replay = self.find_replay()
        if replay is not None:
            replay.awaited, replay.refused = self._awaited, self._refused
        return left

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """As stock, which leaves out what comes when the client has gone; takes note of what is asked for."""
        if self.edge is not None and getattr(self, "channels", True):
            with contextlib.suppress(*NO_MESSAGE):  # stock says what is wrong with it
                self._note_incoming(*read_incoming(self.subprotocol, incoming_msg))
        super().handle_incoming_message(incoming_msg)  # type: ignore[misc]

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """As stock; takes note of what is answered. What was answered in the kernel's name is not answered again."""
        channel = getattr(stream, "channel", stream)
        if self.edge is not None and channel in ("shell", "stdin"):
            with contextlib.suppress(*NO_MESSAGE):
                if channel == "shell" and self._is_late(outgoing_msg):
                    return
                self._note_outgoing(channel, outgoing_msg)
        super().handle_outgoing_message(stream, outgoing_msg)  # type: ignore[misc]

    def _write(self, message: Any, binary: bool = False) -> Any:
        """As `Bounded`; takes note of what another's class writes past `handle_outgoing_message`."""
        if binary and not self._judging and self.edge is not None:
            with contextlib.suppress(*NO_MESSAGE):
                self._note_written(message)
        return super()._write(message, binary)  # type: ignore[misc]

    def say(self, text: str, parent: dict[str, Any]) -> None:
        """Show *text* as a line of stderr of the cell with the header *parent* ({}: of the one that the client waits
        for: a cell that keeps its kernel from all else is not known to run)."""
        parent = parent or next(iter(self._awaited.values()), {})
        self.publish("iopub", "stream", {"name": "stderr", "text": text + "\n"}, parent)

    def give_up(self, ename: str, evalue: str) -> list[dict[str, Any]]:
        """End every execution that this client waits for with that error; the headers of those."""
        awaited, self._awaited = list(self._awaited.values()), {}
        ledger = self.edge.ledger(self.kernel_id) if self.edge is not None else None
        for place, header in enumerate(awaited):
            ran = ledger is not None and ledger.find(header["msg_id"]) is not None
            if place == 0 and (ledger is None or ledger.running is None):
                ran = True  # a cell that ends its process, or holds its interpreter, at once is not heard to begin
            self.end_execution(header, ename, evalue, ran=ran)
        return awaited

    def ended(self, msg_id: str) -> None:
        """The kernel has ended the execution with that id, and is to have answered it.

        Upstream workaround: ipykernel sends no reply where an interrupt comes between its taking hold of SIGINT and the
        cell's first line, or after the last; the client would wait for ever.
        https://github.com/ipython/ipykernel/blob/main/ipykernel/kernelbase.py `dispatch_shell`, "KeyboardInterrupt
        caught in kernel". `tests/integration/test_upstream_workarounds.py` tells when this can go.
        """
        if msg_id in self._awaited:
            self._answer_soon([msg_id], NOT_ANSWERED)

    def _answer_soon(self, msg_ids: list[str], words: tuple[str, str]) -> None:
        if msg_ids:
            asyncio.get_running_loop().call_later(ANSWER_WITHIN, self._answer, msg_ids, words)

    def _answer(self, msg_ids: list[str], words: tuple[str, str]) -> None:
        """Answer, in the kernel's name, what it neither runs nor is to run, and has not answered."""
        if self.edge is None or self not in self.edge.connections(self.kernel_id):
            return  # the client has gone: when it comes back
        ledger = self.edge.ledger(self.kernel_id)
        for msg_id in msg_ids:
            if msg_id not in self._awaited or ledger.find(msg_id) is not None or msg_id in ledger.expected:
                continue
            self.end_execution(self._awaited.pop(msg_id), *words, ran=True)

    def refuse(self, header: dict[str, Any], ename: str, evalue: str) -> None:
        """Tell the client soon that this execution is not run, with that error.

        Not at once: one that leaves as it asks would hear nothing of it. It is told when it comes back.
        """
        self._refused[str(header.get("msg_id", ""))] = header, ename, evalue
        asyncio.get_running_loop().call_later(REFUSED_AFTER, self._answer_refused)

    def _answer_refused(self) -> None:
        if self.edge is None or self not in self.edge.connections(self.kernel_id):
            return
        refused, self._refused = self._refused, {}
        for header, ename, evalue in refused.values():
            self.end_execution(header, ename, evalue, ran=False)

    def end_execution(self, header: dict[str, Any], ename: str, evalue: str, *, ran: bool) -> None:
        """End one in the kernel's name, with that error; *ran*: it may have begun."""
        self._ended.append(header["msg_id"])
        error = {"ename": ename, "evalue": evalue, "traceback": [f"{ename}: {evalue}"]}
        if ran:
            self.publish("iopub", "error", error, header)
        else:
            self.say(f"Not run. {evalue}", header)
            if self.edge is not None:
                self.edge.ledger(self.kernel_id).aborted()
        status = "error" if ran else "aborted"
        self.publish("shell", "execute_reply", {"status": status, "execution_count": None, **error}, header)
        self.publish("iopub", "status", {"execution_state": "idle"}, header)

    def declare_restarting(self) -> None:
        """Say that the kernel is restarted without having been asked, as jupyter_server does when one died."""
        self.publish("iopub", "status", {"execution_state": "restarting"}, {})

    def publish(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        """Send the client a message in the kernel's name, as the answer to *parent*."""
        message = self.session.msg(kind, content=content, parent=parent)
        with contextlib.suppress(WebSocketClosedError):
            if self.subprotocol == V1:
                self.write_own(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
            else:
                self.write_own(json.dumps({**message, "channel": channel}, default=str))

    def _note_incoming(self, channel: str | None, header: dict[str, Any], metadata: dict[str, Any]) -> None:
        assert self.edge is not None
        if channel == "shell" and header.get("msg_type") == "execute_request":
            self._awaited[header["msg_id"]] = header
            self.edge.ledger(self.kernel_id).expect(header, time.monotonic())
            limits = read_requested_limits(metadata)
            if limits is not None:
                self.edge.request(self.kernel_id, header["msg_id"], limits)
        elif channel == "stdin":
            self.edge.ledger(self.kernel_id).goes_on(time.monotonic())

    def _note_outgoing(self, channel: str, outgoing_msg: list[Any]) -> None:
        _, parts = self.session.feed_identities(outgoing_msg)
        header, parent = self.session.unpack(parts[HEADER]), self.session.unpack(parts[PARENT])
        self._note_answer(channel, header, parent, parts[CONTENT])

    def _is_late(self, outgoing_msg: list[Any]) -> bool:
        if not self._ended:
            return False
        _, parts = self.session.feed_identities(outgoing_msg)
        return self.session.unpack(parts[PARENT]).get("msg_id") in self._ended

    def _note_written(self, frame: bytes) -> None:
        if channel_of(frame) in ("shell", "stdin"):
            channel, parts = deserialize_msg_from_ws_v1(frame)
            self._note_answer(channel, json.loads(bytes(parts[0])), json.loads(bytes(parts[1])), parts[3])

    def _note_answer(self, channel: str, header: dict[str, Any], parent: dict[str, Any], content: Any) -> None:
        assert self.edge is not None
        msg_id, ledger = parent.get("msg_id", ""), self.edge.ledger(self.kernel_id)
        if channel == "shell":
            ledger.answered(msg_id)
            if self._awaited.pop(msg_id, None) and json.loads(bytes(content)).get("status") == "aborted":
                ledger.aborted()
        elif header["msg_type"] == "input_request":
            ledger.waits(msg_id, time.monotonic())
