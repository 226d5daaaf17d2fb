"""A real server in a process of its own, and what a client sees of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

from .cells import run_cell
from .kernelside_driver import Host, Kernel, Process, environment

TOKEN = "integration"
PATIENCE = 30.0
# Compiles a grammar when it is imported, for the format "iri" of jsonschema, which no schema of Jupyter's has: that
# takes a second of a core, twice as long as all else of a server's start. jsonschema does without.
LIGHT = "import sys; sys.modules['rfc3987_syntax'] = None"
# Other extensions that .venv has and that are slow to start; a test that is about one names it.
NEIGHBOURS = ("jupyter_lsp", "voila.server_extension")


def command_of(module: str) -> list[str]:
    """The command that runs *module* as `python -m` does, but lighter."""
    return [sys.executable, "-c", f"{LIGHT}; import runpy; runpy.run_module('{module}', None, '__main__', True)"]


def eventually(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Wait until *condition* is true; returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.02)


@dataclass
class Server:
    """A jupyter_server process with folders of its own."""

    folder: Path
    options: list[str]
    program: str = "jupyter_server"  # or jupyterlab
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    clients: list[BlockingKernelClient] = field(default_factory=list)
    extensions: tuple[str, ...] = ()  # further ones than ours

    @property
    def runtime(self) -> Path:
        return Path(self.environment.get("JUPYTER_RUNTIME_DIR", self.folder / "runtime"))

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        for name in ("runtime", "root", "config", "data", "ipython"):
            (self.folder / name).mkdir(exist_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "JPY_"))}
        env |= {
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "IPYTHONDIR": str(self.folder / "ipython"),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            **self.environment,
        }
        extensions = {"jupyter_kernelpool": True, "jupyterlab": self.program == "jupyterlab"}
        extensions |= dict.fromkeys(NEIGHBOURS, self.program == "jupyterlab") | dict.fromkeys(self.extensions, True)
        command = [
            *command_of(self.program), "--port=0", "--ip=127.0.0.1",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--ServerApp.allow_root=True",
            f"--ServerApp.root_dir={self.root}", "--ServerApp.open_browser=False",
            f"--ServerApp.jpserver_extensions={extensions}",
            "--KernelPool.busy_cores=1.0", *self.options,
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=env, stdout=log, stderr=log, start_new_session=True
            )
        eventually(self._answers, "the server answers")
        # traitlets warns of it and goes on: a test of what it was to set would be one of the default.
        assert "not recognized by" not in self.log, self.log

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended:\n{self.log}"
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            self.port = json.loads((self.runtime / f"jpserver-{self.process.pid}.json").read_text())["port"]
            return self.call("/api")[0] == 200
        return False

    def call(self, path: str, method: str = "GET", body: Any = None, timeout: float = PATIENCE) -> tuple[int, Any]:
        """Status and parsed body of a request."""
        status, _, parsed = self.exchange(path, method, body, timeout)
        return status, parsed

    def exchange(
        self, path: str, method: str = "GET", body: Any = None, timeout: float = PATIENCE
    ) -> tuple[int, Any, Any]:
        """Status, headers and parsed body of a request."""
        data = json.dumps(body).encode() if body is not None else (b"" if method in ("POST", "PATCH") else None)
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Authorization": f"token {TOKEN}"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                status, headers, raw = reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            status, headers, raw = error.code, error.headers, error.read()
        try:
            return status, headers, json.loads(raw) if raw else None
        except ValueError:
            return status, headers, raw.decode()

    def recipe(self, name: str = "python3") -> dict[str, Any]:
        """The recipe's row in /pool, or an empty dict."""
        status, pool = self.call("/kernelpool/v1/pool")
        assert status == 200, pool
        return next((row for row in pool["recipes"] if row["name"] == name), {})

    def wait_warm(self, count: int = 2, name: str = "python3") -> None:
        eventually(lambda: self.recipe(name).get("warm", 0) >= count, f"{count} kernels of {name} are warm")

    def start_kernel(self, **model: Any) -> str:
        status, kernel = self.call("/api/kernels", "POST", {"name": "python3", **model})
        assert status == 201, kernel
        return str(kernel["id"])

    def start_session(self, path: str, name: str = "python3", kind: str = "notebook") -> dict[str, Any]:
        status, session = self.call(
            "/api/sessions", "POST", {"path": path, "name": path, "type": kind, "kernel": {"name": name}}
        )
        assert status == 201, session
        return dict(session)

    def client(self, kernel_id: str) -> BlockingKernelClient:
        """A third party's ZeroMQ client of the kernel, from its connection file."""
        client = BlockingKernelClient(connection_file=str(self.connection_file(kernel_id)))
        client.load_connection_file()
        client.start_channels()
        self.clients.append(client)
        # Not wait_for_ready: it takes a kernel that is slow to bind its heartbeat for dead.
        eventually(lambda: _ready(client), "the kernel answers on shell and iopub")
        return client

    def connection_file(self, kernel_id: str) -> Path:
        return self.runtime / f"kernel-{kernel_id}.json"

    def run(self, kernel: str | BlockingKernelClient, code: str, timeout: float = PATIENCE) -> str:
        """What *code* prints in the kernel; an error in it fails the test."""
        client = self.client(kernel) if isinstance(kernel, str) else kernel
        reply, printed = run_cell(client, code, timeout)
        assert reply["status"] == "ok", reply
        return printed

    def hit(self) -> int:
        return int(self.recipe().get("hits", 0))

    def ours(self) -> list[psutil.Process]:
        """Every process of the pool: the supervisor and all below it."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "jupyter_kernelpool.supervisor" in child.cmdline():
                    found += [child, *child.children(recursive=True)]
        return found

    def supervisor(self) -> psutil.Process:
        return self.ours()[0]

    def template(self) -> int:
        return int(self.recipe()["template"]["pid"])

    def stop(self) -> None:
        for client in self.clients:
            client.stop_channels()
            client.context.destroy(linger=0)  # left to the garbage collector, it may wait for its sockets for ever
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


def _ready(client: BlockingKernelClient) -> bool:
    client.kernel_info()
    try:
        client.get_shell_msg(timeout=1)
        client.get_iopub_msg(timeout=0.5)
    except Empty:
        return False
    with contextlib.suppress(Empty):
        while True:
            client.get_shell_msg(timeout=0.05)
    return True


def gone(processes: list[psutil.Process]) -> bool:
    """Whether none of *processes* runs any more."""
    return not any(_runs(process) for process in processes)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.fixture(scope="session")
def kp_servers() -> Iterator[Callable[..., Server]]:
    """Starts servers (`kp_servers(tmp_path, "--Trait=…")`) and stops them in the end."""
    servers: list[Server] = []

    def start(
        folder: Path,
        *options: str,
        program: str = "jupyter_server",
        extensions: tuple[str, ...] = (),
        **environment: str,
    ) -> Server:
        server = Server(folder, list(options), program, environment=environment, extensions=extensions)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def kp_start(kp_servers: Callable[..., Server], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server for this test alone and stops it afterwards."""
    started: list[Server] = []

    def start(
        *options: str, program: str = "jupyter_server", extensions: tuple[str, ...] = (), **environment: str
    ) -> Server:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir(exist_ok=True)
        started.append(kp_servers(folder, *options, program=program, extensions=extensions, **environment))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def kp_server(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the extension and no configuration, shared by a module's tests."""
    server = kp_servers(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def kernel(kp_server: Server) -> Iterator[str]:
    """A kernel of the pool's on the shared server, which is left without any."""
    kp_server.wait_warm(1)
    started = kp_server.start_kernel()
    yield started
    for each in kp_server.call("/api/kernels")[1]:
        kp_server.call(f"/api/kernels/{each['id']}", "DELETE")


@pytest.fixture(scope="session")
def kp_bwrap() -> str:
    """Bubblewrap's program, without which a test fails: CI has it."""
    program = shutil.which("bwrap")
    assert program is not None, "bwrap is not on PATH: install bubblewrap (on Debian: apt-get install bubblewrap)"
    return program


@pytest.fixture(scope="module")
def kp_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A supervisor without a server, shared by a module's tests."""
    folder = tmp_path_factory.mktemp("host")
    # Another environment's kernels (an older ipykernel's, say) can be tried by naming their interpreter.
    host = Host(folder, environment(folder), os.environ.get("KP_KERNEL_PYTHON", sys.executable))
    yield host
    host.close()


@pytest.fixture(scope="module")
def kp_template(kp_host: Host) -> Process:
    """A template with numpy in it."""
    return kp_host.start(preload=["numpy"])


@pytest.fixture
def kp_kernel(kp_template: Process) -> Iterator[Kernel]:
    """A kernel that serves, a template's fork; it ends with all that was forked from it."""
    process = kp_template.fork(ahead=False)
    process.born()
    yield process.adopt()
    kp_template.host.drop([kp_template])
