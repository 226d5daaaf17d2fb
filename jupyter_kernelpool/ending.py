"""Ends a kernel's whole process tree, whatever it does meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable

from jupyter_kernelpool.usage import Snapshot, Stat, scan

ROUNDS = 50
PAUSE = 0.02


def end_tree(pid: int, others: Collection[int]) -> bool:
    """Kill the process *pid*, all that descends from it and its session, but not *others*; whether none is left.

    Blocks, for a second at most. All are stopped first, whole process groups at once: what forks as fast as it can has
    made others when its processes are found, but no fork comes between a signal to a group and those in it. Only a bomb
    each process of which makes a group of its own outruns that.
    """
    return _end(lambda snapshot: snapshot.tree(pid, others))


def end_rest(pid: int, others: Collection[int]) -> bool:
    """Kill what outlived the process *pid* in the session that it led, but not *others*; whether none is left.

    Blocks, for a second at most.
    """
    return _end(lambda snapshot: snapshot.left_by(pid, others))


def _end(find: Callable[[Snapshot], Iterable[Stat]]) -> bool:
    known: set[int] = set()
    for _ in range(ROUNDS):
        snapshot = scan()
        alive = {one.pid for one in snapshot.stats.values() if not one.ended}
        found = alive.intersection(one.pid for one in find(snapshot))
        # Once its parent has ended a process is no longer found below it: those seen before are looked for by pid.
        new, known = found - known, known | found
        if new:
            for group in _groups_within(found, alive):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGSTOP)
            _signal(new, signal.SIGSTOP)
            continue
        _signal(known, signal.SIGKILL)
        if not found:
            return True
        time.sleep(PAUSE)
    return False


def _groups_within(pids: Collection[int], alive: Iterable[int]) -> set[int]:
    """The process groups of *pids* in which, of all that are *alive*, are no others: those have to be spared."""
    within, beyond = set[int](), set[int]()
    for pid in alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (within if pid in pids else beyond).add(os.getpgid(pid))
    return {group for group in within - beyond if group > 1}  # 0 and 1 would be our own group, and everybody


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
