"""Each transport that stock has is a pool hit, serves foreign clients, and lasts over a restart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient

from .conftest import Server, eventually

pytestmark = pytest.mark.integration

IPC = "--PooledKernelManager.transport=ipc"
RECIPES = "--KernelPool.recipes={'curved': {'warm': 1}, 'plain': {'warm': 1}}"
ENCRYPTION = "--AsyncMappingKernelManager.transport_encryption="
OPTIONS = {
    "tcp": (),
    "ipc": (IPC,),
    "tcp-auto": (f"{ENCRYPTION}auto",),
    "tcp-required": (f"{ENCRYPTION}required",),
    "ipc-required": (IPC, f"{ENCRYPTION}required"),
}
ON, OFF = {"warm": 1, "max": 8}, {"warm": 0, "max": 0}  # settings with which kernels start warm, and cold
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


def install_spec(folder: Path, name: str, **metadata: Any) -> None:
    """A kernelspec of this environment's ipykernel in the server's data folder."""
    place = folder / "data" / "kernels" / name
    place.mkdir(parents=True)
    argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": name, "language": "python", "metadata": metadata}
    (place / "kernel.json").write_text(json.dumps(spec))


@pytest.fixture(scope="module")
def short_folders() -> Iterator[Callable[[], Path]]:
    """Folders with short names: the path of a Unix socket has 107 characters at most."""
    made: list[str] = []

    def make() -> Path:
        made.append(tempfile.mkdtemp(prefix="kp", dir="/tmp"))
        folder = Path(made[-1])
        install_spec(folder, "curved", supported_encryption="curve")
        install_spec(folder, "plain")
        return folder

    yield make
    for name in made:
        shutil.rmtree(name, ignore_errors=True)


@pytest.fixture(scope="module", params=OPTIONS)
def server(
    request: pytest.FixtureRequest, kp_servers: Callable[..., Server], short_folders: Callable[[], Path]
) -> Iterator[Server]:
    server = kp_servers(short_folders(), RECIPES, *OPTIONS[request.param])
    yield server
    server.stop()


def transport(server: Server) -> str:
    return "ipc" if IPC in server.options else "tcp"


def encrypts(server: Server) -> bool:
    return any(option.startswith(ENCRYPTION) for option in server.options)


def claim(server: Server, name: str = "curved") -> tuple[str, dict[str, Any]]:
    """A kernel that was warm, and its connection file's content."""
    server.wait_warm(1, name)
    hits = server.recipe(name)["hits"]
    kernel = server.start_kernel(name=name)
    assert server.recipe(name)["hits"] == hits + 1
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "template"
    return kernel, json.loads(server.connection_file(kernel).read_text())


def sockets(server: Server, kernel: str) -> dict[Path, int]:
    """The socket files of the kernel's channels, and their inodes."""
    return {path: path.stat().st_ino for path in server.runtime.glob(f"kernel-{kernel}-ipc-*")}


def reconnected(client: BlockingKernelClient) -> None:
    """Wait until *client*, whose kernel has a new process, hears that one on shell and iopub.

    What is published before ZeroMQ has connected a client's iopub again is lost to it, with stock too. The
    answers are told from what the process before has left in the queues by their parent.
    """
    eventually(lambda: hears_idle(client, client.kernel_info()), "the client is connected again")
    with contextlib.suppress(Empty):
        while True:
            client.get_shell_msg(timeout=0.1)


def hears_idle(client: BlockingKernelClient, request: str) -> bool:
    with contextlib.suppress(Empty):
        while True:
            message = client.get_iopub_msg(timeout=1)
            if message["parent_header"].get("msg_id") == request and message["content"]["execution_state"] == "idle":
                return True
    return False


def restart(server: Server, kernel: str) -> None:
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200


def test_start_is_a_hit_and_the_connection_file_tells_the_transport(server: Server) -> None:
    kernel, info = claim(server)
    assert info["transport"] == transport(server)
    assert ("curve_publickey" in info, "curve_secretkey" in info) == (encrypts(server),) * 2
    assert server.run(kernel, "print(6 * 7)") == "42"
    # Stock's own client, the websocket's and the restarter's, has seen nothing of a death either. It may hear of the
    # cell's end a moment later than we.
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] in ("idle", "starting"), "it rests")


def test_restart_is_a_hit_that_keeps_files_keys_and_clients(server: Server) -> None:
    kernel, info = claim(server)
    client = server.client(kernel)
    pid = server.run(client, "import os; x = 1; print(os.getpid())")
    files = sockets(server, kernel)
    assert len(files) == (len(CHANNELS) if transport(server) == "ipc" else 0)
    server.wait_warm(1, "curved")
    hits = server.recipe("curved")["hits"]
    restart(server, kernel)
    assert server.recipe("curved")["hits"] == hits + 1
    assert json.loads(server.connection_file(kernel).read_text()) == info
    assert sockets(server, kernel) == files, "the same sockets, bound once"
    reconnected(client)
    assert server.run(client, "print('x' in globals())") == "False"
    assert server.run(client, "import os; print(os.getpid())") != pid
    assert server.run(server.client(kernel), "print('a new client')") == "a new client"


def test_every_channel_answers(server: Server) -> None:
    kernel, _ = claim(server)
    client = server.client(kernel)
    client.execute("print(input('name? '))")
    assert client.get_stdin_msg(timeout=20)["content"]["prompt"] == "name? "
    client.input("Ada")
    assert client.get_shell_msg(timeout=20)["content"]["status"] == "ok"
    message = client.session.msg("kernel_info_request")
    client.control_channel.send(message)
    assert client.get_control_msg(timeout=20)["parent_header"]["msg_id"] == message["header"]["msg_id"]
    eventually(client.hb_channel.is_beating, "the heartbeat is answered")


def test_killed_kernel_comes_back_on_the_same_connection(server: Server) -> None:
    kernel, info = claim(server)
    client = server.client(kernel)
    pid = int(server.run(client, "import os; print(os.getpid())"))
    server.wait_warm(1, "curved")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: server.call(f"/kernelpool/v1/kernels/{kernel}")[1].get("pid") not in (pid, 0), "restarted")
    reconnected(client)
    assert int(server.run(client, "import os; print(os.getpid())")) != pid
    assert json.loads(server.connection_file(kernel).read_text()) == info


def test_forks_checkpoints_and_restores_have_the_same_transport(server: Server) -> None:
    kernel, info = claim(server)
    client = server.client(kernel)
    server.run(client, "x = 'then'")
    forked, second = forks(server, f"kernels/{kernel}/fork", count=2)
    kept = ordered(server, f"kernels/{kernel}/checkpoints")["id"]
    server.run(client, "x = 'now'")
    (third,) = forks(server, f"checkpoints/{kept}/fork")
    (alone,) = forks(server, f"kernels/{third}/fork", files="copy")
    for each in (forked, second, third, alone):
        told = json.loads(server.connection_file(each).read_text())
        assert told["transport"] == transport(server)
        assert ("curve_publickey" in told) == encrypts(server)
        assert told["key"] != info["key"]
        if encrypts(server):
            assert told["curve_secretkey"] != info["curve_secretkey"]
        assert len(sockets(server, each)) == (len(CHANNELS) if transport(server) == "ipc" else 0)
        assert server.run(each, "print(x)") == "then"
    only_those_with_the_keys_are_answered(server, told)

    for source in ({"checkpoint": kept}, {"kernel": forked}):
        server.run(client, "x = 'now'")
        ordered(server, f"kernels/{kernel}/restore", 200, **source)
        assert json.loads(server.connection_file(kernel).read_text()) == info
        reconnected(client)
        assert server.run(client, "print(x)") == "then"
        assert server.run(server.client(kernel), "print(x)") == "then", "a new client"
    server.wait_warm(1, "curved")
    restart(server, forked)
    assert server.run(server.client(forked), "print('x' in globals())") == "False"
    for each in (forked, second, third, alone):
        assert server.call(f"/api/kernels/{each}", "DELETE")[0] == 204
        assert list(server.runtime.glob(f"kernel-{each}*")) == []


def ordered(server: Server, path: str, expect: int = 201, **body: Any) -> Any:
    status, model = server.call(f"/kernelpool/v1/{path}", "POST", body)
    assert status == expect, model
    return model


def forks(server: Server, path: str, **body: Any) -> list[str]:
    return [each["id"] for each in ordered(server, path, **body)["kernels"]]


def test_files_are_gone_after_delete(server: Server) -> None:
    kernel, _ = claim(server)
    restart(server, kernel)
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    assert list(server.runtime.glob(f"kernel-{kernel}*")) == []


def test_client_without_the_keys_is_not_answered(server: Server) -> None:
    """Also after a restart; and where nothing is encrypted, the same client is answered."""
    kernel, info = claim(server)
    for act in (lambda: None, lambda: restart(server, kernel)):
        act()
        only_those_with_the_keys_are_answered(server, info)


def scale(server: Server, settings: dict[str, int]) -> None:
    assert server.call("/kernelpool/v1/pools/curved", "PATCH", settings)[0] == 200


def only_those_with_the_keys_are_answered(server: Server, info: dict[str, Any]) -> None:
    without = {name: value for name, value in info.items() if not name.startswith("curve_")}
    assert is_answered(server, info, timeout=20)
    if encrypts(server):
        assert not is_answered(server, without, timeout=2)
    else:
        assert is_answered(server, without, timeout=20)


def is_answered(server: Server, info: dict[str, Any], timeout: float) -> bool:
    client = BlockingKernelClient()
    client.load_connection_info({**info, "key": info["key"].encode()})  # type: ignore[typeddict-item]
    client.start_channels(iopub=False, stdin=False, hb=False, control=False)
    server.clients.append(client)
    client.kernel_info()
    try:
        return bool(client.get_shell_msg(timeout=timeout))
    except Empty:
        return False


def test_kernelspec_that_declares_no_encryption(server: Server) -> None:
    """`auto` leaves it alone, and it is a hit; `required` refuses it, as stock does."""
    if f"{ENCRYPTION}required" in server.options:
        status, _ = server.call("/api/kernels", "POST", {"name": "plain"})
        assert status == 500
        assert "does not declare 'curve' in `metadata.supported_encryption`" in server.log
        return
    kernel, info = claim(server, "plain")
    assert "curve_publickey" not in info
    assert server.run(kernel, "print(6 * 7)") == "42"


def test_cold_kernel_uses_the_same_transport(server: Server) -> None:
    """What is not pooled binds by itself, as stock; and its restart too."""
    scale(server, OFF)
    try:
        kernel = server.start_kernel(name="curved")
        assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "cold"
        info = json.loads(server.connection_file(kernel).read_text())
        assert (info["transport"], "curve_publickey" in info) == (transport(server), encrypts(server))
        assert server.run(kernel, "print(6 * 7)") == "42"
    finally:
        scale(server, ON)
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    assert list(server.runtime.glob(f"kernel-{kernel}*")) == []


@pytest.mark.parametrize("before", ["cold", "claimed"])
def test_ipc_kernel_may_be_cold_before_or_after_a_restart(
    before: str, kp_servers: Callable[..., Server], short_folders: Callable[[], Path]
) -> None:
    """The socket files change hands between the server and a kernel that binds by itself."""
    server = kp_servers(short_folders(), IPC, RECIPES)
    server.wait_warm(1, "curved")
    modes = [OFF, ON]
    ways = ["cold", "template"]
    if before == "claimed":
        modes.reverse()
        ways.reverse()
    scale(server, modes[0])
    kernel = server.start_kernel(name="curved")
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == ways[0]
    client = server.client(kernel)
    server.run(client, "x = 1")
    scale(server, modes[1])
    if modes[1] == ON:
        server.wait_warm(1, "curved")
    restart(server, kernel)
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == ways[1]
    assert server.run(server.client(kernel), "print('x' in globals())") == "False"
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    assert list(server.runtime.glob(f"kernel-{kernel}*")) == []
    server.stop()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_server_leaves_no_socket_files(
    how: int, kp_servers: Callable[..., Server], short_folders: Callable[[], Path]
) -> None:
    server = kp_servers(short_folders(), IPC, RECIPES)
    kernel, _ = claim(server)
    assert len(sockets(server, kernel)) == len(CHANNELS)
    assert server.process is not None
    server.process.send_signal(how)
    eventually(lambda: not list(server.runtime.glob("kernel*")), "files are removed")
    server.process.wait()
