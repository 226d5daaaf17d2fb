"""A kernel process of ours, launched or forked: what the server knows of it, tells it and hears from it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.errors import (
    Busy,
    CannotFork,
    CopyFailed,
    KernelPoolError,
    LaunchFailed,
    TooLarge,
    Unfit,
    WrongState,
)
from jupyter_kernelpool.lifecycle import Record, State
from jupyter_kernelpool.supervision import Supervision
from jupyter_kernelpool.usage import is_asleep

ADOPT_TIMEOUT = 1.5  # it takes 2 ms; a process that hangs must not cost its user more than a cold start
FIRST_LOOK = 0.005  # seconds until one that has not adopted is looked at
LOOK_EVERY = 0.006
LOOKS = 4  # at which it slept in a row, its order unread: then it hangs
PING_TIMEOUT = 5.0
CANCEL_TIMEOUT = 0.1
FORKED = ("template", "fork")  # ways that begin with memory of another process's
COPY_TIMEOUT = 600.0  # what a copy of a working directory may take, once it has begun


COPYING: dict[str, type[KernelPoolError]] = {"too_large": TooLarge, "copy_failed": CopyFailed}


class Process:
    """A launched kernel process: what `subprocess.Popen` is to stock's provisioner, and the pool's handle.

    `poll`, `wait`, `send_signal`, `kill`, `terminate`, `stdin`, `stdout`, `stderr` and `pid` are what
    jupyter_client's LocalProvisioner uses of a Popen.
    """

    stdin = stdout = stderr = None

    def __init__(self, record: Record, supervision: Supervision, ours: socket.socket | None) -> None:
        self.record = record
        self.pid = 0
        self.exit_code: int | None = None
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.serving: asyncio.Future[None] = loop.create_future()
        self.hung_up: asyncio.Future[None] = loop.create_future()
        self._adopted: asyncio.Future[None] = loop.create_future()
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._supervision = supervision
        self._channel = Channel(ours, self._heard, self._silent) if ours is not None else None
        self.connection: dict[str, Any] | None = None
        self.kernel_info: dict[str, Any] | None = None
        self.stays = asyncio.Event()  # not set: it is about to be replaced, and takes no more cells
        self.stays.set()
        self.inherited = 0  # bytes of memory that it began with, and shares with what it was forked from
        self.unforkable: str | None = "This kernel has no private socket to be asked to fork by."
        self.manifest: dict[str, Any] | None = None
        self.on_kept: Callable[[socket.socket], None] | None = None
        self.on_not_kept: Callable[[str], None] | None = None
        self.on_wish: Callable[[dict[str, Any]], None] | None = None
        self._parks: dict[int, asyncio.Future[float]] = {}
        self._ids = itertools.count(1)
        self._holds = 0  # forks of it that are being made
        self._copying: set[int] = set()  # parks for which the kernel copies its working directory
        self.copies = False  # whether this process does that before it is warm
        for future in (self.exited, self.ready, self.serving, self.hung_up, self._adopted):
            future.add_done_callback(retrieve)

    @property
    def alive(self) -> bool:
        """Whether the process has not ended, as far as the supervisor said."""
        return self.exit_code is None

    def own(self, pid: int) -> None:
        """The process is *pid*, a child of the supervisor's; its end is reported from here on."""
        self.pid = self.record.pid = pid
        self._supervision.watch(pid, self._ended)

    def prefix_ended(self, code: int) -> None:
        """The program that stood before this process ended; with 0, the process has told, or is telling, who it is."""
        if code:
            text = f"the launch_prefix ended with status {code}: see the server's log"
            _fail(self.ready, Unfit(text, reason=text, traceback="", kind="not_enforceable"))

    def offer(self, order: dict[str, Any], listeners: Sequence[int]) -> None:
        """Give the process its owner's identity and surroundings, in one step, without waiting (see `adopted`).

        Raises `LaunchFailed` when it is gone.
        """
        if self._channel is None:
            raise LaunchFailed("this process takes no identity")
        try:
            self._channel.send({"op": "adopt", **order}, listeners)
        except ConnectionError as error:
            raise LaunchFailed(f"kernel process {self.pid} is gone") from error

    async def adopted(self, *, replaceable: bool = False) -> None:
        """Wait until the process took what it was offered; it answers on its listeners some milliseconds later
        (`serving`).

        Raises `LaunchFailed` when it did not, or not within `ADOPT_TIMEOUT` seconds (reason "timeout"); it is then not
        to be used. With *replaceable*, where another one can take its place, also as soon as it evidently hangs
        (reason "hung").
        """
        try:
            async with asyncio.timeout(ADOPT_TIMEOUT):
                if replaceable and await self._hangs():
                    raise LaunchFailed(f"kernel process {self.pid} hangs: it sleeps over its order", reason="hung")
                await asyncio.shield(self._adopted)
        except TimeoutError as error:
            text = f"kernel process {self.pid} took no identity in {ADOPT_TIMEOUT} s"
            raise LaunchFailed(text, reason="timeout") from error

    async def _hangs(self) -> bool:
        """Whether it is sure not to adopt; false as soon as it read its order, or adopted.

        Until it has read the order a healthy process has no reason to sleep, however loaded the machine is: what came
        woke its main thread, which runs, or waits for a processor. One in which something else holds the interpreter's
        lock reads only the first bytes.
        """
        asleep, pause = 0, FIRST_LOOK
        while asleep < LOOKS:
            done, _ = await asyncio.wait([self._adopted], timeout=pause)
            if done or self._channel is None or not self._channel.is_unread:
                return False
            asleep, pause = asleep + 1 if is_asleep(self.pid) else 0, LOOK_EVERY
        return True

    async def check(self, timeout: float = PING_TIMEOUT) -> bool:
        """Whether a warm process answers, or a serving one has come to rest between two messages of its main shell,
        within *timeout* seconds. What the latter kept until then (`on_kept`) has been told.
        """
        if not self.alive or self._channel is None:
            return self.alive
        number = next(self._ids)
        pong = self._pongs[number] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send({"op": "ping", "id": number})
            async with asyncio.timeout(timeout):
                await pong
        except (TimeoutError, ConnectionError):
            return False
        finally:
            del self._pongs[number]
        return True

    def keep_each_cell(self, on: bool, *, now: bool = False) -> None:
        """Have the serving kernel park a fork of itself after each cell from now on, and with *now* one at once.

        Each is told to `on_kept`, with the server's end of its socket, or why there is none to `on_not_kept`.
        """
        self._tell({"op": "keep", "each_cell": on, "now": now})

    @property
    def is_forking(self) -> bool:
        """Whether it forks itself, or is about to as soon as its cell ends."""
        return bool(self._parks)

    async def park(
        self,
        its: socket.socket,
        *,
        become: bool,
        reseed: bool = False,
        timeout: float,
        files: dict[str, Any] | None = None,
    ) -> float:
        """Have the serving kernel fork itself between two cells; *its* is the new process's end of its own socket.

        The fork parks, or with *become* is at once a warm kernel. Returns the seconds for which the kernel stood
        still. Raises `Busy` when a cell runs for longer than *timeout* seconds, `CannotFork` with the kernel's reason.

        With *files* (see `kernelside.copying`) the kernel copies its working directory for the fork. That may take
        longer, `COPY_TIMEOUT` seconds at most; raises `TooLarge` and `CopyFailed`. It gives up when *its* is hung up.
        """
        if self._channel is None or not self.alive or not self.serving.done():
            raise WrongState(f"kernel process {self.pid} does not run", reason="not_running")
        with self._held():
            return await self._park(its, become=become, reseed=reseed, timeout=timeout, files=files)

    async def _park(
        self, its: socket.socket, *, become: bool, reseed: bool, timeout: float, files: dict[str, Any] | None
    ) -> float:
        assert self._channel is not None
        number = next(self._ids)
        answer = self._parks[number] = asyncio.get_running_loop().create_future()
        order = {"op": "park", "id": number, "become": become, "reseed": reseed, "files": files}
        try:
            self._channel.send(order, [its.fileno()])
            if await self._answered(answer, number, timeout):
                return float(answer.result())
            self._channel.send({"op": "cancel_park", "id": number})
            # It may have come to rest in the last moment. One that computes can't answer, and reads the order to
            # fork only together with this one.
            if await self._answered(answer, number, CANCEL_TIMEOUT) and answer.exception() is None:
                return float(answer.result())
            raise Busy(f"a cell is running, and did not end within {timeout:g} s")
        except ConnectionError as error:
            raise WrongState(f"kernel process {self.pid} is gone", reason="not_running") from error
        finally:
            self._parks.pop(number, None)
            self._copying.discard(number)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """While it is being forked it is nobody's to judge: whoever looks after kernels leaves it alone."""
        self._holds += 1
        if self.record.state is State.ACTIVE:
            self.record.move(State.HELD, why="being forked", now=time.time())
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds and self.record.state is State.HELD:
                self.record.move(State.ACTIVE, why="forked", now=time.time())

    async def _answered(self, answer: asyncio.Future[float], number: int, timeout: float) -> bool:
        """Wait for *answer*, longer where files are being copied; whether it came. Raises `CopyFailed`."""
        done, _ = await asyncio.wait([answer], timeout=timeout)
        if not done and number in self._copying:
            done, _ = await asyncio.wait([answer], timeout=COPY_TIMEOUT)
            if not done:
                raise CopyFailed(f"the working directory was not copied within {COPY_TIMEOUT:g} s", reason="timeout")
        return bool(done)

    def answer(self, number: int, *, text: str = "", error: str | None = None) -> None:
        """What the kernel, whose cell waits for it, is told about its wish *number*."""
        self._tell({"op": "answer", "id": number, "text": text, "error": error})

    def report(self, display: str, parent: dict[str, Any], text: str) -> None:
        """What came of a wish: *text* goes to the display of the cell *parent*, which has ended."""
        self._tell({"op": "report", "display": display, "parent": parent, "text": text})

    def discard(self, why: str) -> None:
        """End a process that nobody owns; returns at once."""
        if self.record.state not in (State.STOPPING, State.DEAD):
            self.record.move(State.STOPPING, why=why, now=time.time())
        if self._channel is not None:
            self._channel.close()
        if self.pid:
            with contextlib.suppress(OSError):
                self.send_signal(signal.SIGKILL)
        elif self.alive:
            self._ended(-signal.SIGKILL)  # nobody knows its pid, so nobody would report its end

    def poll(self) -> int | None:
        return self.exit_code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; as stock calls it, only after `poll` gave one."""
        return self.exit_code if self.exit_code is not None else 0

    def send_signal(self, signum: int) -> None:
        """Signal the process group; a process that has ended is signalled no more."""
        if self.alive and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def kill_what_is_left(self) -> None:
        """End what outlived the process in its group, as stock does at a restart: commands, a pool's workers.

        Its number is given to another process only once the group is empty, so if there is one, nothing is left.
        """
        if not self.alive and self.pid and not psutil.pid_exists(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _heard(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "here":
                self.own(message["pid"])
            case "warm":
                self.own(message["pid"])
                self.kernel_info = message.get("kernel_info")
                self.unforkable = message.get("forkable")
                if self.record.way in FORKED:
                    self.inherited = int(message.get("began_with", 0))
                self.manifest = message.get("manifest")
                _settle(self.ready, message)
            case "unfit":
                _fail(self.ready, _unfit(message))
            case "copying":
                self.copies = True
                self._copying.add(message.get("id", 0))
            case "pong":
                if message["id"] in self._pongs:
                    _settle(self._pongs[message["id"]], None)
            case "adopted":
                _settle(self._adopted, None)
            case "failed":
                _fail(self._adopted, LaunchFailed(f"adopting failed: {message['error']}"))
            case "serving":
                _settle(self.serving, None)
            case "closed":
                _settle(self.hung_up, None)
            case "wish" if self.on_wish is not None:
                self.on_wish(message)
            case "wish":
                self.answer(message["id"], error="This kernel has no server behind it that could do that")
            case "parked":
                if message["id"] in self._parks:
                    _settle(self._parks[message["id"]], message["seconds"])
            case "kept":
                for descriptor in message.get("descriptors", ()):
                    self._kept(socket.socket(fileno=descriptor))
            case "park_failed" if message["id"] is None:
                if self.on_not_kept is not None:
                    self.on_not_kept(message["reason"])
            case "park_failed":
                if message["id"] in self._parks:
                    _fail(self._parks[message["id"]], _refusal(message))

    def _tell(self, order: dict[str, Any]) -> None:
        if self._channel is not None and self.alive:
            with contextlib.suppress(ConnectionError):
                self._channel.send(order)

    def _kept(self, parked: socket.socket) -> None:
        if self.on_kept is not None:
            self.on_kept(parked)
        else:
            parked.close()

    def _silent(self) -> None:
        gone = LaunchFailed(f"kernel process {self.pid or '(unnamed)'} ended while it was starting")
        _fail(self.ready, gone)
        _fail(self._adopted, gone)
        _fail(self.serving, gone)
        for answer in self._parks.values():
            _fail(answer, WrongState(f"kernel process {self.pid} ended", reason="not_running"))

    def _ended(self, code: int) -> None:
        self.exit_code = code
        self.record.end(why=f"exit code {code}", now=time.time())
        self._silent()
        _settle(self.hung_up, None)
        for pong in self._pongs.values():
            _fail(pong, ConnectionError(f"kernel process {self.pid} ended"))
        _settle(self.exited, code)
        if self._channel is not None:
            self._channel.close()


@contextlib.contextmanager
def taking_no_cells(process: Any) -> Iterator[None]:
    """Have the websockets hold what is to run in *process*, which is about to be replaced; a wish did so already."""
    if not isinstance(process, Process) or not process.stays.is_set():
        yield
        return
    process.stays.clear()
    try:
        yield
    finally:
        process.stays.set()


async def until_ready(process: Process, timeout: float) -> dict[str, Any]:
    """Wait for the process's own word that it is warm, and note that; when it fails, the process is ended."""
    try:
        await asyncio.wait([process.ready], timeout=timeout)
        async with asyncio.timeout(COPY_TIMEOUT if process.copies else 0):
            message = await asyncio.shield(process.ready)
    except TimeoutError as error:
        process.discard("not ready in time")
        raise LaunchFailed(f"not ready within {timeout:g} s", reason="timeout") from error
    except BaseException:
        process.discard("did not become ready")
        raise
    process.record.move(State.WARM, why="ready", now=time.time())
    return message


def _refusal(message: dict[str, Any]) -> KernelPoolError:
    """What `park_failed` means to who asked."""
    if message["code"] == "cancelled":
        return WrongState(message["reason"], reason="not_running")
    if message["code"] in COPYING:
        return COPYING[message["code"]](message["reason"], **message.get("facts", {}))
    return CannotFork(message["reason"], reason=message["code"], advice=message.get("hint", ""))


def _unfit(message: dict[str, Any]) -> KernelPoolError:
    """What `unfit` means to who waits for the process."""
    kind = message.get("kind", "")
    if kind in COPYING:
        return COPYING[kind](message["reason"], **message.get("facts", {}))
    return Unfit(message["reason"], **{name: message.get(name, "") for name in ("reason", "traceback", "kind")})


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def retrieve(future: asyncio.Future[Any]) -> None:
    """Mark the exception as seen: not every one of a process's futures has somebody waiting."""
    if not future.cancelled():
        future.exception()
