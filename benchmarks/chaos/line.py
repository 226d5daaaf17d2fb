"""A client's websocket to one kernel, that notices how each cell ends: answered, or told why not."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tornado.websocket import WebSocketClosedError

from benchmarks.client import decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornado.websocket import WebSocketClientConnection

    from benchmarks.chaos.journal import Journal
    from benchmarks.chaos.judge import Execution
    from benchmarks.client import Client

NEWS = ("restarting", "autorestarting", "dead")
ASK_EVERY = 5.0
RESULT_WITHIN = 10.0


class Line:
    """The websocket of one client session; may be closed and opened again, the session stays."""

    def __init__(self, client: Client, journal: Journal, kernel: str) -> None:
        self._client = client
        self._journal = journal
        self.kernel = kernel
        self._session = uuid.uuid4().hex
        self._connection: WebSocketClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._reading = asyncio.Event()
        self._reading.set()
        self._waiting: dict[str, tuple[Execution, asyncio.Event]] = {}
        self._results: dict[str, str] = {}
        self._known: asyncio.Event | None = None
        self.news = 0
        """How often the kernel was said to restart or to be dead."""
        self.dead = False
        self.fresh = False
        """Whether the kernel has answered since the last news."""

    @property
    def is_open(self) -> bool:
        """Whether the websocket is open."""
        return self._connection is not None

    async def open(self) -> None:
        """Open the websocket, with the session of before."""
        assert self._connection is None
        self._connection = await self._client.connect(self.kernel, self._session)
        self.fresh = False
        self._reader = asyncio.create_task(self._read(self._connection))

    async def close(self) -> None:
        """Close the websocket; what was sent is still waited for."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        await self._end_reader()

    def cut(self) -> None:
        """The network between client and server fails: no farewell."""
        if self._connection is not None and self._connection.protocol is not None:
            stream = getattr(self._connection.protocol, "stream", None)
            if stream is not None:
                stream.close()
            self._gone(self._connection)

    def stop_reading(self) -> None:
        """Be a slow client, until `go_on`."""
        self._reading.clear()

    def go_on(self) -> None:
        """Read again."""
        self._reading.set()

    async def answers(self, patience: float) -> bool:
        """Ask the kernel for its info, as JupyterLab does after it connected or a restart; whether it answered."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while loop.time() < deadline and self.is_open and not self.dead:
            self._known = asyncio.Event()
            await self._send("shell", "kernel_info_request", uuid.uuid4().hex, {})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), ASK_EVERY)
                self.fresh = True
                return True
        return False

    async def send(self, execution: Execution, code: str, limits: Mapping[str, Any] | None = None) -> None:
        """Send a cell; where the websocket is closed, that is what its client is told."""
        self._waiting[execution.id] = (execution, asyncio.Event())
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": True,
        }  # fmt: skip
        metadata = {"kernelpool": {"limits": limits}} if limits else None
        if not await self._send("shell", "execute_request", execution.id, content, metadata):
            self._settle(execution.id, "closed")

    async def wait(self, execution: Execution, seconds: float) -> bool:
        """Wait until it is known what became of *execution*; False after *seconds*."""
        found = self._waiting.get(execution.id)
        if found is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(found[1].wait(), seconds)
        return bool(execution.outcome)

    def settle_all(self, outcome: str) -> None:
        """Whatever is waited for has ended with *outcome*."""
        for execution_id in list(self._waiting):
            self._settle(execution_id, outcome)

    async def result(self, execution: Execution) -> str:
        """The text of its result, which may come after the reply; "" if there was none."""
        deadline = asyncio.get_running_loop().time() + RESULT_WITHIN
        while execution.id not in self._results and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return self._results.pop(execution.id, "")

    async def _send(
        self,
        channel: str,
        kind: str,
        message_id: str,
        content: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        header = {
            "msg_id": message_id, "msg_type": kind, "username": "chaos", "session": self._session,
            "date": "2020-01-01T00:00:00Z", "version": "5.4",
        }  # fmt: skip
        connection = self._connection
        if connection is None:
            return False
        try:
            await connection.write_message(encode(channel, header, content, metadata), binary=True)
        except (WebSocketClosedError, OSError):
            self._gone(connection)
            return False
        return True

    async def _read(self, connection: WebSocketClientConnection) -> None:
        while True:
            await self._reading.wait()
            message = await connection.read_message()
            if message is None:
                self._gone(connection)
                return
            if isinstance(message, bytes):
                self._hear(*decode(message))

    def _hear(self, header: dict[str, Any], parent: dict[str, Any], content: dict[str, Any]) -> None:
        kind, asked = header["msg_type"], parent.get("msg_id", "")
        if kind == "execute_reply":
            status = content["status"]
            self._settle(asked, f"error {content.get('ename')}" if status == "error" else status)
        elif kind == "kernel_info_reply":
            if self._known is not None:
                self._known.set()
        elif kind == "execute_result":
            self._results[asked] = content["data"]["text/plain"]
        elif kind == "status" and content["execution_state"] in NEWS:
            self.news += 1
            self.fresh = False
            self.dead = content["execution_state"] == "dead"
            self.settle_all(content["execution_state"])

    def _settle(self, execution_id: str, outcome: str) -> None:
        found = self._waiting.pop(execution_id, None)
        if found is not None:
            self._journal.ended(found[0], outcome)
            found[1].set()

    def _gone(self, connection: WebSocketClientConnection) -> None:
        if connection is self._connection:  # else it was closed by its client
            self._connection = None
            self.settle_all("closed")

    async def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
