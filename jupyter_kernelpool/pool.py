"""The pool: which recipes there are, and the claim of a warm kernel for an owner.

Configured with traits; filled by the keeper; asked by the provisioner. There is no way back into it: a
kernel that had an owner is never warm again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from typing import Any

from jupyter_kernelpool import metrics
from jupyter_kernelpool.admission import Admission
from jupyter_kernelpool.adoption import Adoption, Request, adopts, offer
from jupyter_kernelpool.decisions import Stage
from jupyter_kernelpool.errors import LaunchFailed, NotFound, NotValid, SupervisorGone, WrongState
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.pool_settings import PoolSettings
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.recipes import Recipe, Settings, build_recipe
from jupyter_kernelpool.sandboxing import Sandboxing
from jupyter_kernelpool.supervision import Supervision

CLAIM_ATTEMPTS = 3
CLAIM_TIMEOUTS = 2  # among these, after which who asks has waited enough
USERS_START_FOR = 10.0
"""Seconds that a user's start counts as one, at most: a kernel that started cold is heard only if it has a client."""


class KernelPool(PoolSettings):
    """Warm kernels, ready before anybody asks for them."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pools: dict[str, RecipePool] = {}
        self.supervision = Supervision(self.log)
        self.sandboxing = Sandboxing(
            self.supervision, self.log, root_dir=getattr(self.parent, "root_dir", ""), copies_dir=self.copies_dir
        )
        self.admission = Admission(self.max_kernels, self.exhausted, self.wait_timeout, lambda: 0)
        self.paused = False
        self.stopped = False
        self.last_start = time.monotonic() - 60
        self.wake = asyncio.Event()
        self._starting: dict[str, float] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> bool:
        """Whether claims are served: switched on, not stopped, on a platform that can."""
        return self.enabled and not self.stopped and sys.platform == "linux"

    def settings_changed(self) -> None:
        """Have the keeper look at once."""
        self.wake.set()

    # -- recipes ------------------------------------------------------------------------------------

    def recipe_pool(self, request: Request, *, pinned: bool = False) -> RecipePool | None:
        """The pool of the recipe that *request* needs, made if need be; None if it is not pooled."""
        settings = self.settings_for(request.kernel_name)
        if settings.launcher == "off" or settings.max == 0:
            return None
        recipe = self.recipe_for(request, settings)
        if not recipe.adoptable and settings.launcher != "whole":
            return None
        key = recipe.key
        if key not in self.pools:
            self.pools[key] = RecipePool(
                self._named(recipe), self._launchers_for(recipe), self.supervision, self.log, pinned=pinned
            )
            self.wake.set()
        pool = self.pools[key]
        if pinned and not pool.pinned:
            pool.pinned = True
            if all(other.recipe.name != recipe.name for other in self.pools.values()):
                pool.recipe = self._named(recipe)
        if pool.recipe.settings != settings:  # only numbers: all else is part of the key
            pool.recipe = self._named(recipe, pool.recipe.name)
        return pool

    def recipe_for(self, request: Request, settings: Settings | None = None) -> Recipe:
        """The recipe of *request*, whether kernels of it are pooled or not."""
        return build_recipe(
            kernel_name=request.kernel_name,
            spec=request.spec,
            env=request.environment,
            settings=settings or self.settings_for(request.kernel_name),
            cwd=request.cwd,
            transport=request.transport,
            confine=self.sandboxing.confine,
        )

    def find(self, name: str) -> RecipePool:
        """The pool of the recipe called *name*; raises `NotFound`."""
        for pool in self.pools.values():
            if pool.recipe.name == name:
                return pool
        raise NotFound(f"there is no recipe {name!r}", recipe=name)

    async def remove(self, name: str) -> None:
        """Drain and forget the recipe *name*; raises `NotFound`. A later request makes it anew."""
        pool = self.find(name)
        self.pools.pop(pool.recipe.key, None)
        self.pools = {key: other for key, other in self.pools.items() if other is not pool}
        self.overrides.pop(pool.recipe.kernel_name, None)
        await pool.close()

    def add(self, request: Request, changes: dict[str, Any]) -> RecipePool:
        """Make the recipe for *request* with settings changed by *changes*; raises `WrongState` if it exists."""
        if any(pool.recipe.name == request.kernel_name for pool in self.pools.values()):
            raise WrongState(f"the recipe {request.kernel_name!r} exists already", recipe=request.kernel_name)
        self.change_settings(request.kernel_name, changes)
        pool = self.recipe_pool(request, pinned=True)
        if pool is None:
            self.overrides.pop(request.kernel_name, None)
            raise NotValid(
                f"kernels of {request.kernel_name!r} can't be pooled with these settings (another language "
                'needs "launcher": "whole"; "max" must be above 0)'
            )
        return pool

    def _named(self, recipe: Recipe, name: str | None = None) -> Recipe:
        taken = {pool.recipe.name for pool in self.pools.values()}
        if name is None:
            name = recipe.kernel_name if recipe.kernel_name not in taken else f"{recipe.kernel_name}-{recipe.key}"
        return replace(recipe, name=name, environment=recipe.environment)

    def _launchers_for(self, recipe: Recipe) -> list[type[Launcher]]:
        wanted = recipe.settings.launcher
        if wanted == "auto":
            return [launcher for launcher in self.launchers if launcher.way != "whole"]
        return [launcher for launcher in self.launchers if launcher.way == wanted]

    # -- claims -------------------------------------------------------------------------------------

    def poolable(self, request: Request) -> RecipePool | None:
        """The recipe pool that could serve *request* by giving a warm kernel the identity of its owner."""
        if not self.active:
            return None
        pool = self.recipe_pool(request)
        return pool if pool is not None and pool.recipe.adoptable else None

    def begin_claim(self, pool: RecipePool, request: Request, identity: Adoption) -> Process | None:
        """Tell a warm kernel at once who it is, if there is one; `claim` is then awaited with it.

        Called from `PoolProvisioner.pre_launch`: the kernel adopts while the server writes the connection file.
        """
        if not pool.warm or pool.stale:
            return None
        process = pool.take()
        if process is None or not offer(process, request, identity, self._environment(request), self.log):
            return None
        return process

    async def claim(
        self, pool: RecipePool, request: Request, identity: Adoption, begun: Process | None = None
    ) -> Process | None:
        """Hand over a kernel of *pool* that has taken *identity*, or None: then start it cold.

        Called from `PoolProvisioner.launch_kernel`, with what `begin_claim` gave. Never raises for a failure of
        ours: it is counted, noted in the recipe's `last_error`, logged once, and answered None. If cancelled, a
        kernel that was not told its identity stays warm; one that was is ended, and replaced.
        """
        began = time.monotonic()
        if begun is None and pool.stale:
            self._cold(pool, request, "what its recipe is made from has changed")
            return None
        why, timeouts = "", 0
        for _ in range(CLAIM_ATTEMPTS):
            outcome = "hit"
            process, begun = begun, None
            if process is None:
                process = pool.take()
                if process is None:
                    if not pool.worth_waiting:
                        break
                    outcome = "forked"
                    self.wake.set()
                    try:
                        process = await pool.wait(self.claim_timeout)
                    except (LaunchFailed, SupervisorGone) as error:
                        why = str(error)
                        break
                if not offer(process, request, identity, self._environment(request), self.log):
                    continue
            failure = await adopts(process, request, self.log, replaceable=True)
            if failure is not None:  # it was killed, and its threads run no more: the listeners are the next one's
                why, reason = str(failure), failure.facts.get("reason")
                if reason in ("hung", "timeout"):
                    pool.suspect = True  # others may be stuck likewise: the keeper asks them meanwhile
                    self.wake.set()
                timeouts += reason == "timeout"
                if timeouts == CLAIM_TIMEOUTS:
                    break
                continue
            seconds = time.monotonic() - began
            pool.hits += 1
            pool.waits.append(seconds)
            metrics.CLAIMS.labels(recipe=pool.recipe.name, outcome=outcome).inc()
            metrics.CLAIM_WAIT.observe(seconds)
            self.wake.set()
            return process
        self._cold(pool, request, why or pool.why_cold)
        return None

    async def claim_whole(self, request: Request) -> Process | None:
        """A warm kernel with a connection of its own, for a request that can take over that; else None."""
        if not self.active:
            return None
        pool = self.recipe_pool(request)
        if pool is None or pool.recipe.adoptable:
            return None
        stale = pool.stale
        process = pool.take() if not stale else None
        if process is None:
            self._cold(pool, request, "what its recipe is made from has changed" if stale else pool.why_cold)
            return None
        process.record.kernel_id = request.kernel_id
        process.record.move(State.ACTIVE, why="claimed", now=time.time())
        pool.hits += 1
        metrics.CLAIMS.labels(recipe=pool.recipe.name, outcome="hit").inc()
        self.wake.set()
        return process

    async def hand_over(self, process: Process, request: Request, identity: Adoption) -> None:
        """Give a fork of a live kernel, which keeps its surroundings, the identity of its owner.

        Raises `LaunchFailed` when it did not take it; it has ended then.
        """
        offered = offer(process, request, identity, self._environment(request), self.log, keep=True)
        if not offered or await adopts(process, request, self.log) is not None:
            raise LaunchFailed("the fork ended before it became a kernel", reason="gone")

    async def start_confined(self, recipe: Recipe, request: Request, identity: Adoption, *, tried: bool) -> Process:
        """A kernel of *recipe* for *request*, in its sandbox, where the pool has none to give: instead of a cold start.

        Raises `NotEnforceable`, and `LaunchFailed`: nothing is started outside the sandbox instead.
        """
        process = await self.sandboxing.start(recipe, tried=tried)
        if not offer(process, request, identity, self._environment(request), self.log):
            raise LaunchFailed("the kernel ended before it had its identity", reason="gone")
        failure = await adopts(process, request, self.log)
        if failure is not None:
            raise failure
        return process

    def _environment(self, request: Request) -> dict[str, str]:
        """What *request*'s kernel gets of the environment: in a sandbox not all of it."""
        confinement = self.recipe_for(request).confinement if self.is_sandboxed(request.kernel_name) else None
        return dict(request.environment) if confinement is None else confinement.environment(request.environment)

    def _cold(self, pool: RecipePool, request: Request, why: str) -> None:
        self.log.info("Kernel %s starts cold: %s", request.kernel_id, why)
        pool.misses += 1
        metrics.CLAIMS.labels(recipe=pool.recipe.name, outcome="cold").inc()
        self.wake.set()

    # -- starts and ends of users' kernels ----------------------------------------------------------

    def user_start_began(self, kernel_id: str) -> None:
        """A user's kernel is being started: nothing is made ahead beside it."""
        self._starting[kernel_id] = time.monotonic()

    def user_start_ended(self, kernel_id: str) -> None:
        """The user's kernel is ready, or failed: refilling may begin."""
        if self._starting.pop(kernel_id, None) is not None:
            self.last_start = time.monotonic()
            self.wake.set()

    @property
    def users_starting(self) -> int:
        """Starts of users' kernels that are not ready, as far as that can be told."""
        horizon = time.monotonic() - USERS_START_FOR
        self._starting = {key: at for key, at in self._starting.items() if at > horizon}
        return len(self._starting)

    def retire(self, process: Process, timeout: float) -> None:
        """See an owned process off in the background: it ends by itself, else SIGTERM, else SIGKILL."""
        task = asyncio.create_task(_see_off(process, timeout), name=f"retire-{process.pid}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def warmed(self, timeout: float = 30.0) -> None:
        """Wait until each recipe that can has as many warm kernels as its floor; raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            # For tests and benchmarks: nothing fires an event at it.
            while not all(  # noqa: ASYNC110
                len(pool.warm) >= pool.recipe.settings.warm or pool.stage is Stage.FAILED
                for pool in self.pools.values()
            ):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End everything that has no owner; kernels that have one live on."""
        self.stopped = True
        for pool in list(self.pools.values()):
            await pool.close()
        self.pools.clear()


async def _see_off(process: Process, timeout: float) -> None:
    for step in (None, process.terminate, process.kill):
        if step is not None:
            step()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(process.exited)
                return
        except TimeoutError:
            continue
