"""What Linux limits for groups of processes: a group for each kernel, below one for the server.

A fork moved into a group of its own is not charged for what it shares with the process it was forked from: a page is
charged to the group whose process first touched it, for as long as anybody has it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import quote

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.limits.hierarchy import NEEDS, Hierarchy, Tally, Unified
from jupyter_kernelpool.limits.legacy import Legacy
from jupyter_kernelpool.limits.places import Place, find_place, read_mounts, readable
from jupyter_kernelpool.memory import charge, read_memory
from jupyter_kernelpool.usage import scan

APART = "apart"  # forks of limited kernels that are held to the sum only: checkpoints, and kernels without limits
EXACT_FROM = 0.5  # of the limit: below it an upper bound of the memory will do
SLOWED = 0.5  # of the periods in which it ran: less is a burst, not what somebody has to be told of
FULL = 0.9  # of the processes allowed: a refusal below it was the sum's
BATCH = 1 << 20  # bytes; memory is charged by some pages at once
EXITING = 0x4  # among the flags of /proc/PID/stat (PF_EXITING, include/linux/sched.h)
KILL = 1 << (signal.SIGKILL - 1)
DOUBTED_FOR = 0.7  # seconds; the end of a cell is kept back for one (see `guard`)
LEAST_SPAN = 0.4  # seconds over which cores are told: a moment's work is no reason to tell that it is slowed down
WORTH_COUNTING = 0.05  # of the limit: exact memory is dear to read


@dataclass
class Watched:
    """What is known of a kernel's group since its present process came.

    *uncharged* is the memory that the process had for itself before it came into the group. *tally* is the one before,
    with the processor's part of that *at*, over which cores are told; *read* is as it was read.
    *short* is how often memory had been refused by then, for the group's own limit and for the sum's. So many killed
    processes are *told* of already. *own* are the processes that were there then: more than one where the kernel runs
    behind something; as one of them was seen to be gone, at *doubted*, the others may follow.
    """

    pid: int
    allowance: Allowance
    uncharged: int
    tally: Tally
    at: float
    short: tuple[int | None, int | None]
    told: int
    own: frozenset[int]
    doubted: float | None = None
    pending: bool = False  # it uses more memory than it is allowed by now: the limit is set when it does not
    read: Tally | None = None
    cores: float | None = None
    throttled: int = 0
    refused: int = 0  # processes that were killed for a limit of ours
    peak: int = 0


class CgroupEnforcer(Enforcer):
    """cgroup v2 where it is delegated to the server or the server is root's, else v1 (root only)."""

    name = "cgroup"
    holds = frozenset(NEEDS)
    kills = True
    charges = True

    def __init__(self, headroom: float) -> None:
        super().__init__(headroom)
        self._hierarchy: Hierarchy | None = None
        self._total = Allowance()
        self._summed: frozenset[str] = frozenset()
        self._watched: dict[str, Watched] = {}
        self._refused_together = False
        self._refused_above = 0

    def prepare(self) -> dict[str, str]:
        found = find_hierarchy(f"jupyter-kernelpool-{os.getpid()}-{secrets.token_hex(4)}")
        if isinstance(found, str):
            return dict.fromkeys(self.holds, found)
        self._hierarchy = found
        return found.missing

    def hold_together(self, total: Allowance, limits: frozenset[str]) -> None:
        self._total, self._summed = total, limits & total.limited

    def refused_together(self) -> frozenset[str]:
        if "processes" not in self._summed or not self._groups.has(""):
            return frozenset()
        above, self._refused_above = self._refused_above, self._groups.refused("")
        refused, self._refused_together = self._refused_together or self._refused_above > above, False
        return frozenset({"processes"}) if refused else frozenset()

    def leaves(self) -> dict[str, str]:
        return self._hierarchy.leaves if self._hierarchy is not None else {}

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        group = group_of(subject.kernel_id)
        try:
            self._hold(group, subject, allowance, limits)
        except OSError as error:
            if subject.kernel_id not in self._watched:
                self._groups.remove(group)
            limit = min(limits & allowance.limited, default="memory")
            raise NotEnforceable(
                f"kernel {subject.kernel_id} can't be held to its limits: {error}",
                limit=limit,
                needed=f"a cgroup that lets the server do that ({error.filename or error.strerror})",
            ) from error

    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        found = {}
        for subject in subjects:
            watched = self._watched.get(subject.kernel_id)
            if watched is None or watched.pid != subject.pid or has_ended(subject.pid):
                continue
            tally = watched.read = self._groups.tally(group_of(subject.kernel_id), watched.read)
            if tally is not None and not (tally.killed > watched.told and self._is_ending(watched)):
                found[subject.kernel_id] = self._reading(subject, watched, tally)
        return found

    def why_ended(self, subject: Subject) -> tuple[str, float] | None:
        watched = self._watched.get(subject.kernel_id)
        tally = self._groups.tally(group_of(subject.kernel_id)) if watched is not None else None
        if watched is None or tally is None or tally.killed <= watched.told:
            return None
        if not self._fell_short(group_of(subject.kernel_id), watched):
            return None
        return "memory", max(watched.peak, self._groups.highest(group_of(subject.kernel_id)))

    def has_killed(self, subject: Subject) -> bool:
        watched = self._watched.get(subject.kernel_id)
        if watched is None or watched.pid != subject.pid:
            return False
        return self._groups.killed(group_of(subject.kernel_id)) > watched.told

    def end(self, subject: Subject) -> bool:
        return subject.kernel_id in self._watched and self._groups.end(group_of(subject.kernel_id))

    def set_apart(self, pid: int) -> None:
        groups = self._hierarchy
        if groups is None or not self._watched:
            return
        top = os.path.basename(groups.folders("")[0])
        if f"/{top}/" in readable(f"/proc/{pid}/cgroup"):
            groups.make(APART)
            groups.put(APART, pid)

    def let_go(self, kernel_id: str) -> None:
        if self._watched.pop(kernel_id, None) is not None:
            self._groups.remove(group_of(kernel_id))

    def close(self) -> None:
        self._watched.clear()
        if self._hierarchy is not None and self._hierarchy.has(""):
            self._hierarchy.remove("")

    @property
    def _groups(self) -> Hierarchy:
        assert self._hierarchy is not None, "it was given limits that it can't hold"
        return self._hierarchy

    def _hold(self, group: str, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        groups, present = self._groups, self._watched.get(subject.kernel_id)
        if not groups.has(""):
            groups.make("")
            self._limit("", self._total, self._summed)
        groups.make(group)
        tally = groups.tally(group)
        assert tally is not None
        pending = "memory" in limits and self._exceeds(group, allowance.memory)
        self._limit(group, allowance, limits - {"memory"} if pending else limits)
        if present is not None and present.pid == subject.pid:
            if allowance.memory and not present.allowance.memory:
                present.uncharged = self._uncharged(subject, groups.members(group), allowance, tally.charged)
            present.allowance, present.pending = allowance, pending
            return
        groups.forget_highest(group)
        pids = [one.pid for one in scan().tree(subject.pid)] or [subject.pid]
        uncharged = self._uncharged(subject, pids, allowance, 0)
        for pid in pids:
            groups.put(group, pid)
        self._watched[subject.kernel_id] = Watched(
            pid=subject.pid,
            allowance=allowance,
            uncharged=uncharged,
            tally=tally,
            at=time.monotonic(),
            short=self._short(group),
            told=tally.killed,
            own=frozenset(pids),
            pending=pending,
        )

    def _limit(self, group: str, allowance: Allowance, limits: frozenset[str]) -> None:
        if "memory" in limits:
            # Above the sum nobody is slowed down: it would be the innocent, too.
            soft = allowance.memory if group else 0
            self._groups.limit_memory(group, soft, self._hard(allowance.memory))
        if "cpu" in limits:
            self._groups.limit_cpu(group, allowance.cpu)
        if "processes" in limits:
            self._groups.limit_processes(group, allowance.processes)

    def _hard(self, memory: int) -> int:
        return int(memory * (1 + self.headroom))

    def _reading(self, subject: Subject, watched: Watched, tally: Tally) -> Reading:
        now, before, allowance = time.monotonic(), watched.tally, watched.allowance
        group = group_of(subject.kernel_id)
        used: dict[str, float] = {"memory": self._memory(group, subject, watched, tally.charged)}
        if spans := now - watched.at >= LEAST_SPAN:
            watched.cores = max(0.0, tally.cpu - before.cpu) / (now - watched.at)
            watched.throttled += tally.throttled - before.throttled > SLOWED * (tally.periods - before.periods)
        if watched.cores is not None:
            used["cpu"] = watched.cores
        used["processes"] = tally.processes
        asked_for_more = tally.refused > before.refused
        if asked_for_more and (not self._total.processes or 0 < FULL * allowance.processes <= tally.processes):
            used["processes"] = max(tally.processes, allowance.processes + 1)
        elif asked_for_more:
            self._refused_together = True
        if watched.pending and not self._exceeds(group, allowance.memory):
            self._limit_at_last(group, watched)
        watched.told = tally.killed
        if tally.killed > before.killed:  # else files that it read may be in the highest
            watched.peak = max(watched.peak, self._groups.highest(group))
            if self._fell_short(group, watched):
                watched.refused += tally.killed - before.killed
        if spans:
            watched.tally, watched.at = tally, now
        else:
            watched.tally = replace(tally, cpu=before.cpu, throttled=before.throttled, periods=before.periods)
        refused = {"memory": watched.refused} if watched.refused else {}
        return Reading(used, watched.peak, refused, watched.throttled)

    def _limit_at_last(self, group: str, watched: Watched) -> None:
        try:
            self._limit(group, watched.allowance, frozenset({"memory"}))
        except OSError:  # it uses too much again: at the next look
            return
        watched.pending = False

    def _short(self, group: str) -> tuple[int | None, int | None]:
        return self._groups.short(group), self._groups.short("")

    def _is_ending(self, watched: Watched) -> bool:
        """Whether it is the kernel itself that is being killed, and not a process that it started.

        Of a kernel behind something only what is inside may be killed, and what is around it ends a moment later.
        """
        if is_dying(watched.pid):
            return True
        now, gone = time.monotonic(), {pid for pid in watched.own if is_dying(pid)}
        if gone:
            watched.own, watched.doubted = watched.own - gone, now
        return watched.doubted is not None and now - watched.doubted < DOUBTED_FOR

    def _fell_short(self, group: str, watched: Watched) -> bool:
        """Whether a process of the group can have been killed for a limit of ours: else it is the machine that had no
        memory left, or a container that the server runs in."""
        limits = watched.allowance.memory, self._total.memory
        return any(
            limit and (before < now if before is not None and now is not None else self._was_full(where, limit))
            for where, limit, before, now in zip((group, ""), limits, watched.short, self._short(group), strict=True)
        )

    def _was_full(self, group: str, memory: int) -> bool:
        return self._groups.highest(group) >= self._hard(memory) - BATCH

    def _memory(self, group: str, subject: Subject, watched: Watched, charged: int) -> int:
        """Exactly where that matters: near the limit, and where it is summed up with others'."""
        most, allowed = charged + watched.uncharged, watched.allowance.memory
        if not self.exact and (not allowed or most < EXACT_FROM * allowed):
            return most
        exact = max(0, charged - self._groups.droppable(group))
        if watched.uncharged:
            pids = self._groups.members(group)
            whole = charge(subject.pid, read_memory(pids), inherited=subject.inherited)
            exact = max(exact, min(exact + watched.uncharged, whole))
        watched.peak = max(watched.peak, exact)
        return exact

    def _uncharged(self, subject: Subject, pids: list[int], allowance: Allowance, charged: int) -> int:
        """Of the memory of these processes what the group is not charged, who is *charged* so much; 0 where nobody
        asks, or it does not matter."""
        if not allowance.memory:
            return 0
        uncharged = charge(subject.pid, read_memory(pids), inherited=subject.inherited) - charged
        return uncharged if uncharged >= WORTH_COUNTING * allowance.memory else 0

    def _exceeds(self, group: str, memory: int) -> bool:
        """Whether it uses more than a hard limit would let it: one that is set nevertheless ends it at once."""
        tally = self._groups.tally(group)
        charged = tally.charged if tally is not None else 0
        hard = self._hard(memory)
        return bool(hard) and charged > hard and charged - self._groups.droppable(group) > hard


def find_hierarchy(name: str) -> Hierarchy | str:
    """Where the server may make groups below one called *name*; else why it may not, and what it would take."""
    if sys.platform != "linux":
        return f"control groups are Linux's (this is {sys.platform})"
    mounts = read_mounts(readable("/proc/self/cgroup"), readable("/proc/self/mountinfo"))
    pid = os.getpid()
    place: Place | str = "no control groups are mounted"
    if mounts.unified is not None:
        place = find_place(mounts.unified, mounts.unified_top, our_pids(pid))
    legacy = Legacy(name, mounts.legacy)
    found = [Unified(name, place, lambda: our_pids(pid)), legacy] if isinstance(place, Place) else [legacy]
    best = min(found, key=lambda one: len(one.missing))
    if len(best.missing) < len(NEEDS):
        return best
    return place if isinstance(place, str) and "memory" not in mounts.legacy else best.missing["memory"]


def our_pids(pid: int) -> frozenset[int]:
    """The server *pid* and all processes below it."""
    return frozenset(one.pid for one in scan().tree(pid))


def group_of(kernel_id: str) -> str:
    """The name of a kernel's group; an id may hold anything."""
    return f"kernel-{quote(kernel_id, safe='')}"


def is_dying(pid: int) -> bool:
    """Whether the process is being killed, which takes as long as giving back its memory does."""
    line = readable(f"/proc/{pid}/stat")
    if not line or int(line.rpartition(")")[2].split()[6]) & EXITING:
        return True
    rows = (row.partition(":") for row in readable(f"/proc/{pid}/status").splitlines())
    return any(name in ("SigPnd", "ShdPnd") and int(signals, 16) & KILL for name, _, signals in rows)


def has_ended(pid: int) -> bool:
    """Whether nothing of the process is left but its entry."""
    line = readable(f"/proc/{pid}/stat")
    return not line or line.rpartition(")")[2].split()[0] in "ZX"
