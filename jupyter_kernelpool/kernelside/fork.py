"""Forking: a template or parked process while it waits, a live kernel while its main shell stands still.

The new process is forked twice, so that its parent is the supervisor (the subreaper), which reports its exit
code. A live kernel does not wait for the process in between: it goes on, and collects it when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from . import files, hazards, wire
from .inheritance import Inheritance
from .lifeline import hold
from .lives import Life
from .parking import ParkOrder

if TYPE_CHECKING:
    from .warm import Warm


def fork_orphan() -> bool:
    """Fork twice and wait for the one in between; true in the new process. Raises OSError."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            raise OSError("the second fork failed")
        return False
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    return True


def carry_out(kernel: Warm, order: ParkOrder) -> Life | None:
    """Fork the live *kernel* as *order* says; in the fork, its life; in the kernel None, and the server is told.

    Whatever goes wrong, the kernel goes on.
    """
    try:
        inheritance = _get_ready(kernel, order)
        if order.files is not None:
            kernel.tell(event="copying", id=order.number)
            inheritance.copy_files(order.files, order.fd)
        child = _fork_at_rest(inheritance)
    except hazards.Refused as refusal:
        _refuse(kernel, order, refusal)
    except OSError as error:
        reason = f"The operating system could not fork it: {error.strerror or error}."
        _refuse(kernel, order, hazards.Refused("fork_failed", reason, "Free memory, or raise the limits."))
    except Exception as error:
        kernel.app.log.exception("This kernel could not be forked")
        reason = f"It could not be made ready for a fork: {type(error).__name__}: {error}."
        _refuse(kernel, order, hazards.Refused("fork_failed", reason, "The server's log has the details."))
    else:
        if not child:
            return _be_born(kernel, order, inheritance)
        loop: Any = kernel.app.io_loop
        collect_later(child, loop.asyncio_loop, inheritance.uncollected)
        seconds = time.monotonic() - kernel.parking.stopped_at
        if order.servers < 0:
            kernel.tell(event="parked", id=order.number, seconds=seconds)
        else:
            kernel.tell([order.servers], event="kept", seconds=seconds)
        order.close()
    return None


def _get_ready(kernel: Warm, order: ParkOrder) -> Inheritance:
    """All that has to be done before the fork. Raises `Refused` where it would be wrong."""
    app: Any = kernel.app
    if kernel.never is not None:
        raise hazards.Refused("unsupported", kernel.never, "")
    libraries = kernel.libraries.paths()
    hazards.refuse_if_wrong(libraries, getattr(app.kernel, "debugger", None))
    inheritance = Inheritance(kernel)
    inheritance.manifest.note_openmp(hazards.put_openmp_threads_away(libraries))
    opened = inheritance.take_descriptors({order.fd, order.servers, kernel.orders.fileno()})
    files.flush(opened, app.shell.user_ns)
    inheritance.places = files.places(opened)
    return inheritance


def collect_later(child: int, loop: asyncio.AbstractEventLoop, uncollected: dict[int, int]) -> None:
    """Collect *child* on *loop* when it ends; until then it is in *uncollected*, under its pidfd."""
    pidfd = os.pidfd_open(child)
    uncollected[pidfd] = child

    def collect() -> None:
        loop.remove_reader(pidfd)
        del uncollected[pidfd]
        os.close(pidfd)
        with contextlib.suppress(ChildProcessError):  # the user's code waits for any child
            os.waitpid(child, 0)

    loop.add_reader(pidfd, collect)


def _refuse(kernel: Warm, order: ParkOrder, refusal: hazards.Refused) -> None:
    order.close()
    facts: dict[str, Any] = {"code": refusal.code, "reason": refusal.reason, "hint": refusal.hint}
    kernel.tell(event="park_failed", id=order.number, facts=refusal.facts, **facts)


def _fork_at_rest(inheritance: Inheritance) -> int:
    """Fork while the threads that can be ended are; in the parent they are started again."""
    child = -1
    inheritance.rest()
    try:
        child = _fork()
        return child
    finally:
        if child:
            inheritance.wake()


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, polars of its own. Which there are is in the manifest.
        warnings.simplefilter("ignore")
        return os.fork()


def _be_born(kernel: Warm, order: ParkOrder, inheritance: Inheritance) -> Life:
    """In the fork's first process: fork again and leave; in the second: shed what is the parent's."""
    orders = socket.socket(fileno=order.fd)
    order.fd = -1
    order.close()
    try:
        if _fork():
            os._exit(0)
        os.setsid()
        signal.set_wakeup_fd(-1)  # a loop's of the parent
        hold(kernel.lifeline)
        kernel.parking.let_go()
        kernel.orders.close()
        inheritance.shed()
        return inheritance.next_life(orders, become=order.become, reseed=order.reseed)
    except BaseException as error:
        tell_unfit(orders, error)
        os._exit(1)


def tell_unfit(orders: socket.socket, error: BaseException, kind: str = "fork") -> None:
    """Tell the server that nothing will come of this process."""
    facts: dict[str, Any] = {
        "event": "unfit",
        "kind": getattr(error, "kind", kind),
        "reason": f"{type(error).__name__}: {error}",
        "facts": {},
        "traceback": "".join(traceback.format_exception(error)),
    }
    if isinstance(error, hazards.Refused):
        facts |= {"kind": error.code, "reason": error.reason, "facts": error.facts}
    with contextlib.suppress(OSError):
        wire.send(orders, facts)
