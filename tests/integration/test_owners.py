"""Quotas of owners and refusals of what can't be enforced, on real servers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from .browsers import browser, execution
from .conftest import TOKEN, Server, eventually

pytestmark = pytest.mark.integration

KNOWN = '''
from jupyter_server.auth.identity import IdentityProvider, User

class Known(IdentityProvider):
    """Knows its users by a header."""

    def get_user(self, handler):
        name = handler.request.headers.get("X-User", "nobody")
        handler._jupyter_current_user = user = User(name)
        handler._token_authenticated = True
        return user
'''


def ask_as(server: Server, user: str, path: str, body: dict[str, Any]) -> tuple[int, Any, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"token {TOKEN}", "X-User": user},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.headers, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def test_each_user_has_as_many_kernels_as_the_quota_says(kp_start: Callable[..., Server], tmp_path: Any) -> None:
    (tmp_path / "known.py").write_text(KNOWN)
    server = kp_start(
        "--ServerApp.identity_provider_class=known.Known",
        "--KernelPool.ownership=user",
        '--KernelPool.owner_quota={"kernels": 1}',
        PYTHONPATH=str(tmp_path),
    )
    server.wait_warm()
    python = {"name": "python3"}
    status, _, first = ask_as(server, "ada", "/api/kernels", python)
    assert status == 201
    status, headers, refusal = ask_as(server, "ada", "/api/kernels", python)
    assert (status, refusal["code"]) == (429, "quota")
    assert int(headers["Retry-After"]) > 0
    session = {"path": "x.ipynb", "name": "x", "type": "notebook", "kernel": python}
    assert ask_as(server, "ada", "/api/sessions", session)[0] == 429
    assert ask_as(server, "bob", "/api/kernels", python)[0] == 201
    status, _, refusal = ask_as(server, "bob", f"/kernelpool/v1/kernels/{first['id']}/fork", {})
    assert (status, refusal["code"]) == (429, "quota"), "a fork is its parent's owner's"
    assert server.call(f"/api/kernels/{first['id']}", "DELETE")[0] == 204
    assert ask_as(server, "ada", "/api/kernels", python)[0] == 201


def test_an_owners_kernels_share_memory_and_anothers_are_left_alone(
    kp_start: Callable[..., Server], tmp_path: Any
) -> None:
    (tmp_path / "known.py").write_text(KNOWN)
    server = kp_start(
        "--ServerApp.identity_provider_class=known.Known",
        "--KernelPool.ownership=user",
        '--KernelPool.owner_quota={"memory": "500M"}',
        "--KernelLimits.on_breach=kill",
        PYTHONPATH=str(tmp_path),
    )
    server.wait_warm()
    small, large, others = (
        ask_as(server, user, "/api/kernels", {"name": "python3"})[2]["id"] for user in ("ada", "ada", "bob")
    )
    with browser(server, small) as one, browser(server, large) as two, browser(server, others) as bob:
        assert bob.execute("block = bytearray(350 << 20); print(1)") == "1"
        assert one.execute("block = bytearray(200 << 20); print(1)") == "1"
        two.send("execute_request", execution("block = bytearray(350 << 20)"))
        eventually(lambda: server.call(f"/api/kernels/{large}")[1]["execution_state"] == "dead", "the larger one ends")
        assert one.execute("print(len(block))") == str(200 << 20)
        assert bob.execute("print(len(block))") == str(350 << 20)
    reason = server.call(f"/api/kernels/{large}")[1]["reason"]
    assert "owner ada" in reason
    assert "500 MB allowed" in reason


def refused_start(kp_start: Callable[..., Server], *options: str) -> str:
    with pytest.raises(AssertionError, match="the server ended") as refused:
        kp_start(*options)
    return str(refused.value)


def test_users_that_nobody_knows_are_refused_at_the_servers_start(kp_start: Callable[..., Server]) -> None:
    assert "needs an identity provider that knows its users" in refused_start(kp_start, "--KernelPool.ownership=user")


@pytest.mark.parametrize(
    "option",
    [
        "--KernelLimits.memory=1G",
        "--KernelLimits.total_memory=1G",
        '--KernelPool.recipes={"python3":{"limits":{"memory":"1G"}}}',
    ],
)
def test_limit_that_nothing_enforces_is_refused_at_the_servers_start(
    kp_start: Callable[..., Server], option: str
) -> None:
    said = refused_start(kp_start, "--KernelLimits.enforcers=[]", option)
    assert "limits memory, which can't be enforced here" in said
    assert "KernelLimits.enforcers" in said


def test_limit_that_nothing_enforces_is_refused_over_rest(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelLimits.enforcers=[]")
    kernel = server.start_kernel()
    limits = {"limits": {"memory": "1G"}}
    for path in (f"/kernelpool/v1/kernels/{kernel}", "/kernelpool/v1/pools/python3"):
        status, refusal = server.call(path, "PATCH", limits)
        assert (status, refusal["code"], refusal["limit"]) == (501, "not_enforceable", "memory"), path
        assert refusal["needed"]
    held = server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]["memory"]
    assert (held["enforced"], held["by"]) == (False, None)
    assert "KernelLimits.enforcers" in held["why"]
    assert server.start_kernel(), "and the recipe is as it was"
