"""Forks that are given up while files are copied for them, in a server that runs here: nothing is left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from jupyter_kernelpool import process

pytestmark = pytest.mark.integration

FILES = 6_000


@pytest.fixture
def kp_config() -> dict[str, Any]:
    return {"warm": 1, "max_warm": 1}


@pytest.fixture
def kernel(
    request: pytest.FixtureRequest, jp_serverapp: Any, jp_asyncio_loop: Any, kp_fetch: Any, jp_root_dir: Path
) -> str:
    """A kernel whose working directory takes a while to be copied, if the test does not say how many files it has."""
    manager = jp_serverapp.kernel_manager
    (jp_root_dir / "many").mkdir()
    for number in range(getattr(request, "param", FILES)):
        (jp_root_dir / "many" / str(number)).touch()

    async def start() -> str:
        await manager.start_pool()
        await manager.pool.warmed()
        response = await kp_fetch("POST", "/api/kernels", body=json.dumps({"path": "many"}))
        return str(json.loads(response.body)["id"])

    return str(jp_asyncio_loop.run_until_complete(start()))


def copies(manager: Any) -> list[Path]:
    return list(Path(manager.connection_dir).glob("kernelpool-copy-*"))


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("source", ["kernel", "several", "checkpoint"])
async def test_cancelled_while_files_are_copied_leaves_nothing(jp_serverapp: Any, kernel: str, source: str) -> None:
    manager = jp_serverapp.kernel_manager
    forking = manager.forking
    if source == "checkpoint":
        kept = await forking.take_checkpoint(kernel)
        work = forking.fork_checkpoint(kept.id, name="lost", copy=True)
    else:
        work = forking.fork(kernel, name="lost", copy=True, count=2 if source == "several" else 1)
    task = asyncio.create_task(work)
    await until(lambda: any(list(folder.iterdir()) for folder in copies(manager)))
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await until(lambda: not copies(manager))
    assert manager.list_kernel_ids() == [kernel]
    assert forking.names.refuse_taken("lost", 1) == ["lost"], "its name is free again"
    again = await forking.fork(kernel, name="lost", copy=True)
    (folder,) = copies(manager)
    assert len(list(folder.iterdir())) == FILES
    assert again.manifest["copied"]["to"] == [str(folder)]


async def test_what_takes_too_long_to_copy_is_given_up(
    jp_serverapp: Any, kp_call: Any, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = jp_serverapp.kernel_manager
    monkeypatch.setattr(process, "COPY_TIMEOUT", 0.01)
    refused = await kp_call("POST", f"/kernels/{kernel}/fork", {"files": "copy", "timeout": 0.05})
    assert (refused.code, refused.model["code"]) == (507, "copy_failed")
    await until(lambda: not copies(manager))
    monkeypatch.undo()
    assert (await kp_call("POST", f"/kernels/{kernel}/fork", {"files": "copy"})).code == 201


@pytest.mark.parametrize("kernel", [20], indirect=True)
async def test_replies_are_as_the_document_says(jp_serverapp: Any, kp_call: Any, kernel: str) -> None:
    pool = jp_serverapp.kernel_manager.pool
    reply = await kp_call("POST", f"/kernels/{kernel}/fork", {"files": "copy", "count": 2, "atomic": True})
    assert reply.code == 201
    assert reply.model["manifest"]["copied"]["to"] == [each["folder"] for each in reply.model["kernels"]]
    assert (await kp_call("POST", f"/kernels/{kernel}/fork", {"files": "shared"})).code == 201
    pool.max_copied_files = 10
    refused = await kp_call("POST", f"/kernels/{kernel}/fork", {"files": "copy"})
    assert (refused.code, refused.model["entries"], refused.model["limit"]) == (413, 11, 10)
    pool.admission.limit = 4
    pool.admission.exhausted = "fail"
    exhausted = await kp_call("POST", f"/kernels/{kernel}/fork", {"count": 2, "atomic": True})
    assert (exhausted.code, exhausted.model["code"]) == (503, "exhausted")
