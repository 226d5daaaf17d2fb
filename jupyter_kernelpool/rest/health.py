"""GET /healthz, for probes; GET /openapi.json, the description of all routes."""

from __future__ import annotations

import asyncio
import functools
from importlib import resources
from typing import Any

import yaml
from jupyter_server.auth.decorator import allow_unauthenticated, authorized
from jupyter_server.utils import url_path_join
from tornado import web

from jupyter_kernelpool.rest.base import PREFIX, KernelPoolHandler


@functools.cache
def read_document() -> dict[str, Any]:
    """The OpenAPI document. Reads a file: call it off the event loop; later calls answer at once."""
    text = resources.files("jupyter_kernelpool.rest").joinpath("openapi.yaml").read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


class HealthHandler(KernelPoolHandler):
    """Says that the server's event loop turns, to anybody, and nothing else."""

    @allow_unauthenticated
    async def get(self) -> None:
        self.reply({"status": "ok"})


class DocumentHandler(KernelPoolHandler):
    """The OpenAPI document, with this server's own base URL in it."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        document = await asyncio.to_thread(read_document)
        self.reply({**document, "servers": [{"url": url_path_join(self.base_url, PREFIX)}]})


ROUTES: list[tuple[Any, ...]] = [
    (PREFIX + "/healthz", HealthHandler),
    (PREFIX + r"/openapi\.json", DocumentHandler),
]
