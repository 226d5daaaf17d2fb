"""One recipe's warm kernels: its launcher, who waits, what is being started, what went wrong.

State changes sit in synchronous code; the coroutines `load`, `launch_one` and `wait` act. A process goes
to the waiter that waits longest, else it becomes warm; it never comes back once it had an owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_kernelpool import metrics
from jupyter_kernelpool.decisions import RecipeView, Stage, WarmView, backoff
from jupyter_kernelpool.errors import LaunchFailed, Unfit
from jupyter_kernelpool.idle_use import IdleUse
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import Recipe, fingerprint
from jupyter_kernelpool.supervision import Supervision
from jupyter_kernelpool.usage import read_state

BREAKER_FAILURES = 3
DECIDED = ("preload", "init_code", "not_enforceable")  # kinds of `Unfit` that are no matter of the launcher
STOPPED = frozenset("Tt")
REMEMBERED_CLAIMS = 1000
CHECKED_AT_ONCE = 8


@dataclass(frozen=True)
class Failure:
    """Why the recipe's last load or launch failed."""

    reason: str
    traceback: str
    at: float


class RecipePool:
    """The warm kernels of *recipe*; *launchers* are tried in order until one is fit for it."""

    def __init__(
        self,
        recipe: Recipe,
        launchers: Sequence[type[Launcher]],
        supervision: Supervision,
        log: logging.Logger,
        *,
        pinned: bool = False,
    ) -> None:
        self.recipe = recipe
        self.pinned = pinned
        self.log = log
        self.stage = Stage.DOWN
        self.launcher: Launcher | None = None
        self.warm: deque[tuple[Process, float]] = deque()
        self.starting = 0
        self.waiters: deque[asyncio.Future[Process]] = deque()
        self.claims: deque[float] = deque(maxlen=REMEMBERED_CLAIMS)
        self.waits: deque[float] = deque(maxlen=REMEMBERED_CLAIMS)
        self.hits = 0
        self.misses = 0
        self.failures = 0
        self._closing: set[asyncio.Future[None]] = set()
        self._unserved = 0  # kernels in a row that ended before they served
        self.retry_at = 0.0
        self.last_error: Failure | None = None
        self.verified = False
        self.last_used = time.monotonic()
        self.draining = False
        self._launcher_classes = list(launchers)
        self._supervision = supervision
        self._fingerprint = ""
        self._kernelspec = [os.path.join(recipe.resource_dir, "kernel.json")]
        self._kernelspec_fingerprint = fingerprint(self._kernelspec)
        self._reported: set[str] = set()
        self.seen_stale = False
        self.seen_edited = False
        self._idle_use = IdleUse()
        self.suspect = False  # a kernel of it did not answer at its claim
        self.checked = time.monotonic()
        self.is_checking = False

    # -- what it looks like -------------------------------------------------------------------------

    @property
    def breaker(self) -> str:
        """`closed` (all well), `open` (failing, not tried until `retry_at`) or `half-open` (tried again)."""
        if self.failures < BREAKER_FAILURES and self.stage is not Stage.FAILED:
            return "closed"
        return "open" if time.monotonic() < self.retry_at else "half-open"

    @property
    def why_cold(self) -> str:
        """What is told of a start that gets no kernel from here."""
        if self.stage is Stage.FAILED or self.breaker == "open":
            return self.last_error.reason if self.last_error is not None else "launching fails"
        if self.draining or self.recipe.settings.max == 0:
            return "the recipe keeps no kernels"
        if self.stage in (Stage.DOWN, Stage.LOADING):
            return "its recipe is being loaded"
        return "none is warm, and another one would take longer than a cold start"

    @property
    def waiting(self) -> int:
        return sum(1 for waiter in self.waiters if not waiter.done())

    @property
    def stale(self) -> bool:
        """Whether something was installed or edited since the launcher was prepared.

        Stats some twenty paths: a claim does it at once, since a wrong kernel must not be handed out.
        """
        return bool(self._fingerprint) and self._fingerprint != self._look()

    def look(self) -> None:
        """Note whether the recipe is stale, and whether its kernelspec on disk was edited or removed since it
        was made; called by the keeper in a thread of its own."""
        self.seen_stale = self.stale
        warm = list(self.warm)  # this is a thread, and meanwhile some are claimed
        self._idle_use.measure([(process.record.id, process.pid) for process, _ in warm], time.monotonic())
        self.seen_edited = self._kernelspec_fingerprint != fingerprint(self._kernelspec)

    def view(self) -> RecipeView:
        return RecipeView(
            key=self.recipe.key,
            stage=self.stage,
            warm=tuple(
                WarmView(process.record.id, since, self._idle_use.memory.get(process.pid, 0))
                for process, since in self.warm
                if process.alive
            ),
            starting=self.starting,
            waiting=self.waiting,
            floor=self.recipe.settings.warm,
            ceiling=self.recipe.settings.max,
            claims=tuple(self.claims),
            last_used=self.last_used,
            retry_at=self.retry_at,
            stale=self.seen_stale,
            pinned=self.pinned,
            draining=self.draining,
        )

    # -- handing out --------------------------------------------------------------------------------

    def take(self) -> Process | None:
        """The warm kernel that is warm longest and still alive, which is then the caller's; or None.

        One that is stopped would let its owner wait: it stays, and is looked at by the keeper at once.
        """
        self.claims.append(time.monotonic())
        self.last_used = time.monotonic()
        stopped = []
        taken = None
        while self.warm and taken is None:
            process, since = self.warm.popleft()
            if not process.alive or process.record.state is not State.WARM:
                continue
            if read_state(process.pid) in STOPPED:
                stopped.append((process, since))
            else:
                taken = process
        self.warm.extendleft(reversed(stopped))
        self.suspect = self.suspect or bool(stopped)
        return taken

    @property
    def worth_waiting(self) -> bool:
        """Whether a kernel will be there sooner than a cold start would be, or is worth the wait.

        Init code is trusted only once a template ran it to its end; before, a cold start would lack it.
        """
        untried = self.stage in (Stage.DOWN, Stage.LOADING) and not self.failures and not self.verified
        if untried and self.recipe.settings.init_code and self.recipe.settings.max > 0:
            return True
        return (
            self.stage is Stage.READY
            and not self.draining
            and self.recipe.settings.max > 0
            and self.launcher is not None
            and (self.launcher.quick or self.starting > self.waiting)
            and self.breaker != "open"
        )

    async def wait(self, timeout: float) -> Process:
        """The next kernel that gets ready, in the order of asking.

        Raises `LaunchFailed` when its launch failed or took longer than *timeout* seconds. If the caller is
        cancelled, a kernel already handed to it goes to the next.
        """
        waiter: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError as error:
            self._pass_on(waiter)
            raise LaunchFailed(f"no kernel became warm within {timeout:g} s", reason="timeout") from error
        except asyncio.CancelledError:
            self._pass_on(waiter)
            raise
        finally:
            with contextlib.suppress(ValueError):
                self.waiters.remove(waiter)

    def give(self, process: Process) -> None:
        """A kernel is warm: to who waits longest, else kept; ended when the recipe is draining."""
        if not process.alive:
            return
        if self.draining:
            process.discard("draining")
            return
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(process)
                return
        self.warm.append((process, time.monotonic()))
        process.exited.add_done_callback(lambda _: self._forget(process))

    def end_restless(self) -> None:
        """End the warm kernels that were found to compute; that counts as a failure of the recipe's."""
        restless, self._idle_use.restless = self._idle_use.restless, []
        still = [record_id for record_id in restless if any(entry.record.id == record_id for entry, _ in self.warm)]
        for record_id in still:
            self.evict(record_id, "is not idle")
        if still:
            self._failed(LaunchFailed("a warm kernel computes though nobody asked it to: something runs in it"))

    async def check(self) -> None:
        """Have each warm kernel answer, which also keeps its memory from being paged out; end those that do not.

        Some at a time: many are not woken at once, nor do they wait for a silent one, which takes seconds.
        """
        self.suspect, self.is_checking = False, True
        places = asyncio.Semaphore(CHECKED_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as checks:
                for process, _ in list(self.warm):
                    checks.create_task(self._check(process, places), name=f"kernelpool-check-{process.pid}")
        finally:
            self.is_checking = False

    async def _check(self, process: Process, places: asyncio.Semaphore) -> None:
        async with places:
            answers = process.record.state is not State.WARM or await process.check()
        if not answers and process.record.state is State.WARM:
            self.log.warning("A warm kernel of %s (pid %s) does not answer; it is ended", self.recipe.name, process.pid)
            self.evict(process.record.id, "does not answer")

    def _pass_on(self, waiter: asyncio.Future[Process]) -> None:
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            self.give(waiter.result())

    def _forget(self, process: Process) -> None:
        self.warm = deque(entry for entry in self.warm if entry[0] is not process)

    # -- making -------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Prepare a launcher, the first that is fit; on failure note why, and when to try again."""
        self.stage = Stage.LOADING
        former, self.launcher, self._fingerprint = self.launcher, None, ""
        if former is not None:
            await former.close()
        error: LaunchFailed | None = None
        for launcher_class in self._launcher_classes:
            launcher = launcher_class(self.recipe, self._supervision, self.log)
            try:
                await launcher.prepare()
            except LaunchFailed as failure:
                await launcher.close()
                error = failure
                if not isinstance(failure, Unfit) or getattr(failure, "kind", "") in DECIDED:
                    break  # it may work another time; or another way of launching would run the same code
                continue
            except BaseException:
                self.stage = Stage.DOWN
                raise
            if launcher.recipe.key != self.recipe.key or self.draining:
                await launcher.close()  # meanwhile removed, or given other settings
                self.stage = Stage.DOWN
                return
            self.launcher = launcher
            self._fingerprint = self._look()
            self.stage = Stage.READY
            self.retry_at = 0.0
            self.verified = True
            return
        self.stage = Stage.FAILED
        self._failed(error or LaunchFailed("no launcher is configured"))

    def notice_lost_launcher(self) -> None:
        """Have a template that ended loaded again, before anybody needs it; later each time, if it ends again."""
        if self.stage is Stage.READY and self.launcher is not None and not self.launcher.alive:
            self.stage = Stage.DOWN
            error = LaunchFailed("the template ended; another one is loaded")
            self._failed(error)
            while self.waiting > self.starting:  # a launch under way fails by itself, and refuses its waiter
                self._refuse(error)

    def served(self) -> None:
        """A kernel of it answers its owner."""
        if self._unserved:
            self._unserved = self.failures = 0
            self.last_error = None

    def did_not_serve(self, launcher: Launcher | None, end: str) -> None:
        """A kernel of *launcher* crashed after it had taken its owner's identity, and before it answered; *end* says
        how.

        The others were made as it was: they are ended, and what they are made from is loaded anew, later each time.
        """
        if launcher is None or launcher is not self.launcher or self.stage is not Stage.READY:
            return  # it is loaded anew already
        for process, _ in list(self.warm):
            self.evict(process.record.id, "distrusted")
        self.stage = Stage.DOWN
        self.failures = self._unserved
        self._unserved += 1
        error = LaunchFailed(f"a kernel {end} before it answered")
        self._failed(error)
        self._refuse_all(error)
        self.launcher, self._fingerprint = None, ""  # what it is still launching is discarded
        closing = asyncio.ensure_future(launcher.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def launch_one(self) -> None:
        """Start one kernel and give it to whoever needs it; a failure is noted, and told to its waiter."""
        launcher = self.launcher
        if launcher is None:
            return
        self.starting += 1
        began = time.monotonic()
        try:
            process = await launcher.launch(ahead=self.waiting < self.starting)
        except LaunchFailed as error:
            if launcher is self.launcher:  # else it was drained meanwhile: no failure of what it is now
                self._failed(error)
                if isinstance(error, Unfit) or not launcher.quick:
                    self.stage = Stage.DOWN  # a spawn that is unfit, or a template that is gone
            self._refuse_unserved(error)
            return
        except BaseException as error:
            self._refuse_unserved(LaunchFailed(f"the launch was stopped: {error!r}"))
            raise
        finally:
            self.starting -= 1
        self.failures = self._unserved  # one that is warm has not served yet
        if not self._unserved:
            self.last_error = None
        metrics.LAUNCH.labels(way=launcher.way).observe(time.monotonic() - began)
        if launcher is self.launcher:
            self.give(process)
        else:
            process.discard("its template is no longer the recipe's")

    def evict(self, record_id: str, why: str) -> None:
        """End the warm kernel with that record id."""
        for process, _ in list(self.warm):
            if process.record.id == record_id:
                self._forget(process)
                process.discard(why)
                metrics.EVICTIONS.labels(why=why).inc()

    async def drain(self, why: str) -> None:
        """End all warm kernels and let the launcher go; the next load begins anew."""
        for process, _ in list(self.warm):
            process.discard(why)
            metrics.EVICTIONS.labels(why=why).inc()
        self.warm.clear()
        launcher, self.launcher = self.launcher, None
        self._fingerprint = ""
        self.seen_stale = False
        if self.stage is not Stage.LOADING:
            self.stage = Stage.DOWN
        if launcher is not None:
            await launcher.close()

    async def close(self) -> None:
        """The server stops, or the recipe goes: end everything, refuse who waits."""
        self.draining = True
        self._refuse_all(LaunchFailed("the pool is stopping"))
        await self.drain("the pool is stopping")

    def _look(self) -> str:
        return fingerprint(self.launcher.watched()) if self.launcher is not None else ""

    def _failed(self, error: LaunchFailed) -> None:
        self.failures += 1
        metrics.FAILURES.labels(recipe=self.recipe.name).inc()
        permanent = isinstance(error, Unfit)
        delay = backoff(max(self.failures, 5 if permanent else 0)) * random.uniform(0.8, 1.2)  # noqa: S311
        self.retry_at = time.monotonic() + delay
        facts: dict[str, Any] = error.facts
        reason = str(error)
        self.last_error = Failure(reason, facts.get("traceback", ""), time.time())
        if self.stage is Stage.FAILED:
            self._refuse_all(error)
        if reason not in self._reported:
            self._reported.add(reason)
            text = (
                "Kernels of %s start cold: %s" if self.recipe.confinement is None else "No kernels of %s are made: %s"
            )
            self.log.warning(text, self.recipe.name, reason)

    def _refuse(self, error: LaunchFailed) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return

    def _refuse_unserved(self, error: LaunchFailed) -> None:
        """A launch that still counts as starting failed: refuse who waited for it, and whoever no other launch
        under way will serve: the next one is a second or more away, a cold start is there before."""
        self._refuse(error)
        while self.waiting >= self.starting:
            self._refuse(error)

    def _refuse_all(self, error: LaunchFailed) -> None:
        while self.waiters:
            self._refuse(error)
