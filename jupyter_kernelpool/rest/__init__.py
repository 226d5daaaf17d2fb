"""The REST routes, one small module a resource."""

from __future__ import annotations

from typing import Any


def handlers() -> list[tuple[Any, ...]]:
    """Every route of ours, for the server's web application."""
    from jupyter_kernelpool.rest import pool

    return [*pool.ROUTES]
