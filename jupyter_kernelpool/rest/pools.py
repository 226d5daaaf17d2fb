"""GET, POST /pools; GET, PATCH, DELETE /pools/{recipe}: list, make, scale, drain and remove recipes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jupyter_client.kernelspec import NoSuchKernel
from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool.adoption import Request
from jupyter_kernelpool.decisions import Stage
from jupyter_kernelpool.errors import NotFound, NotValid
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.recipes import Recipe, Settings, start_environment
from jupyter_kernelpool.rest.base import PREFIX, KernelPoolHandler, authorized_to_pool
from jupyter_kernelpool.rest.pool import recipe_models
from jupyter_kernelpool.settings import read_recipe_limits

SETTINGS = frozenset(
    {"warm", "max", "preload", "init_code", "limits", "cull", "recovery", "on_unresponsive", "restore"}
)


class PoolsHandler(KernelPoolHandler):
    """The recipes there are, and new ones."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        manager = self.pooling
        stage = self.read_choice("state", Stage)
        name = self.get_query_argument("recipe", None)
        pools = manager.pool.pools.values() if manager is not None else ()
        page, following = self.cut(
            (pool.recipe.name, pool)
            for pool in pools
            if stage in (None, pool.stage) and name in (None, pool.recipe.name)
        )
        models = await recipe_models(manager, page) if manager is not None else []
        self.reply({"pools": models, "next": following})

    @web.authenticated
    @authorized_to_pool
    async def post(self) -> None:
        body = self.read_object()
        name = body.pop("recipe", None)
        if not isinstance(name, str) or not name:
            raise NotValid(f"recipe = {name!r} must be the name of a kernelspec", field="recipe")
        changes = read_changes(body, SETTINGS | {"launcher"})
        manager = await self.working_manager()
        manager.guard.allowances.refuse_change(name, read_limits_of(name, changes))
        pool = manager.pool.add(await find_request(manager, name), changes)
        if "limits" in changes:
            await manager.guard.recipe_changed(name)
        (model,) = await recipe_models(manager, [pool])
        self.reply_created(model, "pools", pool.recipe.name)


class RecipeHandler(KernelPoolHandler):
    """One recipe."""

    @web.authenticated
    @authorized
    async def get(self, recipe: str) -> None:
        manager = self.pooling
        if manager is None:
            raise NotFound(f"there is no recipe {recipe!r}: {self.why_disabled()}", recipe=recipe)
        (model,) = await recipe_models(manager, [manager.pool.find(recipe)])
        self.reply(model)

    @web.authenticated
    @authorized_to_pool
    async def patch(self, recipe: str) -> None:
        body = self.read_object()
        drain = body.pop("drain", False)
        if not isinstance(drain, bool):
            raise NotValid(f"drain = {drain!r} must be true or false", field="drain")
        changes = read_changes(body, SETTINGS)
        manager = await self.working_manager()
        pool = manager.pool.find(recipe)
        kernel_name = pool.recipe.kernel_name
        manager.guard.allowances.refuse_change(kernel_name, read_limits_of(kernel_name, changes))
        await change_recipe(manager.pool, pool, changes, drain=drain)
        if "limits" in changes:
            await manager.guard.recipe_changed(kernel_name)
        (model,) = await recipe_models(manager, [pool])
        self.reply(model)

    @web.authenticated
    @authorized_to_pool
    async def delete(self, recipe: str) -> None:
        manager = await self.working_manager()
        await manager.pool.remove(recipe)
        self.set_status(204)
        self.finish()


def read_limits_of(kernel_name: str, changes: dict[str, Any]) -> dict[str, float]:
    """The limits among *changes*; raises `NotValid`."""
    return dict(read_recipe_limits(kernel_name, changes.get("limits", {})))


def read_changes(body: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    """The settings in *body*, `min` meaning `warm`; raises `NotValid`. Values are checked by the pool."""
    changes = dict(body)
    if "min" in changes:
        floor = changes.pop("min")
        if changes.setdefault("warm", floor) != floor:
            raise NotValid(f"min = {floor!r} and warm = {changes['warm']!r} mean the same", field="min")
    for name in changes:
        if name not in allowed:
            there_are = ", ".join(sorted(allowed))
            raise NotValid(f"{name} = {changes[name]!r} is no setting; there are: {there_are}", field=name)
    return changes


async def find_request(manager: PoolingKernelManager, name: str) -> Request:
    """A plain start of the kernelspec *name*; raises `NotFound`, or `NotValid` if it can't be read."""
    try:
        return await manager.foresight.request_for(name)
    except NoSuchKernel as error:
        raise NotFound(f"there is no kernelspec {name!r}", recipe=name) from error
    except Exception as error:
        raise NotValid(f"recipe = {name!r}: its kernelspec can't be used: {error}", field="recipe") from error


async def change_recipe(kernels: KernelPool, pool: RecipePool, changes: dict[str, Any], *, drain: bool) -> None:
    """Scale *pool*; drain it, so that it fills anew, if asked or if what its kernels hold has changed.

    Settings are those of the kernelspec, so they reach its other recipes (of other environments) too. Raises
    `NotValid`, and nothing has changed then.
    """
    settings = kernels.change_settings(pool.recipe.kernel_name, changes) if changes else pool.recipe.settings
    siblings = [other for other in kernels.pools.values() if other.recipe.kernel_name == pool.recipe.kernel_name]
    outdated: list[RecipePool] = [pool] if drain else []
    for other in siblings:
        if is_outdated(other.recipe.settings, settings) and other not in outdated:
            outdated.append(other)
        other.recipe = with_settings(other.recipe, settings)
    # Two environments that differed only for the libraries of a preload may be one recipe from now on.
    kept = {other.recipe.key: other for other in [*kernels.pools.values(), pool]}
    dropped = [other for other in siblings if kept[other.recipe.key] is not other]
    kernels.pools = kept
    for other in outdated:
        other.retry_at = 0.0
        await other.drain("its settings changed" if changes else "drained over REST")
    for other in dropped:
        await other.close()
    kernels.wake.set()


def is_outdated(before: Settings, after: Settings) -> bool:
    """Whether kernels made with *before* are not what *after* asks for, or are not wanted at all."""
    return (before.preload, before.init_code) != (after.preload, after.init_code) or after.max == 0


def with_settings(recipe: Recipe, settings: Settings) -> Recipe:
    """*recipe* as a request would find it once its kernelspec has *settings* (the launcher being the same)."""
    return replace(
        recipe,
        settings=settings,
        start_environment=start_environment(
            recipe.environment, libraries_loaded=bool(settings.preload or settings.init_code)
        ),
    )


ROUTES: list[tuple[Any, ...]] = [
    (PREFIX + "/pools", PoolsHandler),
    (PREFIX + r"/pools/(?P<recipe>[^/]+)", RecipeHandler),
]
