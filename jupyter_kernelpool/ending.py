"""Ends a kernel's whole process tree, whatever it does meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

from jupyter_kernelpool.usage import scan

ROUNDS = 50
PAUSE = 0.02


def end_tree(pid: int, others: Collection[int]) -> bool:
    """Kill the process *pid*, all that descends from it and its session, but not *others*; whether none is left.

    Blocks, for a second at most. All are stopped first: what forks as fast as it can would outrun the signals.
    """
    known: set[int] = set()
    for _ in range(ROUNDS):
        found = {one.pid for one in scan().tree(pid, others) if not one.ended}
        # Once its parent has ended a process is no longer found below it: those seen before are looked for by pid.
        new, known = found - known, known | found
        if new:
            _signal(new, signal.SIGSTOP)
            continue
        _signal(known, signal.SIGKILL)
        if not found:
            return True
        time.sleep(PAUSE)
    return False


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
