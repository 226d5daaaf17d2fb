"""The routes where kernels run: what is told of them, and what scaling, draining and removing does."""

import asyncio
import contextlib
import json
from typing import Any

import psutil
import pytest
from jupyter_client.connect import write_connection_file
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from jupyter_kernelpool.decisions import Host, Stage

pytestmark = pytest.mark.integration


@pytest.fixture
def kp_config() -> dict[str, Any]:
    return {"warm": 1, "max_warm": 2}


@pytest.fixture
def kp_pool(jp_serverapp: Any, jp_asyncio_loop: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server's pool, begun as at the server's start, and warm; a busy machine is no reason to wait here."""
    idle = Host(available_memory=1 << 40, busy=0.0)
    monkeypatch.setattr("jupyter_kernelpool.keeper.look_at_host", lambda: idle)
    manager = jp_serverapp.kernel_manager
    jp_asyncio_loop.run_until_complete(manager.start_pool())
    jp_asyncio_loop.run_until_complete(manager.pool.warmed())
    return manager.pool


async def start_kernel(kp_fetch: Any, **body: Any) -> str:
    response = await kp_fetch("POST", "/api/kernels", body=json.dumps(body))
    assert response.code == 201, response.body
    return str(json.loads(response.body)["id"])


async def until(condition: Any, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


# -- what is told -----------------------------------------------------------------------------------


async def test_the_pool_tells_of_a_hit(kp_call: Any, kp_fetch: Any, kp_pool: Any) -> None:
    before = (await kp_call("GET", "/pool")).model
    assert (before["enabled"], before["why"]) == (True, None)
    assert all(before["capabilities"][way]["available"] for way in ("fork", "spawn", "whole"))
    assert psutil.Process(before["capabilities"]["supervisor"]["pid"]).is_running()
    (recipe,) = before["recipes"]
    assert (recipe["name"], recipe["hits"], recipe["warm"], recipe["target"]) == ("python3", 0, 1, 1)
    assert (recipe["stage"], recipe["breaker"], recipe["launcher"]) == ("ready", "closed", "template")
    assert recipe["waits"] == {"p50": None, "p95": None}
    assert recipe["template"]["seconds_to_load"] > 0
    assert recipe["template"]["memory"]["private"] + recipe["template"]["memory"]["shared"] > 10_000_000

    await start_kernel(kp_fetch)
    after = (await kp_call("GET", "/pool")).model
    (recipe,) = after["recipes"]
    assert (recipe["hits"], recipe["misses"], recipe["active"]) == (1, 0, 1)
    assert 0 < recipe["waits"]["p50"] <= recipe["waits"]["p95"]
    assert (after["totals"]["hits"], after["totals"]["active"]) == (1, 1)
    assert (await kp_call("GET", "/pools/python3")).model["key"] == recipe["key"]
    assert [model["name"] for model in (await kp_call("GET", "/pools?state=ready")).model["pools"]] == ["python3"]
    assert (await kp_call("GET", "/pools?state=failed")).model["pools"] == []


async def test_a_kernel_tells_its_story(kp_call: Any, kp_fetch: Any, kp_pool: Any) -> None:
    kernel_id = await start_kernel(kp_fetch)
    kernel = (await kp_call("GET", f"/kernels/{kernel_id}")).model
    assert (kernel["way"], kernel["state"], kernel["recipe"]) == ("template", "active", "python3")
    assert [move["to"] for move in kernel["story"]] == ["starting", "warm", "active"]
    assert psutil.Process(kernel["pid"]).is_running()

    assert (await kp_fetch("POST", f"/api/kernels/{kernel_id}/restart", body="")).code == 200
    again = (await kp_call("GET", f"/kernels/{kernel_id}")).model
    assert again["pid"] != kernel["pid"]
    assert again["created"] == kernel["created"]
    assert again["state"] == "active"

    assert (await kp_fetch("DELETE", f"/api/kernels/{kernel_id}")).code == 204
    assert (await kp_call("GET", f"/kernels/{kernel_id}")).code == 404


async def test_a_start_that_fails_leaves_no_kernel_that_was_told_of_it(
    kp_fetch: Any, kp_pool: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel adopts while its connection file is written; when the disk is full, it must go."""
    (pool,) = kp_pool.pools.values()
    process = pool.warm[0][0]

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("jupyter_client.connect.write_connection_file", full)
        response = await kp_fetch("POST", "/api/kernels", body="{}")
    assert response.code == 500
    await asyncio.wait_for(asyncio.shield(process.exited), 20)
    assert not psutil.pid_exists(process.pid)
    assert jp_serverapp.kernel_manager.list_kernel_ids() == []
    await kp_pool.warmed()
    await start_kernel(kp_fetch)
    assert pool.hits == 1


class Another(LocalProvisioner):
    """A kernelspec's own choice."""


class TestKernelsOfEveryKind:
    @pytest.fixture
    def kp_config(self) -> dict[str, Any]:
        return {"warm": 0, "max_warm": 0}

    async def test_pool_gives_way_to_a_cold_start_only_until_the_kernel_is_heard(
        self, kp_fetch: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jupyter_kernelpool.pool.USERS_START_FOR", 600.0)
        manager = jp_serverapp.kernel_manager
        kernel_id = await start_kernel(kp_fetch)
        assert manager.pool.users_starting == 1
        client = manager.get_kernel(kernel_id).client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            await until(lambda: manager.pool.users_starting == 0)
        finally:
            client.stop_channels()

    async def test_cold_foreign_and_adopted_kernels_are_listed_page_by_page(
        self, kp_call: Any, kp_fetch: Any, jp_serverapp: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cold = await start_kernel(kp_fetch)
        with monkeypatch.context() as patch:
            patch.setattr(
                KernelProvisionerFactory, "create_provisioner_instance",
                lambda _, kernel_id, kernel_spec, parent: Another(
                    kernel_id=kernel_id, kernel_spec=kernel_spec, parent=parent
                ),
            )  # fmt: skip
            patch.setattr("jupyter_kernelpool.prompt.PromptKernelManager._put_provisioner", lambda *_: None)
            other = await start_kernel(kp_fetch)
        write_connection_file(str(tmp_path / "kernel-x.json"), key=b"k", kernel_name="far")
        monkeypatch.setattr(jp_serverapp.kernel_manager, "external_connection_dir", str(tmp_path))
        whole = (await kp_call("GET", "/kernels")).model["kernels"]
        ways = {kernel["id"]: kernel["way"] for kernel in whole}
        (external,) = set(ways) - {cold, other}
        assert ways == {cold: "cold", other: "other", external: "external"}
        assert {kernel["state"] for kernel in whole} == {"active"}

        seen, path = [], "/kernels?limit=2"
        while path:
            page = (await kp_call("GET", path)).model
            seen += page["kernels"]
            path = f"/kernels?limit=2&cursor={page['next']}" if page["next"] else ""
        assert [kernel["id"] for kernel in seen] == sorted(ways)
        mine = (await kp_call("GET", "/kernels?recipe=python3&state=active")).model["kernels"]
        assert [kernel["id"] for kernel in mine] == [cold]
        assert (await kp_call("GET", "/kernels?state=dead")).model["kernels"] == []


# -- what is done -----------------------------------------------------------------------------------


async def test_scaling_takes_effect_at_once(kp_call: Any, kp_pool: Any) -> None:
    (pool,) = kp_pool.pools.values()
    reply = await kp_call("PATCH", "/pools/python3", {"min": 3})
    assert (reply.code, reply.model["settings"]["warm"], reply.model["settings"]["max"]) == (200, 3, 3)
    await until(lambda: len(pool.warm) == 3)
    await kp_call("PATCH", "/pools/python3", {"warm": 1, "max": 1})
    await until(lambda: len(pool.warm) == 1)
    wrong = await kp_call("PATCH", "/pools/python3", {"max": 0, "warm": -1})
    assert wrong.code == 422
    assert pool.recipe.settings.max == 1
    template = psutil.Process(pool.launcher.pid)
    reply = await kp_call("PATCH", "/pools/python3", {"warm": 0, "max": 0})
    assert (reply.model["warm"], reply.model["template"]) == (0, None)
    await until(lambda: not template.is_running() or template.status() == psutil.STATUS_ZOMBIE)
    assert pool.stage is Stage.DOWN


async def test_draining_makes_template_and_kernels_anew(kp_call: Any, kp_pool: Any) -> None:
    before = (await kp_call("GET", "/pools/python3")).model
    (pool,) = kp_pool.pools.values()
    ((old, _),) = pool.warm
    reply = await kp_call("PATCH", "/pools/python3", {"drain": True})
    assert (reply.model["warm"], reply.model["key"]) == (0, before["key"])
    await kp_pool.warmed()
    after = (await kp_call("GET", "/pools/python3")).model
    assert after["template"]["pid"] != before["template"]["pid"]
    assert pool.warm[0][0].pid != old.pid


async def test_a_new_preload_is_another_recipe_of_the_same_name(kp_call: Any, kp_fetch: Any, kp_pool: Any) -> None:
    kernel_id = await start_kernel(kp_fetch)
    before = (await kp_call("GET", "/pools/python3")).model
    after = (await kp_call("PATCH", "/pools/python3", {"preload": ["fractions"]})).model
    assert (after["name"], after["hits"], after["active"]) == ("python3", 1, 1)
    assert after["key"] != before["key"]
    await kp_pool.warmed()
    await start_kernel(kp_fetch)
    (recipe,) = (await kp_call("GET", "/pools")).model["pools"]
    assert (recipe["key"], recipe["hits"], recipe["misses"]) == (after["key"], 2, 0)
    assert (await kp_call("GET", f"/kernels/{kernel_id}")).model["state"] == "active"

    await kp_call("PATCH", "/pools/python3", {"preload": ["nothing_of_that_name"]})
    (pool,) = kp_pool.pools.values()
    await until(lambda: pool.last_error is not None)
    recipe = (await kp_call("GET", "/pools/python3")).model
    assert "nothing_of_that_name" in recipe["last_error"]["reason"]
    assert recipe["breaker"] == "open"
    assert recipe["retry_in"] > 0


@pytest.mark.parametrize("change", ["removed", "changed"])
async def test_a_template_that_loads_meanwhile_is_not_kept(kp_call: Any, kp_pool: Any, change: str) -> None:
    await kp_call("PATCH", "/pools/python3", {"init_code": "import time; time.sleep(0.5); x = 1"})
    (pool,) = kp_pool.pools.values()
    await until(lambda: pool.stage is Stage.LOADING)
    if change == "removed":
        assert (await kp_call("DELETE", "/pools/python3")).code == 204
        await until(lambda: pool.stage is not Stage.LOADING)
        assert pool.launcher is None
        await until(lambda: not templates(kp_pool))
    else:
        await kp_call("PATCH", "/pools/python3", {"init_code": "x = 2"})
        await kp_pool.warmed()
        assert pool.launcher.recipe.settings.init_code == "x = 2"
        await until(lambda: templates(kp_pool) == [pool.launcher.pid])


def templates(kp_pool: Any) -> list[int]:
    """Processes below this one that are templates: warm kernels, their forks, have the same command line."""
    warm = {process.pid for pool in kp_pool.pools.values() for process, _ in pool.warm}
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if '"mode": "template"' in " ".join(process.cmdline()) and process.pid not in warm:
                found.append(process.pid)
    return found


async def test_removed_and_made_again(kp_call: Any, kp_fetch: Any, kp_pool: Any, jp_base_url: str) -> None:
    assert (await kp_call("DELETE", "/pools/python3")).code == 204
    assert (await kp_call("GET", "/pools")).model["pools"] == []
    assert (await kp_call("DELETE", "/pools/python3")).code == 404
    await until(lambda: not templates(kp_pool))

    reply = await kp_call("POST", "/pools", {"recipe": "python3", "warm": 2, "init_code": "secret = 1"})
    assert (reply.code, reply.headers["Location"]) == (201, f"{jp_base_url}kernelpool/v1/pools/python3")
    assert (reply.model["settings"]["warm"], reply.model["settings"]["init_code"]) == (2, True)
    assert "secret" not in json.dumps(reply.model)
    again = await kp_call("POST", "/pools", {"recipe": "python3"})
    assert (again.code, again.model["code"]) == (409, "wrong_state")
    await kp_pool.warmed()
    await start_kernel(kp_fetch)
    assert (await kp_call("GET", "/pools/python3")).model["hits"] == 1
