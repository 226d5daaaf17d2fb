"""Code, OpenAPI document and docs name the same routes, verbs and errors."""

import inspect
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
from tornado import web

from jupyter_kernelpool import errors
from jupyter_kernelpool.alerts import HINTS
from jupyter_kernelpool.decisions import Stage
from jupyter_kernelpool.events import read_types
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.rest import base, handlers
from jupyter_kernelpool.rest.health import read_document
from jupyter_kernelpool.settings import LAUNCHER_NAMES

DOCS = Path(__file__).parents[2] / "docs" / "operators"
VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def routes_in_code() -> set[tuple[str, str]]:
    found = set()
    for pattern, handler, *_ in handlers():
        if handler is base.UnknownHandler:
            continue
        path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", pattern.removeprefix(base.PREFIX)).replace("\\", "")
        for verb in VERBS:
            if getattr(handler, verb.lower()) is not web.RequestHandler._unimplemented_method:
                found.add((verb, path))
    return found


def routes_in_document() -> set[tuple[str, str]]:
    paths = read_document()["paths"]
    return {(verb.upper(), path) for path, item in paths.items() for verb in item if verb.upper() in VERBS}


def test_document_is_valid_openapi() -> None:
    openapi_spec_validator.validate(read_document())


def test_every_route_is_in_the_document_and_the_other_way_round() -> None:
    assert routes_in_code() == routes_in_document()


def test_every_route_is_in_the_docs_and_the_other_way_round() -> None:
    text = (DOCS / "rest.md").read_text("utf-8")
    assert set(re.findall(rf"`({'|'.join(VERBS)}) (/(?!api/)[^`\s]*)`", text)) == routes_in_code()


def all_errors(base_class: type[errors.KernelPoolError] = errors.KernelPoolError) -> list[Any]:
    return [base_class, *(error for child in base_class.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("error", all_errors())
def test_every_error_is_in_the_docs(error: type[errors.KernelPoolError]) -> None:
    assert f"| `{error.code}` | {error.status} |" in (DOCS / "operating.md").read_text("utf-8")


@pytest.mark.parametrize("status, code", base.CODES.items())
def test_every_code_of_the_edge_is_in_the_docs(status: int, code: str) -> None:
    assert f"| `{code}` | {status} |" in (DOCS / "operating.md").read_text("utf-8")


@pytest.mark.parametrize("name, choices", [("Stage", Stage), ("State", State)])
def test_document_has_the_states_of_the_code(name: str, choices: type[StrEnum]) -> None:
    assert read_document()["components"]["schemas"][name]["enum"] == [choice.value for choice in choices]


def test_document_has_the_events_and_alerts_of_the_code() -> None:
    schemas = read_document()["components"]["schemas"]
    assert schemas["Event"]["properties"]["type"]["enum"] == list(read_types())
    assert schemas["Alert"]["properties"]["name"]["enum"] == list(HINTS)


def test_document_has_the_launchers_of_the_code() -> None:
    assert read_document()["components"]["schemas"]["Launcher"]["enum"] == list(LAUNCHER_NAMES)


def test_authentication_stands_outside_authorisation() -> None:
    for _, handler, *_ in handlers():
        for verb in VERBS:
            method = getattr(handler, verb.lower())
            if method is web.RequestHandler._unimplemented_method or hasattr(method, "__allow_unauthenticated"):
                continue
            assert "authenticated" in inspect.unwrap(method, stop=lambda _: True).__code__.co_qualname
