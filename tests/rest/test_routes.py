"""The routes without kernels: who may ask, what is refused and how, lists, and a server that pools nothing."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jupyter_server.auth import AllowAllAuthorizer, Authorizer
from jupyter_server.services.kernels.handlers import MainKernelHandler
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.services.sessions.handlers import SessionRootHandler

from jupyter_kernelpool.errors import Disabled
from jupyter_kernelpool.recipes import Settings
from jupyter_kernelpool.rest.pools import change_recipe

OPERATIONS = [
    ("GET", "/pool", "read", "kernels"),
    ("GET", "/pools", "read", "kernels"),
    ("POST", "/pools", "write", "kernelpool"),
    ("GET", "/pools/python3", "read", "kernels"),
    ("PATCH", "/pools/python3", "write", "kernelpool"),
    ("DELETE", "/pools/python3", "write", "kernelpool"),
    ("GET", "/kernels", "read", "kernels"),
    ("GET", "/kernels/x", "read", "kernels"),
    ("PATCH", "/kernels/x", "execute", "kernels"),
    ("POST", "/kernels/x/fork", "execute", "kernels"),
    ("POST", "/kernels/x/restore", "execute", "kernels"),
    ("POST", "/kernels/x/undo", "execute", "kernels"),
    ("GET", "/kernels/x/checkpoints", "read", "kernels"),
    ("POST", "/kernels/x/checkpoints", "execute", "kernels"),
    ("GET", "/checkpoints/x", "read", "kernels"),
    ("DELETE", "/checkpoints/x", "execute", "kernels"),
    ("POST", "/checkpoints/x/fork", "execute", "kernels"),
    ("GET", "/lineage", "read", "kernels"),
    ("GET", "/openapi.json", "read", "kernels"),
]
WRITES = [(method, path) for method, path, action, _ in OPERATIONS if action == "write"]


# -- who may ask ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, path, action, resource", OPERATIONS)
async def test_no_token_no_answer(kp_call: Any, method: str, path: str, action: str, resource: str) -> None:
    reply = await kp_call(method, path, raw=b"{}" if method in ("POST", "PATCH") else None, headers={})
    assert (reply.code, reply.model["code"]) == (403, "forbidden")


async def test_unknown_routes_need_a_token_too(kp_call: Any) -> None:
    assert (await kp_call("GET", "/nothing", headers={})).code == 403


async def test_health_needs_no_token_and_tells_nothing_else(kp_call: Any) -> None:
    reply = await kp_call("GET", "/healthz", headers={})
    assert (reply.code, reply.model) == (200, {"status": "ok"})


class Denying(Authorizer):
    """Notes what it is asked, and says no."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        self.asked.append((action, resource))
        return False


@pytest.mark.parametrize("method, path, action, resource", OPERATIONS)
async def test_the_authorizer_is_asked_for_the_right_thing(
    kp_call: Any, jp_serverapp: Any, method: str, path: str, action: str, resource: str
) -> None:
    jp_serverapp.web_app.settings["authorizer"] = authorizer = Denying(parent=jp_serverapp)
    authorizer.asked.clear()
    reply = await kp_call(method, path, raw=b"not JSON" if method in ("POST", "PATCH") else None)
    assert reply.code == 403
    assert authorizer.asked == [(action, resource)]
    assert resource in reply.model["message"]


@pytest.mark.parametrize("method, path", WRITES)
async def test_a_page_of_another_site_can_not_write(kp_call: Any, jp_serverapp: Any, method: str, path: str) -> None:
    jp_serverapp.identity_provider.token = ""
    assert isinstance(jp_serverapp.authorizer, AllowAllAuthorizer)
    assert (await kp_call("GET", "/pool", headers={})).code == 200
    reply = await kp_call(method, path, raw=None if method == "DELETE" else b"{}", headers={})
    assert reply.code == 403
    assert "_xsrf" in reply.model["message"]


async def test_reading_is_no_activity_and_writing_is(kp_call: Any, jp_serverapp: Any) -> None:
    settings = jp_serverapp.web_app.settings
    settings.pop("api_last_activity", None)
    for method, path, action, _ in OPERATIONS:
        if action == "read":
            await kp_call(method, path)
    await kp_call("GET", "/healthz")
    assert "api_last_activity" not in settings
    await kp_call("POST", "/pools", {"recipe": "nothing"})
    assert "api_last_activity" in settings


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe{}", b"[]", b"null", b'"x"', b"NaN", b'{"warm": NaN}', b"[" * 9999]
)
@pytest.mark.parametrize("method, path", WRITES[:2])
async def test_a_body_that_is_no_object_is_not_parsed(kp_call: Any, method: str, path: str, raw: bytes) -> None:
    reply = await kp_call(method, path, raw=raw)
    assert (reply.code, reply.model["code"]) == (400, "not_parsed")


@pytest.mark.parametrize(
    "body, named",
    [
        ({}, "recipe"),
        ({"recipe": 3}, "recipe = 3"),
        ({"recipe": ""}, "recipe = ''"),
        ({"recipe": "python3", "limits": {"memory": "much"}}, "limits"),
        ({"recipe": "python3", "colour": "red"}, "colour"),
        ({"recipe": "python3", "warm": -1}, "warm = -1"),
        ({"recipe": "python3", "warm": True}, "warm = True"),
        ({"recipe": "python3", "warm": 1.5}, "warm = 1.5"),
        ({"recipe": "python3", "warm": None}, "warm = None"),
        ({"recipe": "python3", "warm": 3, "max": 2}, "max = 2"),
        ({"recipe": "python3", "max": "many"}, "max = 'many'"),
        ({"recipe": "python3", "preload": "numpy"}, "preload = 'numpy'"),
        ({"recipe": "python3", "preload": [1]}, "preload = [1]"),
        ({"recipe": "python3", "init_code": ["x"]}, "init_code"),
        ({"recipe": "python3", "launcher": "rocket"}, "launcher = 'rocket'"),
        ({"recipe": "python3", "launcher": {}}, "launcher = {}"),
        ({"recipe": "python3", "max": 0}, "max"),
        ({"recipe": "python3", "max": 1, "warm": 0, "launcher": "off"}, "pooled"),
        ({"recipe": "python3", "drain": True}, "drain"),
    ],
)
async def test_wrong_values_are_named(kp_call: Any, jp_serverapp: Any, body: Any, named: str) -> None:
    reply = await kp_call("POST", "/pools", body)
    assert (reply.code, reply.model["code"]) == (422, "not_valid")
    assert named in reply.model["message"]
    pool = jp_serverapp.kernel_manager.pool
    assert not pool.pools
    assert not pool.overrides


@pytest.mark.parametrize("name", ["nothing", "../python3", "a\x00b", "\ud800", "a" * 5000, "%2e%2e", "ünï"])
async def test_unknown_kernelspecs_are_not_found(kp_call: Any, name: str) -> None:
    reply = await kp_call("POST", "/pools", {"recipe": name})
    assert (reply.code, reply.model["code"], reply.model["recipe"]) == (404, "not_found", name)


async def test_a_kernelspec_that_can_not_be_read_is_named(kp_call: Any, jp_kernel_dir: Any) -> None:
    (jp_kernel_dir / "broken").mkdir()
    (jp_kernel_dir / "broken" / "kernel.json").write_text("{")
    reply = await kp_call("POST", "/pools", {"recipe": "broken"})
    assert reply.code == 422
    assert "broken" in reply.model["message"]


@pytest.mark.parametrize(
    "path", ["/pools/nothing", "/pools/%00", "/pools/..%2f..", "/pools/%F0%9F%90%8D", "/pools/%25s"]
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_unknown_recipes_are_not_found(kp_call: Any, method: str, path: str) -> None:
    reply = await kp_call(method, path, {} if method == "PATCH" else None)
    assert (reply.code, reply.model["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/kernels/nothing", "/kernels/%00", "/kernels/%25s"])
async def test_unknown_kernels_are_not_found(kp_call: Any, path: str) -> None:
    reply = await kp_call("GET", path)
    assert (reply.code, reply.model["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/pools/%ff", "/kernels/%ff", "/pools?recipe=%ff"])
async def test_bytes_that_are_no_text_are_not_parsed(kp_call: Any, path: str) -> None:
    assert (await kp_call("GET", path)).code == 400


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "cursor=!", "cursor=%C3%A9", "cursor=_w==", "state=nice"])
@pytest.mark.parametrize("path", ["/pools", "/kernels"])
async def test_wrong_queries_are_named(kp_call: Any, path: str, query: str) -> None:
    reply = await kp_call("GET", f"{path}?{query}")
    assert reply.code == 422
    assert reply.model["field"] == query.partition("=")[0]


@pytest.mark.parametrize("path", ["/nothing", "/pools/python3/nothing", "/openapi_json", "/kernels/x/y"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_paths_that_are_no_routes_answer_json(kp_call: Any, method: str, path: str) -> None:
    reply = await kp_call(method, path, raw=b"{}" if method == "POST" else None)
    assert (reply.code, reply.model["code"]) == (404, "not_found")


@pytest.mark.parametrize("method, path", [("DELETE", "/pool"), ("PUT", "/pools"), ("PUT", "/kernels/x")])
async def test_verbs_that_a_route_does_not_take(kp_call: Any, method: str, path: str) -> None:
    reply = await kp_call(method, path, raw=b"{}")
    assert (reply.code, reply.model["code"]) == (405, "method_not_allowed")


def random_json(source: random.Random, depth: int = 3) -> Any:
    leaves: list[Callable[[], Any]] = [
        lambda: None,
        lambda: source.random() < 0.5,
        lambda: source.randint(-9, 9),
        lambda: source.uniform(-1e308, 1e308),
        lambda: 10**400,
        lambda: "".join(chr(source.randint(0, 0xFFFF)) for _ in range(source.randint(0, 9))),
    ]
    nested: list[Callable[[], Any]] = [
        lambda: [random_json(source, depth - 1) for _ in range(source.randint(0, 3))],
        lambda: {random_name(source): random_json(source, depth - 1) for _ in range(source.randint(0, 3))},
    ]
    return source.choice(leaves + nested if depth else leaves)()


def random_name(source: random.Random) -> str:
    known = ["recipe", "warm", "min", "max", "preload", "init_code", "launcher", "drain", "limits"]
    return source.choice([*known, "", "\x00", "__class__", "message"])


class TestRandomInput:
    @pytest.fixture
    def kp_config(self) -> dict[str, Any]:
        return {"warm": 0, "max_warm": 1}

    @pytest.mark.parametrize("seed", range(4))
    async def test_no_input_is_an_error_of_ours(self, kp_call: Any, jp_serverapp: Any, seed: int) -> None:
        manager = jp_serverapp.kernel_manager
        manager.pool.paused = True
        manager.pool.recipe_pool(await manager.foresight.request_for("python3"))
        source = random.Random(seed)
        codes = set()
        for _ in range(100):
            body = {random_name(source): random_json(source) for _ in range(source.randint(0, 3))}
            method, path = source.choice([("POST", "/pools"), ("PATCH", "/pools/python3")])
            raw = json.dumps(body).encode()
            if source.random() < 0.1:
                at = source.randrange(len(raw))
                raw = raw[:at] + bytes([source.randrange(256)]) + raw[at + 1 :]
            codes.add((await kp_call(method, path, raw=raw)).code)
        assert {200, 400, 422} <= codes <= {200, 400, 404, 409, 422}


async def test_recipes_that_become_one_are_merged(jp_serverapp: Any) -> None:
    manager = jp_serverapp.kernel_manager
    pool = manager.pool
    pool.overrides["python3"] = Settings(0, 1, ("json",))
    request = await manager.foresight.request_for("python3")
    first = pool.recipe_pool(request)
    second = pool.recipe_pool(replace(request, environment={**request.environment, "OMP_NUM_THREADS": "3"}))
    assert first is not second
    await change_recipe(pool, second, {"preload": []}, drain=False)
    assert list(pool.pools.values()) == [second]
    assert first.draining
    assert pool.recipe_pool(request) is second


async def test_an_exception_of_ours_is_a_500_that_tells_nothing(
    kp_call: Any, kp_fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyter_kernelpool.rest.pool.capabilities", lambda *_: 1 / 0)
    response = await kp_fetch("GET", "/kernelpool/v1/pool")
    body = json.loads(response.body)
    assert (response.code, body["code"], body["delivered"]) == (500, "internal", "unknown")
    assert "zero" not in json.dumps(body)


# -- where nothing is pooled ------------------------------------------------------------------------


class WhereNothingIsPooled:
    """A server whose pool is off, for the reason `why`."""

    why = ""

    async def test_the_pool_says_so(self, kp_call: Any) -> None:
        reply = await kp_call("GET", "/pool")
        assert reply.code == 200
        assert reply.model["enabled"] is False
        assert self.why in reply.model["why"]
        assert reply.model["recipes"] == []
        for way in ("fork", "spawn", "whole"):
            assert reply.model["capabilities"][way] == {"available": False, "why": reply.model["why"]}

    async def test_lists_are_empty(self, kp_call: Any) -> None:
        assert (await kp_call("GET", "/pools")).model == {"pools": [], "next": None}
        assert (await kp_call("GET", "/kernels")).model == {"kernels": [], "next": None}
        assert (await kp_call("GET", "/pools/python3")).code == 404

    async def test_writes_answer_disabled(self, kp_call: Any) -> None:
        for method, path, body in (
            ("POST", "/pools", {"recipe": "python3"}),
            ("PATCH", "/pools/python3", {"warm": 1}),
            ("DELETE", "/pools/python3", None),
        ):
            reply = await kp_call(method, path, body)
            assert (reply.code, reply.model["code"]) == (409, Disabled.code)
            assert self.why in reply.model["message"]


class TestSwitchedOff(WhereNothingIsPooled):
    why = "KernelPool.enabled is False"

    @pytest.fixture
    def kp_config(self) -> dict[str, Any]:
        return {"enabled": False, "max_kernels": 1}

    async def test_stock_handlers_are_left_alone(self, jp_serverapp: Any) -> None:
        targets = {rule.target for rule in jp_serverapp.web_app.wildcard_router.rules}
        assert {MainKernelHandler, SessionRootHandler} <= targets


class AnotherManager(AsyncMappingKernelManager):
    """The choice of a user."""


class TestAnotherKernelManager(WhereNothingIsPooled):
    why = "AnotherManager"

    @pytest.fixture
    def jp_server_config(self, kp_config: dict[str, Any]) -> dict[str, Any]:
        return {
            "ServerApp": {
                "jpserver_extensions": {"jupyter_kernelpool": True},
                "kernel_manager_class": AnotherManager,
            }
        }


class TestStopped(WhereNothingIsPooled):
    why = "stopped"

    @pytest.fixture(autouse=True)
    def kp_stopped(self, jp_serverapp: Any) -> None:
        jp_serverapp.kernel_manager.pool.stopped = True


# -- the description --------------------------------------------------------------------------------


async def test_the_document_names_this_server(kp_call: Any, jp_base_url: str) -> None:
    reply = await kp_call("GET", "/openapi.json")
    assert reply.model["servers"] == [{"url": f"{jp_base_url}kernelpool/v1"}]


# -- all places taken -------------------------------------------------------------------------------


class TestExhausted:
    """One place, and a start that has it: no kernel is needed to be refused."""

    @pytest.fixture
    def kp_config(self) -> dict[str, Any]:
        return {"warm": 0, "max_warm": 0, "max_kernels": 1, "exhausted": "fail"}

    @pytest.fixture(autouse=True)
    def kp_full(self, jp_serverapp: Any) -> None:
        jp_serverapp.kernel_manager.pool.admission.pending = 1

    @pytest.mark.parametrize(
        "path, body", [("/api/kernels", {}), ("/api/sessions", {"path": "a.ipynb", "type": "notebook"})]
    )
    async def test_stock_routes_answer_503_and_when_to_come_back(self, kp_fetch: Any, path: str, body: Any) -> None:
        response = await kp_fetch("POST", path, body=json.dumps(body))
        told = json.loads(response.body)
        assert (response.code, response.headers["Retry-After"]) == (503, "5")
        assert (told["code"], told["retry_after"], told["limit"]) == ("exhausted", 5, 1)
        assert "max_kernels" in told["message"]
        assert "reason" in told

    @pytest.mark.parametrize("path", ["/api/kernels", "/api/sessions"])
    async def test_the_rest_of_the_stock_routes_is_stock(self, kp_fetch: Any, path: str) -> None:
        assert json.loads((await kp_fetch("GET", path)).body) == []
        response = await kp_fetch("POST", path, body="{")
        assert (response.code, json.loads(response.body)["message"]) == (400, "Invalid JSON in body of request")
        assert (await kp_fetch("POST", path, body="{}", headers={})).code == 403

    async def test_other_errors_of_sessions_are_stock(self, kp_fetch: Any, jp_serverapp: Any) -> None:
        jp_serverapp.kernel_manager.pool.admission.pending = 0
        body = json.dumps({"path": "a.ipynb", "type": "notebook", "kernel": {"name": "nothing"}})
        response = await kp_fetch("POST", "/api/sessions", body=body)
        assert (response.code, json.loads(response.body)["short_message"]) == (501, "nothing not found")
        assert (await kp_fetch("POST", "/api/sessions", body="{}")).code == 400

    async def test_who_may_start_kernels_is_asked_as_before(self, kp_fetch: Any, jp_serverapp: Any) -> None:
        jp_serverapp.web_app.settings["authorizer"] = authorizer = Denying(parent=jp_serverapp)
        authorizer.asked.clear()
        for path in ("/api/kernels", "/api/sessions"):
            assert (await kp_fetch("POST", path, body="{}")).code == 403
        assert authorizer.asked == [("write", "kernels"), ("write", "sessions")]


async def test_without_a_maximum_stock_handlers_are_left_alone(jp_serverapp: Any) -> None:
    targets = {rule.target for rule in jp_serverapp.web_app.wildcard_router.rules}
    assert {MainKernelHandler, SessionRootHandler} <= targets
