"""Plays the server towards kernelside processes: a real supervisor, templates, kernels, parked processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client import BlockingKernelClient
from jupyter_client.session import new_id_bytes

import jupyter_kernelpool
from jupyter_kernelpool.kernelside import wire

from .cells import run_cell

PATIENCE = 30.0
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
PACKAGE = Path(jupyter_kernelpool.__file__).parent


class Process:
    """The server's end of one process's socket."""

    def __init__(self, host: Host, sock: socket.socket) -> None:
        self.host = host
        self.sock = sock
        self.pid = 0
        self.facts: dict[str, Any] = {}
        self.fds: list[int] = []  # that came with the last message

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        wire.send(self.sock, message, fds)

    def receive(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next message; an end of file fails the test."""
        assert readable(self.sock, timeout), f"no message from {self.pid} within {timeout} s"
        received = wire.receive(self.sock)
        assert received is not None, f"process {self.pid} let go"
        message, self.fds = received
        return message

    def expect(self, event: str) -> dict[str, Any]:
        message = self.receive()
        assert message["event"] == event, message
        return message

    def born(self) -> dict[str, Any]:
        """Wait for the process's own word that it is there."""
        self.facts = self.receive()
        assert self.facts["event"] in ("ready", "warm"), self.facts
        self.pid = self.facts["pid"]
        self.host.watch(self.pid)
        return self.facts

    def fork(self, **order: Any) -> Process:
        """Have a template or parked process fork a kernel; it may not be born yet."""
        ours, its = socket.socketpair()
        self.send({"op": "fork", "id": next(self.host.ids), **order}, [its.fileno()])
        its.close()
        return self.host.process(ours)

    def gone(self) -> bool:
        """Wait for the end of file on the socket."""
        return readable(self.sock, PATIENCE) and wire.receive(self.sock) is None

    def adopt(self, *, keep: bool = False, identity: dict[str, Any] | None = None, **order: Any) -> Kernel:
        """Give a warm kernel an identity (that of *identity*, or a fresh one) and wait until it serves."""
        info, listeners = self.host.identity()
        file = self.host.folder / f"kernel-{self.pid}-{next(self.host.ids)}.json"
        arguments = ["-f", str(file)]
        message = {
            "op": "adopt", "keep": keep, "cwd": str(self.host.folder), "env": self.host.environment,
            "arguments": arguments, "command": [sys.executable, "-m", "ipykernel_launcher", *arguments],
            "info": info, "connection_file": str(file), **order,
        }  # fmt: skip
        self.send(message, [listener.fileno() for listener in listeners])
        for listener in listeners:
            listener.close()
        answer = self.receive()
        assert answer["event"] == "adopted", answer
        return Kernel(self, info)


class Kernel:
    """An adopted kernel and a client of it."""

    def __init__(self, process: Process, info: dict[str, Any]) -> None:
        self.process = process
        self.host = process.host
        self.info = info
        self.client = BlockingKernelClient()
        self.client.load_connection_info(dict(info))
        self.client.start_channels()
        self.host.clients.append(self.client)
        process.expect("serving")
        self._subscribed()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _subscribed(self) -> None:
        """Wait until iopub is connected: what was published before is lost."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self.client.kernel_info(reply=True, timeout=PATIENCE)
            with contextlib.suppress(Empty):
                while True:
                    message = self.client.get_iopub_msg(timeout=0.05)
                    if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                        return
        raise AssertionError("iopub is silent")

    def run(self, code: str, *, ok: bool = True, **options: Any) -> str:
        """What *code* prints; an error in it fails the test unless *ok* is false, when it is the answer."""
        reply, printed = run_cell(self.client, code, PATIENCE, **options)
        if not ok:
            return str(reply.get("ename"))
        assert reply["status"] == "ok", reply
        return printed

    def order_park(self, *, become: bool = True, reseed: bool = False) -> tuple[int, Process]:
        """Send the order; returns its number and the process that is to be."""
        ours, its = socket.socketpair()
        number = next(self.host.ids)
        self.process.send({"op": "park", "id": number, "become": become, "reseed": reseed}, [its.fileno()])
        its.close()
        return number, self.host.process(ours)

    def park(self, *, become: bool = False, reseed: bool = False) -> Process:
        """Fork the kernel; returns the process once it is there."""
        number, process = self.order_park(become=become, reseed=reseed)
        answer = self.process.expect("parked")
        assert answer["id"] == number
        process.born()
        process.facts["seconds"] = answer["seconds"]
        return process

    def kept(self) -> Process:
        """The process that the kernel parked of its own accord, once it says so."""
        answer = self.process.expect("kept")
        (fd,) = self.process.fds
        process = self.host.process(socket.socket(fileno=fd))
        process.born()
        process.facts["seconds"] = answer["seconds"]
        return process

    def fork(self, *, reseed: bool = False) -> Kernel:
        """A kernel forked from this one, serving."""
        return self.park(become=True, reseed=reseed).adopt(keep=True)

    def shutdown(self) -> int:
        """Shut the kernel down as Jupyter does; its exit code."""
        self.client.shutdown()
        return self.host.exit_code(self.pid)


class Host:
    """A supervisor and what it owns; everything ends with `close`."""

    def __init__(self, folder: Path, environment: dict[str, str], python: str = sys.executable) -> None:
        self.folder = folder
        self.environment = environment
        self.python = python
        self.ids = itertools.count(1)
        self.clients: list[BlockingKernelClient] = []
        self.processes: list[Process] = []
        self.exits: dict[int, int] = {}
        ours, its = socket.socketpair()
        with (folder / "output.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", "-m", "jupyter_kernelpool.supervisor", str(its.fileno())],
                pass_fds=(its.fileno(),), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
            )  # fmt: skip
        its.close()
        self._sock = ours
        self._answer(lambda message: message["event"] == "ready")

    @property
    def log(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    @property
    def supervisor_pid(self) -> int:
        return self._supervisor.pid

    def process(self, sock: socket.socket) -> Process:
        process = Process(self, sock)
        self.processes.append(process)
        return process

    def start(self, mode: str = "template", **settings: Any) -> Process:
        """Spawn a template, or with mode `warm` a kernel."""
        ours, its = socket.socketpair()
        order = {
            "op": "spawn", "id": next(self.ids), "cwd": "/", "env": self.environment,
            "argv": [self.python, "-Xfrozen_modules=off", str(PACKAGE / "kernelside" / "launch.py")],
            "settings": {"mode": mode, "arguments": [], "preload": [], "init_code": "", **settings},
        }  # fmt: skip
        wire.send(self._sock, order, [its.fileno()])
        its.close()
        self._answer(lambda message: message["event"] == "done")
        process = self.process(ours)
        process.born()
        return process

    def watch(self, pid: int) -> None:
        wire.send(self._sock, {"op": "watch", "id": next(self.ids), "pid": pid})
        self._answer(lambda message: message["event"] == "done")

    def exit_code(self, pid: int) -> int:
        """The exit code of *pid*, which is waited for."""
        if pid not in self.exits:
            self._answer(lambda message: message["event"] == "exit" and message["pid"] == pid)
        return self.exits[pid]

    def identity(self) -> tuple[dict[str, Any], list[socket.socket]]:
        """Connection info with a key of its own, and the listeners in the order of `CHANNELS`."""
        listeners = []
        for _ in CHANNELS:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            listener.listen(100)
            listeners.append(listener)
        ports = {f"{name}_port": lis.getsockname()[1] for name, lis in zip(CHANNELS, listeners, strict=True)}
        info = {"transport": "tcp", "ip": "127.0.0.1", "key": new_id_bytes().decode(), **ports}
        return {**info, "signature_scheme": "hmac-sha256"}, listeners

    def drop(self, kept: list[Process]) -> None:
        """End every process but *kept*, and every client."""
        for client in self.clients:
            client.stop_channels()
            client.context.destroy(linger=0)
        for process in self.processes:
            if process not in kept:
                process.sock.close()
                if process.pid and process.pid not in self.exits:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
        self.clients, self.processes = [], kept

    def close(self) -> None:
        self._sock.close()
        self.drop([])
        try:
            self._supervisor.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._supervisor.send_signal(signal.SIGKILL)
            self._supervisor.wait()
            raise

    def _answer(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            assert readable(self._sock, max(0.0, deadline - time.monotonic())), "the supervisor did not answer"
            received = wire.receive(self._sock)
            assert received is not None, "the supervisor is gone"
            message = received[0]
            if message["event"] == "exit":
                self.exits[message["pid"]] = message["code"]
            if wanted(message):
                assert "error" not in message, message
                return message


def environment(folder: Path) -> dict[str, str]:
    """What the kernels' environment is: ours, with folders of the test's own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "JPY_", "COVERAGE"))}
    (folder / "ipython").mkdir(exist_ok=True)
    return {**env, "IPYTHONDIR": str(folder / "ipython"), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def readable(sock: socket.socket, timeout: float) -> bool:
    """Wait until there is something to read on *sock*, or its end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of *pid* refers to."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(link.name)] = str(link.readlink())
    return found


def children(pid: int) -> list[str]:
    """The states of the children of *pid* (Z: a zombie)."""
    states = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == pid:
                    states.append(fields[0])
    return states


def read_json(text: str) -> Any:
    """What a cell printed as JSON."""
    return json.loads(text)
