"""The server's handle on its supervisor process (`jupyter_kernelpool.supervisor`)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.errors import LaunchFailed, SupervisorGone

START_TIMEOUT = 20.0


class Supervision:
    """Starts the supervisor on first use, sends it orders, hands on what it reports.

    When the supervisor is gone, so are its processes (their lifelines cut): each watcher is told that its
    process was killed, and the next order starts a new supervisor.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.log = log
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._ready: asyncio.Future[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._watchers: dict[int, Callable[[int], None]] = {}
        self._guarded: set[str] = set()
        self._groups: dict[str, str] = {}
        self._tracked: set[int] = set()
        self._ids = itertools.count(1)

    @property
    def alive(self) -> bool:
        """Whether orders can be sent right now."""
        return self._channel is not None and not self._channel.closed

    @property
    def ready(self) -> bool:
        """Whether a supervisor runs that knows all that it is to clear away."""
        return self.alive and self._ready is not None and self._ready.done()

    @property
    def lost(self) -> bool:
        """Whether there was a supervisor, and none runs now."""
        return self._channel is not None and self._channel.closed

    @property
    def pids(self) -> frozenset[int]:
        """Every process of ours that is known by now: kernels, with an owner or not, templates, checkpoints."""
        return frozenset((*self._watchers, *self._tracked))

    async def start(self) -> None:
        """Make sure that a supervisor runs; raises `SupervisorGone` when it does not come up in time."""
        if self._ready is None or (self._ready.done() and not self.alive):
            self._ready = asyncio.get_running_loop().create_future()
            try:
                self._launch()
            except BaseException as error:
                ready, self._ready = self._ready, None
                ready.cancel()
                raise SupervisorGone(f"the supervisor could not be started: {error}") from error
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.shield(self._ready)
        except TimeoutError as error:
            raise SupervisorGone(f"the supervisor did not answer within {START_TIMEOUT} s") from error

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: dict[str, str],
        cwd: str,
        settings: dict[str, Any] | None,
        fds: Sequence[int] = (),
    ) -> int:
        """Start a process under the supervisor; returns its pid. Raises `LaunchFailed`, `SupervisorGone`."""
        await self.start()
        order = {"op": "spawn", "argv": list(argv), "env": env, "cwd": cwd, "settings": settings}
        answer = await self._ask(order, fds)
        return int(answer["pid"])

    def watch(self, pid: int, on_exit: Callable[[int], None]) -> None:
        """Have *on_exit* called with the exit code of *pid* (negative: the signal) once it ended."""
        self._watchers[pid] = on_exit
        self._tell({"op": "watch", "pid": pid})

    def track(self, pid: int) -> None:
        """Have the session of *pid*, a child of the server's, killed when the server is gone."""
        self._tracked.add(pid)
        self._tell({"op": "track", "pid": pid})

    def untrack(self, pid: int) -> None:
        if pid in self._tracked:
            self._tracked.discard(pid)
            self._tell({"op": "untrack", "pid": pid})

    def guard(self, paths: Sequence[str]) -> None:
        """Have *paths* removed when the server is gone."""
        self._guarded.update(paths)
        self._tell({"op": "guard", "paths": list(paths)})

    def release(self, paths: Sequence[str]) -> None:
        self._guarded.difference_update(paths)
        self._tell({"op": "release", "paths": list(paths)})

    def guard_groups(self, groups: Mapping[str, str]) -> None:
        """Have the control groups removed when the server is gone; each comes with where its processes go."""
        if groups.items() <= self._groups.items():
            return
        self._groups.update(groups)
        self._tell({"op": "guard_groups", "groups": dict(groups)})

    async def close(self) -> None:
        """End the supervisor, and with it every process it owns; waits until it is gone."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None  # not lost: the next order starts another one
        await self._reap()
        if self._channel is None:  # else another one was started meanwhile
            self._let_down()

    def _launch(self) -> None:
        ours, its = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "jupyter_kernelpool.supervisor", str(its.fileno())],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env=_importing_us(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        self.pid = self._process.pid
        self._channel = Channel(ours, self._heard, self._lost)

    def _heard(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "ready":
                for pid in self._tracked:
                    self._tell({"op": "track", "pid": pid})
                if self._guarded:
                    self._tell({"op": "guard", "paths": sorted(self._guarded)})
                if self._groups:
                    self._tell({"op": "guard_groups", "groups": self._groups})
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case "done":
                answer = self._answers.pop(message["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
                elif "pid" in message:  # who ordered it was cancelled
                    _kill_group(message["pid"])
            case "exit":
                on_exit = self._watchers.pop(message["pid"], None)
                if on_exit is not None:
                    on_exit(message["code"])

    def _lost(self) -> None:
        self.log.warning("The kernel pool's supervisor (pid %s) ended; its kernels ended with it", self.pid)
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()  # it let go of its socket: it is dead, or the signal ends it
        self._let_down()

    def _let_down(self) -> None:
        """There is no supervisor any more, and no process of its: tell everybody who waits for one."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(SupervisorGone("the supervisor ended while it was starting"))
            self._ready.exception()  # seen, also where nobody waits any longer
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(SupervisorGone("the supervisor ended"))
        self._answers.clear()
        watchers, self._watchers = self._watchers, {}
        for pid, on_exit in watchers.items():
            _kill_group(pid)  # what the lifeline does not reach: the kernel's children
            on_exit(-signal.SIGKILL)

    async def _ask(self, order: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
        if self._channel is None:
            raise SupervisorGone("the supervisor is not running")
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send({**order, "id": number}, fds)
            reply = await answer
        except ConnectionError as error:
            raise SupervisorGone("the supervisor ended") from error
        finally:
            self._answers.pop(number, None)
        if "error" in reply:
            raise LaunchFailed(f"the process could not be started: {reply['error']}", reason=reply["error"])
        return dict(reply)

    def _tell(self, order: dict[str, Any]) -> None:
        if self._channel is not None and not self._channel.closed:
            with contextlib.suppress(ConnectionError):
                self._channel.send({**order, "id": None})

    async def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for _ in range(500):
            if process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        self.log.warning("The kernel pool's supervisor (pid %s) did not end; it is killed", process.pid)
        process.kill()
        process.wait()


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _importing_us() -> dict[str, str]:
    """The environment for the supervisor: `-P` keeps the cwd off its path, so ours must be found otherwise."""
    import jupyter_kernelpool

    env = dict(os.environ)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(jupyter_kernelpool.__file__)))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), folder)))
    return env
