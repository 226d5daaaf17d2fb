"""Installed is enough; and whatever the user chose himself stays as he chose it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import LIGHT, Server, eventually
from .traces import write_spec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

OURS = "jupyter_kernelpool.manager.PoolingKernelManager"
OUR_WEBSOCKET = "jupyter_kernelpool.websocket.PooledWebsocketConnection"
STOCK = "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager"
STOCK_WEBSOCKET = "jupyter_server.services.kernels.connection.channels.ZMQChannelsWebsocketConnection"

# Makes a server as `jupyter server` does, up to where it would listen, and tells which classes it has.
LOOK = """
import asyncio, json, sys
from jupyter_server.serverapp import ServerApp

def name(cls):
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"

async def main():
    app = ServerApp.instance()
    app.initialize(sys.argv[1:], new_httpserver=False)
    await app.extension_manager.start_all_extensions()
    manager = app.kernel_manager
    connection = app.web_app.settings["kernel_websocket_connection_class"]
    import psutil
    children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    print(json.dumps({
        "manager": name(type(manager)),
        "kernel": name(manager.kernel_manager_class),
        "connection": name(connection),
        "bases": [name(base) for base in connection.__mro__],
        "children": children,
    }))
    await app._cleanup()

asyncio.run(main())
"""

# Modules that a user might have of his own.
CHOSEN = """
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

class Mine(AsyncMappingKernelManager):
    pass

class MyConnection(ZMQChannelsWebsocketConnection):
    pass
"""


def look(folder: Path, *options: str, config: str = "", script: str = LOOK) -> tuple[dict[str, Any], str]:
    """What *script* tells of a server with *options* and *config* (which classes it has), and the log."""
    (folder / "chosen.py").write_text(CHOSEN)
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "jupyter_server_config.py").write_text(config)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "JPY_"))}
    env |= {
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": str(folder),
    }
    ended = subprocess.run(
        [
            sys.executable, "-c", f"{LIGHT}\n{script}", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}",
            "--ServerApp.jpserver_extensions={'jupyter_kernelpool': True, 'jupyterlab': False}", *options,
        ],
        capture_output=True, text=True, timeout=60, check=False, env=env,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


def test_default_server_has_our_classes_and_says_so(tmp_path: Path) -> None:
    found, log = look(tmp_path)
    assert found["manager"] == OURS
    assert found["kernel"] == "jupyter_kernelpool.pooled.PooledKernelManager"
    assert found["connection"] == OUR_WEBSOCKET
    assert any("jupyter_kernelpool.supervisor" in child for child in found["children"])
    told = [line for line in log.splitlines() if "Kernels are pooled" in line]
    assert len(told) == 1
    assert OURS in told[0]
    assert OUR_WEBSOCKET in told[0]


@pytest.mark.parametrize("where", ["command line", "configuration"])
def test_kernel_manager_of_the_users_is_respected_with_one_line(tmp_path: Path, where: str) -> None:
    if where == "command line":
        found, log = look(tmp_path, "--ServerApp.kernel_manager_class=chosen.Mine")
    else:
        found, log = look(tmp_path, config="c.ServerApp.kernel_manager_class = 'chosen.Mine'\n")
    assert found["manager"] == "chosen.Mine"
    assert found["connection"] == STOCK_WEBSOCKET
    assert found["children"] == []
    told = [line for line in log.splitlines() if "ernels are not pooled" in line]
    assert len(told) == 1
    assert "chosen.Mine" in told[0]


def test_stocks_manager_chosen_by_name_is_a_choice_too(tmp_path: Path) -> None:
    found, log = look(tmp_path, f"--ServerApp.kernel_manager_class={STOCK}")
    assert (found["manager"], found["connection"], found["children"]) == (STOCK, STOCK_WEBSOCKET, [])
    assert log.count("ernels are not pooled") == 1


@pytest.mark.parametrize("where", ["command line", "configuration"])
def test_switched_off_is_exactly_stock(tmp_path: Path, where: str) -> None:
    if where == "command line":
        found, log = look(tmp_path, "--KernelPool.enabled=False")
    else:
        found, log = look(tmp_path, config="c.KernelPool.enabled = False\n")
    assert (found["manager"], found["connection"], found["children"]) == (STOCK, STOCK_WEBSOCKET, [])
    assert log.count("ernels are not pooled") == 1


@pytest.mark.parametrize("where", ["command line", "configuration"])
def test_websocket_class_of_the_users_gets_ours_over_it(tmp_path: Path, where: str) -> None:
    trait = "ServerApp.kernel_websocket_connection_class"
    if where == "command line":
        found, _ = look(tmp_path, f"--{trait}=chosen.MyConnection")
    else:
        found, _ = look(tmp_path, config=f"c.{trait} = 'chosen.MyConnection'\n")
    assert found["manager"] == OURS
    assert "chosen.MyConnection" in found["bases"]
    ours = [base for base in found["bases"] if base.startswith("jupyter_kernelpool.websocket.")]
    assert ours
    assert found["bases"].index(ours[0]) < found["bases"].index("chosen.MyConnection")


def test_kernel_works_through_a_websocket_class_of_the_users(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "chosen.py").write_text(CHOSEN)
    server = kp_start("--ServerApp.kernel_websocket_connection_class=chosen.MyConnection", PYTHONPATH=str(tmp_path))
    server.wait_warm()
    kernel = server.start_kernel()
    reply = over_websocket(server, kernel)
    assert reply["header"]["msg_type"] == "kernel_info_reply"
    assert reply["content"]["status"] == "ok"


def over_websocket(server: Server, kernel: str) -> dict[str, Any]:
    """The first reply on shell to a kernel_info_request."""
    import uuid

    from websockets.sync.client import connect

    from .conftest import TOKEN

    session = uuid.uuid4().hex
    url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels?session_id={session}&token={TOKEN}"
    with connect(url) as socket:
        header = {
            "msg_id": uuid.uuid4().hex, "msg_type": "kernel_info_request", "session": session,
            "username": "", "version": "5.3", "date": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": {}, "channel": "shell"}
        socket.send(json.dumps(message))
        while True:
            answer = json.loads(socket.recv(timeout=20))
            if answer["parent_header"].get("msg_id") == header["msg_id"] and answer["channel"] == "shell":
                return dict(answer)


def test_gateway_is_respected(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--GatewayClient.url=http://127.0.0.1:9")
    assert server.process is not None
    assert server.log.count("Kernels are not pooled: kernels run on a gateway") == 1
    assert psutil.Process(server.process.pid).children() == []
    assert server.call("/api")[0] == 200  # what stock asks the gateway for is 5xx: none is there


def test_server_that_runs_switched_off_starts_nothing_of_ours(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.enabled=False")
    kernel = server.start_kernel()
    assert server.run(kernel, "print(6 * 7)") == "42"
    assert server.process is not None
    for child in psutil.Process(server.process.pid).children(recursive=True):
        assert "kernelpool" not in " ".join(child.cmdline())
    pool = server.call("/kernelpool/v1/pool")[1]
    assert (pool["enabled"], pool["why"]) == (False, "KernelPool.enabled is False")


TWO = """
import asyncio, json, os, sys
from jupyter_server.serverapp import ServerApp

async def make(name, *options):
    ServerApp.clear_instance()
    app = ServerApp.instance()
    app.initialize([*sys.argv[1:], "--KernelPool.busy_cores=1.0", *options], new_httpserver=False)
    await app.extension_manager.start_all_extensions()
    return app

async def main():
    one = await make("one", "--KernelPool.warm=1")
    two = await make("two", "--KernelPool.warm=3")
    managers = [one.kernel_manager, two.kernel_manager]
    pools = [manager.pool for manager in managers]
    for pool in pools:
        await pool.warmed(60)
    def warm():
        return [sorted(process.pid for recipe in pool.pools.values() for process, _ in recipe.warm) for pool in pools]
    before = warm()
    kernel = await managers[0].start_kernel()
    pid = managers[0].get_kernel(kernel).provisioner.pid
    after = warm()
    known = [list(manager.list_kernel_ids()) for manager in managers]
    await one._cleanup()
    lived_on = [os.path.exists(f"/proc/{pid}") for pid in before[1]]
    second = await managers[1].start_kernel()
    way = managers[1].get_kernel(second).provisioner.record.way
    supervisors = [pool.supervision.pid for pool in pools]
    await two._cleanup()
    print(json.dumps({
        "warm": [pool.warm for pool in pools], "before": before, "after": after, "pid": pid, "known": known,
        "kernel": kernel, "supervisors": supervisors, "lived_on": lived_on, "way": way,
        "left": [p for p in [*before[0], *before[1], *supervisors] if os.path.exists(f"/proc/{p}")],
    }))

asyncio.run(main())
"""


def test_two_servers_in_one_process_share_nothing(tmp_path: Path) -> None:
    found, log = look(tmp_path, script=TWO)
    assert found["warm"] == [1, 3]
    assert [len(pids) for pids in found["before"]] == [1, 3]
    assert not set(found["before"][0]) & set(found["before"][1])
    assert found["supervisors"][0] != found["supervisors"][1]
    assert found["pid"] in found["before"][0], "a hit in its own pool"
    assert found["after"][1] == found["before"][1], "nothing happened to the other's"
    assert found["known"] == [[found["kernel"]], []]
    assert found["lived_on"] == [True] * 3, "the end of one server ends nothing of the other's"
    assert found["way"] == "template"
    assert found["left"] == []
    assert "Traceback" not in log


def test_shared_fixture_server_is_a_default_one(kp_server: Server) -> None:
    eventually(lambda: kp_server.recipe().get("warm", 0) >= 2, "the default kernelspec's kernels are warm")
    pool = kp_server.call("/kernelpool/v1/pool")[1]
    assert pool["enabled"] is True
    assert [row["name"] for row in pool["recipes"]] == ["python3"]


def test_a_kernelspec_that_names_its_provisioner_is_not_kept_warm(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    """None of the pool's could ever be claimed for it."""
    metadata = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    write_spec(tmp_path, "mine", metadata=metadata)
    server = kp_start("--KernelPool.recipes={'mine': {'warm': 1}}", JUPYTER_PATH=str(tmp_path))
    server.wait_warm()
    kernel = server.start_kernel(name="mine")
    assert server.run(kernel, "print(6 * 7)") == "42"
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["recipe"] is None
    assert [row["name"] for row in server.call("/kernelpool/v1/pool")[1]["recipes"]] == ["python3"]


def test_jupyter_lab_hands_out_pooled_kernels(kp_start: Callable[..., Server]) -> None:
    server = kp_start(program="jupyterlab")
    assert server.call("/lab")[0] == 200
    server.wait_warm()
    hits = server.hit()
    session = server.start_session("Untitled.ipynb")
    assert server.hit() == hits + 1
    assert server.run(session["kernel"]["id"], "print(6 * 7)") == "42"


def test_a_manager_chosen_in_labs_own_configuration_is_respected(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    """It is applied after our link, so it is seen at load only."""
    config = tmp_path / "server0" / "config"
    config.mkdir(parents=True)
    stock = "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager"
    (config / "jupyter_lab_config.py").write_text(f"c.ServerApp.kernel_manager_class = {stock!r}\n")
    server = kp_start(program="jupyterlab")
    pool = server.call("/kernelpool/v1/pool")[1]
    assert (pool["enabled"], stock in pool["why"]) == (False, True)
    assert server.log.count("Kernels are not pooled") == 1
    assert server.run(server.start_kernel(), "print(6 * 7)") == "42"
    assert server.ours() == []
