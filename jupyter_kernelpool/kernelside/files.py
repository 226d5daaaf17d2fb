"""Open files across a fork.

Parent and child share each open file description, so a read or seek of one moves the other: the child opens
regular files again, at the offset of the moment of the fork. And they both hold what was written to a Python
file object and not yet flushed: it would be written twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import os
import stat
from collections.abc import Set as AbstractSet
from typing import Any

from .copying import Copied

FIRST_OF_USER = 3  # standard streams stay shared: they are the server's log

Places = dict[int, tuple[os.stat_result, int]]


def places(found: dict[int, os.stat_result]) -> Places:
    """Where each regular file among *found* stands; the standard streams and their copies are left out."""
    streams = {(facts.st_dev, facts.st_ino) for fd, facts in found.items() if fd < FIRST_OF_USER}
    noted = {}
    for fd, facts in found.items():
        if stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in streams:
            with contextlib.suppress(OSError):  # another thread closed it
                noted[fd] = (facts, os.lseek(fd, 0, os.SEEK_CUR))
    return noted


def reopen(noted: Places, copied: Copied | None = None) -> list[int]:
    """Give each of these descriptors an open file description of this process's own; returns those it can't.

    What lies in a folder that was copied is opened in the copy, and *noted* says so then.
    """
    shared = []
    for fd, (facts, offset) in noted.items():
        if not is_same(fd, facts):  # closed since, as a hook did or we
            continue
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
            inheritable = os.get_inheritable(fd)
            # Through /proc: also what was renamed or deleted since.
            path = f"/proc/self/fd/{fd}"
            place = copied.place_of(os.readlink(path)) if copied is not None else None
            if place is not None and os.path.isfile(place):
                path = place
            own = os.open(path, flags)
            os.lseek(own, offset, os.SEEK_SET)
            os.dup2(own, fd, inheritable)
            os.close(own)
            noted[fd] = (os.fstat(fd), offset)
        except OSError:
            shared.append(fd)
    return shared


def flush(found: dict[int, os.stat_result], namespace: dict[str, Any]) -> None:
    """Flush every Python file object on one of *found* that may hold unwritten bytes.

    The *namespace*'s own are found quickly. Where a descriptor is open for writing and none of them has it,
    all objects of the process are searched: 15 ms for a million.
    """
    writable = {fd for fd, facts in found.items() if fd >= FIRST_OF_USER and _is_written(fd, facts)}
    if not writable:
        return
    for value in list(namespace.values()):
        if isinstance(value, io.IOBase):
            writable -= _flush_one(value)
    if writable:
        for value in gc.get_objects():
            if isinstance(value, (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
                _flush_one(value)


def open_descriptors(*, besides: AbstractSet[int] = frozenset()) -> dict[int, os.stat_result]:
    """The open descriptors, *besides* those, and what they refer to."""
    found = {}
    for fd in set(map(int, os.listdir("/proc/self/fd"))) - besides:
        with contextlib.suppress(OSError):  # the one that listed them is closed by now
            found[fd] = os.fstat(fd)
    return found


def same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether both tell of the same file, pipe or socket."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def is_same(fd: int, facts: os.stat_result) -> bool:
    """Whether *fd* still refers to what *facts* tell of."""
    try:
        return same(os.fstat(fd), facts)
    except OSError:
        return False


def facts_of(path: str) -> os.stat_result | None:
    """What `stat` says of *path*, or None where there is nothing."""
    try:
        return os.stat(path)
    except OSError:
        return None


def close_all_of(path: str) -> None:
    """Close every descriptor that refers to the file at *path*, behind the back of whoever opened it.

    Also where it was deleted meanwhile, as a journal of SQLite's is by a thread that the parent still has.
    """
    facts, deleted = facts_of(path), f"{os.path.realpath(path)} (deleted)"
    for fd, found in open_descriptors().items():
        if (facts is not None and same(found, facts)) or _name_of(fd) == deleted:
            os.close(fd)


def _name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # another thread closed it
        return ""


def _flush_one(file: io.IOBase) -> set[int]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        fd = file.fileno()
        file.flush()
        return {fd}
    return set()


def _is_written(fd: int, facts: os.stat_result) -> bool:
    """Whether *fd* is a regular file or pipe that is open for writing."""
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISFIFO(facts.st_mode)):
        return False
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:  # another thread closed it
        return False
