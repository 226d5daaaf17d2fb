"""Asks a kernel whether it is there: `kernel_info` on its control channel, and its heartbeat. No code runs in it.

The kernel publishes on iopub that it is busy with such a request, and idle again. Whoever watches would take that for
the end of a cell that runs, so nudges have a session of their own, and `is_nudge` tells what was published for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from jupyter_client.session import DELIM

from jupyter_kernelpool.messages import CONTENT, NO_MESSAGE

SESSION = uuid.uuid4().hex
_MARK = SESSION.encode()
PARENT = 3  # the place of the parent's header after the delimiter
MOST_IDENTITIES = 4
NUDGES_AT_ONCE = 16
MOST_SILENT = 128
MOMENT = 0.25  # seconds in which whoever answers at all mostly does


class Places:
    """Places for nudges: few kernels are asked at a time, so that asking hundreds holds nobody up.

    Who is silent for a *moment* gives the place up, for others wait for it, and is waited for without one: so are as
    many as *silent* (each holds two of the sockets that the server can have), and further ones in their places.
    """

    def __init__(self, most: int = NUDGES_AT_ONCE, *, silent: int = MOST_SILENT, moment: float = MOMENT) -> None:
        self._places = asyncio.Semaphore(most)
        self._room = silent
        self._moment = moment

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a place, and have it."""
        await self._places.acquire()
        is_silent = False

        def give_up() -> None:
            nonlocal is_silent
            if self._room > 0:
                self._room -= 1
                is_silent = True
                self._places.release()

        timer = asyncio.get_running_loop().call_later(self._moment, give_up)
        try:
            yield
        finally:
            timer.cancel()
            if is_silent:
                self._room += 1
            else:
                self._places.release()


class Reply(NamedTuple):
    """What answered; *info* is the content of the kernel's reply, *states* what *look* said each time.

    *seconds* from the first question until control answered; None where it did not.
    """

    control: bool
    heartbeat: bool
    states: list[str]
    info: dict[str, Any]
    seconds: float | None


def is_nudge(parts: Sequence[Any]) -> bool:
    """Whether a message of iopub, *parts* as ZeroMQ gave them, was published for a nudge: its parent is one."""
    try:
        parent = parts[list(parts[:MOST_IDENTITIES]).index(DELIM) + PARENT]
    except (ValueError, IndexError):
        return False
    return _MARK in bytes(parent)


async def nudge(kernel: Any, waits: Sequence[float], look: Callable[[], Awaitable[str]] | None = None) -> Reply:
    """Ask *kernel*, a manager of jupyter_client's for tornado's loop, until control answers or all *waits* (seconds
    after each question) are over. *look* tells the state of its process at the end of each.

    Raises `zmq.ZMQError` where this process can have no more sockets.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[tuple[dict[str, Any], float]] = loop.create_future()
    beaten = False
    states: list[str] = []

    def hear(parts: list[Any]) -> None:
        if not answered.done():
            answered.set_result((_read(kernel.session, parts), time.monotonic()))

    def beat(_: list[Any]) -> None:
        nonlocal beaten
        beaten = True

    control = kernel.connect_control()
    try:
        heart = kernel.connect_hb()
        try:
            control.on_recv(hear)
            heart.on_recv(beat)
            heart.send(b"ping")
            asked = time.monotonic()
            for wait in waits:
                request = kernel.session.msg("kernel_info_request")
                request["header"]["session"] = SESSION
                kernel.session.send(control, request)
                await asyncio.wait([answered], timeout=wait)
                if answered.done():
                    break
                if look is not None:
                    states.append(await look())
        finally:
            heart.close(linger=0)
    finally:
        control.close(linger=0)
    if not answered.done():
        return Reply(False, beaten, states, {}, None)
    info, at = answered.result()
    return Reply(True, beaten, states, info, at - asked)


def _read(session: Any, parts: list[Any]) -> dict[str, Any]:
    """The content of a reply; empty if it is not readable, which is an answer all the same."""
    try:
        _, message = session.feed_identities(parts)
        content: dict[str, Any] = session.unpack(message[CONTENT])
        return content
    except NO_MESSAGE:
        return {}
