"""GET /kernels/{kernel}/usage: what a kernel uses, once or as a stream."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Collection
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool.errors import NotFound, NotValid, WrongState
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.meter import Meter, Usage
from jupyter_kernelpool.rest.base import PREFIX
from jupyter_kernelpool.rest.models import Model, rfc3339
from jupyter_kernelpool.rest.streams import Event, EventStreamHandler

INTERVAL = 1.0
SHORTEST = 0.2
LONGEST = 3600.0


class UsageHandler(EventStreamHandler):
    """One kernel's usage. Nothing is asked of the kernel, so it answers while cells run."""

    @web.authenticated
    @authorized
    async def get(self, kernel: str) -> None:
        interval = read_interval(self.get_query_argument("interval", None))
        kernel_id = self.pooling.forking.names.id_of(kernel) if self.pooling is not None else kernel
        if kernel_id not in self.kernel_manager:
            raise NotFound(f"there is no kernel {kernel!r}", kernel=kernel)
        meter = find_meter(self.kernel_manager, self.settings)
        if kernel_id not in meter.roots():
            raise WrongState(f"kernel {kernel!r} has no process on this machine now", reason="no_process")
        if self.wants_stream:
            await self.stream(usage_events(meter, kernel_id, interval))
            return
        usage = await meter.measure(kernel_id)
        if usage is None:
            raise WrongState(f"kernel {kernel!r} has just ended", reason="no_process")
        self.reply(usage_model(usage))


async def usage_events(meter: Meter, kernel_id: str, interval: float) -> AsyncGenerator[Event]:
    """A `usage` event every *interval* seconds, and `done` when Jupyter has forgotten the kernel."""
    number = 0

    def event(name: str, facts: Model) -> Event:
        nonlocal number
        number += 1
        common = {"kernel_id": kernel_id, "seq": number, "time": rfc3339(time.time())}
        return Event(name, {**common, **facts}, f"{kernel_id}:{number}")

    async for usage in meter.follow(kernel_id, interval):
        yield event("usage", usage_model(usage))
    yield event("done", {"reason": "the kernel was shut down"})


async def usage_models(manager: Any, settings: Any, kernel_ids: Collection[str]) -> dict[str, Model | None]:
    """What each of *kernel_ids* uses, as far as it has a process on this machine, else None; read in a thread."""
    usages = await find_meter(manager, settings).look(kernel_ids)
    return {kernel_id: usage_model(usages[kernel_id]) if kernel_id in usages else None for kernel_id in kernel_ids}


def usage_model(usage: Usage) -> Model:
    """The contract's usage: sizes in bytes, `cpu` in cores."""
    reading = usage.reading
    return {
        "memory": {
            "private": reading.private,
            "shared": max(0, reading.rss - reading.private),
            "rss": reading.rss,
            "peak": usage.peak,
        },
        "cpu": usage.cores,
        "processes": reading.processes,
        "fds": reading.fds,
        "gpu": [
            {"index": gpu.index, "name": gpu.name, "memory": gpu.memory, "total": gpu.total} for gpu in reading.gpu
        ],
    }


def find_meter(manager: Any, settings: Any) -> Meter:
    """The meter of the server's kernel manager, or one for a manager that is not ours, kept in *settings*."""
    if isinstance(manager, PoolingKernelManager):
        return manager.meter
    meter: Meter = settings.setdefault("kernelpool_meter", Meter(manager))
    return meter


def read_interval(text: str | None) -> float:
    """Seconds between two events; raises `NotValid`."""
    try:
        seconds = INTERVAL if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not SHORTEST <= seconds <= LONGEST:
        text = f"interval = {text!r} must be a number of seconds from {SHORTEST:g} to {LONGEST:g}"
        raise NotValid(text, field="interval")
    return seconds


ROUTES: list[tuple[Any, ...]] = [(PREFIX + r"/kernels/(?P<kernel>[^/]+)/usage", UsageHandler)]
