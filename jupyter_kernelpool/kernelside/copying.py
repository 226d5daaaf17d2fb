"""A copy of a folder, made by the kernel that works in it while it stands still for a fork. Standard library only.

Each file is cloned where the file system can (`FICLONE`, ioctl_ficlone(2): no bytes are written until one of the
two changes), else copied without its holes. No link is ever followed. What is too much is refused before
anything is copied.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .hazards import Refused

PREFIX = "kernelpool-copy-"  # of the folders that hold copies; one that lies in what is copied is left out
FICLONE = 0x40049409
CHUNK = 16 * 1024 * 1024
BLOCK = 512  # what st_blocks counts in
# Of the folder that is written to: nothing more would be copied whole.
FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# What copy_file_range(2) says where it can't: then sendfile(2) can.
CAN_NOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}
KINDS = {stat.S_IFSOCK: "socket", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
MOST_NAMED = 5


@dataclass
class Copied:
    """What was copied from *source* to *to*: *files* with *size* bytes of data, *reflinked* of them cloned.

    *left_out* says what was not: kind -> paths below *source*.
    """

    source: str
    to: str
    files: int = 0
    size: int = 0
    reflinked: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: str, path: str) -> None:
        """Note that *path* is not in the copy, and what it is."""
        self.left_out.setdefault(kind, []).append(path)

    def place_of(self, path: str) -> str | None:
        """Where the copy of *path*, an absolute one, is; None if it does not lie in *source*."""
        inside = below(path, self.source)
        return os.path.join(self.to, inside) if inside is not None else None

    def as_facts(self) -> dict[str, Any]:
        """For the manifest."""
        facts = {"from": self.source, "to": self.to, "files": self.files, "bytes": self.size}
        return {**facts, "reflinked": self.reflinked}


@dataclass
class Entry:
    """A thing in the folder: its path below it, and what `lstat` said."""

    path: str
    facts: os.stat_result


def copy_working_folder(order: dict[str, Any], fd: int) -> Copied:
    """Copy this process's working directory to the empty folder `order["to"]`.

    At most `most_bytes` of data and `most_entries` files and folders. Raises `Refused`: `too_large`, before
    anything is copied; `no_folder`; `copy_failed`; `cancelled` when the other end of the socket *fd* is closed.
    What was copied until then is left to whoever made the folder.
    """
    try:
        source = os.getcwd()
    except OSError as error:
        text = "The working directory is gone, so it can't be copied."
        raise Refused("no_folder", text, "Change to one that is there, or share the files.") from error
    copied = Copied(source, order["to"])
    try:
        entries = survey(copied, order["most_bytes"], order["most_entries"])
        _Copying(copied, order["most_bytes"], _hung_up(fd)).run(entries)
    except OSError as error:
        text = f"The working directory could not be copied to {copied.to}: {error.strerror or error}."
        raise Refused("copy_failed", text, "") from error
    return copied


def survey(copied: Copied, most_bytes: int, most_entries: int) -> list[Entry]:
    """What there is to copy, folders before what they hold; raises `Refused` when it is too much."""
    place = os.stat(os.path.dirname(copied.to))
    found: list[Entry] = []
    size = 0
    seen: set[tuple[int, int]] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        whole = os.path.join(copied.source, folder)
        try:
            with os.scandir(whole) as listing:
                rows = sorted(listing, key=lambda row: row.name)
                facts = os.stat(whole)
        except OSError:
            copied.leave_out("folder that can't be read", folder or ".")
            continue
        holds_copies = (facts.st_dev, facts.st_ino) == (place.st_dev, place.st_ino)
        for row in rows:
            if holds_copies and row.name.startswith(PREFIX):
                continue
            try:
                entry = Entry(os.path.join(folder, row.name), row.stat(follow_symlinks=False))
            except OSError:  # removed meanwhile
                continue
            found.append(entry)
            if len(found) > most_entries:
                text = f"holds more than {most_entries} files and folders, which is all that may be copied"
                raise _too_large(copied.source, text, entries=len(found), limit=most_entries)
            if stat.S_ISDIR(entry.facts.st_mode):
                folders.append(entry.path)
            elif stat.S_ISREG(entry.facts.st_mode) and (entry.facts.st_dev, entry.facts.st_ino) not in seen:
                seen.add((entry.facts.st_dev, entry.facts.st_ino))
                size += min(entry.facts.st_size, entry.facts.st_blocks * BLOCK)
    if size > most_bytes:
        text = f"holds {size} bytes in {len(found)} files and folders, and {most_bytes} may be copied"
        raise _too_large(copied.source, text, bytes=size, limit=most_bytes)
    return found


class _Copying:
    """One copy under way."""

    def __init__(self, copied: Copied, most_bytes: int, unwanted: Callable[[], bool]) -> None:
        self._copied = copied
        self._most = most_bytes
        self._unwanted = unwanted
        self._links: dict[tuple[int, int], str] = {}  # files with several names: the copy of the first

    def run(self, entries: list[Entry]) -> None:
        """Copy *entries*; folders get their modes and times last, when nothing in them changes any more."""
        copied = self._copied
        folders = [Entry("", os.stat(copied.source))]
        for entry in entries:
            if self._unwanted():
                raise Refused("cancelled", "It was withdrawn while files were copied.", "")
            mode = entry.facts.st_mode
            if stat.S_ISDIR(mode):
                os.mkdir(os.path.join(copied.to, entry.path), 0o700)
                folders.append(entry)
            elif stat.S_ISLNK(mode):
                self._link(entry)
            elif stat.S_ISREG(mode):
                self._file(entry)
            else:
                copied.leave_out(KINDS.get(stat.S_IFMT(mode), "special file"), entry.path)
        for folder in reversed(folders[1:]):
            with contextlib.suppress(OSError):  # the folder is there, with a mode or time of its own
                shutil.copystat(os.path.join(copied.source, folder.path), os.path.join(copied.to, folder.path))

    def _file(self, entry: Entry) -> None:
        copied = self._copied
        source, target = os.path.join(copied.source, entry.path), os.path.join(copied.to, entry.path)
        key = (entry.facts.st_dev, entry.facts.st_ino)
        if key in self._links:
            os.link(self._links[key], target)
            return
        try:
            # Not blocking: it may have become a pipe meanwhile.
            reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in FATAL:
                raise
            if error.errno != errno.ENOENT:  # removed meanwhile
                copied.leave_out("file that can't be read", entry.path)
            return
        try:
            facts = os.fstat(reading)
            if not stat.S_ISREG(facts.st_mode):
                copied.leave_out("special file", entry.path)
                return
            writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._content(reading, writing, facts)
            except OSError as error:
                if error.errno in FATAL:
                    raise
                os.unlink(target)
                copied.leave_out("file that can't be read", entry.path)
                return
            finally:
                os.close(writing)
        finally:
            os.close(reading)
        with contextlib.suppress(OSError):
            shutil.copystat(source, target, follow_symlinks=False)
        copied.files += 1
        if facts.st_nlink > 1:
            self._links[key] = target

    def _content(self, reading: int, writing: int, facts: os.stat_result) -> None:
        if facts.st_size:
            try:
                fcntl.ioctl(writing, FICLONE, reading)
            except OSError as error:
                if error.errno in FATAL:
                    raise
            else:
                self._copied.reflinked += 1
                self._count(min(facts.st_size, facts.st_blocks * BLOCK))
                return
        os.ftruncate(writing, facts.st_size)
        for begin, end in _pieces(reading, facts.st_size):
            self._piece(reading, writing, begin, end)

    def _piece(self, reading: int, writing: int, at: int, end: int) -> None:
        ranges = hasattr(os, "copy_file_range")
        while at < end:
            if self._unwanted():
                raise Refused("cancelled", "It was withdrawn while files were copied.", "")
            done = 0
            if ranges:
                try:
                    done = os.copy_file_range(reading, writing, min(CHUNK, end - at), at, at)
                except OSError as error:
                    if error.errno not in CAN_NOT:
                        raise
                ranges = done > 0
            if not done:
                os.lseek(writing, at, os.SEEK_SET)
                done = os.sendfile(writing, reading, at, min(CHUNK, end - at))
            if not done:  # it was cut short meanwhile
                os.ftruncate(writing, at)
                return
            at += done
            self._count(done)

    def _count(self, size: int) -> None:
        self._copied.size += size
        if self._copied.size > self._most:
            text = f"grew while it was copied, and {self._most} bytes may be copied"
            raise _too_large(self._copied.source, text, bytes=self._copied.size, limit=self._most)

    def _link(self, entry: Entry) -> None:
        """A link stays a link. One that stays inside leads to the copy, any other where it led before."""
        copied = self._copied
        source, target = os.path.join(copied.source, entry.path), os.path.join(copied.to, entry.path)
        try:
            aim = os.readlink(source)
        except OSError:
            copied.leave_out("link that can't be read", entry.path)
            return
        os.symlink(new_aim(copied, entry.path, aim), target)
        with contextlib.suppress(OSError):
            shutil.copystat(source, target, follow_symlinks=False)


def new_aim(copied: Copied, path: str, aim: str) -> str:
    """What the copy of the link *path*, which says *aim*, has to say."""
    folder = os.path.dirname(path)
    if not os.path.isabs(aim):
        if os.path.normpath(os.path.join(folder, aim)).split("/")[0] != "..":
            return aim
        aim = os.path.join(copied.source, folder, aim)
    inside = below(os.path.normpath(aim), copied.source)
    if inside is None:  # by another name of the folder?
        inside = below(os.path.realpath(aim), copied.source)
    return aim if inside is None else os.path.join(copied.to, inside)


def below(path: str, folder: str) -> str | None:
    """*path* as seen from *folder* ("" for itself), both absolute; None if it is not in there."""
    if path == folder:
        return ""
    start = folder.rstrip("/") + "/"
    return path[len(start) :] if path.startswith(start) else None


def _pieces(fd: int, size: int) -> list[tuple[int, int]]:
    """Where in a file of *size* bytes there is data: (begin, end) each; the rest are holes."""
    found: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return found
            return [(0, size)]
        found.append((begin, end))
    return found


def _hung_up(fd: int) -> Callable[[], bool]:
    """Whether the other end of the socket *fd* is closed."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return lambda: bool(poll.poll(0))


def _too_large(source: str, text: str, **facts: int) -> Refused:
    refused = Refused("too_large", f"The working directory {source} {text}.", "")
    refused.facts = facts
    return refused
