"""Undo: where it is on, the state after each cell of a kernel is kept, and can be gone back to.

The newest automatic checkpoint of a kernel is its present state, the one before it that before the last cell.
A restart, a crash and a restore give one more: they can be undone like a cell. A dead kernel has no present state,
so that the newest one is what it was before its end.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from jupyter_kernelpool.checkpoints.parked import Parked
from jupyter_kernelpool.errors import CannotFork, KernelPoolError, WrongState
from jupyter_kernelpool.forkable import until_at_rest
from jupyter_kernelpool.forking import Checkpoint, Forking
from jupyter_kernelpool.process import Process

MOST_STEPS = 1000

log = logging.getLogger("jupyter_kernelpool")


class Undo:
    """What is kept of which kernel, how many cells back, and the way back.

    *steps* is what `KernelPool.undo_steps` says for kernels that were told nothing else; 0 is off.
    """

    def __init__(self, forking: Forking, steps: int) -> None:
        self._forking = forking
        self._steps = steps
        self._steps_of: dict[str, int] = {}
        self._process_of: dict[str, Process] = {}
        self._goes_back: set[str] = set()  # its next process is a state that is kept already
        self._not_kept: dict[str, str] = {}  # why the present state of a kernel is not kept

    def steps_of(self, kernel_id: str) -> int:
        """How many cells of the kernel can be undone at most; 0 where undo is off."""
        return self._steps_of.get(kernel_id, self._steps)

    def states_of(self, kernel_id: str) -> list[Checkpoint]:
        """What is kept of the kernel, oldest first."""
        return [one for one in self._forking.checkpoints_of(kernel_id) if one.automatic and one.parked.alive]

    def available(self, kernel_id: str) -> int:
        """How many cells can be undone now."""
        process = self._process_of.get(kernel_id)
        present_is_kept = kernel_id not in self._not_kept and process is not None and process.alive
        return max(0, len(self.states_of(kernel_id)) - present_is_kept)

    def why_not(self, kernel_id: str) -> str | None:
        """Why the last cell could not be kept, or None; also where undo is on for a kernel that can't be forked."""
        if self.steps_of(kernel_id):
            try:
                self._forking.forkable.process_of(kernel_id)
            except CannotFork as error:
                return str(error)
            except KernelPoolError:
                pass  # for now
        return self._not_kept.get(kernel_id)

    def serves(self, kernel_id: str, process: Process) -> None:
        """*process* serves the kernel from now on: its first, or the next one."""
        self._process_of[kernel_id] = process
        if self.steps_of(kernel_id):
            self._begin(kernel_id, process, now=kernel_id not in self._goes_back)

    def change(self, kernel_id: str, steps: int) -> None:
        """Keep *steps* cells of the kernel from now on; 0 switches undo off, and drops what was kept.

        Raises `CannotFork` for a kernel that can't be forked.
        """
        self.refuse_change(kernel_id, steps)
        self.set_steps(kernel_id, steps)

    def refuse_change(self, kernel_id: str, steps: int) -> None:
        """Raise `CannotFork` for a kernel that can't be forked, of which something is to be kept."""
        if steps:
            with contextlib.suppress(WrongState):  # it is starting, or comes back: `serves` will see
                self._forking.forkable.process_of(kernel_id)

    def set_steps(self, kernel_id: str, steps: int) -> None:
        """As `change`, which was not refused just now; raises nothing."""
        was_on = self.steps_of(kernel_id) > 0
        self._steps_of[kernel_id] = steps
        self._drop_beyond(kernel_id)
        process = self._process_of.get(kernel_id)
        if process is None or not process.alive or was_on == (steps > 0):
            return
        if steps:
            self._begin(kernel_id, process, now=True)
        else:
            process.keep_each_cell(False)

    async def undo(self, kernel_id: str, steps: int = 1) -> Checkpoint:
        """Take the kernel back by *steps* cells, for all its clients; returns the state it has now.

        Raises `WrongState` where undo is off (`reason` undo_is_off) or so much is not kept (`too_far`), `Busy` while
        a cell runs, and as `Forking.restore`; the kernel is as it was then.
        """
        self.refuse_off(kernel_id)
        await self._forking.forkable.until_serving(kernel_id)
        kernel = self._forking.forkable.replaceable(kernel_id)
        await until_at_rest(kernel, 1.0)  # after it, each cell that ended has been told
        self.refuse_too_far(kernel_id, steps)
        states, position = self.states_of(kernel_id), self.available(kernel_id) - steps
        state = states[position]
        await state.parked.ready()
        self._goes_back.add(kernel_id)
        try:
            await self._forking.restore(kernel_id, state.id)
        finally:
            self._goes_back.discard(kernel_id)
        self._not_kept.pop(kernel_id, None)
        for later in states[position + 1 :]:
            self._drop(later)
        return state

    def refuse_off(self, kernel_id: str) -> None:
        """Raise `WrongState` where undo is off."""
        if not self.steps_of(kernel_id):
            raise WrongState(
                "undo is off for this kernel; KernelPool.undo_steps, or %undo on, switches it on", reason="undo_is_off"
            )

    def refuse_too_far(self, kernel_id: str, steps: int) -> None:
        """Raise `WrongState` where undo is off, or *steps* cells can't be undone."""
        self.refuse_off(kernel_id)
        available = self.available(kernel_id)
        if steps > available:
            text = f"{steps} cells back is too far: {available} can be undone"
            why = self.why_not(kernel_id)
            raise WrongState(f"{text} ({why})" if why else text, reason="too_far", available=available)

    def forget(self, kernel_id: str) -> None:
        """The kernel has ended; its checkpoints end with it."""
        self._steps_of.pop(kernel_id, None)
        self._process_of.pop(kernel_id, None)
        self._not_kept.pop(kernel_id, None)

    def _begin(self, kernel_id: str, process: Process, *, now: bool) -> None:
        if process.unforkable is not None:
            self._not_kept[kernel_id] = process.unforkable
            return
        process.on_kept = lambda sock: self._kept(kernel_id, process, sock)
        process.on_not_kept = lambda why: self._could_not(kernel_id, process, why)
        process.keep_each_cell(True, now=now)

    def _kept(self, kernel_id: str, process: Process, sock: socket.socket) -> None:
        if self._process_of.get(kernel_id) is not process or not self.steps_of(kernel_id):
            sock.close()  # the parked process sees the end of file, and ends
            return
        parked = Parked(process.record.recipe, self._forking.supervision, sock)
        self._forking.enter_checkpoint(kernel_id, parked, automatic=True)
        self._not_kept.pop(kernel_id, None)
        self._drop_beyond(kernel_id)

    def _could_not(self, kernel_id: str, process: Process, why: str) -> None:
        if self._process_of.get(kernel_id) is process:
            if kernel_id not in self._not_kept:
                log.warning("The state of kernel %s is not kept for undo: %s", kernel_id, why)
            self._not_kept[kernel_id] = why

    def _drop_beyond(self, kernel_id: str) -> None:
        """The oldest states go: as many as there are steps, and the present one, remain."""
        steps, states = self.steps_of(kernel_id), self.states_of(kernel_id)
        for state in states[: max(0, len(states) - (steps + 1 if steps else 0))]:
            self._drop(state)

    def _drop(self, state: Checkpoint) -> None:
        try:
            self._forking.drop(state.id)
        except KernelPoolError:
            log.debug("Checkpoint %s was dropped meanwhile", state.id)
