"""A process of ours dies with its supervisor, even while it is stuck in C with the GIL held.

The supervisor holds the only write end of one pipe. Each process opens the read end anew, so that it has
an open file description of its own, and asks the kernel of the operating system to send it SIGKILL when
anything happens on it (`F_SETSIG`, `O_ASYNC`; fcntl(2)): the only thing that can happen is that the write
end is gone. `PR_SET_PDEATHSIG` would not do: it follows the thread that forked, so a fork died with its
parent kernel.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal

_held = -1


def hold(inherited: int) -> int:
    """Tie this process's life to the pipe whose read end is *inherited*; return the descriptor held.

    *inherited* stays open: a process hands it on to its forks. What the process held before it was forked
    is its parent's, and is closed. Linux only: `F_SETSIG` and opening a pipe again through /proc are.
    """
    global _held
    own = os.open(f"/proc/self/fd/{inherited}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(own, select.POLLIN | select.POLLHUP)
    if poller.poll(0):  # the supervisor went before we were armed
        os._exit(1)
    if _held >= 0:
        os.close(_held)
    _held = own
    return own


def held() -> int:
    """The descriptor that `hold` returned last in this process or the one it was forked from, or -1."""
    return _held
