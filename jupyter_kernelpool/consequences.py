"""What is done to a kernel that crossed a limit: it is told, interrupted, ended, brought back. Says so to everybody."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jupyter_kernelpool.allowance import Breach, human
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.ending import end_tree
from jupyter_kernelpool.escalation import Interrupt, Kill, Note, Step, Warn
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.limits.base import Enforcer, Subject
from jupyter_kernelpool.limits.settings import KernelLimits

log = logging.getLogger("jupyter_kernelpool")


class Consequences:
    """For the kernels of *manager*. *subjects* are those that are held to limits now, by id: the guard's own dict.

    A kernel that has vanished, or has another process by now, is left alone: it is not the one that is meant.
    """

    def __init__(
        self,
        manager: Any,
        limits: KernelLimits,
        edge: Edge,
        events: Events,
        enforcers: Sequence[Enforcer],
        subjects: dict[str, Subject],
    ) -> None:
        self.breaches: dict[str, Breach] = {}  # the last one of each kernel
        self._manager = manager
        self._limits = limits
        self._edge = edge
        self._events = events
        self._enforcers = enforcers
        self._subjects = subjects

    async def act(self, subject: Subject, breach: Breach, step: Step) -> None:
        """Take *step* for *breach*, whose outcome is still open."""
        if self._subjects.get(subject.kernel_id) is not subject or self._find(subject.kernel_id) is None:
            return
        match step:
            case Warn():
                self._warn(subject.kernel_id, breach)
            case Note():
                self.note(subject.kernel_id, replace(breach, outcome="refused"))
                self._edge.say(subject.kernel_id, f"{breach}; the operating system refuses more.")
            case Interrupt():
                await self._interrupt(subject.kernel_id, replace(breach, outcome="interrupted"))
            case Kill():
                await self._kill(subject, replace(breach, outcome="killed"))

    def slowed_down(self, kernel_id: str, allowed: float, seen: float) -> None:
        """The kernel, which used *seen* cores, is held to *allowed* by slowing it down."""
        text = f"Slowed down to {human('cpu', allowed)}."
        self._events.emit("throttled", kernel_id, now=time.time(), reason=text, limit="cpu", allowed=allowed, seen=seen)

    def child_ended(self, kernel_id: str, breach: Breach) -> None:
        """The operating system killed a process of the kernel's, not its own."""
        self.note(kernel_id, breach)
        text = f"{breach}. A process that the kernel had started was ended; the kernel goes on."
        self._edge.say(kernel_id, text)

    async def ended(self, kernel_id: str, breach: Breach) -> None:
        """The process has ended for *breach*: tell everybody, and do what `on_breach` says."""
        self._subjects.pop(kernel_id, None)
        kernel = self._find(kernel_id)
        if kernel is None:
            return
        kernel.stays_dead_for = breach
        kernel.reason = str(breach)
        kernel.execution_state = "dead"
        self.note(kernel_id, breach)
        self._edge.ledger(kernel_id).blame()
        self._edge.say(kernel_id, f"{breach}. The kernel was ended; its variables are lost.")
        self._edge.give_up(kernel_id, "KernelKilled", str(breach))
        if kernel.shutting_down:
            return  # its user shuts it down or restarts it just now
        if self._limits.on_breach not in ("restart", "restore"):
            self._stays_dead(kernel_id, breach)
            return
        try:
            outcome = await self._manager.bring_back(kernel_id, restore=self._limits.on_breach == "restore")
        except Exception:
            if self._find(kernel_id) is kernel and kernel_id not in self._subjects:
                self._stays_dead(kernel_id, breach)
            raise
        self.breaches[kernel_id] = replace(breach, outcome=outcome)

    def note(self, kernel_id: str, breach: Breach) -> None:
        """The kernel crossed a limit: remember, log and publish it."""
        self.breaches[kernel_id] = breach
        log.warning("Kernel %s: %s; %s", kernel_id, breach, breach.outcome)
        outcome = {"outcome": breach.outcome, "state_lost": breach.state_lost}
        self._events.emit("breached", kernel_id, now=breach.at, reason=str(breach), **outcome, **_facts(breach))

    async def kill(self, kernel_id: str, breach: Breach) -> None:
        """End the kernel for *breach*, tell everybody, and do what `on_breach` says."""
        subject = self._subjects.get(kernel_id)
        if subject is not None and self._find(kernel_id) is not None:
            await self._kill(subject, breach)

    async def end_for(self, kernel_id: str, breach: Breach) -> None:
        """End the kernel's processes for *breach*; nobody but the caller is to start the next one."""
        kernel = self._find(kernel_id)
        if kernel is not None:
            kernel.stays_dead_for = breach  # before it ends
        subject = self._subjects.pop(kernel_id, None)
        if subject is not None:
            await self._end(subject)

    # -- parts --------------------------------------------------------------------------------------

    def _warn(self, kernel_id: str, breach: Breach) -> None:
        name, whose = breach.limit.replace("_", " ").capitalize(), f" of {breach.group}" if breach.group else ""
        together = " together" if breach.group else ""
        seen, allowed = human(breach.limit, breach.seen), human(breach.limit, breach.allowed)
        text = f"{name}{whose}: {seen} of {allowed} used{together}."
        self._edge.say(kernel_id, text)
        self._events.emit("warned", kernel_id, now=breach.at, reason=text, **_facts(breach))

    async def _interrupt(self, kernel_id: str, breach: Breach) -> None:
        self.note(kernel_id, breach)
        self._edge.ledger(kernel_id).blame()
        self._edge.say(
            kernel_id,
            f"{breach}. Interrupted; the kernel is ended if that does not help within {self._limits.grace:g} s.",
        )
        kernel = self._find(kernel_id)
        if kernel is not None and kernel.has_kernel:
            await kernel.interrupt_kernel()

    async def _kill(self, subject: Subject, breach: Breach) -> None:
        kernel_id = subject.kernel_id
        del self._subjects[kernel_id]  # nothing else happens to it from here on
        kernel = self._find(kernel_id)
        kernel.stays_dead_for = breach  # before it ends: nobody is to restart it
        await self._end(subject)
        if kernel_id not in self._subjects:
            await self.ended(kernel_id, breach)
        else:  # its user was quicker, and has restarted it
            self.note(kernel_id, breach)

    async def _end(self, subject: Subject) -> None:
        for enforcer in self._enforcers:
            await asyncio.to_thread(enforcer.end, subject)
        others = self._manager.pool.supervision.pids - {subject.pid}
        if not await asyncio.to_thread(end_tree, subject.pid, others):
            log.warning("Kernel %s: not every process of it could be ended", subject.kernel_id)

    def _stays_dead(self, kernel_id: str, breach: Breach) -> None:
        self._events.emit("dead", kernel_id, now=time.time(), reason=str(breach))

    def _find(self, kernel_id: str) -> Any:
        return self._manager.get_kernel(kernel_id) if kernel_id in self._manager else None


def _facts(breach: Breach) -> dict[str, Any]:
    facts = {"limit": breach.limit, "allowed": breach.allowed, "seen": breach.seen}
    return {**facts, "group": breach.group} if breach.group else facts
