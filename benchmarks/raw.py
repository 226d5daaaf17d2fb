"""A raw ZeroMQ client of one kernel, made from its connection file: the websocket's measure.

It blocks. That is on purpose: it is the fastest a Python client can be, and nothing else runs while
it is timed.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq
from jupyter_client.client import KernelClient


class RawClient:
    """Shell and IOPub of one kernel. A context manager: leaving it closes the sockets."""

    def __init__(self, connection_file: Path) -> None:
        self._context = zmq.Context()
        # A kernel that is still starting has not bound its ports: ask again at once, not after the
        # default 100 ms.
        self._context.setsockopt(zmq.RECONNECT_IVL, 1)
        self._context.setsockopt(zmq.LINGER, 0)
        client = KernelClient(context=self._context)
        client.load_connection_file(str(connection_file))
        self._session = client.session
        self._shell: zmq.Socket[bytes] = client.connect_shell()
        self._iopub: zmq.Socket[bytes] = client.connect_iopub()
        self._poller = zmq.Poller()
        self._poller.register(self._shell, zmq.POLLIN)
        self._poller.register(self._iopub, zmq.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._shell.close()
        self._iopub.close()
        self._context.term()

    def wait_for_kernel_info(self, *, timeout: float = 60) -> None:
        """Send one kernel_info request and return when it is answered."""
        sent = self._send("kernel_info_request", {})
        deadline = time.monotonic() + timeout
        while True:
            channel, message = self._receive(deadline)
            if channel is self._shell and message["parent_header"].get("msg_id") == sent:
                return

    def subscribe(self, *, timeout: float = 60) -> None:
        """Return once IOPub is known to arrive: until then, messages may be lost."""
        deadline = time.monotonic() + timeout
        while True:
            self._send("kernel_info_request", {})
            if self._iopub.poll(200):
                break
            if time.monotonic() > deadline:
                raise TimeoutError("no IOPub message from the kernel")
        while self._poller.poll(200):
            self._receive(deadline)

    def execute(self, code: str, *, timeout: float = 60) -> str:
        """Run *code*; return the result's text once reply and idle are here, as `Channels` does."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        sent = self._send("execute_request", content)
        deadline = time.monotonic() + timeout
        replied = idle = False
        result = ""
        while not (replied and idle):
            _, message = self._receive(deadline)
            if message["parent_header"].get("msg_id") != sent:
                continue
            kind, body = message["header"]["msg_type"], message["content"]
            if kind == "execute_reply":
                replied = True
            elif kind == "execute_result":
                result = body["data"]["text/plain"]
            elif kind == "status" and body["execution_state"] == "idle":
                idle = True
        return result

    def _send(self, kind: str, content: dict[str, Any]) -> str:
        message = self._session.msg(kind, content)
        self._session.send(self._shell, message)
        return str(message["header"]["msg_id"])

    def _receive(self, deadline: float) -> tuple[zmq.Socket[bytes], dict[str, Any]]:
        ready = self._poller.poll(max(0, int((deadline - time.monotonic()) * 1000)))
        if not ready:
            raise TimeoutError("the kernel did not answer")
        socket = ready[0][0]
        _, parts = self._session.feed_identities(socket.recv_multipart())
        return socket, self._session.deserialize(parts)
