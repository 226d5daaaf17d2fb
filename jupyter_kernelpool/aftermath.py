"""What follows the end of a kernel's process: a restart, at once or later, its last checkpoint, or nothing, as the
policy says; and everybody is told. Decided in `recovery`; restarts are Jupyter's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from jupyter_kernelpool.behind import (
    find_exit_code,
    find_pid,
    find_process,
    find_restart_limit,
    find_way,
    gives_up_next,
    poke,
)
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ending import end_tree
from jupyter_kernelpool.health import Verdict
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lives import Comeback, Life, Lives
from jupyter_kernelpool.recovery import Policy, Stay, decide, describe_end
from jupyter_kernelpool.starts import Starts

REMEMBERED_ENDS = 100
DIED = "KernelDied"
JUPYTERS_LIMIT = "KernelRestarter.restart_limit"

log = logging.getLogger("jupyter_kernelpool")


class Aftermath:
    """What follows the ends of the processes of all kernels of *manager*, the server's kernel manager."""

    def __init__(
        self, manager: Any, settings: KernelHealth, lives: Lives, starts: Starts, edge: Edge, chronicle: Chronicle
    ) -> None:
        self._manager = manager
        self._settings = settings
        self._lives = lives
        self._starts = starts
        self._edge = edge
        self._chronicle = chronicle
        self._acts: set[asyncio.Task[None]] = set()
        self._being_explained: set[str] = set()  # kernels of whose end is being asked whether a limit was the cause

    async def close(self) -> None:
        """The server stops: nothing comes back any more."""
        for task in list(self._acts):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # which is in the log
                await task

    def exited(self, kernel_id: str) -> None:
        """The process of a kernel that is not to be restarted (KernelManager.autorestart) has ended."""
        life = self._lives.find(kernel_id)
        if life is not None and self._is_unexplained(kernel_id, life) and kernel_id not in self._being_explained:
            self._being_explained.add(kernel_id)
            self._begin(self._leave_unwatched(kernel_id, life))

    def gives_up(self, kernel_id: str) -> None:
        """Jupyter's restarter restarted the kernel too often, and Jupyter is about to forget it."""
        life = self._lives.find(kernel_id)
        end = life.end if life is not None and life.end is not None else "Its process ended"
        reason = f"{end}, again and again; Jupyter gave up restarting it, and forgets it."
        log.warning("Kernel %s: %s", kernel_id, reason)
        self._edge.give_up(kernel_id, DIED, reason)
        self._chronicle.dies(kernel_id, reason, by_itself=True)

    def could_not_restart(self, kernel_id: str, error: Exception) -> None:
        """No process could be made for the kernel, by Jupyter's restarter or for its user, and nobody tries again."""
        life = self._lives.of(kernel_id) if kernel_id in self._manager else None
        if life is not None and not life.stays and life.coming_back is None:  # else that is told by who brings it back
            end = life.end or "Its process ended"
            self._edge.give_up(kernel_id, DIED, f"{end}. The kernel {kernel_id} could not be restarted: {error}")
            self._leave_dead(kernel_id, life, f"{end}, and it could not be restarted: {error}")

    def is_bringing_back(self, kernel_id: str) -> bool:
        """Whether a process for it is being made here, and nobody else is to start one."""
        life = self._lives.find(kernel_id)
        return life is not None and life.coming_back is not None

    def restarts(self, kernel_id: str) -> None:
        """The kernel's process is about to be replaced, by whomever."""
        life = self._lives.find(kernel_id)
        if life is not None:
            life.replaced()

    def stays_dead(self, kernel_id: str) -> bool:
        """The kernel's process has ended by itself: whether it is not to be restarted, or not yet; asked by the
        restarter, again and again. The first time decides what follows, and tells everybody.
        """
        if kernel_id not in self._manager:
            return False
        life = self._lives.of(kernel_id)
        if life.end is None and life.coming_back is None:
            self._note_end(kernel_id, life)
        return life.stays or life.coming_back is not None or time.monotonic() < life.restart_at

    def _note_end(self, kernel_id: str, life: Life) -> None:
        kernel = self._manager.get_kernel(kernel_id)
        code = find_exit_code(kernel)
        end, failed = f"Its process ended {describe_end(code)}", code != 0
        why = f"its process ended {describe_end(code)} before it answered"
        answered = life.standing.answered
        self._count(kernel, life, answered=answered, lasted=answered, why=why)
        here = self._restores(kernel_id)
        decision = self._decide(kernel, life, self._policy(kernel), failed=failed, here=here)
        self._follow_up(kernel_id, life, end, decision, cause="died", failed=failed, here=here)

    async def _leave_unwatched(self, kernel_id: str, life: Life) -> None:
        """The process of a kernel that nobody restarts by himself has ended: it stays dead, for a limit or so."""
        kernel = self._manager.get_kernel(kernel_id)
        process = find_process(kernel)
        try:
            if await self._manager.guard.explain_end(kernel_id):
                return
        finally:
            self._being_explained.discard(kernel_id)
        if not self._is_unexplained(kernel_id, life) or kernel.shutting_down or find_process(kernel) is not process:
            return  # its user was quicker, or a limit
        end = f"Its process ended {describe_end(find_exit_code(kernel))}"
        stay = Stay("Jupyter is set not to restart it (KernelManager.autorestart)")
        self._follow_up(kernel_id, life, end, stay, cause="died", failed=True, here=False)

    def _follow_up(
        self, kernel_id: str, life: Life, end: str, decision: Any, *, cause: str, failed: bool, here: bool
    ) -> None:
        """Tell of the end, and have done what was decided: by the restarter, or with *here* by ourselves."""
        self._chronicle.ends(kernel_id, cause, end)
        now = time.monotonic()
        life.end = end
        since = life.lost[1] if life.lost is not None else now  # when it fell silent, or first ended
        life.lost = cause, since
        life.ends = [*life.ends[1 - REMEMBERED_ENDS :], now]
        life.standing = replace(
            life.standing, verdict=Verdict.DEAD, why=f"{end}.", total=life.standing.total + failed, checked=time.time()
        )
        if isinstance(decision, Stay):
            self._edge.give_up(kernel_id, DIED, f"{end}. The kernel {kernel_id} stays dead: {decision.why}.")
            self._leave_dead(kernel_id, life, f"{end}, and it stays dead: {decision.why}.")
            return
        if not here and gives_up_next(self._manager.get_kernel(kernel_id)):
            return  # Jupyter's restarter, which asks, forgets the kernel now, and `gives_up` tells of that
        follows = (
            "goes back to its last checkpoint" if self._restores(kernel_id) else "is restarted without its variables"
        )
        self._edge.give_up(kernel_id, DIED, f"{end}. The kernel {kernel_id} {follows}.")
        life.restart_at = now + decision.pause
        log.warning("Kernel %s: %s; it comes back in %g s", kernel_id, end, decision.pause)
        kernel = self._manager.get_kernel(kernel_id)
        kernel.restarts_for = cause, end
        if decision.pause:
            kernel.reason = f"{end}; it is restarted in {decision.pause:g} s."
        if here:
            comeback = life.coming_back = Comeback()
            self._begin(self._bring_back(kernel_id, life, comeback, end, decision.pause))
        elif decision.pause:
            self._begin(self._poke_later(kernel_id, decision.pause))

    def _leave_dead(self, kernel_id: str, life: Life, reason: str) -> None:
        kernel = self._manager.get_kernel(kernel_id)
        life.stays, life.lost = True, None
        kernel.execution_state, kernel.reason = "dead", reason
        log.warning("Kernel %s: %s", kernel_id, reason)
        self._chronicle.dies(kernel_id, reason, by_itself=True)

    async def _poke_later(self, kernel_id: str, pause: float) -> None:
        await asyncio.sleep(pause)
        if kernel_id in self._manager:
            poke(self._manager.get_kernel(kernel_id))

    async def _bring_back(self, kernel_id: str, life: Life, comeback: Comeback, end: str, pause: float) -> None:
        """Give the kernel its last checkpoint, or a fresh process, in the place of the restarter."""
        try:
            await asyncio.sleep(pause)
            if not self._is_due(kernel_id, life, comeback):
                return  # its user restarted it meanwhile, or shut it down
            comeback.begun = True
            kernel = self._manager.get_kernel(kernel_id)
            kernel.execution_state = "starting"
            outcome = await self._manager.bring_back(kernel_id, restore=self._wants_restore(kernel_id))
        except Exception as error:
            if self._is_due(kernel_id, life, comeback):
                self._leave_dead(kernel_id, life, f"{end}, and it could not be restarted: {error}")
            return
        finally:
            if life.coming_back is comeback:
                life.coming_back = None
        if outcome == "restarted":
            self._edge.declare_restarting(kernel_id)
        if kernel_id in self._manager:
            poke(self._manager.get_kernel(kernel_id))  # if it has ended already, the restarter was to leave it alone

    async def end(self, kernel_id: str, kernel: Any, life: Life) -> None:
        """End the kernel's process, which answers nothing, and bring the kernel back."""
        comeback = life.coming_back = Comeback()  # before it ends: the restarter is to leave it alone
        silence, answered_at = f"did not answer ({life.standing.verdict.value})", life.answered_at
        lasted = answered_at is not None and answered_at - life.born > self._settings.restart_window
        end = f"It {silence}, nor when it was interrupted, and was ended"
        try:
            pid = find_pid(kernel)
            if pid:
                others = self._manager.pool.supervision.pids - {pid}
                await asyncio.to_thread(end_tree, pid, others)
        finally:
            due = self._is_due(kernel_id, life, comeback)
            if life.coming_back is comeback:
                life.coming_back = None
        if not due:
            return  # its user was quicker, and has restarted it, or shut it down
        why = f"it {silence} from its start on"
        self._count(kernel, life, answered=answered_at is not None, lasted=lasted, why=why)
        decision = self._decide(kernel, life, self._policy(kernel), failed=True, here=True)
        # Its silence is counted already.
        self._follow_up(kernel_id, life, end, decision, cause="unresponsive", failed=False, here=True)

    # -- parts --------------------------------------------------------------------------------------

    def _is_unexplained(self, kernel_id: str, life: Life) -> bool:
        """Whether nobody has been told yet of the end of the kernel's process, nor is about to be."""
        if kernel_id not in self._manager or self._lives.find(kernel_id) is not life:
            return False
        for_a_limit = getattr(self._manager.get_kernel(kernel_id), "stays_dead_for", None) is not None
        return life.end is None and life.coming_back is None and not for_a_limit

    def _is_due(self, kernel_id: str, life: Life, comeback: Comeback) -> bool:
        """Whether nobody else has replaced the kernel's process, or forgotten the kernel."""
        return life.coming_back is comeback and self._lives.find(kernel_id) is life and kernel_id in self._manager

    def _count(self, kernel: Any, life: Life, *, answered: bool, lasted: bool, why: str) -> None:
        """A process has ended: one more in a row if it has not *lasted*, and a start that failed, for the reason *why*,
        if it never *answered*.
        """
        life.fruitless = 0 if lasted else life.fruitless + 1
        if not answered and find_way(kernel) == "cold":
            self._starts.failed(kernel.kernel_name, why)

    def _decide(self, kernel: Any, life: Life, policy: Policy, *, failed: bool, here: bool) -> Any:
        """What follows. Where the limit is Jupyter's own, nobody but we count what is restarted *here*, nor processes
        that take long to end without an answer: Jupyter takes what lived for 10 seconds for well.
        """
        if policy.limit is None:
            most = find_restart_limit(kernel)
            fruitless = most if here or not gives_up_next(kernel) else None
            policy = replace(policy, limit=most if here else None, fruitless=fruitless, source=JUPYTERS_LIMIT)
        return decide(life.ends, failed=failed, policy=policy, now=time.monotonic(), fruitless=life.fruitless)

    def _policy(self, kernel: Any) -> Policy:
        return self._settings.recovery_of(self._manager.pool.settings_for(kernel.kernel_name).recovery)

    def _restores(self, kernel_id: str) -> bool:
        return self._wants_restore(kernel_id) and bool(self._manager.forking.checkpoints_of(kernel_id))

    def _wants_restore(self, kernel_id: str) -> bool:
        kernel = self._manager.get_kernel(kernel_id)
        return self._settings.restores(self._manager.pool.settings_for(kernel.kernel_name).restore)

    def _begin(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act, name="kernelpool-aftermath")
        self._acts.add(task)
        task.add_done_callback(self._has_acted)

    def _has_acted(self, task: asyncio.Task[None]) -> None:
        self._acts.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("What follows the end of a kernel's process could not be done", exc_info=task.exception())
