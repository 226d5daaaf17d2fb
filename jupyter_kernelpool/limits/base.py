"""What is known of a way to hold kernels to their limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from jupyter_kernelpool.allowance import Allowance


@dataclass(frozen=True)
class Subject:
    """A kernel that is held to limits: its id, and the pid of its process, which leads a session.

    *inherited* is the memory in bytes that the process had from what it was forked from (`memory.charge`).
    """

    kernel_id: str
    pid: int
    inherited: int = 0


@dataclass(frozen=True)
class Reading:
    """What a kernel uses now, of each limit that whoever measured it can tell.

    `memory` in bytes, or more than it is while it is far from its limit, `cpu` in cores since the reading before,
    `processes` with threads, `open_files` of the kernel's own process. *peak* is the most memory so far. *refused* and
    *throttled* count what was done to the process; refused memory is a process of the kernel's, not its own, that was
    killed for it.
    """

    used: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by limit: how often more was asked for and not given
    throttled: int = 0


class Enforcer(ABC):
    """Holds kernels to some of their limits; one object for the whole server.

    All may block, and are called in threads: `hold` of one kernel one call after the other, `read` at any time beside
    the others. To write another one: this class, a dotted path in `KernelLimits.enforcers`, and the
    contract `testing.EnforcerContract`.
    """

    kills: ClassVar[bool] = False  # it has the operating system kill what takes too much memory, at once
    charges: ClassVar[bool] = False  # it holds what a kernel is charged for, also if that is in none of its processes
    exact = False  # memory is to be told exactly however little it is: the guard sums it up
    name: ClassVar[str]
    holds: ClassVar[frozenset[str]]  # the limits that it can hold where the machine lets it

    def __init__(self, headroom: float) -> None:
        """*headroom*: the share above a limit on memory or processes up to which a kernel is asked to stop first."""
        self.headroom = headroom

    @abstractmethod
    def prepare(self) -> dict[str, str]:
        """Look at the machine once, at the server's start: limits that can't be held here, and what it would take."""

    def hold_together(self, total: Allowance, limits: frozenset[str]) -> None:
        """All kernels together are held to *limits* of *total*, too; called once, before the first `hold`.

        An enforcer that can't do that does nothing here: the guard adds up what it reads.
        """
        return

    def refused_together(self) -> frozenset[str]:
        """The limits of that sum of which the operating system has refused more, since this was last asked."""
        return frozenset()

    def leaves(self) -> dict[str, str]:
        """Control groups that would be left were the server killed, and for each where its processes are to go."""
        return {}

    @abstractmethod
    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        """Hold the kernel to *limits* of *allowance* from now on: when it starts, restarts, or its limits change.

        Raises `NotEnforceable`; the kernel is then not started, or keeps its former limits.
        """

    @abstractmethod
    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        """What each of these kernels uses, by kernel id. *others* are processes of ours that belong to no kernel of
        these: templates, checkpoints, further kernels. Those that ended are left out."""

    def why_ended(self, subject: Subject) -> tuple[str, float] | None:
        """The limit for which the operating system ended the kernel's process, and the most that was used of it; None
        if this enforcer knows of none."""
        return None

    def has_killed(self, subject: Subject) -> bool:
        """Whether the operating system has killed a process of the kernel's for its memory, of which `read` has not
        told yet. Asked at the end of every cell of a kernel that is held to a limit on memory: cheap."""
        return False

    def end(self, subject: Subject) -> bool:
        """Kill every process of the kernel, also those that left its session; false where that is not possible."""
        return False

    def set_apart(self, pid: int) -> None:
        """*pid*, a fork of a kernel, is to be held to that kernel's limits no more: a checkpoint, or a kernel without
        limits of its own."""
        return

    def let_go(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        return

    def close(self) -> None:
        """The server stops; leave nothing behind."""
        return


@dataclass(frozen=True)
class Held:
    """Which enforcer holds which limit here, and why the others can't be held."""

    by: dict[str, Enforcer]
    missing: dict[str, str]

    def limits_of(self, enforcer: Enforcer) -> frozenset[str]:
        """Those that *enforcer* holds."""
        return frozenset(limit for limit, one in self.by.items() if one is enforcer)


def assign(enforcers: Iterable[Enforcer], prepare: Callable[[Enforcer], dict[str, str]] | None = None) -> Held:
    """Give each limit to the first enforcer that can hold it on this machine. Blocks."""
    by: dict[str, Enforcer] = {}
    missing: dict[str, list[str]] = {}
    for enforcer in enforcers:
        cannot = prepare(enforcer) if prepare is not None else enforcer.prepare()
        for limit in sorted(enforcer.holds):
            if limit in cannot:
                missing.setdefault(limit, []).append(f"{enforcer.name}: {cannot[limit]}")
            else:
                by.setdefault(limit, enforcer)
    return Held(by, {limit: "; ".join(why) for limit, why in missing.items() if limit not in by})
