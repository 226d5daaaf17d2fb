"""Copies of working directories that forks were made with: where they are, who works in them, when they go.

A copy is made by a kernel process (`kernelside.copying`), in a folder that is made, and removed, here. It is kept
while a kernel or checkpoint lives that stands in it: the fork itself, and whatever was forked, kept or restored
from that without a copy of its own. `Holders` knows who; `Copies` does what has to be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from jupyter_kernelpool.errors import CopyFailed
from jupyter_kernelpool.kernelside.copying import PREFIX
from jupyter_kernelpool.kernelside.removal import remove_tree
from jupyter_kernelpool.supervision import Supervision

REMOVAL_ATTEMPTS = 50
PAUSE = 0.1

Folders = frozenset[str]
NONE: Folders = frozenset()


class Holders:
    """Which holder (the id of a kernel or checkpoint, or anything else) needs which folders. Pure."""

    def __init__(self) -> None:
        self._folders: dict[str, Folders] = {}

    def of(self, holder: str) -> Folders:
        """What *holder* needs."""
        return self._folders.get(holder, NONE)

    def hold(self, holder: str, folders: Iterable[str]) -> None:
        """*holder* needs *folders* too, until `let_go`."""
        wanted = self.of(holder) | frozenset(folders)
        if wanted:
            self._folders[holder] = wanted

    def let_go(self, holder: str) -> Folders:
        """*holder* is gone; those that nobody needs any more."""
        former = self._folders.pop(holder, NONE)
        return former - self.needed

    @property
    def needed(self) -> Folders:
        """Those that somebody needs."""
        return frozenset().union(*self._folders.values())


@dataclass(frozen=True)
class Bounds:
    """Where copies are made, and how much a working directory may hold: bytes; files and folders."""

    place: str
    most_bytes: int
    most_entries: int


@dataclass(frozen=True)
class Order:
    """Have a folder copied to *to*; *later*: for a state that was kept before."""

    to: str
    bounds: Bounds
    later: bool = False

    def as_message(self) -> dict[str, object]:
        """For the process that is to do it: `kernelside.copying`."""
        most_bytes, most_entries = self.bounds.most_bytes, self.bounds.most_entries
        return {"to": self.to, "most_bytes": most_bytes, "most_entries": most_entries, "later": self.later}


class Copies:
    """Makes the folders and removes them; the supervisor does if the server can't."""

    def __init__(self, supervision: Supervision, log: logging.Logger) -> None:
        self._supervision = supervision
        self._log = log
        self._holders = Holders()
        self._removals: set[asyncio.Task[None]] = set()

    def of(self, holder: str) -> Folders:
        """The folders that *holder* needs."""
        return self._holders.of(holder)

    def hold(self, holder: str, folders: Iterable[str]) -> None:
        """Keep *folders* until `let_go` of *holder*."""
        self._holders.hold(holder, folders)

    def let_go(self, holder: str) -> None:
        """*holder* is gone; what only it needed is removed, in the background."""
        for folder in self._holders.let_go(holder):
            self._begin_removal(folder, None)

    @contextlib.contextmanager
    def kept(self, folders: Iterable[str]) -> Iterator[None]:
        """Keep *folders* meanwhile, whoever lets go of them."""
        token = secrets.token_hex(8)
        self.hold(token, folders)
        try:
            yield
        finally:
            self.let_go(token)

    @contextlib.asynccontextmanager
    async def lent(self, bounds: Bounds, *, later: bool = False) -> AsyncIterator[Order]:
        """A new, empty folder for a copy; at the end it is removed, unless somebody holds it by then.

        Raises `CopyFailed` when it can't be made.
        """
        folder = os.path.join(bounds.place, PREFIX + secrets.token_hex(8))
        self._supervision.guard([folder])
        making = asyncio.ensure_future(asyncio.to_thread(_make, folder))
        try:
            try:
                await asyncio.shield(making)
            except OSError as error:
                raise CopyFailed(f"no folder can be made in {bounds.place}: {error.strerror or error}") from error
            yield Order(folder, bounds, later)
        finally:
            if folder not in self._holders.needed:
                self._begin_removal(folder, making)

    async def close(self) -> None:
        """Every kernel has ended: remove what is left; returns once it is gone."""
        for folder in self._holders.needed:
            self._begin_removal(folder, None)
        self._holders = Holders()
        while self._removals:
            await asyncio.wait(self._removals)

    def _begin_removal(self, folder: str, making: asyncio.Future[None] | None) -> None:
        task = asyncio.create_task(self._remove(folder, making), name=f"remove {folder}")
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _remove(self, folder: str, making: asyncio.Future[None] | None) -> None:
        """A process that is being ended may write there for a moment: it is tried more than once."""
        if making is not None:
            await asyncio.wait([making])
            making.exception()  # seen
        for attempt in range(REMOVAL_ATTEMPTS):
            try:
                await asyncio.to_thread(remove_tree, folder)
            except OSError as error:
                if attempt == REMOVAL_ATTEMPTS - 1:
                    self._log.warning("The copied files in %s could not be removed: %s", folder, error)
                    return
                await asyncio.sleep(PAUSE)
            else:
                self._supervision.release([folder])
                return


def _make(folder: str) -> None:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    os.mkdir(folder, 0o700)
