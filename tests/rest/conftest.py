"""`kp_call` asks a route of ours and holds its reply against the OpenAPI document; no process outlives a test."""

import copy
import json
import re
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from jsonschema import Draft202012Validator
from jupyter_server.utils import url_path_join
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from jupyter_kernelpool.rest.health import read_document

NO_KERNELS = {"warm": 0, "max_warm": 0}
UNDOCUMENTED = {404, 405}  # on paths that are no routes, and for verbs that a route does not take


@dataclass
class Reply:
    code: int
    headers: Any
    model: Any


Call = Callable[..., Awaitable[Reply]]


def strict(schema: Any) -> Any:
    """*schema* with each object closed that does not say so itself: what we send has to be documented."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


DOCUMENT = strict(copy.deepcopy(read_document()))
REGISTRY: Any = Registry().with_resource("urn:rest", DRAFT202012.create_resource(DOCUMENT))


def find_operation(method: str, path: str) -> Any:
    """What the document says of *method* on *path*; None if it is no route."""
    for template, item in DOCUMENT["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", re.escape(template).replace(r"\{", "{").replace(r"\}", "}")), path):
            return item.get(method.lower())
    return None


def validate(reply: Reply, method: str, path: str) -> None:
    """Raise unless *reply* is one that the document promises."""
    operation = find_operation(method, path)
    if operation is None:
        assert reply.code in UNDOCUMENTED | {403}
        schema: Any = {"$ref": "urn:rest#/components/schemas/Error"}
    else:
        assert str(reply.code) in operation["responses"], f"{method} {path} answered {reply.code}: {reply.model}"
        answer = operation["responses"][str(reply.code)]
        if "$ref" in answer:
            answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        if "content" not in answer:
            assert reply.model is None
            return
        schema = answer["content"]["application/json"]["schema"]
    absolute = json.loads(json.dumps(schema).replace('"#/', '"urn:rest#/'))
    Draft202012Validator(absolute, registry=REGISTRY).validate(reply.model)
    assert reply.headers["Content-Type"].startswith("application/json")


@pytest.fixture
def kp_config() -> dict[str, Any]:
    """Traits of `KernelPool`, for a test to override."""
    return dict(NO_KERNELS)


@pytest.fixture
def jp_server_config(kp_config: dict[str, Any]) -> dict[str, Any]:
    return {
        "ServerApp": {"jpserver_extensions": {"jupyter_kernelpool": True}},
        "KernelPool": {"busy_cores": 1.0, **kp_config},  # what else the machine does must not decide
    }


@pytest.fixture
def kp_fetch(
    http_server_client: Any, jp_base_url: str, jp_auth_header: dict[str, str]
) -> Callable[..., Awaitable[Any]]:
    """A request to the server, with the token unless headers are given; errors are answers too."""

    def fetch(method: str, path: str, *, headers: Any = None, **kwargs: Any) -> Awaitable[Any]:
        return http_server_client.fetch(  # type: ignore[no-any-return]
            url_path_join(jp_base_url, path),
            method=method,
            headers=jp_auth_header if headers is None else headers,
            raise_error=False,
            allow_nonstandard_methods=True,
            request_timeout=30,
            **kwargs,
        )

    return fetch


@pytest.fixture
def kp_call(kp_fetch: Callable[..., Awaitable[Any]]) -> Call:
    """Ask a route: `await kp_call("PATCH", "/pools/python3", {"warm": 1})`; the reply is validated."""

    async def call(method: str, path: str, body: Any = None, *, raw: bytes | None = None, **kwargs: Any) -> Reply:
        sent = json.dumps(body).encode() if raw is None and body is not None else raw
        response = await kp_fetch(method, "/kernelpool/v1" + path, body=sent, **kwargs)
        model = json.loads(response.body) if response.body else None
        reply = Reply(response.code, response.headers, model)
        validate(reply, method, path.partition("?")[0])
        return reply

    return call


@pytest.fixture
def kp_processes() -> Generator[list[psutil.Process]]:
    """The processes that the test's server has when it is told to stop; none may outlive that."""
    processes: list[psutil.Process] = []
    yield processes
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        process.kill()
    assert not alive


@pytest.fixture(autouse=True)
def jp_server_cleanup(kp_processes: list[psutil.Process], jp_server_cleanup: None) -> Generator[None]:
    yield
    kp_processes += psutil.Process().children(recursive=True)
