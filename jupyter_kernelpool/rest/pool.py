"""GET /pool: what the pool does on this server, and what it can't, with the reason."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool import __version__
from jupyter_kernelpool.bounded import Bounded
from jupyter_kernelpool.fences import find_fences, find_mounts
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.memory import read_memory
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.rest.base import PREFIX, KernelPoolHandler
from jupyter_kernelpool.rest.models import (
    Model,
    breaker_model,
    capabilities,
    count_active,
    no_totals,
    recipe_model,
    totals,
)


async def recipe_models(manager: PoolingKernelManager, pools: Iterable[RecipePool]) -> list[Model]:
    """The models of *pools*, by name; the templates' memory is read off the event loop."""
    chosen = sorted(pools, key=lambda pool: pool.recipe.name)
    pids = [pool.launcher.pid for pool in chosen if pool.launcher is not None and pool.launcher.pid]
    memory = await asyncio.to_thread(read_memory, pids) if pids else {}
    active = count_active(manager.get_kernel(kernel_id) for kernel_id in manager.list_kernel_ids())
    return [
        recipe_model(
            pool,
            active=active[pool.recipe.name],
            policy=manager.pool.policy,
            now=time.monotonic(),
            memory=memory,
        )
        for pool in chosen
    ]


def why_unbounded(settings: Mapping[str, Any]) -> str | None:
    """Why output reaches users past this server's websocket edge, where limits hold it; None if it does not."""
    chosen = settings["kernel_websocket_connection_class"]
    if not issubclass(chosen, Bounded):
        return f"{chosen.__module__}.{chosen.__qualname__} was set as the class of kernels' websockets after ours"
    if settings.get("page_config_data", {}).get("serverSideExecution") in ("true", True):
        return (
            "an extension runs cells in the server and writes what they put out into the document, past the "
            "websockets, which alone are held to it; cells that print on are interrupted all the same"
        )
    return None


def breaker_models(manager: PoolingKernelManager) -> list[Model]:
    """The kernelspecs whose last start failed, by name."""
    now = time.monotonic()
    return [breaker_model(name, breaker, now) for name, breaker in sorted(manager.care.starts.breakers.items())]


class PoolHandler(KernelPoolHandler):
    """The pool as a whole; answers also where nothing is pooled."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        manager = self.pooling
        kernels = len(self.kernel_manager.list_kernel_ids())
        why = self.why_disabled()
        fences = await asyncio.to_thread(lambda: find_fences(find_mounts()))
        recipes = await recipe_models(manager, manager.pool.pools.values()) if manager is not None else []
        self.reply(
            {
                "version": __version__,
                "enabled": why is None,
                "why": why,
                "capabilities": {
                    **capabilities(self.kernel_manager, why, why_unbounded(self.settings)),
                    "fences": [asdict(fence) for fence in fences],
                },
                "totals": totals(manager.pool, recipes, kernels) if manager is not None else no_totals(kernels),
                "recipes": recipes,
                "breakers": breaker_models(manager) if manager is not None else [],
            }
        )


ROUTES: list[tuple[Any, ...]] = [(PREFIX + "/pool", PoolHandler)]
