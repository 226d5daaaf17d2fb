"""Slows process trees down where no cgroup does: pauses them (SIGSTOP) and has them go on (SIGCONT), by turns.

One thread for the server, which exists only while something is slowed down. Nothing is ever left paused: what was
paused goes on when it may use more, when its kernel is let go, and when the server stops. What somebody else has
stopped is left as it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection

from jupyter_kernelpool.limits.cputime import PERIOD, Budget, CpuCount
from jupyter_kernelpool.usage import Snapshot, Stat, read_stat, scan

CALM = 2.0  # seconds without a pause after which a tree is no longer watched so closely
REFRESH = 0.8 * PERIOD  # seconds after which new processes of a tree are looked for; between, it is known ones only
STOPPED = frozenset("Tt")

log = logging.getLogger("jupyter_kernelpool")


class _Slowed:
    """One kernel's tree that is slowed down."""

    def __init__(self, pid: int, budget: Budget, now: float) -> None:
        self.pid = pid
        self.budget = budget
        self.counted = CpuCount()
        self.members: list[Stat] = []
        self.paused: dict[int, int] = {}  # by us: pid and start
        self.beyond: set[int] = set()  # not ours to signal: another user's
        self.looked = float("-inf")
        self.at = self.due = self.last_pause = now


class Throttle:
    """Holds trees to a number of cores on average, each by its kernel's id. Thread-safe; all of it may block."""

    def __init__(
        self,
        look: Callable[[], Snapshot] = scan,
        read: Callable[[int], Stat | None] = read_stat,
        send: Callable[[int, int], None] = os.kill,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.others: Collection[int] = frozenset()  # processes of ours that are no part of any tree
        self._look, self._read, self._send, self._clock = look, read, send, clock
        self._slowed: dict[str, _Slowed] = {}
        self._pauses: dict[str, int] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def slow_down(self, kernel_id: str, pid: int, cores: float, used: float = 0.0) -> None:
        """Hold the tree of *pid* to *cores* from now on; *used* seconds were too much so far. No-op if it is held."""
        with self._changed:
            if self._closed or kernel_id in self._slowed:
                return
            self._slowed[kernel_id] = _Slowed(pid, Budget(cores, used), self._clock())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kernelpool-throttle", daemon=True)
                self._thread.start()
            self._changed.notify()

    def change(self, kernel_id: str, cores: float) -> None:
        """It may use *cores* from now on; 0 is no limit."""
        with self._changed:
            slowed = self._slowed.get(kernel_id)
            if slowed is None:
                return
            if not cores:
                self._free(kernel_id)
                return
            slowed.budget = Budget(cores, running=slowed.budget.running)
            slowed.due = self._clock()
            self._changed.notify()

    def let_go(self, kernel_id: str) -> None:
        """Its processes go on, and what is known of it is forgotten."""
        with self._changed:
            self._free(kernel_id)
            self._pauses.pop(kernel_id, None)

    def set_apart(self, pid: int) -> None:
        """The process *pid* is no part of its tree any more; it goes on."""
        with self._changed:
            self.others = frozenset((*self.others, pid))
            for slowed in self._slowed.values():
                if pid in slowed.paused:
                    self._continue(slowed, [pid])

    def pauses(self, kernel_id: str) -> int:
        """How often it was paused so far; a long pause counts as many, for it is slowed down all the while."""
        return self._pauses.get(kernel_id, 0)

    @property
    def slowed(self) -> frozenset[str]:
        """The kernels that are slowed down now."""
        return frozenset(self._slowed)

    def close(self) -> None:
        """Everything goes on, and nothing is slowed down any more."""
        with self._changed:
            self._closed = True
            for kernel_id in list(self._slowed):
                self._free(kernel_id)
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join()

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._slowed:
                    self._thread = None
                    return
                try:
                    due = self._turn()
                except Exception:
                    log.exception("Slowing kernels down stumbled; they go on at full speed")
                    for kernel_id in list(self._slowed):
                        self._free(kernel_id)
                    continue
                self._changed.wait(max(0.0, due - self._clock()))

    def _turn(self) -> float:
        """One look at each tree that is due; when the next one is."""
        snapshot: Snapshot | None = None
        for kernel_id, slowed in list(self._slowed.items()):
            if slowed.due > self._clock():
                continue
            if self._clock() - slowed.looked >= REFRESH:
                snapshot = snapshot or self._look()
                slowed.members = snapshot.tree(slowed.pid, self.others)
                slowed.looked = snapshot.at
            else:
                slowed.members = [one for one in map(self._again, slowed.members) if one is not None]
            if any(one.pid == slowed.pid and not one.ended for one in slowed.members):
                self._step(kernel_id, slowed)
            else:
                self._free(kernel_id)
        return min((slowed.due for slowed in self._slowed.values()), default=0.0)

    def _again(self, known: Stat) -> Stat | None:
        one = self._read(known.pid)
        return one if one is not None and one.started == known.started else None

    def _step(self, kernel_id: str, slowed: _Slowed) -> None:
        now = self._clock()
        members = [one for one in slowed.members if one.pid not in slowed.beyond]
        spent = slowed.counted.advance(members, now)
        ran = slowed.budget.running
        slowed.due = now + slowed.budget.advance(now - slowed.at, spent)
        slowed.at = now
        if not slowed.budget.running:
            slowed.last_pause = now
            self._pauses[kernel_id] = self.pauses(kernel_id) + 1
            self._pause(slowed, members)
        elif not ran:
            self._continue(slowed, list(slowed.paused))
        elif now - slowed.last_pause > CALM:
            self._free(kernel_id)

    def _pause(self, slowed: _Slowed, members: list[Stat]) -> None:
        """Parents before their children: none is to see its child stop, as a shell does that waits for it."""
        for one in sorted(members, key=lambda one: (one.started, one.pid)):
            if one.pid in slowed.paused or one.ended or one.state in STOPPED:
                continue
            try:
                self._send(one.pid, signal.SIGSTOP)
                slowed.paused[one.pid] = one.started
            except ProcessLookupError:
                pass
            except PermissionError:
                slowed.beyond.add(one.pid)

    def _continue(self, slowed: _Slowed, pids: list[int]) -> None:
        """Children before their parents; never a process that has got the same pid meanwhile."""
        for pid in reversed(pids):
            started = slowed.paused.pop(pid)
            one = self._read(pid)
            if one is not None and one.started == started:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    self._send(pid, signal.SIGCONT)

    def _free(self, kernel_id: str) -> None:
        slowed = self._slowed.pop(kernel_id, None)
        if slowed is not None:
            self._continue(slowed, list(slowed.paused))
