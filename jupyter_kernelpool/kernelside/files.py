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
from typing import Any

FIRST_OF_USER = 3  # standard streams stay shared: they are the server's log

Places = dict[int, tuple[os.stat_result, int]]


def places() -> Places:
    """Where each open regular file stands, by descriptor; the standard streams and their copies are left out."""
    found = open_descriptors()
    streams = {(facts.st_dev, facts.st_ino) for fd, facts in found.items() if fd < FIRST_OF_USER}
    return {
        fd: (facts, os.lseek(fd, 0, os.SEEK_CUR))
        for fd, facts in found.items()
        if stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in streams
    }


def reopen(noted: Places) -> list[int]:
    """Give each of these descriptors an open file description of this process's own; returns those it can't."""
    shared = []
    for fd, (facts, offset) in noted.items():
        if not is_same(fd, facts):  # closed since, as a hook did or we
            continue
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
            inheritable = os.get_inheritable(fd)
            # Through /proc: also what was renamed or deleted since.
            own = os.open(f"/proc/self/fd/{fd}", flags)
            os.lseek(own, offset, os.SEEK_SET)
            os.dup2(own, fd, inheritable)
            os.close(own)
        except OSError:
            shared.append(fd)
    return shared


def flush(namespace: dict[str, Any]) -> None:
    """Flush every Python file object that may hold unwritten bytes.

    The namespace's own are found quickly. Where a descriptor is open for writing and none of them has it,
    all objects of the process are searched: 15 ms for a million.
    """
    writable = {fd for fd, facts in open_descriptors().items() if fd >= FIRST_OF_USER and _is_written(fd, facts)}
    if not writable:
        return
    for value in list(namespace.values()):
        if isinstance(value, io.IOBase):
            writable -= _flush_one(value)
    if writable:
        for value in gc.get_objects():
            if isinstance(value, (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
                _flush_one(value)


def open_descriptors() -> dict[int, os.stat_result]:
    """The open descriptors and what they refer to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them is closed by now
            found[int(name)] = os.fstat(int(name))
    return found


def is_same(fd: int, facts: os.stat_result) -> bool:
    """Whether *fd* still refers to what *facts* tell of."""
    try:
        now = os.fstat(fd)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (facts.st_dev, facts.st_ino)


def close_all_of(path: str) -> None:
    """Close every descriptor that refers to the file at *path*, behind the back of whoever opened it."""
    try:
        facts = os.stat(path)
    except OSError:
        return
    for fd in open_descriptors():
        if is_same(fd, facts):
            os.close(fd)


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
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
