"""What goes out to a client, bounded: its share of a kernel's output, and what it has not read yet.

Works over connection classes that are not jupyter_server's, too: what those write goes through the websocket handler.
"""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1

from jupyter_kernelpool.allowance import human
from jupyter_kernelpool.gate import Gate
from jupyter_kernelpool.messages import NO_MESSAGE
from jupyter_kernelpool.output_watch import OutputWatch
from jupyter_kernelpool.replay import Kept, Replay

JUDGED = ("iopub", "shell")  # channels on which output comes, and errors, which answers have once more
MOST_PARTS = 1000  # of a message: a frame that says more is none of that protocol
PAUSE_AT = 1 / 8  # share of what may wait for a client, at which its kernel's output is left where it is
NOT_READING = 10.0  # seconds in which a client for which it is left there reads nothing


class Bounded:
    """Mixin over any kernel websocket connection class of jupyter_server's."""

    websocket_handler: Any
    multi_kernel_manager: Any
    session: Any
    kernel_id: str
    log: Any
    _gate: Gate | None = None
    _judging: bool = False  # a message that has passed the gate is being written
    _pending: int = 0  # bytes that the client has not read
    _read: int = 0  # bytes that it has read
    _slow: bool = False
    _paused: asyncio.TimerHandle | None = None  # the kernel's output is left with it; when to look at the client
    _replaying: bool = False  # what is being written was kept while the client was away

    @property
    def _watch(self) -> OutputWatch | None:
        """The server's, if its kernel manager is ours."""
        return getattr(self.multi_kernel_manager, "output_watch", None)

    def connect(self) -> Any:
        """As stock; what is written from now on goes through here."""
        if self._watch is not None:
            self._gate = self._find_gate(self._watch)
            self.websocket_handler.write_message = self._write
        return super().connect()  # type: ignore[misc]

    def disconnect(self) -> Any:
        """As stock; what is kept for the client is held to the limits as what it got."""
        self._end_pause()
        left = super().disconnect()  # type: ignore[misc]
        replay = self.find_replay()
        if replay is not None:
            replay.gate = self._gate
        return left

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """As stock; output beyond its limit is left out."""
        gate = self._gate
        if gate is not None and getattr(stream, "channel", stream) in JUDGED and gate.limits:
            judged = _judge(gate, outgoing_msg)
            if judged is None:
                return
            outgoing_msg = judged
        self._judging, self._replaying = True, isinstance(outgoing_msg, Kept)
        try:
            super().handle_outgoing_message(stream, outgoing_msg)  # type: ignore[misc]
        finally:
            self._judging = self._replaying = False

    def write_own(self, message: Any, binary: bool = False) -> None:
        """Send the client what the server itself has to say, whatever its output is limited to."""
        before, self._judging = self._judging, True
        try:
            self.websocket_handler.write_message(message, binary=binary)
        finally:
            self._judging = before

    def _limit_rate(self, channel: Any, msg: Any, msg_list: Any) -> bool:
        """As stock, which leaves out what comes fast; not where output has a limit, which is ours to hold, nor what was
        kept, which comes at once."""
        if self._replaying or (self._gate is not None and self._gate.limits):
            return False
        return bool(super()._limit_rate(channel, msg, msg_list))  # type: ignore[misc]

    def _find_gate(self, watch: OutputWatch) -> Gate:
        replay = self.find_replay()
        if replay is None or replay.gate is None:
            return Gate(self.kernel_id, self.session, watch)
        replay.gate.session = self.session
        return replay.gate

    def find_replay(self) -> Replay | None:
        """What is kept for this client, if it is ours to know."""
        kept = getattr(self.multi_kernel_manager, "_kernel_buffers", {}).get(self.kernel_id)
        if kept is None or kept["session_key"] != getattr(self, "session_key", None):
            return None
        return kept["buffer"] if isinstance(kept["buffer"], Replay) else None

    def _write(self, message: Any, binary: bool = False) -> Any:
        """In place of the handler's `write_message`, which takes any amount, read or not."""
        handler, done = self.websocket_handler, asyncio.get_running_loop().create_future()
        done.set_result(None)
        if self._slow:
            return done
        if binary and not self._judging and self._gate is not None and self._gate.limits:
            message = _judge_frame(self._gate, message)
            if message is None:
                return done
        most = self.multi_kernel_manager.guard.limits.pending
        if most and self._pending > most:  # before this message: one that is larger by itself is no sign of slowness
            self._cut()
            return done
        size = 0 if self._replaying else len(message)  # what was kept has its own bound
        written = type(handler).write_message(handler, message, binary=binary)
        self._pending += size
        written.add_done_callback(lambda future: self._written(future, size))
        if most and self._pending > PAUSE_AT * most:
            self._pause()
        return written

    def _written(self, future: Any, size: int) -> None:
        self._pending -= size
        self._read += size
        if self._paused is not None and self._pending <= PAUSE_AT / 2 * self.multi_kernel_manager.guard.limits.pending:
            self._end_pause()
            if self._iopub() is not None:
                self._iopub().on_recv_stream(self.handle_outgoing_message)
        if not future.cancelled():
            future.exception()  # the client is gone: its handler is told

    def _pause(self) -> None:
        """Take no more of the kernel's output until the client has read of what waits for it.

        Not where ZeroMQ would take it in the server's place, as from a kernel that is stock's in all.
        """
        iopub = self._iopub()
        if self._paused is None and getattr(iopub, "is_shallow", False):
            iopub.stop_on_recv()
            self._wait_for_reading()

    def _wait_for_reading(self) -> None:
        self._paused = asyncio.get_running_loop().call_later(NOT_READING, self._look_whether_it_reads, self._read)

    def _look_whether_it_reads(self, before: int) -> None:
        if self._read == before:
            self._end_pause()
            self._cut()
        else:
            self._wait_for_reading()

    def _end_pause(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None

    def _iopub(self) -> Any:
        """The stream from which the kernel's output comes; None where another's class has none, or it is closed."""
        iopub = (getattr(self, "channels", None) or {}).get("iopub")
        return iopub if iopub is not None and not iopub.closed() else None

    def _cut(self) -> None:
        """Disconnect the client, which does not read."""
        self._slow = True
        self.log.warning(
            "Kernel %s: a client is disconnected for not reading: %s are pending",
            self.kernel_id,
            human("output", self._pending),
        )
        self.websocket_handler.ws_connection.stream.close()  # not the websocket's close, which would wait for its turn


def _judge(gate: Gate, parts: list[Any]) -> list[Any] | None:
    if isinstance(parts, Kept):
        return parts
    try:
        return gate.judge(parts)
    except NO_MESSAGE:
        return parts  # stock says what is wrong with it


def _judge_frame(gate: Gate, frame: bytes) -> bytes | None:
    """The same for a message as it is sent to the client."""
    if not 2 <= int.from_bytes(frame[:8], "little") <= MOST_PARTS:
        return frame
    try:
        channel, body = deserialize_msg_from_ws_v1(frame)
        judged = gate.judge_body(body) if channel in JUDGED else body
    except NO_MESSAGE:
        return frame
    if judged is None or judged is body:
        return None if judged is None else frame
    return bytes(serialize_msg_to_ws_v1(judged, channel))
