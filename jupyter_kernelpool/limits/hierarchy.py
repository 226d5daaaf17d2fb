"""Control groups of either version as one thing: groups that hold processes to limits. Version 2 is here too.

A group is named relative to the server's own, which is "" and above all others: what it limits is their sum.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jupyter_kernelpool.kernelside.removal import remove_groups
from jupyter_kernelpool.limits.places import Place, pids_in, read_table, readable

PERIOD = 100_000  # µs, the kernel's own default: a pause is never longer than this
LEAST_QUOTA = 1_000  # µs, the least that the kernel takes
ROUNDS = 50
PAUSE = 0.02
NEEDS = {"memory": ("memory",), "cpu": ("cpu", "cpuacct"), "processes": ("pids",)}


@dataclass(frozen=True)
class Tally:
    """What the processes of a group use, and what was done to them since it was made.

    *charged* is memory in bytes, what can be dropped and read again included. *cpu* in seconds. *periods* in which they
    ran, and how many of those they were *throttled* in. *refused* new processes, *killed* for memory.
    """

    charged: int
    cpu: float
    periods: int
    throttled: int
    processes: int
    refused: int
    killed: int


class Hierarchy(ABC):
    """The groups of one server; all of it blocks. What fails raises OSError."""

    version: ClassVar[str]

    def __init__(self, name: str, bases: Mapping[str, str], homes: Mapping[str, str], missing: dict[str, str]) -> None:
        """*name* is the folder that is made in each of *bases*; *homes* is where processes go that outlive their group.

        Both are by controller. *missing* are the limits that can't be held, with the reason.
        """
        self.tops = {controller: f"{base}/{name}" for controller, base in bases.items()}
        self.missing = missing
        self._homes = homes

    @property
    def leaves(self) -> dict[str, str]:
        """The folders that have to be removed in the end, each with where its processes go."""
        return {top: self._homes[controller] for controller, top in self.tops.items()}

    def make(self, group: str) -> None:
        """Make the group, and those above it; one that is there is no error."""
        for folder in self.folders(group):
            os.makedirs(folder, exist_ok=True)

    def put(self, group: str, pid: int) -> None:
        """Move a process into the group; one that has ended is no error."""
        for folder in self.folders(group):
            move(folder, pid)

    def has(self, group: str, pid: int | None = None) -> bool:
        """Whether the group is there, and *pid* in it."""
        folder = self.folders(group)[0]
        return os.path.isdir(folder) if pid is None else pid in pids_in(folder)

    def members(self, group: str) -> list[int]:
        """The processes in the group."""
        return pids_in(self.folders(group)[0])

    def end(self, group: str) -> bool:
        """Kill all processes of the group; whether none is left."""
        for _ in range(ROUNDS):
            left = self.members(group)
            if not left:
                return True
            self._kill(group, left)
            time.sleep(PAUSE)
        return False

    def remove(self, group: str) -> None:
        """Remove the group and those below it. What still runs there is spared, as stock spares it."""
        for controller in self.tops:
            with contextlib.suppress(OSError):
                remove_groups(self._path(controller, group), self._homes[controller])

    def folders(self, group: str) -> list[str]:
        """Where the group is."""
        return list(dict.fromkeys(self._path(controller, group) for controller in self.tops))

    @abstractmethod
    def limit_memory(self, group: str, allowed: int, hard: int) -> None:
        """At most *hard* bytes, 0 for no limit; what goes beyond *allowed* is slowed down, where that can be done."""

    @abstractmethod
    def limit_cpu(self, group: str, cores: float) -> None:
        """At most so many cores on average, 0 for no limit."""

    def limit_processes(self, group: str, most: int) -> None:
        """At most so many processes and threads, 0 for no limit: who wants one more is refused (EAGAIN)."""
        self._write("pids", group, "pids.max", most or "max")

    @abstractmethod
    def tally(self, group: str, last: Tally | None = None) -> Tally | None:
        """What it uses; None where it is gone. Where nothing has run in it since *last*, that: a third of the files."""

    @abstractmethod
    def killed(self, group: str) -> int:
        """The processes of it that were killed for memory, whoever had none left; cheap to read."""

    @abstractmethod
    def short(self, group: str) -> int | None:
        """How often memory was refused for the group's own limit, not for one below or above it; None where the system
        does not count that, and `highest` has to tell."""

    def forget_highest(self, group: str) -> None:
        """Have `highest` begin anew, where that can be done."""
        return

    def refused(self, group: str) -> int:
        """How often a process of it was refused another one; since Linux 6.11 of those below it too, for its limit."""
        return self._table("pids", group, "pids.events").get("max", 0)

    @abstractmethod
    def droppable(self, group: str) -> int:
        """How much of the memory that it is charged for is that of files, and can be dropped. Dear to read."""

    @abstractmethod
    def highest(self, group: str) -> int:
        """The most memory that it was ever charged for; 0 where the system does not tell."""

    def _kill(self, group: str, members: Collection[int]) -> None:
        """One try to kill them all; they get no more processes meanwhile, or they might outrun it."""
        if "pids" in self.tops:
            self._write("pids", group, "pids.max", 0)
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _path(self, controller: str, group: str) -> str:
        return f"{self.tops[controller]}/{group}".rstrip("/")

    def _write(self, controller: str, group: str, name: str, value: object) -> None:
        write(f"{self._path(controller, group)}/{name}", value)

    def _read(self, controller: str, group: str, name: str) -> str:
        return readable(f"{self._path(controller, group)}/{name}") if controller in self.tops else ""

    def _number(self, controller: str, group: str, name: str) -> int:
        text = self._read(controller, group, name).strip()
        return int(text) if text.isdigit() else 0

    def _table(self, controller: str, group: str, name: str) -> dict[str, int]:
        return read_table(f"{self._path(controller, group)}/{name}") if controller in self.tops else {}


class Unified(Hierarchy):
    """Version 2: one folder for all controllers."""

    version = "v2"

    def __init__(self, name: str, place: Place, ours: Callable[[], Collection[int]]) -> None:
        """*ours* tells the pids of the server's own processes at the moment."""
        present = [each for each in ("memory", "cpu", "pids") if each in place.controllers]
        missing = {
            limit: f"the cgroup controller {needs[0]} is not delegated to the server (Delegate=cpu memory pids)"
            for limit, needs in NEEDS.items()
            if needs[0] not in place.controllers
        }
        super().__init__(name, dict.fromkeys(present, place.base), dict.fromkeys(present, place.home), missing)
        self._place = place
        self._ours = ours

    def make(self, group: str) -> None:
        top = self.folders("")[0]
        if not os.path.isdir(top):
            self._open()
            os.makedirs(top, exist_ok=True)
            self._share(top)
        super().make(group)

    def limit_memory(self, group: str, allowed: int, hard: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # without swap there is no such file
            self._write("memory", group, "memory.swap.max", 0 if hard else "max")
        self._write("memory", group, "memory.high", allowed if 0 < allowed < hard else "max")
        self._write("memory", group, "memory.max", hard or "max")

    def limit_cpu(self, group: str, cores: float) -> None:
        self._write("cpu", group, "cpu.max", f"{quota_of(cores) if cores else 'max'} {PERIOD}")

    def tally(self, group: str, last: Tally | None = None) -> Tally | None:
        cpu = self._table("cpu", group, "cpu.stat")
        if not cpu and not self.has(group):
            return None
        spent = cpu.get("usage_usec", 0) / 1e6
        if last is not None and 0 < spent == last.cpu:
            return last
        return Tally(
            charged=self._number("memory", group, "memory.current"),
            cpu=spent,
            periods=cpu.get("nr_periods", 0),
            throttled=cpu.get("nr_throttled", 0),
            processes=self._number("pids", group, "pids.current"),
            refused=self.refused(group),
            killed=self.killed(group),
        )

    def killed(self, group: str) -> int:
        return self._table("memory", group, "memory.events").get("oom_kill", 0)

    def short(self, group: str) -> int | None:
        events = self._table("memory", group, "memory.events.local")  # since Linux 5.2
        return (events or self._table("memory", group, "memory.events")).get("oom", 0)

    def droppable(self, group: str) -> int:
        memory = self._table("memory", group, "memory.stat")
        return memory.get("file", 0) - memory.get("shmem", 0) + memory.get("slab_reclaimable", 0)

    def highest(self, group: str) -> int:
        return self._number("memory", group, "memory.peak")  # since Linux 5.19

    def _kill(self, group: str, members: Collection[int]) -> None:
        try:
            write(f"{self.folders(group)[0]}/cgroup.kill", 1)  # since Linux 5.14
        except FileNotFoundError:
            super()._kill(group, members)

    def _open(self) -> None:
        """Empty the base of processes, ours only, and have it share its controllers out."""
        place = self._place
        for _ in range(ROUNDS):
            if place.moves:
                os.makedirs(place.home, exist_ok=True)
                ours = self._ours()
                for pid in pids_in(place.base):
                    if pid not in ours:
                        raise OSError(errno.EBUSY, f"process {pid}, which is not the server's, came into its cgroup")
                    move(place.home, pid)
            try:
                self._share(place.base)
            except OSError as error:
                if error.errno != errno.EBUSY or not place.moves:  # else: a process of ours was just being made
                    raise
                time.sleep(PAUSE)
            else:
                return
        raise OSError(errno.EBUSY, f"the processes in {place.base} could not all be moved")

    def _share(self, folder: str) -> None:
        write(f"{folder}/cgroup.subtree_control", " ".join(f"+{controller}" for controller in self.tops))


def move(folder: str, pid: int) -> None:
    """Put a process, with all its threads, into a cgroup; one that has ended is no error."""
    with contextlib.suppress(ProcessLookupError):
        write(f"{folder}/cgroup.procs", pid)


def write(path: str, value: object) -> None:
    """Write to a file of a cgroup, which is there already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def quota_of(cores: float) -> int:
    """So many cores as µs of each `PERIOD`."""
    return max(LEAST_QUOTA, round(cores * PERIOD))
