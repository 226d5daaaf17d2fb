"""What can't be held is refused over HTTP, with the reason, and nothing is started instead."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_kernelpool.sandboxing import Sandboxing

pytestmark = pytest.mark.integration

NOWHERE = "/nowhere/at/all"


@pytest.fixture
def kp_recipe() -> dict[str, Any]:
    return {"writable": [NOWHERE]}


@pytest.fixture
def kp_config(kp_recipe: dict[str, Any]) -> dict[str, Any]:
    return {"warm": 1, "max_warm": 2, "recipes": {"python3": kp_recipe}}


@pytest.fixture
def without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandboxing, "landlock", 0)


@pytest.fixture
def without_bwrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_kernelpool.sandboxing.shutil.which", lambda name: None)


async def refused(kp_fetch: Any, route: str = "/api/kernels", **body: Any) -> dict[str, Any]:
    """The body of the refusal of a start."""
    response = await kp_fetch("POST", route, body=json.dumps(body))
    assert response.code == 501, response.body
    refusal = json.loads(response.body)
    assert (refusal["code"], refusal["delivered"]) == ("not_enforceable", False)
    return dict(refusal)


def kernels_of(jp_serverapp: Any) -> list[str]:
    """Command lines of what the server runs that could be a kernel."""
    children = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return [line for line in children if "ipykernel" in line or "launch.py" in line]


async def test_folder_that_is_not_there_is_refused_with_its_name(
    kp_fetch: Any, kp_call: Any, jp_serverapp: Any
) -> None:
    refusal = await refused(kp_fetch, name="python3")
    assert NOWHERE in refusal["message"]
    assert kernels_of(jp_serverapp) == []
    assert jp_serverapp.kernel_manager.list_kernel_ids() == []
    pool = jp_serverapp.kernel_manager.pool
    await pool.warmed()
    (recipe,) = (await kp_call("GET", "/pool")).model["recipes"]
    assert NOWHERE in recipe["last_error"]["reason"]
    assert (recipe["stage"], recipe["warm"]) == ("failed", 0)
    assert recipe["settings"]["sandbox"]["writable"][0] == NOWHERE
    assert NOWHERE in (await refused(kp_fetch, name="python3"))["message"], "nor later, by a cold start"


async def test_session_is_refused_likewise(kp_fetch: Any) -> None:
    body = {"path": "a.ipynb", "name": "a", "type": "notebook", "kernel": {"name": "python3"}}
    assert NOWHERE in (await refused(kp_fetch, "/api/sessions", **body))["message"]


@pytest.mark.parametrize("kp_recipe", [{"sandbox": True}])
async def test_without_landlock_and_bubblewrap_says_what_to_install(
    without_landlock: None, without_bwrap: None, kp_fetch: Any, kp_call: Any, jp_serverapp: Any
) -> None:
    assert "install bubblewrap" in (await refused(kp_fetch, name="python3"))["message"]
    assert kernels_of(jp_serverapp) == []
    capabilities = (await kp_call("GET", "/pool")).model["capabilities"]
    assert capabilities["landlock"]["available"] is capabilities["bubblewrap"]["available"] is False
    assert "Linux 6.2" in capabilities["landlock"]["why"]


@pytest.mark.parametrize("kp_recipe", [{"launch_prefix": ["no-such-jail", "--"]}])
async def test_prefix_that_is_not_installed_is_refused_by_name(kp_fetch: Any, jp_serverapp: Any) -> None:
    assert "no-such-jail" in (await refused(kp_fetch, name="python3"))["message"]
    assert kernels_of(jp_serverapp) == []


@pytest.mark.parametrize("kp_recipe", [{"launch_prefix": ["sh", "-c", "echo not today >&2; exit 7"]}])
async def test_prefix_that_fails_is_refused_with_what_it_said(kp_fetch: Any) -> None:
    assert "not today" in (await refused(kp_fetch, name="python3"))["message"]


@pytest.mark.parametrize("kp_recipe", [{"network": "none", "launcher": "whole"}])
async def test_network_none_is_refused_where_kernels_open_their_own_ports(kp_fetch: Any) -> None:
    assert 'network = "none"' in (await refused(kp_fetch, name="python3"))["message"]


@pytest.mark.parametrize("kp_recipe", [{"sandbox": True}])
async def test_server_whose_pool_does_not_run_starts_nothing_outside_the_sandbox(
    kp_fetch: Any, jp_serverapp: Any
) -> None:
    jp_serverapp.kernel_manager.pool.stopped = True
    assert "the pool does not run" in (await refused(kp_fetch, name="python3"))["message"]


@pytest.mark.parametrize("kp_recipe", [{"sandbox": True}])
async def test_sandbox_cannot_be_loosened_over_rest(kp_call: Any, jp_serverapp: Any) -> None:
    await jp_serverapp.kernel_manager.start_pool()
    for change in ({"sandbox": False}, {"network": "host"}, {"writable": ["/"]}, {"launch_prefix": []}):
        reply = await kp_call("PATCH", "/pools/python3", change)
        assert (reply.code, reply.model["code"]) == (422, "not_valid")
    reply = await kp_call("PATCH", "/pools/python3", {"warm": 2})
    assert reply.code == 200
    assert reply.model["settings"]["sandbox"]["preset"] is True


@pytest.mark.slow
@pytest.mark.parametrize("kp_recipe", [{"writable": []}])
async def test_without_landlock_bubblewrap_holds_it(
    without_landlock: None, kp_fetch: Any, kp_call: Any, jp_serverapp: Any, tmp_path: Path
) -> None:
    manager = jp_serverapp.kernel_manager
    await manager.start_pool()
    await manager.pool.warmed()
    (recipe,) = (await kp_call("GET", "/pool")).model["recipes"]
    assert recipe["last_error"] is None, "is bubblewrap installed? (on Debian: apt-get install bubblewrap)"
    assert recipe["settings"]["sandbox"]["launch_prefix"][0] == "bwrap"
    response = await kp_fetch("POST", "/api/kernels", body=json.dumps({"name": "python3"}))
    kernel = json.loads(response.body)["id"]
    assert (await kp_call("GET", "/pools/python3")).model["hits"] == 1
    client = manager.get_kernel(kernel).client()
    client.start_channels()
    try:
        # bubblewrap makes a read-only file system: no PermissionError, but EROFS.
        code = f"open({str(tmp_path / 'new')!r}, 'w')"
        reply = await client.execute_interactive(code, timeout=30, allow_stdin=False)
        assert "Read-only file system" in reply["content"]["evalue"]
        code = "import tempfile; tempfile.NamedTemporaryFile().write(b'x')"
        assert (await client.execute_interactive(code, timeout=30))["content"]["status"] == "ok"
    finally:
        client.stop_channels()
    await manager.shutdown_kernel(kernel, now=True)
