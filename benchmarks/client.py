"""A small asynchronous Jupyter client: sessions and kernels over HTTP, code over websockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from benchmarks.pool import PoolView, read_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROTOCOL = "v1.kernel.websocket.jupyter.org"
PATIENCE = 180.0
"""Seconds a request may take: a burst of cold kernels on a small machine is slow, not broken."""
LOST = 0.3
"""Seconds after a reply until IOPub messages that are missing are taken as lost."""


class Channels:
    """One open kernel websocket."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection
        self._session = uuid.uuid4().hex

    async def execute(self, code: str, *, lost_after: float | None = None) -> str:
        """Run *code*; return the text of its result once reply, idle and result are all here.

        Raises `RuntimeError` when the code raised or the websocket closed, and `TimeoutError` when
        the reply came but IOPub stayed silent for *lost_after* seconds.
        """
        sent = await self.send(code)
        replied = idle = False
        result = ""
        while not (replied and idle):
            frame = await self._read(lost_after if replied else None)
            header, parent, content = decode(frame)
            if parent.get("msg_id") != sent:
                continue
            kind = header["msg_type"]
            if kind == "execute_reply":
                replied = True
                if content["status"] != "ok":
                    raise RuntimeError(f"{code!r} failed: {content.get('ename')}: {content.get('evalue')}")
            elif kind == "execute_result":
                result = content["data"]["text/plain"]
            elif kind == "status" and content["execution_state"] == "idle":
                idle = True
        return result

    async def execute_until_seen(self, code: str) -> tuple[str, int]:
        """As `execute`, but run *code* again where IOPub messages were lost; return also how often.

        After a restart the server's SUB socket may reconnect after the first messages went by: a
        person would see no result and press shift-enter again.
        """
        for again in itertools.count():
            try:
                result = await self.execute(code, lost_after=LOST)
            except TimeoutError:
                continue
            if result:
                return result, again
        raise AssertionError("unreachable")

    async def send(self, code: str) -> str:
        """Ask for *code* to be run, and don't wait for it; the id of the request."""
        message_id = uuid.uuid4().hex
        header = {
            "msg_id": message_id,
            "msg_type": "execute_request",
            "username": "bench",
            "session": self._session,
            "date": "2020-01-01T00:00:00Z",
            "version": "5.4",
        }
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        await self._connection.write_message(encode("shell", header, content), binary=True)
        return message_id

    def close(self) -> None:
        """Close the websocket."""
        self._connection.close()

    async def _read(self, timeout: float | None) -> bytes:
        message = await asyncio.wait_for(asyncio.ensure_future(self._connection.read_message()), timeout)
        if not isinstance(message, bytes):
            raise RuntimeError("the kernel's websocket was closed")
        return message


@dataclass(frozen=True)
class Session:
    """A Jupyter session that `Client.start_session` made."""

    id: str
    kernel_id: str


class Client:
    """Speaks to one server. Holds no state but its address."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"token {token}"}
        self._http = AsyncHTTPClient(force_instance=True, max_clients=1000)
        self._names = itertools.count()

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send one request and return its JSON (None for an empty answer)."""
        request = HTTPRequest(
            self._url + path,
            method=method,
            headers=self._headers,
            connect_timeout=PATIENCE,
            request_timeout=PATIENCE,
            allow_nonstandard_methods=True,
            body=None if body is None else json.dumps(body).encode(),
        )
        response = await self._http.fetch(request)
        return json.loads(response.body) if response.body else None

    async def start_session(self) -> Session:
        """POST /api/sessions with a path that was never used."""
        path = f"bench-{next(self._names)}.ipynb"
        body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
        model = await self.request("POST", "/api/sessions", body)
        return Session(model["id"], model["kernel"]["id"])

    async def delete_session(self, session: Session) -> None:
        """DELETE the session, and its kernel with it."""
        await self.request("DELETE", f"/api/sessions/{session.id}")

    async def start_kernel(self) -> str:
        """POST /api/kernels; return the kernel's id."""
        model = await self.request("POST", "/api/kernels", {"name": "python3"})
        return str(model["id"])

    async def restart_kernel(self, kernel_id: str) -> None:
        """POST …/restart."""
        await self.request("POST", f"/api/kernels/{kernel_id}/restart", {})

    async def delete_kernel(self, kernel_id: str) -> None:
        """DELETE the kernel."""
        await self.request("DELETE", f"/api/kernels/{kernel_id}")

    async def fork_kernel(self, kernel_id: str) -> str:
        """POST …/fork; return the fork's id."""
        answer = await self.request("POST", f"/kernelpool/v1/kernels/{kernel_id}/fork", {})
        return str(answer["kernels"][0]["id"])

    async def take_checkpoint(self, kernel_id: str) -> str:
        """POST …/checkpoints; return the checkpoint's id."""
        model = await self.request("POST", f"/kernelpool/v1/kernels/{kernel_id}/checkpoints", {})
        return str(model["id"])

    async def drop_checkpoint(self, checkpoint: str) -> None:
        """DELETE the checkpoint."""
        await self.request("DELETE", f"/kernelpool/v1/checkpoints/{checkpoint}")

    async def restore_kernel(self, kernel_id: str, checkpoint: str) -> None:
        """POST …/restore."""
        await self.request("POST", f"/kernelpool/v1/kernels/{kernel_id}/restore", {"checkpoint": checkpoint})

    async def count_kernels(self) -> int:
        """How many kernels Jupyter lists."""
        return len(await self.request("GET", "/api/kernels"))

    @asynccontextmanager
    async def channels(self, kernel_id: str) -> AsyncIterator[Channels]:
        """An open websocket to the kernel, with TCP_NODELAY on this side."""
        channels = Channels(await self.connect(kernel_id, uuid.uuid4().hex))
        try:
            yield channels
        finally:
            channels.close()

    async def connect(self, kernel_id: str, session: str) -> WebSocketClientConnection:
        """As `channels`, but the websocket itself, of the client session *session*."""
        url = f"{self._url}/api/kernels/{kernel_id}/channels?session_id={session}"
        request = HTTPRequest(
            url.replace("http", "ws", 1),
            headers=self._headers,
            connect_timeout=PATIENCE,
            request_timeout=PATIENCE,
        )
        connection = await websocket_connect(request, subprotocols=[PROTOCOL])
        if connection.selected_subprotocol != PROTOCOL:
            raise RuntimeError(f"the server does not speak {PROTOCOL}")
        if connection.protocol is not None:
            connection.protocol.set_nodelay(True)
        return connection

    async def read_pool(self) -> PoolView | None:
        """What the pool says of itself, or None on a server without one."""
        try:
            return read_pool(await self.request("GET", "/kernelpool/v1/pool"))
        except HTTPClientError as error:
            if error.code == 404:
                return None
            raise

    async def wait_until_warm(self, warm: int | None = None, *, timeout: float = 120) -> PoolView | None:
        """Wait for *warm* kernels (by default: all the pool wants); at once if there is no pool.

        Returns what was seen last: after *timeout* seconds that may be a pool that is not ready.
        """
        deadline = time.monotonic() + timeout
        while True:
            view = await self.read_pool()
            if view is None or view.is_ready(warm) or time.monotonic() > deadline:
                return view
            await asyncio.sleep(0.05)


def encode(
    channel: str, header: Mapping[str, Any], content: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> bytes:
    """A message in the v1 websocket protocol: offsets, channel and four parts of JSON."""
    parts = [
        channel.encode(),
        json.dumps(header).encode(),
        b"{}",
        json.dumps(metadata or {}).encode(),
        json.dumps(content).encode(),
    ]
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    numbers = [len(offsets), *offsets]
    return b"".join([*(number.to_bytes(8, "little") for number in numbers), *parts])


def decode(frame: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Header, parent header and content of a v1 frame."""
    count = int.from_bytes(frame[:8], "little")
    offsets = [int.from_bytes(frame[8 * (i + 1) : 8 * (i + 2)], "little") for i in range(count)]
    header, parent, content = (json.loads(frame[offsets[i] : offsets[i + 1]]) for i in (1, 2, 4))
    return header, parent, content
