"""A process that a cell forks by itself, with os.fork, is no kernel: it ends when its cell does.

With stock it comes back from the cell into the kernel's loop, if an error or the cell's last line leads there, and
speaks for its parent over sockets that are not its own: the cell is said to be over while the parent still runs it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

_kernel_pid = 0  # jupyter_client's `Session.pid` would do, but ipykernel's OutStream sets it in a stray, too


def settle() -> None:
    """This process is a kernel from now on, or is to become one."""
    global _kernel_pid
    _kernel_pid = os.getpid()


def watch(shell: Any) -> None:
    """From now on end strays of the kernel that has this *shell*; once."""
    if _end_stray not in shell.events.callbacks["post_execute"]:
        shell.events.register("post_execute", _end_stray)


def _end_stray() -> None:
    """Called by IPython when a cell has ended, in each process that came out of it."""
    if os.getpid() == _kernel_pid:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)
