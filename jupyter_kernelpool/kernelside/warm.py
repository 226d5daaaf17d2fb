"""The life of a warm kernel: start unbound, wait for the claim, adopt, serve.

The main thread waits in `Warm.wait`; the socket to the server (*orders*) brings

- `ping`: answered `pong` (the server's check before and between hand-outs);
- `adopt`: cwd, environment, identity and the five listeners, all in one step;
- end of file: the server let go; exit.

Afterwards the socket only tells the server `adopted`, `serving` and `closed`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import traceback
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from . import FIRST_ENVIRONMENT, wire
from . import app as kernel_app
from .rehearsal import rehearse

ROOM_FOR_DESCRIPTORS = 256


class Warm:
    """A started kernel without an owner."""

    def __init__(self, app: kernel_app.UnboundKernelApp, orders: socket.socket, *, ahead: bool = True) -> None:
        """*ahead*: nobody waits for this kernel yet, so there is time to rehearse."""
        self.app = app
        self.orders = orders
        self.ahead = ahead

    def run(self) -> None:
        """Start, wait to be claimed, then serve until shutdown; returns when the kernel's loop has ended."""
        self.app.start_unbound()
        if self.ahead:
            rehearse(self.app)
        self.tell(event="warm", pid=os.getpid(), kernel_info=self.app.kernel.kernel_info)
        order, listeners = self.wait()
        try:
            adopt_surroundings(order)
        except BaseException as error:
            self.tell(event="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            os._exit(1)
        self.tell(event="adopted")  # clients may connect: the listeners hold them until we accept
        self.app.take_identity(order["info"], order["connection_file"], listeners)
        self.app._when_closed = lambda: self.tell(event="closed")
        self.app.finish_shell()
        self.serve()

    def wait(self) -> tuple[dict[str, Any], list[int]]:
        """Answer pings until the order to adopt comes; exit when the server is gone."""
        while True:
            received = wire.receive(self.orders)
            if received is None:
                os._exit(0)
            order, fds = received
            if order["op"] == "adopt":
                return order, fds
            if order["op"] == "ping":
                self.tell(event="pong")

    def serve(self) -> None:
        """Run the kernel's loop; its first turn tells the server that whoever connects is answered."""
        from tornado import ioloop

        ioloop.IOLoop.current().add_callback(lambda: self.tell(event="serving"))
        self.app.serve()

    def tell(self, **message: Any) -> None:
        """Send *message* to the server; a server that is gone is no reason to fail."""
        with contextlib.suppress(OSError):
            wire.send(self.orders, message)


def adopt_surroundings(order: dict[str, Any]) -> None:
    """Take the owner's cwd, environment (added, changed and removed), arguments and random seeds."""
    os.chdir(order["cwd"])
    wanted = environment_after_start(order["env"])
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    sys.argv[:] = [kernel_app.launcher_path(), *order["arguments"]]
    sys.orig_argv[:] = order["command"]
    kernel_app.reseed()
    if InteractiveShell.initialized():
        InteractiveShell.instance().starting_dir = order["cwd"]


def environment_after_start(given: dict[str, str]) -> dict[str, str]:
    """What the environment would be had this process been started with *given*.

    A starting kernel sets variables itself (the shell: PAGER, CLICOLOR…; debugpy; init code). What this
    process changed in its own first environment is changed in *given* likewise, unless *given* says
    something else about it.
    """
    after = dict(given)
    for name in FIRST_ENVIRONMENT.keys() | os.environ.keys():
        first, now = FIRST_ENVIRONMENT.get(name), os.environ.get(name)
        if first == now or given.get(name) != first:
            continue
        if now is None:
            after.pop(name, None)
        else:
            after[name] = now
    return after


def as_freshly_spawned() -> None:
    """Signals as a spawned Python has them, a session and process group of its own, and no standard input."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if nothing:
        os.close(nothing)
    make_room_for_descriptors()


def make_room_for_descriptors() -> None:
    """Let Linux enlarge this process's table of descriptors now, while it has one thread.

    A process begins with room for 64. When one with threads needs more, whoever opens the next descriptor waits
    for an RCU grace period, 10 to 20 ms (`expand_fdtable` in fs/file.c); in a kernel that was ZeroMQ's I/O thread,
    while it accepted the first client.
    """
    with contextlib.suppress(OSError):  # fewer are allowed
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, ROOM_FOR_DESCRIPTORS - 1))
