"""The small process that owns every process of ours: `python -P -m jupyter_kernelpool.supervisor FD`.

One per server, standard library only, one thread. It is the subreaper, so what a template forks (twice)
becomes its child; it waits for them and tells the server their exit codes. It holds the write end of the
lifeline pipe (`kernelside.lifeline`). When the server's socket ends, however the server ended, it kills
what it owns and what it was asked to track, removes the files and folders it was asked to guard, and goes.

Orders (JSON, see `kernelside.wire`), each with an `id` that the answer repeats:
- `spawn`: start `argv` with `env` in `cwd`; with `settings`, the descriptors that came along (the first is
  the process's socket) and the lifeline are passed on and named, with our pid, in a last argument of JSON;
- `watch`: report the end of `pid` (a child by now, or already gone);
- `track`, `untrack`: kill the session of `pid` (a kernel that the server spawned itself) at the end, or not;
- `guard`, `release`: remove `paths` at the end, or not;
- `guard_groups`: remove these control groups at the end; `groups` says of each where its processes go.
Event: `exit` with `pid` and `code` (negative: the signal, as in subprocess).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from jupyter_kernelpool.kernelside import wire
from jupyter_kernelpool.kernelside.removal import remove_groups, remove_tree

PR_SET_CHILD_SUBREAPER = 36
MAX_UNCLAIMED_EXITS = 4096
KILL_ROUNDS = 50


class Supervisor:
    """State and loop of the process."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.lifeline, self._lifeline_held = os.pipe2(os.O_CLOEXEC)
        self.owned: set[int] = set()
        self.tracked: dict[int, int] = {}  # pid -> pidfd
        self.guarded: set[str] = set()
        self.groups: dict[str, str] = {}
        self.unclaimed_exits: dict[int, int] = {}

    def run(self) -> None:
        """Serve orders until the server is gone, then clear away."""
        wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, lambda *_: None)  # SIG_IGN would be handed on to what is spawned
        signal.signal(signal.SIGTERM, self._terminate)
        wire.send(self.server, {"event": "ready", "pid": os.getpid()})
        with selectors.DefaultSelector() as selector:
            selector.register(self.server, selectors.EVENT_READ)
            selector.register(wakeup_read, selectors.EVENT_READ)
            try:
                while True:
                    ready = {key.fileobj for key, _ in selector.select()}
                    if wakeup_read in ready:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wakeup_read, 4096)
                    self.reap()
                    if self.server in ready and not self.obey():
                        break
            except (OSError, wire.WireError):
                pass  # the server died in the middle of a message, or its socket broke
            finally:
                self.clear_away()

    def obey(self) -> bool:
        """Carry out one order; false when the server is gone."""
        received = wire.receive(self.server)
        if received is None:
            return False
        order, fds = received
        answer: dict[str, Any] = {"event": "done", "id": order.get("id")}
        try:
            match order["op"]:
                case "spawn":
                    answer["pid"] = self.spawn(order, fds)
                case "watch":
                    self.watch(order["pid"])
                case "track":
                    self.track(order["pid"])
                case "untrack":
                    self.untrack(order["pid"])
                case "guard":
                    self.guarded.update(order["paths"])
                case "release":
                    self.guarded.difference_update(order["paths"])
                case "guard_groups":
                    self.groups.update(order["groups"])
                case unknown:
                    raise ValueError(f"unknown order {unknown!r}")
        except Exception as error:  # one bad order must not end the kernels
            answer["error"] = f"{type(error).__name__}: {error}"
        finally:
            for fd in fds:
                os.close(fd)
        if answer["id"] is not None:
            wire.send(self.server, answer)
        return True

    def spawn(self, order: dict[str, Any], fds: list[int]) -> int:
        """Start a process in a session of its own; returns its pid."""
        argv = list(order["argv"])
        passed: tuple[int, ...] = ()
        if order.get("settings") is not None:
            settings = dict(order["settings"], orders=fds[0], lifeline=self.lifeline, supervisor=os.getpid())
            argv.append(json.dumps(settings))
            passed = (fds[0], self.lifeline)
        process = subprocess.Popen(  # noqa: S603
            argv,
            env=order["env"],
            cwd=order["cwd"],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # reaped by us, not by the Popen object
        self.owned.add(process.pid)
        return process.pid

    def watch(self, pid: int) -> None:
        """Own *pid*; if it ended before we were told of it, report that now."""
        code = self.unclaimed_exits.pop(pid, None)
        if code is not None and not is_child(pid):  # else it was another's, who had the same pid before
            self.report(pid, code)
        elif os.path.exists(f"/proc/{pid}"):
            self.owned.add(pid)
        else:
            self.report(pid, -signal.SIGKILL)

    def track(self, pid: int) -> None:
        """Kill the session of *pid* at the end; it is the server's own child. A new supervisor is told of it twice."""
        self.untrack(pid)
        self.tracked[pid] = os.pidfd_open(pid)

    def untrack(self, pid: int) -> None:
        """It has ended, or is nobody's business any more."""
        pidfd = self.tracked.pop(pid, None)
        if pidfd is not None:
            os.close(pidfd)

    def reap(self) -> None:
        """Collect children that ended; report those we own, forget daemons of users' that were left to us."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid in self.owned:
                self.owned.discard(pid)
                self.report(pid, code)
            else:
                self.unclaimed_exits[pid] = code
                if len(self.unclaimed_exits) > MAX_UNCLAIMED_EXITS:
                    del self.unclaimed_exits[next(iter(self.unclaimed_exits))]

    def report(self, pid: int, code: int) -> None:
        wire.send(self.server, {"event": "exit", "pid": pid, "code": code})

    def clear_away(self) -> None:
        """Kill the sessions of all that is ours, remove what was guarded. A daemon's own session is spared,
        as stock spares it."""
        doomed = set(self.owned)
        for pid, pidfd in self.tracked.items():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, 0)
                doomed.add(pid)
        for _ in range(KILL_ROUNDS):
            members = sessions_of(doomed)
            for member in members:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(member, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not members:
                break
            time.sleep(0.02)
        for path in self.guarded:
            with contextlib.suppress(OSError):
                remove(path)
        for group, home in self.groups.items():
            with contextlib.suppress(OSError):
                remove_groups(group, home)

    def _terminate(self, *_: object) -> None:
        self.clear_away()
        os._exit(0)


def is_child(pid: int) -> bool:
    """Whether *pid* is a child of ours, running or waiting to be reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it; raises OSError."""
    for _ in range(KILL_ROUNDS):
        try:
            os.unlink(path)
            return
        except IsADirectoryError:
            with contextlib.suppress(OSError):  # a daemon of the user's may still write there
                remove_tree(path)
                return
            time.sleep(0.02)


def sessions_of(leaders: set[int]) -> set[int]:
    """Every live process whose session leader is one of *leaders*."""
    members = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                if int(fields[3]) in leaders and fields[0] != b"Z":
                    members.add(int(entry))
    return members


def become_subreaper() -> None:
    """Orphans below us become our children (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def main() -> None:
    become_subreaper()
    server = socket.socket(fileno=int(sys.argv[1]))
    server.set_inheritable(False)
    Supervisor(server).run()


if __name__ == "__main__":
    main()
