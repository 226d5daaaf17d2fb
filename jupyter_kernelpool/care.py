"""Looks after the server's kernels: nudges them, does what its policy says about silent ones, and decides what follows
the end of a process. What it finds is judged in `health`, `recovery` and `breaker`; restarts are Jupyter's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import zmq

from jupyter_kernelpool import health, metrics
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ending import end_tree
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.health import ANSWERS, UNRESPONSIVE, Answers, Standing, Verdict, is_told, judge, note
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.nudge import Reply, nudge
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recovery import Recovery, Stay, decide, describe_end
from jupyter_kernelpool.starts import Starts
from jupyter_kernelpool.usage import read_state

NUDGES_AT_ONCE = 16
REMEMBERED_ENDS = 100
DIED = "KernelDied"

log = logging.getLogger("jupyter_kernelpool")


@dataclass
class Life:
    """What is known of one kernel, over all its processes.

    *end* says how its process ended, until there is another one. It *stays* dead, or is restarted not before
    *restart_at*; with *coming_back* that is done here, and not by the restarter.
    """

    born: float
    standing: Standing = field(default_factory=Standing)
    ends: list[float] = field(default_factory=list)
    end: str | None = None
    stays: bool = False
    restart_at: float = 0.0
    coming_back: bool = False
    silent_since: float = 0.0


class Care:
    """The health of all kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any, settings: KernelHealth, edge: Edge, events: Events, chronicle: Chronicle) -> None:
        self.settings = settings
        self.starts = Starts(settings.breaker)
        self._manager = manager
        self._edge = edge
        self._events = events
        self._chronicle = chronicle
        self._lives: dict[str, Life] = {}
        self._nudges: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(NUDGES_AT_ONCE)
        self._acts: set[asyncio.Task[None]] = set()
        self._unable = 0  # nudges in a row that could not be sent

    def standing_of(self, kernel_id: str) -> Standing:
        """What is known of the kernel's health."""
        life = self._lives.get(kernel_id)
        return life.standing if life is not None else Standing()

    async def close(self) -> None:
        """The server stops."""
        for task in [*self._nudges.values(), *self._acts]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- what is heard of kernels -------------------------------------------------------------------

    def has_process(self, kernel_id: str) -> None:
        """The kernel has a new process, which need not answer yet."""
        life = self._lives.setdefault(kernel_id, Life(time.monotonic()))
        stayed = life.stays
        life.born, life.end, life.stays, life.restart_at = time.monotonic(), None, False, 0.0
        life.standing = Standing(total=life.standing.total, due=life.born + health.START_INTERVAL)
        if stayed:
            life.ends.clear()  # its user restarted it, and begins anew

    def serves(self, kernel_id: str, *, beside: bool) -> None:
        """The pool's process behind the kernel serves; *beside*: it is known to answer while it runs a cell."""
        life = self._lives.get(kernel_id)
        if life is not None:
            due = time.monotonic() + self.settings.interval
            life.standing = replace(life.standing, answered=True, beside=beside, due=due)
            self._started(kernel_id)

    def heard(self, kernel_id: str) -> None:
        """Something came from the kernel."""
        life = self._lives.get(kernel_id)
        if life is not None and not life.standing.answered:
            life.standing = replace(life.standing, answered=True)
            self._started(kernel_id)

    def exited(self, kernel_id: str) -> None:
        """The process of a kernel that is not to be restarted (KernelManager.autorestart) has ended."""
        life = self._lives.get(kernel_id)
        if life is not None and kernel_id in self._manager and life.end is None and not life.coming_back:
            self._stays_unwatched(kernel_id, life)

    def gives_up(self, kernel_id: str) -> None:
        """Jupyter's restarter restarted the kernel too often, and Jupyter is about to forget it."""
        life = self._lives.get(kernel_id)
        end = life.end if life is not None and life.end is not None else "Its process ended"
        reason = f"{end}, again and again; Jupyter gave up restarting it, and forgets it."
        log.warning("Kernel %s: %s", kernel_id, reason)
        self._chronicle.dies(kernel_id, reason, by_itself=True)

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self._lives.pop(kernel_id, None)
        task = self._nudges.pop(kernel_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def is_bringing_back(self, kernel_id: str) -> bool:
        """Whether a process for it is being made here, and nobody else is to start one."""
        life = self._lives.get(kernel_id)
        return life is not None and life.coming_back

    # -- the end of a process -----------------------------------------------------------------------

    def stays_dead(self, kernel_id: str) -> bool:
        """The kernel's process has ended by itself: whether it is not to be restarted, or not yet; asked by the
        restarter, again and again. The first time decides what follows, and tells everybody.
        """
        if kernel_id not in self._manager:
            return False
        life = self._life(kernel_id)
        if life.end is None and not life.coming_back:
            self._note_end(kernel_id, life)
        return life.stays or life.coming_back or time.monotonic() < life.restart_at

    def _note_end(self, kernel_id: str, life: Life) -> None:
        kernel = self._manager.get_kernel(kernel_id)
        code = find_exit_code(kernel)
        end, failed = f"Its process ended {describe_end(code)}", code != 0
        if not life.standing.answered and find_way(kernel) == "cold":
            self.starts.failed(kernel.kernel_name, f"its process ended {describe_end(code)} before it answered")
        decision = decide(life.ends, failed=failed, policy=self._policy(kernel), now=time.monotonic())
        here = self._restores(kernel_id)
        self._follow_up(kernel_id, life, end, decision, cause="died", failed=failed, here=here)

    def _stays_unwatched(self, kernel_id: str, life: Life) -> None:
        end = f"Its process ended {describe_end(find_exit_code(self._manager.get_kernel(kernel_id)))}"
        stay = Stay("Jupyter is set not to restart it (KernelManager.autorestart)")
        self._follow_up(kernel_id, life, end, stay, cause="died", failed=True, here=False)

    def _follow_up(
        self, kernel_id: str, life: Life, end: str, decision: Any, *, cause: str, failed: bool, here: bool
    ) -> None:
        """Tell of the end, and have done what was decided: by the restarter, or with *here* by ourselves."""
        self._chronicle.ends(kernel_id, cause, end)
        now = time.monotonic()
        life.end = end
        life.ends = [*life.ends[1 - REMEMBERED_ENDS :], now]
        life.standing = replace(
            life.standing, verdict=Verdict.DEAD, why=f"{end}.", total=life.standing.total + failed, checked=time.time()
        )
        if isinstance(decision, Stay):
            self._edge.give_up(kernel_id, DIED, f"{end}. The kernel stays dead: {decision.why}.")
            self._leave_dead(kernel_id, life, f"{end}, and it stays dead: {decision.why}.")
            return
        follows = (
            "goes back to its last checkpoint" if self._restores(kernel_id) else "is restarted without its variables"
        )
        self._edge.give_up(kernel_id, DIED, f"{end}. The kernel {follows}.")
        life.restart_at = now + decision.pause
        log.warning("Kernel %s: %s; it comes back in %g s", kernel_id, end, decision.pause)
        kernel = self._manager.get_kernel(kernel_id)
        kernel.restarts_for = cause, end
        if decision.pause:
            kernel.reason = f"{end}; it is restarted in {decision.pause:g} s."
        if here:
            life.coming_back = True
            self._begin(self._bring_back(kernel_id, life, end, decision.pause))
        elif decision.pause:
            self._begin(self._poke_later(kernel_id, decision.pause))

    def _leave_dead(self, kernel_id: str, life: Life, reason: str) -> None:
        kernel = self._manager.get_kernel(kernel_id)
        life.stays = True
        kernel.execution_state, kernel.reason = "dead", reason
        log.warning("Kernel %s: %s", kernel_id, reason)
        self._edge.declare_dead(kernel_id)
        self._chronicle.dies(kernel_id, reason, by_itself=True)

    async def _poke_later(self, kernel_id: str, pause: float) -> None:
        await asyncio.sleep(pause)
        if kernel_id in self._manager:
            poke(self._manager.get_kernel(kernel_id))

    async def _bring_back(self, kernel_id: str, life: Life, end: str, pause: float) -> None:
        """Give the kernel its last checkpoint, or a fresh process, in the place of the restarter."""
        try:
            await asyncio.sleep(pause)
            if self._lives.get(kernel_id) is not life or life.end is None or kernel_id not in self._manager:
                return  # its user restarted it meanwhile, or shut it down
            kernel = self._manager.get_kernel(kernel_id)
            kernel.execution_state = "starting"
            outcome = await self._manager.bring_back(kernel_id, restore=self.settings.restore)
        except Exception as error:
            if self._lives.get(kernel_id) is life and kernel_id in self._manager:
                self._leave_dead(kernel_id, life, f"{end}, and it could not be restarted: {error}")
            return
        finally:
            life.coming_back = False
        if outcome == "restarted":
            self._edge.declare_restarting(kernel_id)

    # -- nudges -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether there are kernels to be nudged, or there were."""
        return bool(self.settings.interval and (len(self._manager) or self._lives))

    async def look(self) -> None:
        """Begin the nudges that are due; called by the keeper. Does not wait for any of them."""
        kernel_ids = self._manager.list_kernel_ids()
        for kernel_id in self._lives.keys() - set(kernel_ids):
            pending = self._manager._pending_kernels.get(kernel_id)
            if pending is None or pending.done():  # else it is starting
                self._forget_vanished(kernel_id)
        now = time.monotonic()
        for kernel_id in kernel_ids:
            life = self._life(kernel_id)
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
        if life.stays or life.end is not None or life.coming_back or kernel.shutting_down or not kernel.has_kernel:
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
        elif found in UNRESPONSIVE and kernel.owns_kernel and self._is_to_be_interrupted(life):
            await self._interrupt(kernel_id, kernel, life, process)

    def _is_to_be_interrupted(self, life: Life) -> bool:
        policy = self.settings.on_unresponsive
        return policy == "restart" or (policy == "interrupt" and life.standing.failures == 1)

    async def _ask(self, kernel_id: str, kernel: Any, life: Life, waits: Sequence[float]) -> Verdict:
        """Nudge the kernel: what it is found to be."""
        pid = find_pid(kernel)

        async def look() -> str:
            return await asyncio.to_thread(read_state, pid) if pid else ""

        running = self._is_running(kernel_id, kernel)
        state = await look()
        try:
            async with self._turn:
                reply = await nudge(kernel, waits if state != health.GONE else [0.0], look)
        except (zmq.ZMQError, OSError) as error:  # of ours, such as no more descriptors: no fault of the kernel's
            self._unable += 1
            if is_told(self._unable):
                log.warning("Kernel %s could not be nudged: %s", kernel_id, error)
            return Verdict.UNKNOWN
        self._unable = 0
        if reply.control:
            beside = life.standing.beside or running is True or answers_beside_cells(reply)
            life.standing = replace(life.standing, beside=beside)
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
            self._stays_unwatched(kernel_id, life)

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
        elif verdict in UNRESPONSIVE and self.settings.on_unresponsive == "restart":
            await self._replace(kernel_id, kernel, life)

    async def _replace(self, kernel_id: str, kernel: Any, life: Life) -> None:
        """End the kernel's process, which answers nothing, and bring the kernel back."""
        life.coming_back = True  # before it ends: the restarter is to leave it alone
        end = f"It did not answer ({life.standing.verdict.value}), nor when it was interrupted, and was ended"
        policy = replace(self._policy(kernel), recovery=Recovery.ALWAYS)
        try:
            pid = find_pid(kernel)
            if pid:
                others = self._manager.pool.supervision.pids - {pid}
                await asyncio.to_thread(end_tree, pid, others)
        finally:
            life.coming_back = False
        decision = decide(life.ends, failed=True, policy=policy, now=time.monotonic())
        # Its silence is counted already.
        self._follow_up(kernel_id, life, end, decision, cause="unresponsive", failed=False, here=True)

    # -- parts --------------------------------------------------------------------------------------

    def _life(self, kernel_id: str) -> Life:
        if kernel_id not in self._lives:
            self._lives[kernel_id] = Life(time.monotonic())
            if not self._manager.get_kernel(kernel_id).owns_kernel:
                self._lives[kernel_id].standing = Standing(answered=True)
                metrics.ADOPTED.inc()
                log.info("Kernel %s ran already, and is shown and looked after from now on", kernel_id)
        return self._lives[kernel_id]

    def _forget_vanished(self, kernel_id: str) -> None:
        """Jupyter forgot a kernel that it had adopted, without a word."""
        self.forget(kernel_id)
        self._edge.forget(kernel_id)

    def _is_still(self, kernel_id: str, kernel: Any, process: Any, life: Life) -> bool:
        """Whether the kernel that was asked is still what it was then."""
        return (
            self._lives.get(kernel_id) is life
            and kernel_id in self._manager
            and self._manager.get_kernel(kernel_id) is kernel
            and find_process(kernel) is process
            and self._can_be_asked(kernel_id, life)
        )

    def _started(self, kernel_id: str) -> None:
        if kernel_id in self._manager:
            self.starts.succeeded(self._manager.get_kernel(kernel_id).kernel_name)

    def _policy(self, kernel: Any) -> Any:
        return self.settings.recovery_of(self._manager.pool.settings_for(kernel.kernel_name).recovery)

    def _restores(self, kernel_id: str) -> bool:
        return self.settings.restore and bool(self._manager.forking.checkpoints_of(kernel_id))

    def _begin(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act, name="kernelpool-care-act")
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)


def answers_beside_cells(reply: Reply) -> bool:
    """Whether a kernel that says this of itself has a thread of its own for control: ipykernel from version 6 on."""
    return bool(reply.info.get("supported_features") or "debugger" in reply.info)


def find_process(kernel: Any) -> Any:
    """What stands for the process of *kernel*; None if there is none on this machine."""
    return getattr(getattr(kernel, "provisioner", None), "process", None)


def find_pid(kernel: Any) -> int:
    """The pid of *kernel*'s process on this machine, or 0."""
    process = find_process(kernel)
    return int(getattr(process, "pid", 0) or 0) if kernel.owns_kernel else 0


def find_exit_code(kernel: Any) -> int | None:
    """With what *kernel*'s process ended, a signal negative; None if that is not known."""
    process = find_process(kernel)
    if isinstance(process, Process):
        return process.exit_code
    code = process.poll() if process is not None else None
    return int(code) if code is not None else None


def find_record(kernel: Any) -> Any:
    """The record of *kernel*'s process, if we started it."""
    return getattr(getattr(kernel, "provisioner", None), "record", None)


def find_way(kernel: Any) -> str:
    """How *kernel*'s process came to be; empty if we did not start it."""
    record = find_record(kernel)
    return record.way if record is not None else ""


def is_watched(kernel: Any) -> bool:
    """Whether Jupyter restarts *kernel* if its process ends."""
    return getattr(getattr(kernel, "_restarter", None), "_pcallback", None) is not None


def poke(kernel: Any) -> None:
    """Have *kernel*'s restarter look now, not at its next turn."""
    restarter: Any = getattr(kernel, "_restarter", None)
    if hasattr(restarter, "poke"):
        restarter.poke()
