"""The three ways to launch keep the launchers' contract, with real kernels of the python3 kernelspec."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from jupyter_kernelpool.identity import Identity
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.launchers.spawn import SpawnLauncher
from jupyter_kernelpool.launchers.template import TemplateLauncher
from jupyter_kernelpool.launchers.whole import WholeLauncher
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import Recipe
from jupyter_kernelpool.supervision import Supervision
from jupyter_kernelpool.testing import LauncherBench, fake_recipe, launcher_contract

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

log = logging.getLogger("test")


def recipe_for(launcher_class: type[Launcher]) -> Recipe:
    spec = KernelSpecManager().get_kernel_spec("python3")
    launcher = "whole" if launcher_class is WholeLauncher else "auto"
    return fake_recipe(spec=spec, launcher=launcher, cwd=str(Path.cwd()))


async def answers(info: dict) -> bool:
    """Whether a client that has *info* gets an answer from the kernel."""
    client = AsyncKernelClient()
    client.load_connection_info(info)
    client.start_channels()
    try:
        reply = await client.execute_interactive("a = 6 * 7", user_expressions={"a": "a"}, timeout=30)
        return reply["content"]["user_expressions"]["a"]["data"]["text/plain"] == "42"
    finally:
        client.stop_channels()
        client.context.term()


@contextlib.asynccontextmanager
async def bench_for(launcher_class: type[Launcher], folder: str) -> AsyncIterator[LauncherBench]:
    supervision = Supervision(log)
    identities: list[Identity] = []

    def left() -> set[int]:
        if not supervision.alive:
            return set()
        found = set()
        for process in psutil.Process(supervision.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.add(process.pid)
        return found

    async def hand_over(process: Process) -> bool:
        if process.connection is not None:
            return await answers({**process.connection, "key": process.connection["key"].encode()})
        manager = AsyncKernelManager()
        identity = Identity(manager)
        identities.append(identity)
        assert identity.bind()
        ports = {
            f"{name}_port": getattr(manager, f"{name}_port") for name in ("shell", "iopub", "stdin", "control", "hb")
        }
        path, _ = write_connection_file(str(Path(folder) / f"{process.pid}.json"), key=b"a-key", **ports)
        info = json.loads(Path(path).read_text())
        order = {
            "info": info,
            "connection_file": path,
            "command": ["python", "-m", "ipykernel_launcher", "-f", path],
            "arguments": ["-f", path],
            "cwd": folder,
            "env": dict(os.environ),
        }
        process.offer(order, identity.descriptors())
        await process.adopted()
        return await answers({**info, "key": info["key"].encode()})

    try:
        yield LauncherBench(lambda: launcher_class(recipe_for(launcher_class), supervision, log), left, hand_over)
    finally:
        await supervision.close()
        for identity in identities:
            identity.close()


@pytest.mark.parametrize("launcher_class", [TemplateLauncher, SpawnLauncher, WholeLauncher], ids=lambda c: c.way)
@pytest.mark.parametrize("check", launcher_contract, ids=lambda check: check.__name__)
async def test_launcher_keeps_the_contract(launcher_class, check, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    async with bench_for(launcher_class, str(tmp_path)) as bench:
        await check(bench)
        await asyncio.sleep(0)
    left = [file.name for file in tmp_path.glob("kernelpool-*.json")]
    assert left == []
