"""Real Jupyter servers as subprocesses, with folders of their own, stopped by pid at the end."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tornado.httpclient import HTTPError

from benchmarks.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

EXTENSION = "jupyter_kernelpool"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 60.0


NODELAY = '''
"""A server extension: stock's websocket, with TCP_NODELAY and nothing else of ours."""

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection


def _jupyter_server_extension_points():
    return [{"module": "kp_bench_nodelay"}]


def _load_jupyter_server_extension(app):
    stock = ZMQChannelsWebsocketConnection.connect

    def connect(self):
        self.websocket_handler.set_nodelay(True)
        return stock(self)

    ZMQChannelsWebsocketConnection.connect = connect
'''


@dataclass(frozen=True)
class Variant:
    """A way to start a server: whether our extension is enabled, and with which options."""

    extension: bool
    options: tuple[str, ...] = ()
    warm: int | None = None
    """Warm kernels to wait for; None: as many as the pool wants."""
    extensions: Mapping[str, str] = field(default_factory=dict)
    """Further server extensions: module name → source."""


def _held_by(*enforcers: str) -> Variant:
    """Every limit there is, none of which an idle kernel comes near, held by these enforcers."""
    return Variant(
        extension=True,
        options=(
            *(f"--KernelLimits.enforcers=jupyter_kernelpool.limits.{name}" for name in enforcers),
            "--KernelLimits.memory=600M",
            "--KernelLimits.cpu=0.8",
            "--KernelLimits.processes=100",
            "--KernelLimits.open_files=512",
            "--KernelLimits.output=10M",
            "--KernelLimits.grace=1.5",
        ),
    )


VARIANTS: Mapping[str, Variant] = {
    "stock": Variant(extension=False),
    "nodelay": Variant(extension=False, extensions={"kp_bench_nodelay": NODELAY}),
    "ours": Variant(extension=True),
    "ours+preload": Variant(extension=True, options=("--KernelPool.preload=numpy", "--KernelPool.preload=pandas")),
    # Every limit that is measured, and none that an idle kernel comes near.
    "ours+limits": Variant(
        extension=True,
        options=(
            "--KernelLimits.memory=2G",
            "--KernelLimits.cpu=0.8",
            "--KernelLimits.processes=500",
            "--KernelLimits.open_files=512",
        ),
    ),
    "ours+cgroup": _held_by("cgroup.CgroupEnforcer", "rlimit.RlimitEnforcer"),
    "ours+watchdog": _held_by("rlimit.RlimitEnforcer", "watchdog.WatchdogEnforcer"),
    # Machines are always busier than 0: nothing is made ahead of demand, while the template lives.
    "ours+empty": Variant(extension=True, options=("--KernelPool.warm=0", "--KernelPool.busy_cores=0"), warm=0),
    # Its templates go after seconds, not minutes, and are made on a busy machine, too: what is left is the same.
    "ours+hub": Variant(
        extension=True,
        options=("--KernelPool.preset=hub", "--KernelPool.recipe_idle=10", "--KernelPool.busy_cores=1"),
        warm=0,
    ),
}


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    client: Client
    pid: int
    runtime: Path
    warm: int | None = None

    def connection_file(self, kernel_id: str) -> Path:
        """Where the connection file of a kernel lies."""
        return self.runtime / f"kernel-{kernel_id}.json"


@asynccontextmanager
async def start_server(
    variant: str,
    *,
    options: tuple[str, ...] = (),
    extensions: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    on_stopped: Callable[[Path], None] | None = None,
) -> AsyncIterator[Server]:
    """A running server of *variant*, stopped on the way out, whatever happens.

    *extensions* are further server extensions: module name → source; *variables* go to its environment; *on_stopped* is
    called with the server's folder, before that is removed.
    """
    how = VARIANTS[variant]
    with tempfile.TemporaryDirectory(prefix="kp-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        environment = _make_home(home, how, {**how.extensions, **(extensions or {})}) | dict(variables or {})
        port, token = _find_port(), secrets.token_hex(16)
        log = home / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_command(port, token, home / "root"), *how.options, *options],
                env=environment,
                cwd=home / "root",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # ^C is for us: the server is stopped below
            )
        try:
            client = Client(f"http://127.0.0.1:{port}", token)
            await _wait_until_up(client, process, log)
            yield Server(client, process.pid, home / "runtime", how.warm)
        finally:
            await _stop(process)
            if on_stopped is not None:
                on_stopped(home)


def _command(port: int, token: str, root: Path) -> list[str]:
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return [
        sys.executable,
        "-m",
        "jupyter_server",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
        # Enough for 500 kernels; and a kernel that starts slowly, among a hundred others, is not
        # given up on.
        f"--ServerApp.min_open_files_limit={min(most_files, 65536)}",
        "--MappingKernelManager.kernel_info_timeout=120",
    ]


def _make_home(home: Path, how: Variant, extensions: Mapping[str, str]) -> dict[str, str]:
    """Make the server's folders and its configuration; return its environment."""
    for name in ("config", "runtime", "data", "ipython", "root", "modules"):
        (home / name).mkdir()
    (home / "runtime").chmod(0o700)
    for module, source in extensions.items():
        (home / "modules" / f"{module}.py").write_text(source)
    enabled = {EXTENSION: how.extension, **dict.fromkeys(extensions, True)}
    config = {"ServerApp": {"jpserver_extensions": enabled}}
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(config))
    own = ("JUPYTER", "IPYTHON", "JPY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    if extensions:
        paths = [str(home / "modules"), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def _find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def _wait_until_up(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        with suppress(HTTPError, OSError):
            await client.request("GET", "/api/status")
            return
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise RuntimeError(f"the server did not start:\n{tail}")
        await asyncio.sleep(0.1)


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then wait; SIGKILL at last. Stays at it when cancelled: nothing may be left."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    cancelled = False
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
