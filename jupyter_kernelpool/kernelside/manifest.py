"""What a fork shares with its parent, what it lost, and what to do about it.

It is written in the parent, before the fork: what the child need not do does not copy a page. Only what becomes
of open files is told by the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .copying import MOST_NAMED, Copied
from .files import FIRST_OF_USER

# Whose threads and tasks are no business of the user's: each kernel has its own.
OUR_MODULES = ("ipykernel.", "tornado.", "zmq.", "_jupyter_kernelpool", "jupyter_client.", "IPython.")
# Native thread pools that a child would wait for in vain, by the names of their threads.
NATIVE_POOLS = {
    "polars": "polars hangs in a fork once it was used in the parent; restart the kernel to use it.",
    "rayon": "Libraries written in Rust may hang; use them in the parent, or restart the kernel.",
    "tokio": "Connections of libraries written in Rust are dead; open them again.",
    "grpc": "gRPC channels are dead; open them again.",
    "PTThreadPool": "torch.jit.fork in a scripted function hangs; the rest of torch works.",
}


PROCESS_HINT = "It stays the parent's; pools and Popen objects can't be used in the fork."
LOKY_HINT = "It stays the parent's; the fork's next parallel call of joblib starts others."


class Manifest:
    """Three lists of `{"kind", "what", "hint"}`, for people to read."""

    def __init__(self) -> None:
        self.shared: list[dict[str, str]] = []
        self.lost: list[dict[str, str]] = []
        self.warnings: list[dict[str, str]] = []
        self.copied: dict[str, Any] | None = None

    def as_message(self) -> dict[str, Any]:
        told: dict[str, Any] = {"shared": self.shared, "lost": self.lost, "warnings": self.warnings}
        return told if self.copied is None else {**told, "copied": self.copied}

    def note_what_stays_behind(self, app: Any, ours: set[int]) -> None:
        """In the parent: what a fork will not have. *ours* are child processes that the user knows nothing of."""
        subshells = _subshells(app)
        threads = [thread for thread in threading.enumerate() if not _is_ours(thread, app, subshells)]
        workers = [thread for thread in threads if _target(thread).startswith("concurrent.futures")]
        for name, count in Counter(re.sub(r"[_-]?\d+$", "", thread.name) for thread in workers).items():
            text = f"thread pool {name} ({count} threads)"
            self._lose("executor", text, "What was given to it before never finishes; what is given to it now does.")
        for thread in threads:
            if thread not in workers:
                self._lose("thread", f"thread {thread.name}", "Start it again if the fork needs it.")
        for subshell in subshells:
            self._lose("subshell", f"subshell {subshell}", "Create it again.")
        for task in _tasks_of_user(app.io_loop.asyncio_loop):
            self._lose("task", f"asyncio task {task.get_name()}", "Create it again.")
        tasks = os.listdir("/proc/self/task")
        for pid in _children(tasks) - ours:
            command = _command(pid)
            self._lose("process", f"child process {pid}: {command}", LOKY_HINT if "loky" in command else PROCESS_HINT)
        known = {thread.native_id for thread in threading.enumerate()}
        for name, count in _native_pools(tasks, known).items():
            self._lose("native_threads", f"{count} threads of {name}", NATIVE_POOLS[name])

    def note_openmp(self, stubborn: list[str]) -> None:
        for library in stubborn:
            hint = "Parallel code that uses it may hang in the fork."
            self._warn("openmp", f"{library} can't give up its threads", hint)

    def note_what_is_shared(self, app: Any, opened: dict[int, os.stat_result]) -> None:
        """In the parent: what a fork will have as well. *opened* are the descriptors of the user's."""
        pipes = set()
        for fd, facts in opened.items():
            if fd < FIRST_OF_USER:
                continue
            if stat.S_ISSOCK(facts.st_mode):
                peer = _peer(fd)
                if peer is not None:
                    self._share("socket", f"socket {peer}", "Both would read and write on it; connect again in one.")
            elif stat.S_ISFIFO(facts.st_mode) and facts.st_ino not in pipes:
                pipes.add(facts.st_ino)
                self._share("pipe", f"pipe (descriptor {fd})", "Both would read and write on it; use it in one.")
        self._note_objects(app.shell.user_ns)
        comms = getattr(app.kernel.comm_manager, "comms", {})
        if comms:
            self._warn("comms", f"{len(comms)} comms (widgets)", "They are kept; front ends see them on connecting.")

    def note_copied(self, copied: Copied, earlier: Copied | None, *, later: bool) -> None:
        """The working directory is a copy: of *earlier*'s, if that was made for this one to be copied from.

        *later*: the files were copied when the state was kept already.
        """
        self.copied = copied.as_facts()
        if earlier is not None:  # which has told the rest
            self.copied["from"] = earlier.source
            return
        what = f"the working directory is a copy of {copied.source}"
        self._warn("folder", what, "Absolute paths in variables, and imported modules, are still the old folder's.")
        if later:
            hint = "They may have changed since the checkpoint was taken."
            self._warn("files_of_now", "files are as they were when the fork was made", hint)
        for kind, paths in copied.left_out.items():
            named = ", ".join(paths[:MOST_NAMED]) + (" …" if len(paths) > MOST_NAMED else "")
            self._warn("not_copied", f"{len(paths)} × {kind}: {named}", "It is in the old folder only.")

    def note_shared_files(self, copied: Copied, descriptors: Iterable[int]) -> None:
        """In the child: which of its open files are not in the copy, but still the parent's."""
        for fd in descriptors:
            with contextlib.suppress(OSError):  # closed since
                path = os.readlink(f"/proc/self/fd/{fd}")
                if copied.place_of(path) is not None:
                    self._share("file", f"the open file {path}", "It is not in the copy; what one writes, both have.")

    def note_shared_positions(self, descriptors: list[int]) -> None:
        """These files could not be opened again."""
        for fd in descriptors:
            path = os.readlink(f"/proc/self/fd/{fd}")
            self._share("file", f"the position in {path}", "Reading or writing moves both; open the file again.")

    def _note_objects(self, namespace: dict[str, Any]) -> None:
        found: dict[str, list[str]] = {}
        for name, value in list(namespace.items()):
            owner = type(value)
            kind = KINDS.get((owner.__module__.partition(".")[0], owner.__name__))
            if kind is not None and not _is_in_memory(value):
                found.setdefault(kind, []).append(name)
        for kind, names in found.items():
            note = self._share if kind == "memory" else self._warn
            note(kind, ", ".join(names), HINTS[kind])

    def _share(self, kind: str, what: str, hint: str) -> None:
        self.shared.append({"kind": kind, "what": what, "hint": hint})

    def _lose(self, kind: str, what: str, hint: str) -> None:
        self.lost.append({"kind": kind, "what": what, "hint": hint})

    def _warn(self, kind: str, what: str, hint: str) -> None:
        self.warnings.append({"kind": kind, "what": what, "hint": hint})


KINDS = {
    ("sqlite3", "Connection"): "database",
    ("duckdb", "DuckDBPyConnection"): "database",
    ("_duckdb", "DuckDBPyConnection"): "database",
    ("sqlalchemy", "Engine"): "database",
    ("random", "Random"): "random",
    ("numpy", "Generator"): "random",
    ("numpy", "RandomState"): "random",
    ("mmap", "mmap"): "memory",
    ("multiprocessing", "SharedMemory"): "memory",
    ("numpy", "memmap"): "memory",
    ("multiprocessing", "Pool"): "pool",
    ("multiprocessing", "ThreadPool"): "pool",
    ("concurrent", "ProcessPoolExecutor"): "pool",
    ("loky", "_ReusablePoolExecutor"): "pool",
    ("tempfile", "_TemporaryFileWrapper"): "temporary",
    ("tempfile", "TemporaryDirectory"): "temporary",
}
HINTS = {
    "database": "Connections must not be used on both sides of a fork; connect again.",
    "random": "They go on identically in parent and fork; seed them anew where that is not wanted.",
    "memory": "It is shared memory: what one writes, the other sees.",
    "pool": "Its workers are the parent's; make a new one.",
    "temporary": "It belongs to the parent, which removes it at its end.",
}


def _is_ours(thread: threading.Thread, app: Any, subshells: list[str]) -> bool:
    if thread is threading.main_thread() or type(thread).__module__.startswith(OUR_MODULES):
        return True
    return _target(thread).startswith(OUR_MODULES) or thread.name in subshells


def _target(thread: threading.Thread) -> str:
    """The module of what *thread* runs."""
    target = getattr(thread, "_target", None)
    return f"{getattr(target, '__module__', '')}."


def _subshells(app: Any) -> list[str]:
    channels = getattr(app, "shell_channel_thread", None)  # ipykernel >= 7
    return channels.manager.list_subshell() if channels is not None else []


def _tasks_of_user(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    found = []
    for task in asyncio.all_tasks(loop):
        frame = getattr(task.get_coro(), "cr_frame", None)
        module = str(frame.f_globals.get("__name__", "")) if frame is not None else ""
        if module and not f"{module}.".startswith(OUR_MODULES):
            found.append(task)
    return found


def _children(tasks: list[str]) -> set[int]:
    found: set[int] = set()
    for task in tasks:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:
            found.update(map(int, file.read().split()))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    return "?"


def _native_pools(tasks: list[str], known: set[int | None]) -> Counter[str]:
    """How many threads there are of each of `NATIVE_POOLS`."""
    found: Counter[str] = Counter()
    for task in tasks:
        if int(task) in known:
            continue
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:
            comm = file.read()
            found.update(name for name in NATIVE_POOLS if comm.startswith(name))
    return found


def _is_in_memory(value: Any) -> bool:
    """Whether *value* is a connection to a SQLite database that has no file."""
    try:
        return not any(row[2] for row in value.cursor().execute("PRAGMA database_list").fetchall())
    except Exception:  # no such connection, or one that is closed or another thread's
        return False


def _peer(fd: int) -> str | None:
    """Whom the socket *fd* talks to, as far as it can be told; None if another thread closed it."""
    try:
        probe = socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        for prefix, ask in (("to", probe.getpeername), ("at", probe.getsockname)):
            with contextlib.suppress(OSError):
                address = ask()
                where = ":".join(map(str, address[:2])) if isinstance(address, tuple) else os.fsdecode(address)
                if where:
                    return f"{prefix} {where}"
    finally:
        probe.detach()
    return f"(descriptor {fd})"
