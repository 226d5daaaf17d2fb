"""How a fork of a live kernel ends: with what it began itself, and with nothing of its parent's.

At its end a Python process calls what was registered with `atexit` and `weakref.finalize`, and takes its
objects apart. A fork would so delete its parent's temporary folders, kill its background jobs, close its
database connections. What was registered before the fork is dropped here; what is registered afterwards runs
as usual; then the process leaves by `os._exit`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import weakref
from typing import Any

DESTROYERS = (shutil.rmtree, os.unlink, os.remove, os.rmdir, os.kill, os.killpg)
LIBRARIES_OF_DESTROYERS = ("subprocess", "multiprocessing", "IPython.core.history", "IPython.core.magics.script")


def disown(shell: Any) -> None:
    """In a fork: forget what the parent has to do at its end."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        known = finalizer.peek()
        if known is not None and _destroys(known[1]):
            finalizer.detach()
        else:
            finalizer.atexit = False
    atexit._clear()
    # What libraries register once, at import, for everything that is made afterwards.
    atexit.register(logging.shutdown)
    atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    processes: Any = sys.modules.get("multiprocessing.process")
    if processes is not None:
        processes._children = set()
        exit_function = getattr(sys.modules.get("multiprocessing.util"), "_exit_function", None)
        if exit_function is not None:
            atexit.register(exit_function)
    for name, table in (("thread", "_threads_queues"), ("process", "_threads_wakeups")):
        executors = sys.modules.get(f"concurrent.futures.{name}")
        if executors is not None:
            getattr(executors, table).clear()
    if shell is not None:
        shell.tempfiles, shell.tempdirs = [], []
        scripts = shell.magics_manager.registry.get("ScriptMagics")
        if scripts is not None:
            scripts.bg_processes = []
            atexit.register(scripts.kill_bg_processes)


def own(shell: Any) -> None:
    """In a fork that is a kernel again: end its shell's session at the end, before its sockets close."""
    atexit.register(_end_shell, shell)


def leave() -> None:
    """End this process as the interpreter would, but for taking its objects apart; never returns."""
    from . import files

    namespace = sys.modules["__main__"].__dict__
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    with contextlib.suppress(BaseException):
        files.flush(files.open_descriptors(), namespace)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(0)


def _end_shell(shell: Any) -> None:
    """The part of `InteractiveShell.atexit_operations` that does not take the user's objects apart."""
    history = shell.history_manager
    if history is not None and history.enabled:
        history.end_session()
    for path in shell.tempfiles:
        with contextlib.suppress(OSError):
            path.unlink()
    for path in shell.tempdirs:
        shutil.rmtree(path, ignore_errors=True)


def _destroys(function: Any) -> bool:
    """Whether a finalizer with *function* reaches outside the process: files, folders, processes."""
    cleanup = tempfile.TemporaryDirectory._cleanup.__func__  # type: ignore[attr-defined]
    if function in DESTROYERS or getattr(function, "__func__", None) is cleanup:
        return True
    return str(getattr(function, "__module__", "")).startswith(LIBRARIES_OF_DESTROYERS)
