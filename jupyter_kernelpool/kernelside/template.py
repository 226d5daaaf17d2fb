"""A template: a parked process that holds imports and a shell, and forks warm kernels on order.

It has one thread, no event loop and no ZeroMQ socket, and it checks that after each step that runs code
of others (preload, init code), so that a fork is never taken beside a running thread. The socket to the
server brings `fork` (with the new kernel's own socket) and `ping`; end of file ends it.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import hazards, wire
from .fork import fork_orphan
from .lifeline import hold
from .lives import Life
from .warm import Warm, as_freshly_spawned


class Unfit(Exception):
    """This environment, its preloads or its init code cannot be a template; the text says why.

    *kind* is `environment`, `preload`, `init_code`, `threads` or `cuda`.
    """

    def __init__(self, text: str, kind: str = "environment") -> None:
        super().__init__(text)
        self.kind = kind


def run(settings: dict[str, Any], orders: socket.socket, lifeline: int) -> Life:
    """Build the template, report it, serve forks. Returns only in a fork: the kernel that it is to be."""
    began = time.monotonic()
    try:
        app = build(settings)
    except BaseException as error:
        cause = error.__cause__ or error
        text = "".join(traceback.format_exception(cause))
        reason = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
        kind = getattr(error, "kind", "environment")
        wire.send(orders, {"event": "unfit", "kind": kind, "reason": reason, "traceback": text})
        os._exit(1)
    wire.send(
        orders,
        {
            "event": "ready",
            "pid": os.getpid(),
            "seconds": time.monotonic() - began,
            "versions": versions(),
            "watch": paths_to_watch(app),
        },
    )

    def be_born(channel: socket.socket, order: dict[str, Any]) -> Life:
        as_freshly_spawned()
        hold(lifeline)
        return Warm(app, channel, lifeline=lifeline, ahead=order.get("ahead", True))

    return serve_forks(orders, be_born)


def build(settings: dict[str, Any]) -> Any:
    """Import, preload, build the shell, run the init code; raises `Unfit` when forking would not be safe."""
    from . import parked, rehearsal  # noqa: F401  (forks find them imported)
    from .app import UnboundKernelApp

    import_what_a_kernel_imports_first()
    # As a signal handler: nobody but the server ends a template, and only by closing its socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    app = UnboundKernelApp.instance()
    app.prepare(settings["arguments"])
    for module in settings["preload"]:
        try:
            importlib.import_module(module)
        except BaseException as error:
            raise Unfit(f"preload {module!r} failed: {type(error).__name__}: {error}", "preload") from error
    app.build_shell()
    put_threads_away()
    assert_single_threaded()
    assert_cuda_unused()
    if settings["init_code"]:
        run_init_code(app, settings["init_code"])
        put_threads_away()
        assert_single_threaded("init_code")
        assert_cuda_unused("init_code")
    app.complete_shell()
    gc.collect()
    gc.freeze()
    return app


def run_init_code(app: Any, code: str) -> None:
    """Run *code* in the shell's namespace, without history; what it prints goes to the server's log."""
    if app.shell is None:
        raise Unfit("init code needs ipykernel's own kernel class", "init_code")
    outcome = app.shell.run_cell(code, store_history=False, silent=True)
    error = outcome.error_before_exec or outcome.error_in_exec
    if error is not None:
        raise Unfit(f"init code failed: {type(error).__name__}: {error}", "init_code") from error
    app.shell.user_ns_hidden.update(app.shell.user_ns)


def import_what_a_kernel_imports_first() -> None:
    """Import and touch what each kernel would import or compute by itself before its first reply."""
    for module in (
        "asyncio",
        "ctypes",
        "tornado.platform.asyncio",
        "ipykernel.debugger",
        "ipykernel.inprocess.constants",
        "ipykernel.iostream",
        "ipykernel.zmqshell",
        "jupyter_client.localinterfaces",
        "psutil",
        "sqlite3",
        "IPython.core.completerlib",
        "IPython.core.magics",
        "storemagic",
    ):
        try:
            importlib.import_module(module)
        except ImportError:
            continue  # differs between versions; a kernel that needs it imports it itself
    from jupyter_client.localinterfaces import localhost

    localhost()


def put_threads_away() -> None:
    """Fork once for nothing: libraries with fork handlers (OpenBLAS) end their threads in the parent."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def assert_single_threaded(kind: str = "threads") -> None:
    """A fork beside another thread may inherit a lock that nobody will ever release; else `Unfit` of *kind*."""
    import threading

    python = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if python:
        raise Unfit(f"threads are running: {', '.join(python)}", kind)
    tasks = os.listdir("/proc/self/task")
    if len(tasks) > 1:
        raise Unfit(f"{len(tasks) - 1} threads of a native library are running", kind)


def assert_cuda_unused(kind: str = "cuda") -> None:
    """No fork of a process that initialised CUDA can use it, and asking for a device is enough; else `Unfit`."""
    if hazards.cuda_is_initialised(hazards.Libraries().paths()):
        raise Unfit("CUDA is initialised, and does not survive a fork; first use it in the kernel", kind)


def versions() -> dict[str, str]:
    import ipykernel
    import IPython

    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "ipykernel": ipykernel.__version__,
        "ipython": IPython.__version__,
    }


def paths_to_watch(app: Any) -> list[str]:
    """Whatever changes what a cold start would be: interpreter, installed packages, IPython's configuration,
    and the files of what is loaded from elsewhere (editable installs)."""
    import site
    import sysconfig

    packages = [*site.getsitepackages(), site.getusersitepackages()]
    packages += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    paths = {sys.executable, os.path.realpath(sys.executable), *packages}
    for folder in [*getattr(app, "config_file_paths", []), app.profile_dir.location]:
        for name in ("ipython_config", "ipython_kernel_config"):
            paths.update(os.path.join(folder, name + suffix) for suffix in (".py", ".json"))
    installed = (*packages, sysconfig.get_path("stdlib"), os.path.dirname(os.path.abspath(__file__)))
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and os.path.isabs(file) and not file.startswith(installed):
            paths.add(file)
    return sorted(paths)


def serve_forks(orders: socket.socket, be_born: Callable[[socket.socket, dict[str, Any]], Life]) -> Life:
    """Fork on order until the server lets go; returns only in a fork: what *be_born* makes of its socket."""
    while True:
        received = wire.receive(orders)
        if received is None:
            os._exit(0)
        order, fds = received
        if order["op"] == "ping":
            wire.send(orders, {"event": "pong"})
        elif order["op"] == "fork":
            try:
                assert_single_threaded()
                born = fork_orphan()
            except (OSError, Unfit) as error:
                wire.send(orders, {"event": "fork_failed", "id": order["id"], "error": str(error)})
                close_all(fds)
                continue
            if born:
                orders.close()
                return be_born(socket.socket(fileno=fds[0]), order)
            close_all(fds)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
