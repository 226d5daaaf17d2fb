"""Gives memory of the server's back to the system that large outputs leave behind.

ZeroMQ's thread takes memory from an arena of its own, and glibc gives back only what lies at an arena's end, but with
`malloc_trim` (3) every page that nothing is on. After half an hour of large outputs that was two thirds of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path

EVERY = 20.0
WORTH = 4 << 20  # bytes more than were left the last time


class Tidier:
    """The server's own memory."""

    def __init__(self) -> None:
        self._left = 0

    @property
    def has_work(self) -> bool:
        """Whether there is much more memory in use than there was after the last time."""
        return read_resident() > self._left + WORTH

    async def go(self) -> None:
        """Give back what can be; a round of the keeper's. In a thread, since it takes a millisecond for each ten MB."""
        await asyncio.to_thread(trim)
        self._left = read_resident()


def read_resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def trim() -> None:
    """Have the C library give back what it can, if it is one that can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
