"""Looks after the server's kernels: nudges them, and does what its policy says about silent ones. What it finds is
judged in `health`; what follows the end of a process is the business of `aftermath`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import zmq

from jupyter_kernelpool import health, metrics
from jupyter_kernelpool.aftermath import Aftermath
from jupyter_kernelpool.behind import find_pid, find_process, find_record, find_way, is_watched, poke
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.health import ANSWERS, UNRESPONSIVE, Answers, Standing, Verdict, is_told, judge, note
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.lives import Life, Lives
from jupyter_kernelpool.nudge import Places, Reply, nudge
from jupyter_kernelpool.starts import Starts
from jupyter_kernelpool.stumbles import Stumbles
from jupyter_kernelpool.usage import read_state

LOOK_AT_LEAST_EVERY = 2.0  # for kernels of which nobody tells: those that ran already

log = logging.getLogger("jupyter_kernelpool")


class Care:
    """The health of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, settings: KernelHealth, edge: Edge, events: Events, chronicle: Chronicle) -> None:
        self.settings = settings
        self.starts = Starts(settings.breaker)
        self._manager = manager
        self._edge = edge
        self._events = events
        self._lives = Lives(manager)
        self.aftermath = Aftermath(manager, settings, self._lives, self.starts, edge, chronicle)
        self._nudges: dict[str, asyncio.Task[None]] = {}
        self._places = Places()
        self._looked = 0.0
        self._stumbles = Stumbles(log, "The care for kernels")
        self._unable = 0  # nudges in a row that could not be sent

    def standing_of(self, kernel_id: str) -> Standing:
        """What is known of the kernel's health."""
        life = self._lives.find(kernel_id)
        return life.standing if life is not None else Standing()

    async def close(self) -> None:
        """The server stops."""
        await self.aftermath.close()
        for task in list(self._nudges.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- what is heard of kernels -------------------------------------------------------------------

    def has_process(self, kernel_id: str) -> None:
        """The kernel has a new process, which need not answer yet."""
        life = self._lives.begin(kernel_id)
        stayed = life.stays
        life.replaced()
        life.born, life.end, life.stays, life.restart_at = time.monotonic(), None, False, 0.0
        life.answered_at = None
        life.standing = Standing(total=life.standing.total, due=life.born + health.START_INTERVAL)
        if stayed:
            life.ends.clear()  # its user restarted it, and begins anew
            life.fruitless = 0

    def serves(self, kernel_id: str, *, beside: bool) -> None:
        """The pool's process behind the kernel serves; *beside*: it is known to answer while it runs a cell."""
        life = self._lives.find(kernel_id)
        if life is not None:
            now = time.monotonic()
            due = now + self.settings.interval
            life.standing = replace(life.standing, answered=True, beside=beside, due=due)
            life.answered_at = now
            life.recovered()
            self._started(kernel_id)

    def heard(self, kernel_id: str) -> None:
        """Something came from the kernel."""
        life = self._lives.find(kernel_id)
        if life is not None and not life.standing.answered:
            life.standing = replace(life.standing, answered=True)
            life.recovered()
            self._started(kernel_id)

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self._lives.forget(kernel_id)
        self._stumbles.forget(f"kernel {kernel_id}")
        task = self._nudges.pop(kernel_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # -- nudges -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether there are kernels to be nudged, or there were."""
        return bool(self.settings.interval and (len(self._manager) or self._lives.kernel_ids))

    @property
    def due(self) -> float:
        """When to look next, at the latest: the next kernel is to be asked then."""
        waiting = [
            life.standing.due
            for kernel_id, life in self._lives.items()
            if not life.stays and life.end is None and kernel_id not in self._nudges
        ]
        return min([self._looked + LOOK_AT_LEAST_EVERY, *waiting])

    async def look(self) -> None:
        """Begin the nudges that are due; called by the keeper. Does not wait for any of them."""
        self._looked = time.monotonic()
        kernel_ids = self._manager.list_kernel_ids()
        for kernel_id in self._lives.kernel_ids - set(kernel_ids):
            pending = self._manager._pending_kernels.get(kernel_id)
            if pending is None or pending.done():  # else it is starting
                with self._stumbles.over(f"the end of kernel {kernel_id}"):
                    self._forget_vanished(kernel_id)
        now = time.monotonic()
        for kernel_id in kernel_ids:
            with self._stumbles.over(f"kernel {kernel_id}"):
                self._begin_if_due(kernel_id, now)

    def _begin_if_due(self, kernel_id: str, now: float) -> None:
        life = self._lives.of(kernel_id)
        if life.standing.due <= now and kernel_id not in self._nudges and self._can_be_asked(kernel_id, life):
            task = asyncio.create_task(self._nudge(kernel_id, life), name=f"kernelpool-nudge-{kernel_id}")
            self._nudges[kernel_id] = task
            task.add_done_callback(functools.partial(self._nudged, kernel_id))

    def _nudged(self, kernel_id: str, task: asyncio.Task[None]) -> None:
        if self._nudges.get(kernel_id) is task:
            del self._nudges[kernel_id]
        if not task.cancelled() and task.exception() is not None:
            log.error("Kernel %s could not be nudged", kernel_id, exc_info=task.exception())

    def _can_be_asked(self, kernel_id: str, life: Life) -> bool:
        """Whether nothing is being done to the kernel that keeps it from answering."""
        kernel = self._manager.get_kernel(kernel_id)
        if not getattr(kernel, "owns_kernel", True):
            return True
        is_ended = life.stays or life.end is not None or life.coming_back is not None
        if is_ended or kernel.shutting_down or not kernel.has_kernel:
            return False
        record = find_record(kernel)
        state = record.state if record is not None else State.ACTIVE
        unwatched = state is State.DEAD and not is_watched(kernel)
        return getattr(kernel, "stays_dead_for", None) is None and (
            unwatched or state in (State.ACTIVE, State.UNRESPONSIVE)
        )

    async def _nudge(self, kernel_id: str, life: Life) -> None:
        kernel = self._manager.get_kernel(kernel_id)
        process = find_process(kernel)
        verdict = await self._ask(kernel_id, kernel, life, self.settings.waits)
        if not self._is_still(kernel_id, kernel, process, life):
            return
        self._note(kernel_id, kernel, life, verdict)
        found = life.standing.verdict
        if found is Verdict.DEAD:
            self._found_dead(kernel_id, kernel, life)
        elif found in UNRESPONSIVE and kernel.owns_kernel and self._is_to_be_interrupted(kernel, life):
            await self._interrupt(kernel_id, kernel, life, process)

    def _policy(self, kernel: Any) -> str:
        """What happens to the kernel if it does not answer."""
        own = self._manager.pool.settings_for(kernel.kernel_name)
        return self.settings.silence_of(own.on_unresponsive, own.recovery)

    def _is_to_be_interrupted(self, kernel: Any, life: Life) -> bool:
        policy = self._policy(kernel)
        return policy == "restart" or (policy == "interrupt" and life.standing.failures == 1)

    async def _ask(self, kernel_id: str, kernel: Any, life: Life, waits: Sequence[float]) -> Verdict:
        """Nudge the kernel: what it is found to be."""
        pid = find_pid(kernel)

        async def look() -> str:
            return await asyncio.to_thread(read_state, pid) if pid else ""

        running = self._is_running(kernel_id, kernel)
        state = await look()
        try:
            async with self._places.one():
                reply = await nudge(kernel, waits if state != health.GONE else [0.0], look)
        except (zmq.ZMQError, OSError) as error:  # of ours, such as no more descriptors: no fault of the kernel's
            self._unable += 1
            if is_told(self._unable):
                log.warning("Kernel %s could not be nudged: %s", kernel_id, error)
            return Verdict.UNKNOWN
        self._unable = 0
        if reply.seconds is not None:
            metrics.NUDGE_ROUND_TRIP.observe(reply.seconds)
        if reply.control:
            beside = life.standing.beside or running is True or answers_beside_cells(reply)
            life.standing = replace(life.standing, beside=beside)
        running = running or self._is_running(kernel_id, kernel)  # a cell may have begun since
        states = [each for each in (state, *reply.states) if each]
        return judge(Answers(reply.control, reply.heartbeat, states, running), beside=life.standing.beside)

    def _is_running(self, kernel_id: str, kernel: Any) -> bool | None:
        if not kernel.owns_kernel:
            return None  # nobody listens to it
        return self._edge.ledger(kernel_id).running is not None or kernel.execution_state == "busy"

    def _note(self, kernel_id: str, kernel: Any, life: Life, verdict: Verdict, how: str = "") -> None:
        """Take note of what the kernel was found to be, and tell of what changed; *how* says what made it answer."""
        before, now = life.standing, time.monotonic()
        standing = life.standing = note(
            before, verdict, age=now - life.born, policy=self.settings.nudges, now=now, wall=time.time()
        )
        metrics.NUDGES.labels(verdict=standing.verdict.value).inc()
        record = find_record(kernel)
        if standing.verdict in ANSWERS:
            life.answered_at = now
            life.recovered()
            if not before.answered:
                self._started(kernel_id)
            if before.failures:
                if record is not None and record.state is State.UNRESPONSIVE:
                    record.move(State.ACTIVE, why="it answers again", now=time.time())
                log.warning("Kernel %s answers again%s", kernel_id, how)
                facts: dict[str, Any] = {"way": find_way(kernel) or "other", "seconds": now - life.silent_since}
                self._events.emit("ready", kernel_id, now=time.time(), reason=f"It answers again{how}.", **facts)
        elif standing.verdict in UNRESPONSIVE and standing.failures > before.failures:
            if not before.failures:
                life.silent_since = now
                life.lost = life.lost or ("unresponsive", now)
            if is_told(standing.failures):
                log.warning(
                    "Kernel %s does not answer (%s, %s in a row): %s",
                    kernel_id, standing.verdict.value, standing.failures, standing.why,
                )  # fmt: skip
            if record is not None and record.state is State.ACTIVE:
                record.move(State.UNRESPONSIVE, why=standing.verdict.value, now=time.time())
            if before.verdict is not standing.verdict:
                cause = standing.verdict.value
                self._events.emit("unresponsive", kernel_id, now=time.time(), reason=standing.why, cause=cause)

    def _found_dead(self, kernel_id: str, kernel: Any, life: Life) -> None:
        if is_watched(kernel):
            poke(kernel)
        elif kernel.owns_kernel and life.end is None:
            self.aftermath.exited(kernel_id)

    async def _interrupt(self, kernel_id: str, kernel: Any, life: Life, process: Any) -> None:
        """Interrupt the silent kernel, or let it go on if it is stopped, and see whether that helped; else replace its
        process where the policy says so.
        """
        stopped = life.standing.verdict is Verdict.STOPPED
        if stopped:
            await kernel.signal_kernel(signal.SIGCONT)
        else:
            await kernel.interrupt_kernel()
        waits = health.split(self.settings.grace, 1, self.settings.backoff)
        verdict = await self._ask(kernel_id, kernel, life, waits)
        if not self._is_still(kernel_id, kernel, process, life):
            return
        if verdict in ANSWERS:
            self._note(kernel_id, kernel, life, verdict, f" since it was {'continued' if stopped else 'interrupted'}")
        elif verdict in UNRESPONSIVE and self._policy(kernel) == "restart":
            await self.aftermath.end(kernel_id, kernel, life)

    # -- parts --------------------------------------------------------------------------------------

    def _forget_vanished(self, kernel_id: str) -> None:
        """Jupyter forgot a kernel that it had adopted, without a word."""
        self.forget(kernel_id)
        self._edge.forget(kernel_id)
        self._manager.culler.forget(kernel_id)

    def _is_still(self, kernel_id: str, kernel: Any, process: Any, life: Life) -> bool:
        """Whether the kernel that was asked is still what it was then."""
        return (
            self._lives.find(kernel_id) is life
            and kernel_id in self._manager
            and self._manager.get_kernel(kernel_id) is kernel
            and find_process(kernel) is process
            and self._can_be_asked(kernel_id, life)
        )

    def _started(self, kernel_id: str) -> None:
        if kernel_id in self._manager:
            self.starts.succeeded(self._manager.get_kernel(kernel_id).kernel_name)


def answers_beside_cells(reply: Reply) -> bool:
    """Whether a kernel that says this of itself has a thread of its own for control: ipykernel from version 6 on."""
    return bool(reply.info.get("supported_features") or "debugger" in reply.info)
