"""What kernels wish for themselves: the server's end of the magics %fork, %checkpoint, %restore and %undo.

Whether it can be done is said at once, while the cell runs; it is done when the cell has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from jupyter_kernelpool.batches import MOST_FORKS
from jupyter_kernelpool.errors import KernelPoolError, NotFound, NotRelated, NotValid, WrongState
from jupyter_kernelpool.forking import Forking
from jupyter_kernelpool.names import LONGEST, is_name
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.undo import MOST_STEPS, Undo

PATIENCE = 24 * 3600.0  # a cell may go on for long after the line with the magic
HEARING_TIMEOUT = 1.0
TELL_AGAIN_AFTER = (0.3, 1.7, 8.0)

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class Granted:
    """*text* is shown until *act* has been awaited, whose text then takes its place.

    With *leaves* that replaces the kernel's process: what clients send meanwhile is for the next one.
    """

    text: str
    act: Callable[[], Awaitable[str]] | None = None
    leaves: bool = False


class Wishes:
    """Grants what the kernels of the server wish, or says why not; *allowed* is `KernelPool.magics`."""

    def __init__(self, forking: Forking, undo: Undo, *, allowed: bool) -> None:
        self._forking = forking
        self._undo = undo
        self._allowed = allowed
        self._tasks: set[asyncio.Task[None]] = set()

    def serves(self, kernel_id: str, process: Process) -> None:
        """*process* serves the kernel from now on."""
        process.on_wish = lambda question: self._heard(kernel_id, process, question)

    def close(self) -> None:
        """The server stops: forget what waits."""
        for task in self._tasks:
            task.cancel()

    def _heard(self, kernel_id: str, process: Process, question: dict[str, Any]) -> None:
        try:
            granted = self._grant(kernel_id, process, question["what"], question["wish"])
        except KernelPoolError as error:
            process.answer(question["id"], error=f"{error}. {error.hint}".strip())
            return
        except (KeyError, TypeError) as error:  # whatever code runs in the kernel can write to its socket
            process.answer(question["id"], error=f"this was not understood: {error!r}")
            return
        process.answer(question["id"], text=granted.text)
        if granted.act is not None:
            if granted.leaves:
                process.stays.clear()
            task = asyncio.create_task(self._carry_out(kernel_id, process, granted.act, question))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(
        self, kernel_id: str, process: Process, act: Callable[[], Awaitable[str]], question: dict[str, Any]
    ) -> None:
        what = question["what"]
        try:
            text = await act()
        except KernelPoolError as error:
            text = f"%{what} failed: {error}. {error.hint}".strip()
        except Exception as error:
            log.exception("%%%s of kernel %s failed", what, kernel_id)
            text = f"%{what} failed: {type(error).__name__}: {error}"
        present: Process | None = None
        try:
            present = self._forking.forkable.process_of(kernel_id)
            present.report(question["display"], question["parent"], text)
            if (
                present is process and not process.stays.is_set()
            ):  # it does not go: it takes cells again once it has heard so
                await process.check(HEARING_TIMEOUT)
        except KernelPoolError:
            log.info("Kernel %s is not there to be told: %s", kernel_id, text)
        finally:
            process.stays.set()
        if present is not None and present is not process:
            # What it publishes before a client's iopub has found it is lost: say it again, to the same display.
            for delay in TELL_AGAIN_AFTER:
                await asyncio.sleep(delay)
                present.report(question["display"], question["parent"], text)

    # -- what can be wished for ---------------------------------------------------------------------

    def _grant(self, kernel_id: str, process: Process, what: str, wish: dict[str, Any]) -> Granted:
        if not self._allowed:
            raise WrongState("the magics are switched off on this server (KernelPool.magics)", reason="magics_are_off")
        if process.unforkable is not None:
            raise WrongState(process.unforkable, reason="unforkable")
        match what:
            case "fork":
                return self._fork(kernel_id, wish["name"], wish["count"], reseed=wish["reseed"])
            case "checkpoint":
                return self._checkpoint(kernel_id, wish["name"])
            case "restore":
                return self._restore(kernel_id, process, wish["source"])
            case "undo":
                return self._go_back(kernel_id, process, wish["steps"])
            case "keep":
                return self._keep(kernel_id, wish["steps"])
        raise NotValid(f"{what!r} is nothing that can be wished for", field="what")

    def _fork(self, kernel_id: str, name: str | None, count: int, *, reseed: bool) -> Granted:
        if not 1 <= count <= MOST_FORKS:
            raise NotValid(f"count = {count} must be from 1 to {MOST_FORKS}", field="count")
        refuse_bad(name)
        self._forking.names.refuse_taken(name, count)

        async def act() -> str:
            forked = await self._forking.fork(kernel_id, count=count, name=name, reseed=reseed, timeout=PATIENCE)
            return "\n".join(self._describe_fork(each) for each in forked.kernels)

        return Granted("It is forked when this cell has ended.", act)

    def _describe_fork(self, fork: str | KernelPoolError) -> str:
        if isinstance(fork, KernelPoolError):
            return f"Not forked: {fork}"
        name = self._forking.names.of(fork)
        return f"Forked: kernel {fork}" + (f" ({name})" if name is not None else "")

    def _checkpoint(self, kernel_id: str, name: str | None) -> Granted:
        refuse_bad(name)
        self._forking.refuse_checkpoint(kernel_id, name)

        async def act() -> str:
            checkpoint = await self._forking.take_checkpoint(kernel_id, name=name, timeout=PATIENCE)
            return f"Checkpoint {name or checkpoint.id}"

        return Granted("A checkpoint is taken when this cell has ended.", act)

    def _restore(self, kernel_id: str, process: Process, source: str | None) -> Granted:
        found = self._find_source(kernel_id, source)
        if not self._forking.lineage.related(kernel_id, found):
            raise NotRelated(f"{source!r} does not descend from the same kernel as this one", source=source)

        async def act() -> str:
            await process.check(PATIENCE)
            await self._forking.restore(kernel_id, found)
            return f"Restored: {source or found}"

        return Granted("This kernel is restored when this cell has ended.", act, leaves=True)

    def _find_source(self, kernel_id: str, source: str | None) -> str:
        own = [one for one in self._forking.checkpoints_of(kernel_id) if not one.automatic]
        if source is None:
            if not own:
                raise NotFound("this kernel has no checkpoint", kernel=kernel_id)
            return own[-1].id
        for one in own:
            if one.name == source:
                return one.id
        if source in self._forking.checkpoints:
            return source
        return self._forking.find_kernel(source)

    def _go_back(self, kernel_id: str, process: Process, steps: int) -> Granted:
        self._undo.refuse_too_far(kernel_id, steps)

        async def act() -> str:
            await process.check(PATIENCE)
            await self._undo.undo(kernel_id, steps)
            return f"Undone: {steps} {'cell' if steps == 1 else 'cells'}"

        return Granted("It is undone when this cell has ended.", act, leaves=True)

    def _keep(self, kernel_id: str, steps: int) -> Granted:
        if not 0 <= steps <= MOST_STEPS:
            raise NotValid(f"{steps} must be from 0 to {MOST_STEPS}", field="steps")
        self._undo.change(kernel_id, steps)
        return Granted(f"The last {steps} cells can be undone from now on." if steps else "Undo is off.")


def refuse_bad(name: str | None) -> None:
    """Raise `NotValid` for what can't be a name."""
    if name is not None and not is_name(name):
        raise NotValid(f"{name!r} must have 1 to {LONGEST} printable characters, and no '/'", field="name")
