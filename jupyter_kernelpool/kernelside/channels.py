"""How a kernel's channels come to accept on listening sockets that were made by somebody else, each in the thread that
uses it: ZeroMQ sockets are not to be shared.

Facts about ipykernel were read in heartbeat.py of 6.29 and 7.4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import zmq
from ipykernel.heartbeat import Heartbeat

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
HELD = 4000  # messages of iopub for each subscriber: more than the kernel's and the server's thousand with stock
BIND_TIMEOUT = 10.0


def bind_to_listener(sock: zmq.Socket[Any], endpoint: str, listener: int) -> None:
    """Let *sock* accept on the listening socket *listener* (a descriptor, which libzmq owns from here)."""
    sock.setsockopt(zmq.USE_FD, listener)
    sock.bind(endpoint)
    # USE_FD stays set otherwise, and would be used (closed by then) by a later bind of the user's.
    sock.setsockopt(zmq.USE_FD, -1)


class HandedHeartbeat(Heartbeat):
    """A heartbeat whose thread waits until it is handed a listener, and answers there."""

    listener = -1

    def __init__(self) -> None:
        # A place that is never bound: only port 0 would make the constructor look for a free one.
        super().__init__(zmq.Context(), ("tcp", "127.0.0.1", 1))
        self._handed = threading.Event()
        # The context opens its descriptors with its first socket: now, while they can be told from a user's.
        self.context.socket(zmq.PAIR).close()

    def hand(self, address: tuple[str, str, int], listener: int, curve: tuple[bytes, bytes] | None) -> None:
        """Answer at *address* on *listener*, encrypted with the keys *curve* (public, secret) if given."""
        self.transport, self.ip, self.port = address
        self.addr, self.original_port, self.listener = (self.ip, self.port), self.port, listener
        if curve is not None:
            self._curve_publickey, self._curve_secretkey = curve
        self._handed.set()

    def run(self) -> None:
        self._handed.wait()
        super().run()

    def _try_bind_socket(self) -> None:
        separator = ":" if self.transport == "tcp" else "-"
        endpoint = f"{self.transport}://{self.ip}{separator}{self.port}"
        bind_to_listener(self.socket, endpoint, self.listener)


def run_in(loop: Any, act: Any) -> None:
    """Run *act* in the thread of the tornado *loop* (None: here) and wait for it; its exception is ours."""
    begin_in(loop, act)()


def begin_in(loop: Any, act: Any) -> Callable[[], None]:
    """Have *act* run in the thread of the tornado *loop* (None: here); returns what waits for it as `run_in` does."""
    if loop is None:
        act()
        return lambda: None
    done = threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    def wait() -> None:
        if not done.wait(BIND_TIMEOUT):
            raise TimeoutError("a channel's thread did not answer")
        if failure:
            raise failure[0]

    loop.add_callback(run)
    return wait
