"""The REST routes, one small module a resource; `openapi.yaml` says what they take and answer."""

from __future__ import annotations

from typing import Any


def handlers() -> list[tuple[Any, ...]]:
    """Every route of ours, relative to the server's base URL, for the server's web application."""
    from jupyter_kernelpool.rest import alerts, events, forks, health, kernels, pool, pools, usage
    from jupyter_kernelpool.rest.base import UNKNOWN

    resources = (pool, pools, kernels, forks, usage, events, alerts, health)
    return [*(route for resource in resources for route in resource.ROUTES), *UNKNOWN]
