"""Twins of tests of jupyter_client's that cannot have a claimed Python kernel, on one.

`tests/upstream` runs jupyter_client's own tests on claimed kernels. Where those need a kernel that is a program of
its own, they get one that was started ahead whole, or none at all; each test here says whose twin it is.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import _ShutdownStatus
from traitlets.config import Config

from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.pooled import PooledKernelManager

from .conftest import PATIENCE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

IGNORE_SHUTDOWN = """
async def ignore(*_): pass
get_ipython().kernel.control_handlers["shutdown_request"] = ignore
"""
IGNORE_SIGTERM = "import signal; _ = signal.signal(signal.SIGTERM, signal.SIG_IGN)"
SLEEP = """
import time
try:
    print("begun")
    time.sleep(600)
except KeyboardInterrupt:
    print("interrupted")
"""


class Pooled:
    """A server's kernel manager without a server, and its kernels, each of which was warm."""

    def __init__(self, folder: Path, config: Config) -> None:
        specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
        pool = {"warm": 1, "busy_cores": 1.0}
        self.manager = PoolingKernelManager(
            config=Config({"KernelPool": pool}, **config), kernel_spec_manager=specs, connection_dir=str(folder),
            root_dir=str(folder), default_kernel_name="twin",
        )  # fmt: skip
        self.clients: list[Any] = []

    async def start(self) -> tuple[Any, Any]:
        """The kernel's manager and a client that it answers."""
        await self.warmed()
        kernel = self.manager.get_kernel(await self.manager.start_kernel())
        assert kernel.pooled.claimed is not None
        return kernel, await self.client(kernel)

    async def warmed(self) -> None:
        await self.manager.start_pool()
        await self.manager.pool.warmed(60)

    async def client(self, kernel: Any) -> Any:
        client = kernel.client()
        self.clients.append(client)
        client.start_channels()
        await client.wait_for_ready(timeout=PATIENCE)
        assert await client.is_alive()
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.stop_channels()
        await self.manager.shutdown_all(now=True)
        # Left to the garbage collector, a context may wait for its sockets for ever.
        self.manager.context.destroy(linger=0)


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch, jp_asyncio_loop: Any) -> Iterator[Callable[..., Pooled]]:
    """Makes managers with a configuration, and a kernelspec with an environment of its own."""
    folder = Path(tempfile.mkdtemp(prefix="kp", dir="/tmp"))  # the path of a Unix socket has 107 characters at most
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Twin", "language": "python", "env": {"TEST_VARS": "${TEST_VARS}:second"}}
    (folder / "kernels" / "twin").mkdir(parents=True)
    (folder / "kernels" / "twin" / "kernel.json").write_text(json.dumps(spec))
    made: list[Pooled] = []

    def make(transport: str = "tcp", **config: Any) -> Pooled:
        if transport == "ipc":
            config["KernelManager"] = {"transport": "ipc", "ip": str(folder / "socket")}
        made.append(Pooled(folder, Config(config)))
        return made[-1]

    yield make
    for each in made:
        jp_asyncio_loop.run_until_complete(each.close())
    shutil.rmtree(folder)


async def printed(client: Any, code: str, heard: Callable[[str], None] = lambda text: None) -> str:
    """What *code* prints; *heard* is told at once."""
    texts: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])
            heard(texts[-1])

    reply = await client.execute_interactive(code, output_hook=hear, timeout=PATIENCE)
    assert reply["content"]["status"] == "ok", reply
    return "".join(texts).strip()


async def until(condition: Callable[[], Any], what: str) -> None:
    """As `eventually`, on the event loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "ignored, goes_as_far_as",
    [
        ("", {_ShutdownStatus.ShutdownRequest, _ShutdownStatus.SigtermRequest}),  # as upstream: the latter where slow
        (IGNORE_SHUTDOWN, {_ShutdownStatus.SigtermRequest}),
        (IGNORE_SHUTDOWN + IGNORE_SIGTERM, {_ShutdownStatus.SigkillRequest}),
    ],
    ids=["shutdown", "terminate", "kill"],
)
async def test_shutdown_goes_as_far_as_it_has_to(
    pooled: Callable[..., Pooled], ignored: str, goes_as_far_as: set[_ShutdownStatus]
) -> None:
    """Twin of `TestKernelManagerShutDownGracefully.test_async_signal_kernel_subprocesses`."""
    many = pooled()
    kernel, client = await many.start()
    process = psutil.Process(kernel.provisioner.pid)
    assert kernel._shutdown_status == _ShutdownStatus.Unset
    assert await kernel.is_alive()
    assert await printed(client, ignored) == ""
    client.stop_channels()
    await many.manager.shutdown_kernel(kernel.kernel_id)
    assert kernel._shutdown_status in goes_as_far_as
    assert not await kernel.is_alive()
    assert not process.is_running()


async def test_interrupt_reaches_the_subprocesses(pooled: Callable[..., Pooled]) -> None:
    """Twin of `test_signal_kernel_subprocesses`, of both its classes."""
    kernel, client = await pooled().start()
    await printed(client, "import subprocess; children = [subprocess.Popen(['sleep', '600']) for _ in range(5)]")
    assert await printed(client, "print([child.poll() for child in children])") == str([None] * 5)
    interrupts = []

    def heard(text: str) -> None:
        if "begun" in text:
            interrupts.append(asyncio.ensure_future(kernel.interrupt_kernel()))

    assert (await printed(client, SLEEP, heard)).split() == ["begun", "interrupted"]
    await asyncio.gather(*interrupts)
    ended = "print([child.wait() for child in children])"
    assert await printed(client, ended) == str([-signal.SIGINT] * 5)


async def test_kernelspec_environment_is_filled_in(
    pooled: Callable[..., Pooled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of `test_templated_kspec_env`; `test_start_new_kernel` and `test_start_new_async_kernel` are within it."""
    monkeypatch.setenv("TEST_VARS", "first")
    kernel, client = await pooled().start()
    assert await kernel.is_alive()
    assert await client.is_alive()
    assert kernel.context.closed is False
    assert await printed(client, "import os; print(os.environ['TEST_VARS'])") == "first:second"


async def test_manager_of_one_kernel_claims_it_and_closes_its_context(pooled: Callable[..., Pooled]) -> None:
    """Twin of `TestAsyncKernelManager.test_lifecycle`: nobody gives such a manager an id or a context."""
    many = pooled()
    await many.warmed()
    kernel = PooledKernelManager(kernel_name="twin", kernel_spec_manager=many.manager.kernel_spec_manager)
    kernel.pool = many.manager.pool
    for start in (kernel.start_kernel, kernel.restart_kernel):
        await many.warmed()
        await start()
        assert kernel.pooled is not None
        assert kernel.pooled.claimed is not None
        assert await kernel.is_alive()
    await kernel.interrupt_kernel()
    await kernel.shutdown_kernel(now=True)
    assert not await kernel.is_alive()
    assert kernel.context.closed


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_connection_info_is_complete(pooled: Callable[..., Pooled], transport: str) -> None:
    """Twin of `test_get_connect_info`, which starts no kernel."""
    kernel, _ = await pooled(transport).start()
    info = kernel.get_connection_info()
    ports = {f"{channel}_port" for channel in ("hb", "shell", "stdin", "iopub", "control")}
    assert set(info) == {"ip", "transport", "key", "signature_scheme", *ports}
    assert info["transport"] == transport
    written = json.loads(Path(kernel.connection_file).read_text())
    assert {name: written[name] for name in info} == {**info, "key": info["key"].decode()}


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_killed_kernel_is_restarted(pooled: Callable[..., Pooled], transport: str) -> None:
    """Twin of `test_async_restart_check`: its kernels are cold after the restart, and over ipc before it."""
    many = pooled(transport, KernelRestarter={"restart_limit": 1})
    kernel, client = await many.start()
    client.stop_channels()  # all clients of a manager's have one name, and the latest to connect has it
    restarts: list[int] = []
    kernel.add_restart_callback(lambda: restarts.append(kernel.provisioner.pid), "restart")
    former = kernel.pooled.claimed
    await many.warmed()
    await kernel.provisioner.kill()
    await until(lambda: kernel.pooled.claimed not in (None, former), "a warm kernel took its place")
    client = await many.client(kernel)
    assert await printed(client, "import os; print(os.getpid())") == str(kernel.provisioner.pid)
    assert restarts == [former.pid]
    assert await kernel.is_alive()


async def test_restarter_gives_up(pooled: Callable[..., Pooled]) -> None:
    """Twin of `test_async_restarter_gives_up`, whose kernels fail while they start; here they are killed."""
    limit = 2
    many = pooled(KernelRestarter={"restart_limit": limit, "stable_start_time": 600.0})
    kernel, _ = await many.start()
    told: list[str] = []
    kernel.add_restart_callback(lambda: told.append("restart"), "restart")
    kernel.add_restart_callback(lambda: told.append("dead"), "dead")
    for _ in range(limit):
        former = kernel.pooled.claimed
        await many.warmed()
        await kernel.provisioner.kill()
        await until(lambda former=former: kernel.pooled.claimed not in (None, former), "a warm kernel took its place")
    await kernel.provisioner.kill()
    await until(lambda: "dead" in told, "the restarter gave up")
    assert told == ["restart"] * limit + ["dead"]
    assert not await kernel.is_alive()
    assert kernel.kernel_id not in many.manager
