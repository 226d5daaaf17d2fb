"""The one background loop: look at the pool, have `decisions.plan` say what to do, do it.

One bad recipe never stops it: what fails is logged with its name, and the loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import psutil

from jupyter_kernelpool import metrics
from jupyter_kernelpool.decisions import (
    MEMORY_IS_SHORT,
    Action,
    Drain,
    Evict,
    Host,
    Launch,
    Load,
    Stage,
    Unload,
    View,
    plan,
)
from jupyter_kernelpool.errors import SupervisorGone
from jupyter_kernelpool.fences import find_mounts, memory_room
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.stumbles import Stumbles

INTERVAL = 0.25
QUIET_INTERVAL = 2.0
SHORTEST_REST = 0.01
CHECK_EVERY = 30.0  # as `KernelHealth.interval`, by which the kernel manager goes
LOOK_AT_HOST_EVERY = 1.0
GIVEN_BACK_WITHIN = 3.0  # seconds in which a process has ended, and the host was looked at again
LOOK_FOR_KERNELSPEC_EVERY = 5.0
SUPERVISE_EVERY = 1.0


@dataclass
class Round:
    """Something about the kernels in use that the keeper has done every *every* seconds, in the background.

    It does not begin again before it has ended, nor while *needed* says that there is nothing to do, nor before the
    time that *due* tells (monotonic).
    """

    name: str
    every: float
    go: Callable[[], Coroutine[Any, Any, None]]
    needed: Callable[[], bool] = lambda: True
    due: Callable[[], float] = lambda: 0.0
    last: float = 0.0
    task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has begun and not ended."""
        return self.task is not None and not self.task.done()


class Keeper:
    """Runs the loop for one pool."""

    def __init__(
        self,
        pool: KernelPool,
        foresee: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        """*foresee* makes the recipe of a kernelspec's name; false when there is no such kernelspec."""
        self.pool = pool
        self.missing: dict[str, float] = {}  # kernelspecs to keep warm once they are there, and when to look
        self._foresee = foresee
        self.log = pool.log
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._survives = Stumbles(self.log, "The kernel pool's keeper").over
        self._jobs: set[asyncio.Task[None]] = set()
        self._host = Host(available_memory=1 << 62, busy=0.0)
        self._looked_at_host = 0.0
        self._gave_up_at = float("-inf")  # when a kernel was last ended for want of memory
        self.check_every = CHECK_EVERY  # seconds between two questions to warm kernels; 0: none without suspicion
        self.rounds = [Round("supervise", SUPERVISE_EVERY, self._supervise, self._is_unsupervised)]

    def start(self) -> None:
        """Begin, on the running event loop; a second call changes nothing, nor does one after `stop`."""
        if self._task is None and not self._stopped:
            self._task = asyncio.create_task(self._run(), name="kernelpool-keeper")

    async def stop(self) -> None:
        """End the loop and whatever it started."""
        self._stopped = True
        task, self._task = self._task, None
        tasks = [task, *self._jobs, *(each.task for each in self.rounds)]
        for running in tasks:
            if running is not None:
                running.cancel()
        for running in tasks:
            if running is not None:
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await running

    @property
    def host(self) -> Host:
        """What the machine had left when it was last looked at."""
        return self._host

    @property
    def regains_memory(self) -> bool:
        """Whether warm kernels are there that go for want of memory, or one just went, and it may be short no more."""
        just = time.monotonic() - self._gave_up_at < GIVEN_BACK_WITHIN
        return just or any(pool.warm for pool in self.pool.pools.values())

    def gave_up_kernel(self) -> None:
        """One was ended for want of memory: what it had is not counted yet."""
        self._gave_up_at = time.monotonic()

    def view(self) -> View:
        """The pool as it is now, without recipes that can't be looked at."""
        recipes = []
        for pool in self.pool.pools.values():
            with self._survives(f"the state of recipe {name_of(pool)}"):
                recipes.append(pool.view())
        return View(
            recipes=tuple(recipes),
            host=self._host,
            users_starting=self.pool.users_starting,
            last_start=self.pool.last_start,
        )

    async def turn(self) -> list[Action]:
        """One turn of the loop; returns what it began."""
        now = time.monotonic()
        self._begin_rounds(now)  # first: they need not look at the host, which may be impossible
        if now - self._looked_at_host > LOOK_AT_HOST_EVERY:
            self._looked_at_host = now
            self._host = await asyncio.to_thread(self._look)
        if self.pool.paused or not self.pool.active:
            return []
        self._follow_kernelspecs()
        for pool in list(self.pool.pools.values()):
            with self._survives(f"recipe {name_of(pool)}"):
                self._see_to(pool, now)
        actions = plan(self.view(), self.pool.policy, time.monotonic())
        for action in actions:
            concerned = self.pool.pools.get(action.key)
            if concerned is not None:
                with self._survives(f"{type(action).__name__} of recipe {name_of(concerned)}"):
                    self._carry_out(action, concerned)
        metrics.TEMPLATES.set(
            sum(1 for pool in self.pool.pools.values() if pool.launcher is not None and pool.launcher.pid)
        )
        return actions

    def _see_to(self, pool: RecipePool, now: float) -> None:
        pool.notice_lost_launcher()
        pool.end_restless()
        due = 0 < self.check_every < now - pool.checked
        if pool.warm and not pool.is_checking and (pool.suspect or due):
            pool.suspect, pool.is_checking, pool.checked = False, True, now
            self._begin(pool.check(), pool)

    def _is_unsupervised(self) -> bool:
        return self.pool.supervision.lost and self.pool.active

    def _begin_rounds(self, now: float) -> float:
        """Begin the rounds that are due; returns when the next one is, as far as can be told."""
        soonest = math.inf
        for each in self.rounds:
            with self._survives(each.name):
                if each.needed():
                    soonest = min(soonest, self._begin_if_due(each, now))
        return soonest

    def _begin_if_due(self, each: Round, now: float) -> float:
        """Begin the round if it is due; returns when to see to it next."""
        at = max(each.last + each.every, each.due())
        if each.is_running:
            return max(at, now + INTERVAL)
        if at > now:
            return at
        each.last = now
        each.task = asyncio.create_task(self._round(each), name=f"kernelpool-{each.name}")
        return now + each.every

    async def _round(self, each: Round) -> None:
        try:
            await each.go()
        except Exception:
            self.log.exception("The keeper's round %r failed; it is done again", each.name)

    def _look(self) -> Host:
        """In a thread: reads /proc, cgroups, and the times of the paths that recipes depend on."""
        for pool in list(self.pool.pools.values()):
            with self._survives(f"what recipe {name_of(pool)} depends on"):
                pool.look()
        return look_at_host()

    async def _run(self) -> None:
        while True:
            self.pool.wake.clear()
            acted, pause = False, QUIET_INTERVAL
            with self._survives("its turn"):
                acted = bool(await self.turn())
            with self._survives("its pause"):
                unsettled = acted or self._jobs or self.pool.users_starting or self._unfilled()
                pause = INTERVAL if unsettled else self._pause()
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        """Until the next turn, or until somebody wakes the loop. Rounds begin as they are due: a turn costs more."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0 and not self.pool.wake.is_set():
            now = time.monotonic()
            left = min(left, max(self._begin_rounds(now) - now, SHORTEST_REST))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.pool.wake.wait()

    def _pause(self) -> float:
        """Seconds until the next turn, where nothing is being done: until a round is due, where nothing else is.

        On a server that nobody uses, with neither recipe nor supervisor, each turn costs and brings nothing.
        """
        if self.pool.pools or self.pool.supervision.alive:
            return QUIET_INTERVAL
        return max(QUIET_INTERVAL, min((each.every for each in self.rounds if each.needed()), default=QUIET_INTERVAL))

    def _unfilled(self) -> bool:
        return any(pool.waiting or len(pool.warm) < pool.recipe.settings.warm for pool in self.pool.pools.values())

    def _carry_out(self, action: Action, pool: RecipePool) -> None:
        match action:
            case Load():
                pool.stage = Stage.LOADING  # at once: the next turn must not load it again
                self._begin(pool.load(), pool)
            case Launch(count=count):
                for _ in range(count):
                    pool.starting += 1  # likewise; launch_one counts from here on
                    self._begin(self._launch(pool), pool)
            case Evict(id=record_id, why=why):
                pool.evict(record_id, why)
                if why == MEMORY_IS_SHORT:
                    self.gave_up_kernel()
            case Drain(why=why):
                self.log.info("Recipe %s is drained: %s", pool.recipe.name, why)
                pool.stage = Stage.LOADING
                self._begin(self._renew(pool, why), pool)
            case Unload():
                self.pool.pools.pop(action.key, None)
                self._begin(pool.close(), pool)

    def _follow_kernelspecs(self) -> None:
        """Forget the recipes whose kernelspec was edited or removed; foresee what is to be kept warm anew."""
        for pool in list(self.pool.pools.values()):
            if pool.seen_edited and pool.stage is not Stage.LOADING:
                self.log.info("Recipe %s is drained: its kernelspec changed", pool.recipe.name)
                if pool.pinned:
                    self.missing[pool.recipe.kernel_name] = 0.0
                self.pool.pools.pop(pool.recipe.key, None)
                self._begin(pool.close(), pool)
        now = time.monotonic()
        for name in [name for name, at in self.missing.items() if at <= now]:
            self.missing[name] = now + LOOK_FOR_KERNELSPEC_EVERY
            self._begin(self._look_for(name))

    async def _look_for(self, name: str) -> None:
        if self._foresee is None or await self._foresee(name):
            self.missing.pop(name, None)

    async def _supervise(self) -> None:
        """Replace a supervisor that ended, also where nothing is to be launched: it clears away after the server."""
        try:
            await self.pool.supervision.start()
        except SupervisorGone as error:
            self.log.warning("%s", error)

    async def _launch(self, pool: RecipePool) -> None:
        pool.starting -= 1
        await pool.launch_one()

    async def _renew(self, pool: RecipePool, why: str) -> None:
        await pool.drain(why)
        pool.stage = Stage.DOWN

    def _begin(self, job: Coroutine[Any, Any, None], pool: RecipePool | None = None) -> None:
        work = self._guarded(job, pool) if pool is not None else job
        task = asyncio.create_task(work, name=f"kernelpool-{pool.recipe.name if pool is not None else 'foresee'}")
        self._jobs.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: job.close())  # stopped before it began, it was never awaited

    async def _guarded(self, job: Coroutine[Any, Any, None], pool: RecipePool) -> None:
        try:
            await job
        except SupervisorGone as error:
            self.log.warning("Recipe %s: %s", pool.recipe.name, error)
            pool.stage = Stage.DOWN
            pool.retry_at = time.monotonic() + 1.0
        except Exception:
            self.log.exception("Recipe %s: a job of the keeper failed", pool.recipe.name)
            pool.stage = Stage.FAILED
            pool.retry_at = time.monotonic() + 30.0

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        self.pool.wake.set()


def name_of(pool: RecipePool) -> str:
    """Its name for the log; a kernelspec has several recipes where environments differ."""
    return f"{pool.recipe.name} ({pool.recipe.key})"


def look_at_host() -> Host:
    """Memory that can still be had (limits of the control groups around the server count) and how busy the cores are.

    Blocks a little.
    """
    available = psutil.virtual_memory().available
    limit = memory_room(find_mounts())
    if limit is not None:
        available = min(available, limit)
    return Host(available_memory=available, busy=psutil.cpu_percent(None) / 100.0)
