"""What a fork of a live kernel takes over from it, and what it must shed.

Python objects that hold something of the parent's (a loop, ZeroMQ sockets, a database connection) are kept
for ever and never used: taking them apart would act on the parent. Facts about ipykernel were read in
iostream.py and kernelapp.py of 6.29 and 7.4, about IPython in core/history.py of 8.18 and 9.18.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import sys
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from . import endings, files, lifeline, pools
from .copying import Copied, copy_working_folder
from .history import cut_history
from .lives import Life
from .manifest import Manifest
from .parking import Parking

if TYPE_CHECKING:
    from .warm import Warm

KEPT_FOR_EVER: list[Any] = []


class Inheritance:
    """The state of one kernel at the moment of its fork; taken in the parent, used in the child."""

    def __init__(self, kernel: Warm) -> None:
        self.app: Any = kernel.app
        self.parking: Parking = kernel.parking
        self.lifeline = kernel.lifeline
        self.libraries = kernel.libraries
        self.uncollected = kernel.uncollected
        self.context: Context = self.parking.context or copy_context()
        self.manifest = Manifest()
        self.manifest.note_what_stays_behind(self.app, set(self.uncollected.values()))
        self.random_state = random.getstate()  # `random` seeds itself anew after each fork
        self.places: files.Places = {}
        self._known: set[int] = set()
        self._machinery: dict[int, os.stat_result] = {}
        self._asleep: list[Callable[[], None]] = []
        self.copied: Copied | None = None  # the working directory of the fork that is being made
        self.streams = (sys.stdout, sys.stderr)
        self.outputs = (kernel.app.kernel._stdout, kernel.app.kernel._stderr)

    def take_descriptors(self, ours: set[int]) -> dict[int, os.stat_result]:
        """Look who opened what, and return the user's. *ours* are descriptors of this extension's."""
        history = self.app.shell.history_manager
        database = files.facts_of(str(getattr(history, "hist_file", "")))
        opened = files.open_descriptors()
        self._known = set(opened)
        self._machinery = {fd: opened[fd] for fd in self.app.machinery.find(self.app, opened)}
        not_users = self._machinery.keys() | ours | set(self.uncollected) | {self.lifeline, lifeline.held()}
        users = {
            fd: facts
            for fd, facts in opened.items()
            if fd not in not_users and not (database and files.same(facts, database))
        }
        self.manifest.note_what_is_shared(self.app, users)
        return users

    def rest(self) -> None:
        """End the threads that would be missed; `wake` starts them again, in the parent and in each fork."""
        self._asleep = pools.put_duckdb_threads_away(self.app.shell.user_ns)

    def wake(self) -> None:
        asleep, self._asleep = self._asleep, []
        for start in asleep:
            with contextlib.suppress(Exception):
                start()

    def shed(self) -> None:
        """Let go of the parent's descriptors: streams, sockets, loops' and files.

        A process that only waits needs no more, and each page that is not written to stays shared with the parent;
        `disentangle` does the rest.
        """
        for output in self.outputs:
            if getattr(output, "_original_stdstream_copy", None) is not None:
                os.dup2(output._original_stdstream_copy, output._original_stdstream_fd)
        for pidfd in self.uncollected:
            os.close(pidfd)
        self.uncollected.clear()
        if files.open_descriptors(besides=self._known | {lifeline.held()}):
            # A client connected, and a thread of the parent's accepted it, after `take_descriptors`.
            opened = files.open_descriptors()
            self._machinery |= {fd: opened[fd] for fd in self.app.machinery.find(self.app, opened)}
        for fd, facts in self._machinery.items():
            if files.is_same(fd, facts):  # else a thread of the parent's closed it, and the number may be ours by now
                os.close(fd)
        self.own_files()

    def disentangle(self) -> None:
        """Let go of the parent's objects, before a kernel is made: loops, streams, threads, its duties at the end."""
        app = self.app
        loop = app.io_loop
        KEPT_FOR_EVER.append((loop, asyncio.all_tasks(loop.asyncio_loop)))
        KEPT_FOR_EVER.append(app.machinery)
        self._restore_standard_streams()
        asyncio.set_event_loop(None)
        pools.renew(KEPT_FOR_EVER)
        endings.disown(app.shell)
        cut_history(app.shell.history_manager, KEPT_FOR_EVER)

    def copy_files(self, order: dict[str, Any], fd: int) -> None:
        """Have the next `own_files` move to a copy of the working directory; *fd* is the new process's socket.

        Called in a kernel before it forks, or in the fork of a parked process. Raises `Refused`.
        """
        earlier, self.copied = self.copied, copy_working_folder(order, fd)
        self.manifest.note_copied(self.copied, earlier, later=earlier is None and bool(order.get("later")))

    def own_files(self) -> None:
        """Open regular files anew, those of a copied working directory in the copy; after each fork."""
        if self.copied is not None:
            os.chdir(self.copied.to)
        self.manifest.note_shared_positions(files.reopen(self.places, self.copied))
        if self.copied is not None:
            self.manifest.note_shared_files(self.copied, self.places)

    def next_life(self, orders: socket.socket, *, become: bool, reseed: bool) -> Life:
        """The life that comes after `shed`: a parked process, or with *become* a kernel."""
        from .parked import Parked
        from .warm import Warm

        if become:
            self.disentangle()
            return Warm(self.app, orders, lifeline=self.lifeline, ahead=False, inheritance=self, reseed=reseed)
        return Parked(self, orders)

    def _restore_standard_streams(self) -> None:
        """What ipykernel's streams watch, descriptors 1 and 2, went where it went before (`shed`): so do they."""
        copies = []
        for output in self.outputs:
            if getattr(output, "_original_stdstream_copy", None) is not None:
                copies.append(output._original_stdstream_copy)
            KEPT_FOR_EVER.append(dict(vars(output)))
        for handler in self.app.log.handlers:
            if isinstance(handler, logging.StreamHandler) and _descriptor(handler.stream) in copies:
                KEPT_FOR_EVER.append(handler.stream)
                handler.stream = sys.__stderr__
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def _descriptor(stream: Any) -> int:
    try:
        return int(stream.buffer.fileno())
    except (AttributeError, OSError, ValueError):
        return -1
