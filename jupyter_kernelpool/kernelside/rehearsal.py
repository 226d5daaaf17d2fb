"""Play one exchange through a warm kernel's own threads and sockets before it has an owner.

The first request in a fork is slow (15 ms and more): pages are copied on first touch, code paths run for the
first time. A kernel made ahead therefore answers `kernel_info` on both channels and executes `None` once, over
`inproc` endpoints that are unbound afterwards. Nothing of it remains: no history (there is none yet), no count, no
name in the namespace, no parent header.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import zmq
from jupyter_client.session import Session
from tornado import ioloop
from zmq.eventloop.zmqstream import ZMQStream

from .app import UnboundKernelApp
from .channels import run_in

TIMEOUT = 5.0
SHELL = "inproc://jupyter-kernelpool-rehearsal-shell"
CONTROL = "inproc://jupyter-kernelpool-rehearsal-control"
IOPUB = "inproc://jupyter-kernelpool-rehearsal-iopub"
EXECUTE = {
    "code": "None",
    "silent": False,
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": False,
}


def rehearse(app: UnboundKernelApp) -> bool:
    """Run the exchange on the main loop; false if it did not end within `TIMEOUT` seconds."""
    iopub = app.iopub_thread
    run_in(app._shell_loop(), lambda: app.shell_socket.bind(SHELL))
    run_in(app.control_thread.io_loop, lambda: app.control_socket.bind(CONTROL))
    run_in(iopub.io_loop, lambda: iopub.socket.bind(IOPUB))
    client = _Client(app)
    try:
        return client.run()
    finally:
        client.close()
        run_in(app._shell_loop(), lambda: app.shell_socket.unbind(SHELL))
        run_in(app.control_thread.io_loop, lambda: app.control_socket.unbind(CONTROL))
        run_in(iopub.io_loop, lambda: iopub.socket.unbind(IOPUB))
        _forget(app)


class _Client:
    """Sends the requests one after the other; each is over with its reply and its idle status."""

    def __init__(self, app: UnboundKernelApp) -> None:
        self._session = Session(key=app.session.key)
        self._loop = ioloop.IOLoop.current()
        self._requests = [
            ("shell", "kernel_info_request", {}),
            ("control", "kernel_info_request", {}),
            ("shell", "execute_request", EXECUTE),
        ]
        self._expected: set[str] = set()
        self._msg_id = ""
        self.done = False
        context: Any = app.context
        subscriber = context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(IOPUB)
        shell, control = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        shell.connect(SHELL)
        control.connect(CONTROL)
        sockets = {"iopub": subscriber, "shell": shell, "control": control}
        self._streams = {name: ZMQStream(sock, self._loop) for name, sock in sockets.items()}
        for stream in self._streams.values():
            stream.on_recv(self._received)

    def run(self) -> bool:
        deadline = self._loop.add_timeout(time.time() + TIMEOUT, self._loop.stop)
        self._loop.add_callback(self._next)
        self._loop.start()
        self._loop.remove_timeout(deadline)
        return self.done

    def close(self) -> None:
        for stream in self._streams.values():
            stream.on_recv(None)
            stream.close(linger=0)

    def _next(self) -> None:
        if not self._requests:
            self.done = True
            self._loop.stop()
            return
        channel, kind, content = self._requests.pop(0)
        message = self._session.msg(kind, content)
        self._msg_id = message["header"]["msg_id"]
        self._expected = {"reply", "idle"}
        self._session.send(self._streams[channel], message)

    def _received(self, frames: list[Any]) -> None:
        _, parts = self._session.feed_identities(frames)
        message = self._session.deserialize(parts)
        if message["parent_header"].get("msg_id") != self._msg_id:
            return
        if message["msg_type"].endswith("_reply"):
            self._expected.discard("reply")
        elif message["content"].get("execution_state") == "idle":
            self._expected.discard("idle")
        if not self._expected:
            self._loop.add_callback(self._next)


def _forget(app: UnboundKernelApp) -> None:
    kernel: Any = app.kernel
    kernel.set_parent([b""], {})
    shell = kernel.shell
    if shell is not None:
        shell.display_formatter.format(0)
        shell.last_execution_result = None
        shell.last_execution_succeeded = True
    app.session.digest_history = set()
    set(sys.modules)  # the shell makes this set before the first cell: touch its pages now
