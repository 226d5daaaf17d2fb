"""Many kernels started at once: what `burst` and `loop` share."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from tornado.httpclient import HTTPError

from benchmarks.client import Client, Session
from benchmarks.measures.start import ONE, attach

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DELETED_AT_ONCE = 10


@asynccontextmanager
async def start_many(client: Client, count: int) -> AsyncIterator[list[float]]:
    """When each of *count* sessions, all started at once, had its first result; ended after.

    Kernels that died (stock Jupyter loses one to a port taken by another process, now and then) are
    left out, so that the list may be shorter; `RuntimeError` if all did.
    """
    sessions: list[Session] = []
    ended = await asyncio.gather(*(_start(client, sessions) for _ in range(count)))
    try:
        seen = [end for end in ended if end is not None]
        if not seen:
            raise RuntimeError(f"none of {count} kernels gave a result")
        yield seen
    finally:
        for first in range(0, len(sessions), DELETED_AT_ONCE):
            some = sessions[first : first + DELETED_AT_ONCE]
            await asyncio.gather(*(_delete(client, session) for session in some))


async def _start(client: Client, sessions: list[Session]) -> float | None:
    try:
        session = await client.start_session()
        sessions.append(session)
        await attach(client, session.kernel_id, ONE)
    except (HTTPError, OSError, RuntimeError, TimeoutError):
        return None
    return time.perf_counter()


async def _delete(client: Client, session: Session) -> None:
    with suppress(HTTPError, OSError):  # a kernel that died has taken its session along
        await client.delete_session(session)
