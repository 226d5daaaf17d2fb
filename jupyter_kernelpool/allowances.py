"""Which limits hold for whom: what is said of a kernel, its kernelspec, or in general; and what can't be held here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.limits.base import Held
from jupyter_kernelpool.limits.settings import KernelLimits

MEASURED = frozenset({"memory", "cpu", "processes", "open_files"})
NOBODY = "no enforcer in KernelLimits.enforcers holds it"
UNSEEN = frozenset({"runsc"})  # programs of a `launch_prefix` that keep a kernel's memory apart from its processes
ELSEWHERE = "the kernel's process is not held by this server"


class Allowances:
    """Those of all kernels of *manager*, the server's kernel manager; *held* is what can be held on this machine."""

    def __init__(self, manager: Any, limits: KernelLimits, held: Held) -> None:
        """Raises `NotEnforceable` when the configuration limits what can't be limited on this machine."""
        self._manager = manager
        self._limits = limits
        self._held = held
        self._own: dict[str, Allowance] = {}  # of kernels that differ from their recipe
        self._known: dict[str, Allowance] = {}  # what its recipe allowed when it began, or since
        self._asked: dict[str, dict[str, Allowance]] = {}  # what executions that run asked for, by kernel and msg_id
        self.refuse_unenforceable(limits.allowance, "KernelLimits")
        for kernel_name in manager.pool.recipes:
            self.refuse_unenforceable(self.for_kernelspec(kernel_name), f"KernelPool.recipes[{kernel_name!r}]")

    def of(self, kernel_id: str) -> Allowance:
        """What the kernel may use: what was said of it, of its recipe, or in general."""
        for known in (self._own, self._known):
            if kernel_id in known:
                return known[kernel_id]
        kernel = self._manager.get_kernel(kernel_id) if kernel_id in self._manager else None
        return self.for_kernelspec(kernel.kernel_name) if kernel is not None else self._limits.allowance

    def own_of(self, kernel_id: str) -> Allowance | None:
        """The kernel's limits, where they were changed for it alone."""
        return self._own.get(kernel_id)

    def for_kernelspec(self, kernel_name: str) -> Allowance:
        """What a new kernel of that kernelspec may use."""
        return self._limits.allowance.changed(dict(self._manager.pool.settings_for(kernel_name).limits))

    def at_start(self, kernel_id: str, kernel_name: str, own: Allowance | None = None) -> Allowance:
        """What the kernel may use once it has another process; *own* as in `begin`."""
        return own or self._own.get(kernel_id) or self.for_kernelspec(kernel_name)

    def begin(self, kernel_id: str, kernel_name: str, own: Allowance | None) -> None:
        """The kernel gets a process; *own* are the limits of a fork that has its parent's. Raises `NotEnforceable`."""
        allowance = self.at_start(kernel_id, kernel_name, own)
        self.refuse_unenforceable(allowance, f"kernel {kernel_id}")
        self._refuse_unseen(allowance, kernel_name)
        self._known[kernel_id] = allowance
        self._asked.pop(kernel_id, None)  # nothing of its former process runs any more
        if own is not None:
            self._own[kernel_id] = own

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        self._own.pop(kernel_id, None)
        self._known.pop(kernel_id, None)
        self._asked.pop(kernel_id, None)

    def in_force(self, kernel_id: str) -> Allowance:
        """What the kernel may use now: less than usual while an execution runs that asked for less."""
        return functools.reduce(Allowance.within, self._asked.get(kernel_id, {}).values(), self.of(kernel_id))

    def for_execution(self, kernel_id: str, asked: Any) -> tuple[Allowance, list[str]]:
        """What an execution of the kernel may use that asked for the limits *asked*, and for each that is not heeded a
        sentence that says why: it would loosen, or can't be enforced here."""
        present = self.of(kernel_id)
        allowance, refusals = present.for_execution(asked)
        for limit in sorted(allowance.limited & MEASURED):
            if limit not in self._held.by:
                why = self._held.missing.get(limit, NOBODY)
            elif kernel_id not in self._known and getattr(allowance, limit) != getattr(present, limit):
                why = ELSEWHERE
            else:
                continue
            refusals.append(f"Limit not heeded: {limit.replace('_', ' ')} can't be enforced here: {why}.")
            allowance = allowance.changed({limit: 0})
        return allowance, refusals

    def begin_execution(self, kernel_id: str, msg_id: str, asked: Any) -> frozenset[str]:
        """An execution that asked for the limits *asked* runs; the names of the measured ones that it tightens."""
        allowance, _ = self.for_execution(kernel_id, asked)
        present = self.of(kernel_id)
        tighter = {name: getattr(allowance, name) for name in allowance.limited & MEASURED}
        tighter = {name: value for name, value in tighter.items() if value != getattr(present, name)}
        if tighter:
            self._asked.setdefault(kernel_id, {})[msg_id] = Allowance().changed(tighter)
        return frozenset(tighter)

    def asked_by(self, kernel_id: str, msg_id: str) -> frozenset[str]:
        """The measured limits that an execution tightens, as long as it runs."""
        asked = self._asked.get(kernel_id, {}).get(msg_id)
        return asked.limited if asked is not None else frozenset()

    def end_execution(self, kernel_id: str, msg_id: str) -> None:
        """It runs no more."""
        asked = self._asked.get(kernel_id, {})
        asked.pop(msg_id, None)
        if not asked:
            self._asked.pop(kernel_id, None)

    def change(self, kernel_id: str, changes: dict[str, float]) -> Allowance:
        """Limit one kernel otherwise from now on: whoever changes it next goes on from here. Raises `Loosens`,
        `NotEnforceable`."""
        present = self.of(kernel_id)
        changed = present.changed(changes) if self._limits.allow_loosen else present.tightened(changes)
        self.refuse_unenforceable(changed, f"kernel {kernel_id}")
        self._refuse_unseen(changed, self._manager.get_kernel(kernel_id).kernel_name)
        self._own[kernel_id] = changed
        return changed

    def undo(self, kernel_id: str, changed: Allowance, before: Allowance | None) -> None:
        """What *changed* says could not be enforced: *before* holds, unless it was changed again meanwhile."""
        if self._own.get(kernel_id) is changed:
            self._own.pop(kernel_id) if before is None else self._own.update({kernel_id: before})

    def follow_recipe(self, kernel_id: str, kernel_name: str) -> Callable[[], None] | None:
        """The recipe of *kernel_name* has changed: if that concerns the kernel, it has its limits from now on.

        Returns what takes that back, where they can't be enforced; None if the kernel is not concerned.
        """
        if kernel_id in self._own or kernel_id not in self._manager:
            return None
        if self._manager.get_kernel(kernel_id).kernel_name != kernel_name:
            return None
        former, latter = self.of(kernel_id), self.for_kernelspec(kernel_name)
        self._known[kernel_id] = latter

        def take_back() -> None:
            if self._known.get(kernel_id) is latter:  # else it has another process, or others, by now
                self._known[kernel_id] = former

        return take_back

    def refuse_change(self, kernel_name: str, changes: dict[str, float]) -> None:
        """Raise `Loosens`, `NotEnforceable` where kernels of that kernelspec can't be limited so over REST.

        What may not be loosened is what the configuration says: earlier changes over REST can be taken back.
        """
        if not self._limits.allow_loosen:
            self._limits.allowance.changed(dict(self._manager.pool.configured(kernel_name).limits)).tightened(changes)
        self.refuse_unenforceable(self.for_kernelspec(kernel_name).changed(changes), f"recipe {kernel_name}")

    def refuse_elsewhere(self, kernel_name: str) -> None:
        """Raise `NotEnforceable` where kernels of that kernelspec have limits and this one has no process here."""
        for limit in sorted(self.for_kernelspec(kernel_name).limited & MEASURED):
            needed = "a provisioner that starts it on this machine"
            raise NotEnforceable(
                f"kernels of {kernel_name} have a limit on {limit.replace('_', ' ')}, which can't be enforced for one "
                f"whose process is not on this machine: {needed}",
                limit=limit,
                needed=needed,
            )

    def refuse_unenforceable(self, allowance: Allowance, whose: str) -> None:
        """Raise `NotEnforceable` for a limit that nothing on this machine holds."""
        for limit in sorted(allowance.limited & MEASURED):
            if limit not in self._held.by:
                needed = self._held.missing.get(limit, NOBODY)
                raise NotEnforceable(
                    f"{whose} limits {limit.replace('_', ' ')}, which can't be enforced here: {needed}",
                    limit=limit,
                    needed=needed,
                )

    def _refuse_unseen(self, allowance: Allowance, kernel_name: str) -> None:
        """Raise `NotEnforceable` for a limit on memory that what stands in front of such kernels would hide."""
        prefix = self._manager.pool.settings_for(kernel_name).sandbox.launch_prefix
        hides = bool(prefix) and os.path.basename(prefix[0]) in UNSEEN
        if not hides or not (allowance.memory or self._limits.total.memory) or self._held.by["memory"].charges:
            return
        needed = "control groups (KernelLimits.enforcers), in which the server may make its own"
        raise NotEnforceable(
            f"kernels of {kernel_name} have a limit on memory, and {prefix[0]} keeps theirs apart from their "
            f"processes, which {self._held.by['memory'].name} looks at: it takes {needed}",
            limit="memory",
            needed=needed,
        )

    def who_holds(self, limit: str) -> tuple[str | None, str | None]:
        """The name of what holds kernels to *limit* here; else why nothing does."""
        if limit not in MEASURED:
            return "server", None
        enforcer = self._held.by.get(limit)
        return (enforcer.name, None) if enforcer is not None else (None, self._held.missing.get(limit, NOBODY))
