"""IPython's history for a kernel that gets its owner late.

The session's number follows the kernels that really ran, as at a cold start, so its row can't be written
before the claim; and writing it waits for the disk (5 to 30 ms). So the shell is built with its history
switched off, and `LateHistory` opens it beside the first requests. Cells that run meanwhile are kept in
memory and written when it is open; what reads the database, or names the history manager, waits for it.

Facts are from IPython/core/history.py of 8.18 and 9.18.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from .files import close_all_of

DELAY = 0.1
READS_OR_ENDS = (
    "_run_sql",
    "end_session",
    "get_last_session_id",
    "get_session_info",
    "name_session",
    "new_session",
    "reset",
    "writeout_cache",
)


def without_history(act: Any) -> Any:
    """Run *act*; a shell that it builds opens no history database and starts no thread."""
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell

    def init_history(shell: Any) -> None:
        shell.history_manager = HistoryManager(shell=shell, parent=shell, enabled=False)
        shell.configurables.append(shell.history_manager)

    stock = InteractiveShell.init_history
    InteractiveShell.init_history = init_history  # type: ignore[method-assign]
    try:
        return act()
    finally:
        InteractiveShell.init_history = stock  # type: ignore[method-assign]


def cut_history(history: Any, kept: list[Any]) -> None:
    """In a fork of a live kernel: switch *history* off, as `without_history` leaves it, to be opened anew.

    SQLite's connections must not be used across a fork: they are put in *kept*. The parent writes what is
    not written yet. The input and output lists stay.
    """
    from IPython.core.history import DummyDB

    if history is None:
        return
    kept.append((history.db, history.save_thread, getattr(history, "_finalizer", None)))
    for name in READS_OR_ENDS:
        vars(history).pop(name, None)
    if str(history.hist_file) != ":memory:":
        for suffix in ("", "-journal", "-wal", "-shm"):
            close_all_of(f"{history.hist_file}{suffix}")
    history.enabled = False
    history.db = DummyDB()
    history.save_thread = None
    history.using_thread = False
    if history.has_trait("save_flag"):  # IPython 8; the parent's may be held by its thread
        history.save_flag = threading.Event()
    history.db_input_cache, history.db_output_cache = [], []
    history.db_input_cache_lock, history.db_output_cache_lock = threading.Lock(), threading.Lock()


def _can_be_written(file: Any) -> bool:
    """Whether history can be kept in *file*, which is made: not in every sandbox."""
    try:
        with open(file, "ab"):
            return True
    except OSError:
        return str(file) == ":memory:"


class LateHistory:
    """Switches the history of *kernel*'s shell on, in a thread of its own: after `DELAY` s, or when needed."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._history = kernel.shell.history_manager
        self._thread = threading.Thread(target=self._open, name="kernelpool-history", daemon=True)
        self._lock = threading.Lock()
        self._begun = False

    def start(self, *, anew: bool = True) -> None:
        """Begin; nothing to do where the user's configuration switches history off.

        *anew* is false in a fork of a live kernel, which goes on with the folders that were visited.
        """
        history = self._history
        if history is None or not history.config.HistoryManager.get("enabled", True):
            return
        if anew:
            history.dir_hist[:] = [Path.cwd()]
        for name in READS_OR_ENDS:
            setattr(history, name, self._waiting(name))
        for name in ("execute_request", "history_request"):
            self._kernel.shell_handlers[name] = self._waiting_handler(name, self._kernel.shell_handlers[name])
        # Not beside the first messages: it would take 3 ms of the interpreter from them.
        loop = self._kernel.control_thread.io_loop
        loop.add_callback(loop.call_later, DELAY, self._begin)

    def _begin(self) -> None:
        with self._lock:
            if not self._begun:
                self._begun = True
                self._thread.start()

    def _wait(self) -> None:
        if threading.current_thread() is not self._thread:
            self._begin()
            self._thread.join()

    def _open(self) -> None:
        from IPython.core.history import HistorySavingThread

        history, stock = self._history, type(self._history)
        history.enabled = True
        if not _can_be_written(history.hist_file):
            history.hist_file = ":memory:"
        try:
            stock.init_db(history)
            stock.new_session(history)
        except Exception:
            history.log.exception("No history session in %s; it is kept in memory", history.hist_file)
            history.hist_file = ":memory:"
            stock.init_db(history)
            stock.new_session(history)
        if str(history.hist_file) != ":memory:":
            history.save_thread = HistorySavingThread(history)
            if not history.save_thread.is_alive():  # IPython 8 starts it in its constructor
                history.save_thread.start()
            history.using_thread = True
            if history.save_flag is not None:
                history.save_flag.set()  # cells that ran meanwhile
        for name in READS_OR_ENDS:
            delattr(history, name)

    def _waiting(self, name: str) -> Any:
        def wait_and_call(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            return getattr(type(self._history), name)(self._history, *args, **kwargs)

        return wait_and_call

    def _waiting_handler(self, name: str, handler: Any) -> Any:
        def handle(stream: Any, ident: Any, parent: Any) -> Any:
            if name == "history_request" or "history_manager" in parent["content"].get("code", ""):
                self._wait()
            if self._begun and not self._thread.is_alive():
                self._kernel.shell_handlers[name] = handler
            return handler(stream, ident, parent)

        return handle
