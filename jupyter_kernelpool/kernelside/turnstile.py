"""Between two messages of the main shell: the one place where a kernel can be forked.

ipykernel 7 takes an asyncio lock around each message of the main shell (`Kernel._main_asyncio_lock`); what
is queued waits for it. That lock is ours here: when a message is over and a fork is due, the lock stays shut,
nobody else gets in, and the loop is stopped so that the fork can be made further up the stack. ipykernel 6
handles one message after the other in `Kernel.dispatch_queue`, without a lock: there it is put around
`dispatch_shell`.

Facts were read in ipykernel/kernelbase.py of 6.29 and 7.4, and asyncio/locks.py of 3.10 to 3.14.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Turnstile(asyncio.Lock):
    """A lock whose holder may keep it shut for us: *stays_shut* is asked each time it would be released."""

    def __init__(self, stays_shut: Callable[[], bool]) -> None:
        super().__init__()
        self._stays_shut = stays_shut

    def release(self) -> None:
        if not self._stays_shut():
            super().release()

    def shut(self) -> bool:
        """Take the lock if nobody holds it and nobody is about to; at once, without waiting."""
        attempt = self.acquire()
        try:
            attempt.send(None)
        except StopIteration:
            return True
        attempt.close()  # it would have to wait: it leaves the queue again
        return False

    def open(self) -> None:
        """Let the next one in, without asking."""
        super().release()


def stand_between_messages(kernel: Any, turnstile: Turnstile) -> None:
    """Have *kernel* hold *turnstile* while it handles a message of its main shell."""
    if hasattr(kernel, "_main_asyncio_lock"):
        kernel._main_asyncio_lock = turnstile
        return
    stock = type(kernel).dispatch_shell

    async def dispatch_shell(message: Any) -> None:
        async with turnstile:
            await stock(kernel, message)

    kernel.dispatch_shell = dispatch_shell
