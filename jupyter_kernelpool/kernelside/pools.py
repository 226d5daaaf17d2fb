"""Pools of workers that a fork does not have; each is cured in the way that its library allows.

- duckdb: who closes a connection joins the database's threads, and in a child waits for ever (so do some
  queries). They are ended before the fork and started again on both sides.
- `ThreadPoolExecutor`: takes the parent's threads for its own, and never begins what it is given. In a child it
  starts new ones.
- joblib: talks to the parent's worker processes. In a child the next parallel call starts others.

OpenMP's threads are ended too, see `hazards`. What can't be cured is in the manifest (polars).
"""

from __future__ import annotations

import contextlib
import gc
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

LEAST_OF_DUCKDB = {"threads": 1, "async_threads": 0}  # the second: duckdb 2
LOKY = ("joblib.externals.loky.", "loky.")


def put_duckdb_threads_away(namespace: dict[str, Any]) -> list[Callable[[], None]]:
    """End the threads of every duckdb database of this process; returns what starts them again, in that order."""
    duckdb: Any = sys.modules.get("duckdb")
    if duckdb is None:
        return []
    again: list[Callable[[], None]] = []
    # Those of duckdb 1 are not known to the collector. Not isinstance: it asks proxies, which may be anything.
    everything = [*namespace.values(), *gc.get_objects()]
    connections = [one for one in everything if type(one) is duckdb.DuckDBPyConnection]
    with contextlib.suppress(Exception):  # of an older duckdb, or closed
        connections.append(duckdb.default_connection())
    for connection in connections:
        with contextlib.suppress(Exception):  # a closed one
            cursor = connection.cursor()  # a running query's result stays
            for name, least in LEAST_OF_DUCKDB.items():
                with contextlib.suppress(duckdb.Error):  # no such setting
                    (wanted,) = cursor.execute(f"SELECT current_setting('{name}')").fetchone()
                    cursor.execute(f"SET {name} = {least}")
                    again.append(partial(cursor.execute, f"SET {name} = {wanted}"))
    # Two connections to one database: the second has seen what was set through the first.
    return again[::-1]


def renew(kept: list[Any]) -> None:
    """In a fork: have executors and joblib start workers of its own. What is replaced is added to *kept*.

    Taking it apart would act on the parent: joblib's pipes to its workers are shared.
    """
    _renew_executors(kept)
    for package in LOKY:
        reusable: Any = sys.modules.get(f"{package}reusable_executor")
        if reusable is not None:
            kept.append((reusable._executor, dict(sys.modules[f"{package}process_executor"]._threads_wakeups)))
            reusable._executor, reusable._executor_lock = None, threading.RLock()
            sys.modules[f"{package}process_executor"]._threads_wakeups.clear()


def _renew_executors(kept: list[Any]) -> None:
    """A thread's first argument is a weak reference to its executor (concurrent/futures/thread.py)."""
    module: Any = sys.modules.get("concurrent.futures.thread")
    for thread in list(module._threads_queues) if module is not None else ():
        executor = thread._args[0]() if getattr(thread, "_args", None) else None
        if executor is not None and thread in executor._threads:
            kept.append((executor._work_queue, executor._threads))
            executor._work_queue, executor._threads = queue.SimpleQueue(), set()
            executor._idle_semaphore, executor._shutdown_lock = threading.Semaphore(0), threading.Lock()
