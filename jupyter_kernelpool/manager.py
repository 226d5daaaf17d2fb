"""The server's kernel manager, which Jupyter calls: admits starts, and owns the pool, its keeper and its supervisor.

Stock in everything else, and wholly so while `KernelPool.enabled` is false. One kernel's manager is in `pooled`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import zmq
from jupyter_events import EventLogger
from jupyter_server import CallContext
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import web
from traitlets import Instance, TraitError, default

from jupyter_kernelpool.activity import feed
from jupyter_kernelpool.admission import Turns
from jupyter_kernelpool.care import Care
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.clock import Clock
from jupyter_kernelpool.culler import Culler, KernelCuller
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.errors import REFUSALS, KernelPoolError, LaunchFailed, SupervisorGone
from jupyter_kernelpool.events import Event, Events
from jupyter_kernelpool.foresight import Foresight
from jupyter_kernelpool.forking import Forking
from jupyter_kernelpool.guard import Guard
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.keeper import LOOK_FOR_KERNELSPEC_EVERY, Keeper, Round
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.lookout import JUDGE_EVERY, KernelAlerts, Lookout
from jupyter_kernelpool.meter import Meter
from jupyter_kernelpool.output_watch import OutputWatch
from jupyter_kernelpool.owners import SINGLE, Owners, is_anonymous, read_quota
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.presets import under
from jupyter_kernelpool.replay import Replay
from jupyter_kernelpool.sums import Group
from jupyter_kernelpool.textfile import WRITE_EVERY, MetricsFile
from jupyter_kernelpool.tidy import EVERY as TIDY_EVERY
from jupyter_kernelpool.tidy import Tidier
from jupyter_kernelpool.undo import Undo
from jupyter_kernelpool.unheard import Unheard
from jupyter_kernelpool.wishes import Wishes

RECONNECT_FIRST_MS = 1
RECONNECT_MOST_MS = 100
SERVING_TIMEOUT = 0.1
SAMPLE_EVERY = 5.0
LOOK_AFTER_EVERY = 0.5
REST_EVERY = 10.0
RESTARTED_WITHIN = 10.0  # seconds that the end of a server waits for kernels that are being restarted


class PoolingKernelManager(AsyncMappingKernelManager):
    """The server's kernel manager: stock's, with a pool behind it.

    Put in place by the extension's link hook. All traits of `KernelPool` are checked here, in the
    constructor: a wrong one stops the server with its name and value.
    """

    pool = Instance(KernelPool)

    @default("kernel_manager_class")
    def _default_kernel_manager_class(self) -> str:
        return "jupyter_kernelpool.pooled.PooledKernelManager"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        made: dict[str, Any] = {"parent": self, "log": self.log, "config": under(self.config)}
        self.pool = KernelPool(**made)
        self.pool.admission._running = lambda: len(self._kernels)
        self.meter = Meter(self, lambda: self.pool.supervision.pids)
        self.foresight = Foresight(self)
        self.keeper = Keeper(self.pool, self.foresight.foresee)
        self.keeper.rounds.append(Round("sample", SAMPLE_EVERY, self.meter.sample, lambda: self.meter.has_work))
        self.edge = Edge()
        self.events = Events(first=int(time.time() * 1000))
        self.lookout = Lookout(KernelAlerts(**made))
        self.metrics_file = MetricsFile(self.pool.metrics_file)
        tidier = Tidier()
        self.keeper.rounds += [
            Round("tidy", TIDY_EVERY, tidier.go, lambda: tidier.has_work),
            Round("alerts", JUDGE_EVERY, self.lookout.round),
            Round("metrics file", WRITE_EVERY, self.metrics_file.write, lambda: bool(self.metrics_file.path)),
        ]
        self.guard = Guard(self, KernelLimits(**made), self.edge, self.events)
        self.culler = Culler(self, KernelCuller(**made))
        self.pool.culling_reserve = int(self.culler.settings.reserve_memory)
        self.keeper.rounds.append(Round("rest", REST_EVERY, self.pool.supervision.close, self._is_unused))
        cull_every = self.culler.settings.interval
        self.keeper.rounds.append(Round("cull", cull_every, self.culler.go, lambda: self.culler.has_work))
        kernels_each, self._quota = read_quota(self.pool.owner_quota)
        self.owners = Owners(self.pool.ownership, kernels_each)
        self.guard.hold_together(self._owned, self._quota, "KernelPool.owner_quota")
        self.output_watch = OutputWatch(self, self.guard, self.edge, self.events)
        self._refuse_anonymous_owners()
        self.clock = Clock(self, self.guard, self.edge, self.events)
        # After those who hold cells to limits: what a cell ends for is told before its end.
        self.chronicle = Chronicle(self.events, self.edge, self.lookout)
        self.events.listen(self._note_ready)
        self.unheard = Unheard(self, self.edge)
        self.care = Care(self, KernelHealth(**made), self.edge, self.events, self.chronicle)
        self.keeper.check_every = self.care.settings.interval
        self.keeper.rounds.append(
            Round("nudge", LOOK_AFTER_EVERY, self.care.look, lambda: self.care.has_work, lambda: self.care.due)
        )
        self.forking = Forking(self)
        self.undo = Undo(self.forking, self.pool.undo_steps)
        self.wishes = Wishes(self.forking, self.undo, allowed=self.pool.magics)
        self._turns = Turns()
        self._ids_starting: set[str] = set()
        self._next_is_temporary = False
        self._kernel_event_logger: EventLogger | None = None
        self._starting: asyncio.Future[None] | None = None
        self._clearing: set[asyncio.Future[None]] = set()
        if self.pool.active:
            # 1 ms instead of 100 ms to find the successor after a restart; slower while none is there.
            self.context.setsockopt(zmq.RECONNECT_IVL, RECONNECT_FIRST_MS)
            self.context.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)

    def _owned(self) -> list[Group]:
        """Each owner's kernels, which have a quota together."""
        return [
            Group(f"owner {owner}" if owner != SINGLE else "all kernels", self._quota, self.owners.kernels_of(owner))
            for owner in self.owners.everybody()
        ]

    def _refuse_anonymous_owners(self) -> None:
        """Raise `TraitError` where kernels are to be their users', and nobody knows these."""
        provider = getattr(self.parent, "identity_provider_class", None)
        if self.pool.ownership == "user" and (provider is None or is_anonymous(provider)):
            name = getattr(provider, "__name__", "no identity provider")
            raise TraitError(
                f'KernelPool.ownership = "user" needs an identity provider that knows its users; with {name} each '
                "login is another one (set ServerApp.identity_provider_class)"
            )

    def _note_ready(self, event: Event) -> None:
        """The pool hears when a kernel is up that started cold, too, for it makes nothing beside a user's start."""
        if event.type == "ready":
            self.pool.user_start_ended(event.kernel_id)

    def _is_unused(self) -> bool:
        """Whether the supervisor has nothing to own, and is not kept ready for what may come."""
        pool = self.pool
        busy = len(self._kernels) or pool.admission.pending or pool.pools or not pool.supervision.alive
        return not (pool.warm_at_start or busy)

    @property
    def refuses_starts(self) -> bool:
        """Whether the configuration lets starts be refused (those that fail anyway apart, see `starts`)."""
        return bool(self.pool.max_kernels or self.pool.owner_quota or self.pool.recipes)

    async def start_pool(self) -> None:
        """Begin to keep kernels warm: the default kernelspec's and those that the configuration names.

        Called when the server starts, and by the first start of a kernel where no extension is loaded.
        """
        self.keeper.start()
        if not self.pool.active:
            return
        await asyncio.shield(self._begin_pool())

    def _begin_pool(self) -> asyncio.Future[None]:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start_pool())
        return self._starting

    async def _start_pool(self) -> None:
        try:
            await self.pool.supervision.start()
        except SupervisorGone as error:
            self.log.warning("Kernels start cold: %s", error)
            self.pool.stopped = True  # the keeper goes on: kernels are looked after, whoever starts them
            return
        if not self.pool.warm_at_start:
            return
        for name in dict.fromkeys([self.default_kernel_name, *self.pool.recipes]):
            if not await self.foresight.foresee(name):
                self.keeper.missing[name] = time.monotonic() + LOOK_FOR_KERNELSPEC_EVERY

    async def stop_pool(self) -> None:
        """Stop refilling, end the warm kernels and the templates; users' kernels live on."""
        await self.keeper.stop()
        if self._starting is not None:
            self.wishes.close()
            self.forking.close()
            await self.pool.close()
        await self.metrics_file.remove()
        await self.care.close()
        await self.clock.close()
        await self.unheard.close()
        await self.output_watch.close()
        await self.guard.close()

    async def shutdown_all(self, now: bool = False) -> None:  # type: ignore[override]
        """As stock; afterwards the supervisor goes, and with it whatever should be left."""
        await self.stop_pool()
        self._forget_failed_starts()
        await self._await_restarts()
        try:
            await super().shutdown_all(now=now)
        finally:
            await self.close_supervision()

    async def close_supervision(self) -> None:
        """Every kernel has ended: remove what is left of them, and end the supervisor."""
        self.events.close()
        await self.forking.copies.close()
        await self.guard.let_all_go()
        await self.pool.supervision.close()

    def _forget_failed_starts(self) -> None:
        """Upstream workaround: a start that failed stays in `_pending_kernels`, and `shutdown_all` then stops
        with 404 for it, before it has shut the others down.

        jupyter_client/multikernelmanager.py `_add_kernel_when_ready`;
        `tests/integration/test_upstream_workarounds.py` tells when this can go.
        """
        for kernel_id in [key for key in self._pending_kernels if key not in self._kernels]:
            task = self._pending_kernels[kernel_id]
            if task.done():
                del self._pending_kernels[kernel_id]

    async def _await_restarts(self) -> None:
        """Upstream workaround: `shutdown_all` asks each kernel whether its start failed, which one that is being
        restarted can't say yet: it raises, and the server does not end.

        jupyter_client/multikernelmanager.py `_async_shutdown_kernel`;
        `tests/integration/test_upstream_workarounds.py` tells when this can go.
        """
        restarting = [
            kernel.ready
            for kernel_id, kernel in self._kernels.items()
            if kernel_id not in self._pending_kernels and not kernel.ready.done()
        ]
        if restarting:
            _, late = await asyncio.wait(restarting, timeout=RESTARTED_WITHIN)
            for ready in late:
                ready.cancel()

    async def _async_start_kernel(self, *, kernel_id: str | None = None, path: Any = None, **kwargs: Any) -> str:
        """As stock, admitted first: 503 with Retry-After when `max_kernels` are running or starting.

        409 for an id that is there or being started: stock answers 201 for the former, as if it had started one,
        and starts the latter twice. Stock's REST handlers pass `kernel_id=None` where the client names none.
        """
        if not self.pool.enabled:
            return await super()._async_start_kernel(kernel_id=kernel_id, path=path, **kwargs)
        if kernel_id is None:
            return await self._start_admitted(None, path, kwargs)
        if kernel_id in self or kernel_id in self._ids_starting:
            raise web.HTTPError(409, f"there is a kernel {kernel_id} already", reason="kernel_exists")
        self._ids_starting.add(kernel_id)
        try:
            return await self._start_admitted(kernel_id, path, kwargs)
        finally:
            self._ids_starting.discard(kernel_id)

    async def _start_admitted(self, kernel_id: str | None, path: Any, kwargs: dict[str, Any]) -> str:
        self.keeper.start()
        if self._starting is None or not self._starting.done():
            if self.pool.warm_at_start:
                await self.start_pool()
            elif self.pool.active:
                self._begin_pool()  # this kernel starts cold, and beside that
        try:
            if "origin" not in kwargs:
                self._refuse_what_fails(kwargs.get("kernel_name") or self.default_kernel_name)
            with self.owners.starting(_user()) as owner:
                temporary = await self.pool.admission.enter()
                try:
                    await self._turns.mine()
                    self._next_is_temporary = temporary
                    started = await super()._async_start_kernel(kernel_id=kernel_id, path=path, **kwargs)
                finally:
                    self.pool.admission.leave()
                self.owners.settle(started, owner)
            self.pool.wake.set()  # a keeper that had nothing to do looks again only now and then
        except REFUSALS as error:
            if isinstance(error, LaunchFailed) and kwargs.get("origin") is not None:
                raise  # of a fork, for which no other process would do: who asked for it tells
            refusal: Any = web.HTTPError(error.status, str(error), reason=error.facts.get("reason") or error.code)
            refusal.retry_after = error.facts.get("retry_after")
            raise refusal from error
        await self._until_idle(started)
        return started

    start_kernel: Any = _async_start_kernel

    def _refuse_what_fails(self, kernel_name: str) -> None:
        """Raise `StartsFail` for a kernelspec whose kernels end before they answer, and of which none is warm."""
        if not any(pool.warm for pool in self.pool.pools.values() if pool.recipe.kernel_name == kernel_name):
            self.care.starts.admit(kernel_name)

    def _handle_kernel_died(self, kernel_id: str) -> None:
        """As stock, which forgets a kernel that ended too often; its listeners and its file go with it."""
        manager: Any = self._kernels.get(kernel_id)
        self.care.aftermath.gives_up(kernel_id)
        super()._handle_kernel_died(kernel_id)  # type: ignore[no-untyped-call]
        if getattr(manager, "pooled", None) is not None:
            task = asyncio.ensure_future(manager.cleanup_resources())
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    def remove_kernel(self, kernel_id: str) -> Any:
        """As stock; whoever waits for a place gets this one."""
        removed = super().remove_kernel(kernel_id)
        why = str(getattr(removed, "reason", "") or "The kernel was shut down.")
        self.edge.give_up(kernel_id, "KernelKilled", why)  # one that could not be interrupted has answered nothing
        self.forking.kernel_ended(kernel_id)
        self.undo.forget(kernel_id)
        self.guard.forget(kernel_id)
        self.chronicle.forget(kernel_id)
        self.care.forget(kernel_id)
        self.edge.forget(kernel_id)
        self.culler.forget(kernel_id)
        self.output_watch.forget(kernel_id)
        self.owners.forget(kernel_id)
        self.pool.admission.freed()
        return removed

    def start_watching_activity(self, kernel_id: str) -> None:
        """As stock; the kernel's ledger hears what is heard of it."""
        super().start_watching_activity(kernel_id)  # type: ignore[no-untyped-call]
        feed(self._kernels[kernel_id], self.edge.ledger(kernel_id), lambda: self.care.heard(kernel_id))

    def start_buffering(self, kernel_id: str, session_key: str, channels: Any) -> None:
        """As stock, for a client that may come back; in bounds."""
        super().start_buffering(kernel_id, session_key, channels)  # type: ignore[no-untyped-call]
        if kernel_id in self._kernel_buffers:
            kept = Replay(self.guard.limits.replay, self._kernels[kernel_id].session)
            self._kernel_buffers[kernel_id]["buffer"] = kept

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> Any:  # type: ignore[override]
        """As stock; where no process comes of it, the kernel is dead and says so, and cells are answered."""
        stock: Any = super().restart_kernel
        began: Any = self._kernels.get(kernel_id)
        if not self.pool.enabled or began is None or (self._using_pending_kernels() and not began.ready.done()):
            return await stock(kernel_id, now=now)  # the last are refused, and start on
        try:
            return await stock(kernel_id, now=now)
        except Exception as error:
            if kernel_id in self and not await began.is_alive():
                self.care.aftermath.could_not_restart(kernel_id, error)
            raise

    async def bring_back(self, kernel_id: str, *, restore: bool) -> str:
        """Give the kernel, whose process has ended or was ended, its last checkpoint back, or a fresh process.

        Returns what came of it: `restored` or `restarted`.
        """
        kernel: Any = self.get_kernel(kernel_id)
        why = kernel.restarts_for or ("limit", str(kernel.stays_dead_for or ""))
        checkpoints = self.forking.checkpoints_of(kernel_id) if restore else []
        for checkpoint in reversed(checkpoints):
            try:
                await self.forking.restore(kernel_id, checkpoint.id, why=why)
            except KernelPoolError as error:
                self.log.warning("Kernel %s: its checkpoint could not be restored: %s", kernel_id, error)
                continue
            return "restored"
        kernel.restarts_for = why
        restart: Any = super().restart_kernel  # where it fails, who asked tells
        await restart(kernel_id, now=True)
        return "restarted"

    def pre_start_kernel(self, kernel_name: str | None, kwargs: Any) -> Any:
        origin, allowance = kwargs.pop("origin", None), kwargs.pop("allowance", None)
        made: Any = super().pre_start_kernel(kernel_name, kwargs)
        if origin is not None:
            made[0].origin, made[0].allowance = origin, allowance
        self._next_is_temporary = False
        return made

    async def _until_idle(self, kernel_id: str) -> None:
        """A kernel that serves already is idle: stock would find out by a poll of 50 ms when a client comes."""
        manager: Any = self._kernels.get(kernel_id)
        provisioner = getattr(manager, "pooled", None)
        process = provisioner.claimed if provisioner is not None else None
        if process is not None:
            # 0.4 to 1.2 ms (11 ms on busy cores): else the state would change between the answer and the next GET.
            await asyncio.wait([process.serving], timeout=SERVING_TIMEOUT)
        if process is not None and process.serving.done() and process.alive and manager.execution_state == "starting":
            manager.execution_state = "idle"


def _user() -> str | None:
    """Who asks for what is being done, if that is a request to the server."""
    handler = CallContext.get(CallContext.JUPYTER_HANDLER)
    user = getattr(handler, "current_user", None)
    return getattr(user, "username", None)
