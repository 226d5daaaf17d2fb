"""The life of a warm kernel: start unbound, wait for the claim, adopt, serve.

The main thread waits in `Warm.wait`; the socket to the server (*orders*) brings

- `ping`: answered `pong` (the server's check before and between hand-outs);
- `adopt`: cwd, environment, identity and the five listeners, all in one step;
- end of file: the server let go; exit.

Afterwards the socket tells the server `adopted`, `serving` and `closed`, and brings orders to fork (`parking`).
A fork of a live kernel comes this way too; *inheritance* is what it took over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from . import FIRST_ENVIRONMENT, magics, wire
from . import app as kernel_app
from .become import settle_random_streams, start_again
from .endings import leave
from .fork import carry_out, tell_unfit
from .hazards import Libraries
from .history import LateHistory
from .inheritance import Inheritance
from .lives import Life
from .parking import Parking
from .rehearsal import rehearse

IDENTITY_VARIABLES = ("JPY_SESSION_NAME", "JPY_PARENT_PID")
ROOM_FOR_DESCRIPTORS = 256


class Warm:
    """A started kernel without an owner."""

    def __init__(
        self,
        app: kernel_app.UnboundKernelApp,
        orders: socket.socket,
        *,
        lifeline: int,
        ahead: bool = True,
        inheritance: Inheritance | None = None,
        reseed: bool = False,
    ) -> None:
        """*ahead*: nobody waits for this kernel yet, so there is time to rehearse.

        *reseed*: go on with random streams of its own, not with those of *inheritance*.
        """
        self.app = app
        self.orders = orders
        self.lifeline = lifeline
        self.ahead = ahead
        self.inheritance = inheritance
        self.reseed = reseed
        self.context = inheritance.context if inheritance is not None else None
        self.parking: Parking = inheritance.parking if inheritance is not None else Parking()
        self.libraries: Libraries = inheritance.libraries if inheritance is not None else Libraries()
        app.parking = self.parking
        self.never: str | None = None  # why it can't be forked
        self.uncollected: dict[int, int] = {}  # pidfd -> pid: what stood between us and our forks
        self.began_with = anonymous_memory()

    def run(self) -> Life | None:
        """Start, wait to be claimed, then serve until shutdown; returns in a fork, or when the loop has ended."""
        facts = self.start()
        facts |= {"kernel_info": self.app.kernel.kernel_info, "began_with": self.began_with}
        self.tell(event="warm", pid=os.getpid(), **facts)
        order, listeners = self.wait()
        try:
            if order.get("keep"):
                adopt_name(order, self.app)
            else:
                adopt_surroundings(order)
        except BaseException as error:
            self.tell(event="failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            os._exit(1)
        self.tell(event="adopted")  # clients may connect: the listeners hold them until we accept
        self.app.take_identity(order["info"], order["connection_file"], listeners)
        self.app._when_closed = lambda: self.tell(event="closed")
        if self.inheritance is None:
            self.app.finish_shell()
        else:
            LateHistory(self.app.kernel).start(anew=False)
        life = self.serve()
        if life is None:
            self.app.let_control_finish()
            if self.inheritance is not None:
                leave()
        return life

    def start(self) -> dict[str, Any]:
        """Become an unbound kernel; what the server is told of it."""
        if self.inheritance is None:
            self.never = why_never(self.app)
            self.app.start_unbound(self.parking.attend if self.never is None else None)
            if self.ahead:
                rehearse(self.app)
            return {"forkable": self.never}
        try:
            make_room_for_descriptors()
            start_again(self.app, self.inheritance, self.parking.attend)
            settle_random_streams(self.inheritance, fresh=self.reseed)
            self.inheritance.wake()
        except BaseException as error:
            tell_unfit(self.orders, error)
            os._exit(1)
        return {"forkable": None, "manifest": self.inheritance.manifest.as_message()}

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
                self.tell(event="pong", id=order["id"])

    def serve(self) -> Life | None:
        """Run the kernel's loop; its first turn tells the server that whoever connects is answered.

        The loop stops for each fork, which is made from here; returns the fork's life, in the fork.
        """
        from tornado import ioloop

        ioloop.IOLoop.current().add_callback(self._begin_serving)
        while True:
            self.app.serve()
            if not self.parking.stands_still or self.app.is_ending:
                self.parking.give_up("The kernel shuts down.")
                return None
            while (order := self.parking.next_due()) is not None:
                life = carry_out(self, order)
                if life is not None:
                    return life
            self.parking.go_on()

    def _begin_serving(self) -> None:
        self.tell(event="serving")
        self.parking.listen(self.orders, self.tell, lambda order: magics.report(self.app.kernel, order))

    def tell(self, fds: Sequence[int] = (), **message: Any) -> None:
        """Send *message*, and dups of *fds*, to the server; a server that is gone is no reason to fail."""
        with contextlib.suppress(OSError):
            wire.send(self.orders, {**message, "fds": len(fds)} if fds else message, list(fds))


def anonymous_memory() -> int:
    """The bytes of this process's memory that belong to no file: in a fresh fork all of it is its parent's too."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            _, resident, of_files, *_ = file.read(256).split()
    except OSError:
        return 0
    return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


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


def adopt_name(order: dict[str, Any], app: kernel_app.UnboundKernelApp) -> None:
    """In a fork of a live kernel, which keeps its surroundings: only what says whose kernel it is."""
    for name in IDENTITY_VARIABLES:
        if name in order["env"]:
            os.environ[name] = order["env"][name]
        else:
            os.environ.pop(name, None)
    shell: Any = app.shell
    session_name = os.environ.get("JPY_SESSION_NAME")
    if session_name:
        shell.user_ns["__session__"] = session_name
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [order["connection_file"] if one == app.connection_file else one for one in arguments]


def why_never(app: kernel_app.UnboundKernelApp) -> str | None:
    """Why kernels of this application cannot be forked while they live, or None."""
    from ipykernel.ipkernel import IPythonKernel

    if sys.platform != "linux":
        return f"Live kernels are forked on Linux only (this is {sys.platform})."
    if app.kernel_class is not IPythonKernel:
        return f"Only ipykernel's own kernel is forked while it lives (this is {app.kernel_class.__name__})."
    return None


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
