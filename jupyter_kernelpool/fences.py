"""What stands around the whole server: the limits of the control groups it is in, a service's, a container's.

Limits on kernels are guard-rails; these are fences. What is free below them is what there is to share out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from jupyter_kernelpool.allowance import human
from jupyter_kernelpool.limits.places import UNITS, Mounts, read_mounts, read_table, readable

UNLIMITED = 1 << 60  # what version 1 says where there is no limit is a little less than 1 << 63
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")


@dataclass(frozen=True)
class Fence:
    """*kind*: `memory`, `cpu` or `processes` of a control group, `service` or `container`; *what*, for people."""

    kind: str
    what: str


def find_mounts() -> Mounts:
    """The server's control groups. Blocks."""
    return read_mounts(readable("/proc/self/cgroup"), readable("/proc/self/mountinfo"))


def memory_room(mounts: Mounts) -> int | None:
    """Bytes left below the tightest of all limits on memory around the server; None without one. Blocks.

    Files that were read and lie unused count as free: they are dropped before anything else, and fill a group in time.
    """
    rooms = [
        max(0, limit - max(0, used - _unused_files(folder)))
        for folder, limit_name, used_name in _memory_folders(mounts)
        if (limit := _limit(f"{folder}/{limit_name}")) is not None
        and (used := _limit(f"{folder}/{used_name}")) is not None
    ]
    return min(rooms, default=None)


def find_fences(mounts: Mounts) -> list[Fence]:
    """What stands around the server. Blocks."""
    found = []
    memory = [limit for folder, name, _ in _memory_folders(mounts) if (limit := _limit(f"{folder}/{name}")) is not None]
    if memory:
        found.append(Fence("memory", f"{human('memory', min(memory))} for the server and its kernels"))
    cores = list(_cores(mounts))
    if cores:
        found.append(Fence("cpu", f"{human('cpu', min(cores))} for the server and its kernels"))
    tasks = [
        limit
        for folder in [*_upwards(mounts.unified, mounts.unified_top), *_upwards(mounts.legacy.get("pids"), "")]
        if (limit := _limit(f"{folder}/pids.max")) is not None
    ]
    if tasks:
        found.append(Fence("processes", f"{min(tasks)} processes and threads for the server and its kernels"))
    unit = _unit(mounts)
    if unit is not None:
        found.append(Fence("service", f"systemd runs it in {unit}"))
    if any(os.path.exists(mark) for mark in CONTAINER_MARKS) or b"container=" in _init_environment():
        found.append(Fence("container", "it runs in a container"))
    return found


def _memory_folders(mounts: Mounts) -> Iterator[tuple[str, str, str]]:
    for folder in _upwards(mounts.unified, mounts.unified_top):
        yield folder, "memory.max", "memory.current"
    for folder in _upwards(mounts.legacy.get("memory"), ""):
        yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes"


def _upwards(folder: str | None, top: str) -> Iterator[str]:
    """*folder* and those it lies in, up to *top*, or while they are control groups."""
    while folder and folder != "/" and os.path.exists(f"{folder}/cgroup.procs"):
        yield folder
        if folder == top:
            return
        folder = os.path.dirname(folder)


def _limit(path: str) -> int | None:
    text = readable(path).strip()
    return int(text) if text.isdigit() and int(text) < UNLIMITED else None


def _unused_files(folder: str) -> int:
    """Bytes of files that a control group, or one below it, is charged for, and nobody used of late.

    Not all that could be dropped, as `Hierarchy.droppable` tells: files in use would have to be read again at once.
    """
    table = read_table(f"{folder}/memory.stat")
    return table.get("total_inactive_file", table.get("inactive_file", 0))  # of version 1, where the latter is its own


def _cores(mounts: Mounts) -> Iterator[float]:
    """The quota of each group that has one, in cores."""
    shares = [readable(f"{folder}/cpu.max").split() for folder in _upwards(mounts.unified, mounts.unified_top)]
    shares += [
        [readable(f"{folder}/cpu.cfs_{each}_us").strip() for each in ("quota", "period")]
        for folder in _upwards(mounts.legacy.get("cpu"), "")
    ]
    for share in shares:
        if len(share) == 2 and all(part.isdigit() for part in share):  # "max" in version 2, -1 in version 1: none
            yield int(share[0]) / int(share[1])


def _unit(mounts: Mounts) -> str | None:
    folder = mounts.unified or mounts.legacy.get("name=systemd") or ""
    names = [part for part in folder.split("/") if part.endswith(UNITS) and not part.endswith(".slice")]
    return names[-1] if names else None


def _init_environment() -> bytes:
    """What systemd and container engines tell the first process of a container, where we may read it."""
    return readable("/proc/1/environ").encode()
