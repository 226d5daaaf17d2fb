"""A pytest plugin for jupyter_client's own tests: its asynchronous kernel managers become ours.

Loaded before any test module, so that `from jupyter_client import AsyncKernelManager`, the default
`kernel_manager_class` of the multi-kernel manager and `start_new_async_kernel` all meet our class.

Without more, our class has no pool, and is to be stock. With `--pooled` each event loop that starts a
kernel has a pool, and every start has to be a claim, but for those of `why_cold`.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

import jupyter_client.ioloop
import jupyter_client.manager
import pytest
from traitlets.config import Config

from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.pooled import PooledKernelManager

PLACES = (jupyter_client, jupyter_client.manager, jupyter_client.ioloop)
STOCK = {
    "AsyncKernelManager": jupyter_client.manager.AsyncKernelManager,
    "AsyncIOLoopKernelManager": jupyter_client.ioloop.AsyncIOLoopKernelManager,
}
WARM_TIMEOUT = 60.0
# Upstream's kernels that are programs of their own: none of ours can be made to be one, but they can be started ahead.
WHOLE = frozenset({"signaltest", "signaltest-no-shutdown", "signaltest-no-terminate", "problemtest"})
# Upstream's kernels that fail, which is what they are for.
NEVER_READY = frozenset({"bad", "problemtest-slow"})

counts = {"ours": 0, "hits": 0}
hosts: dict[asyncio.AbstractEventLoop, PoolingKernelManager] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pooled", action="store_true", help="give each event loop a pool; starts have to be claims")


def pytest_configure(config: pytest.Config) -> None:
    init = PooledKernelManager.__init__

    def counting_init(self: PooledKernelManager, *args: Any, **kwargs: Any) -> None:
        counts["ours"] += 1
        init(self, *args, **kwargs)

    setattr(PooledKernelManager, "__init__", counting_init)  # noqa: B010  mypy refuses the plain assignment
    for place in PLACES:
        for name in STOCK.keys() & vars(place).keys():
            setattr(place, name, PooledKernelManager)
    # tornado's test cases allow 5 s, in which neither a pool is filled nor a Python started thrice on any machine.
    os.environ["ASYNC_TEST_TIMEOUT"] = str(2 * WARM_TIMEOUT)
    if config.getoption("--pooled"):
        start_from_pools()
    else:
        start_undisturbed()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run, should a test module have found a stock class somewhere else."""
    modules: set[ModuleType] = {item.module for item in session.items}  # type: ignore[attr-defined]
    for module in modules | {sys.modules["tests.utils"]}:
        for name, value in vars(module).items():
            if any(value is stock for stock in STOCK.values()):
                raise pytest.UsageError(f"{module.__name__}.{name} is jupyter_client's, not ours")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Tell the report how many kernel managers of ours the test made, and how many kernels came from a pool."""
    try:
        yield
    finally:
        item.user_properties += list(counts.items())
        counts.update(dict.fromkeys(counts, 0))
    assert not hosts, "the pool outlived its event loop"


def start_undisturbed() -> None:
    """Each start of a Python kernel waits until an interrupt can't end it any more.

    Upstream's `_run_lifecycle` interrupts the kernel as soon as it is launched. That ends a Python that is starting,
    stock's as well, and chance says whether the test looks before. A kernel that was warm has no such moment.
    """
    post_start: Callable[..., Coroutine[Any, Any, None]] = PooledKernelManager._async_post_start_kernel

    async def undisturbed(self: PooledKernelManager, **kwargs: Any) -> None:
        await post_start(self, **kwargs)
        provisioner: Any = self.provisioner
        while self.kernel_name == "python3" and await provisioner.poll() is None and not is_deaf(provisioner.pid):
            await asyncio.sleep(0.02)

    setattr(PooledKernelManager, "_async_post_start_kernel", undisturbed)  # noqa: B010


def is_deaf(pid: int) -> bool:
    """Whether the process ignores SIGINT, as ipykernel does from the end of its start, but for the time of a cell."""
    (ignored,) = re.findall(r"^SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(ignored, 16) & 1 << (signal.SIGINT - 1))


def start_from_pools() -> None:
    """Each start, restarts included, waits for a warm kernel of its loop's pool; count how many claimed one."""
    pre_start: Callable[..., Coroutine[Any, Any, Any]] = PooledKernelManager._async_pre_start_kernel
    post_start: Callable[..., Coroutine[Any, Any, None]] = PooledKernelManager._async_post_start_kernel
    restarted: WeakSet[PooledKernelManager] = WeakSet()

    async def from_pool(self: PooledKernelManager, **kwargs: Any) -> Any:
        if self.provisioner is not None:
            restarted.add(self)
        self.pool = (await host(self.kernel_name)).pool
        await self.pool.warmed(WARM_TIMEOUT)
        # Upstream asks for pipes to keep the kernels quiet, and reads none; only a new process could be given them.
        given = {name: value for name, value in kwargs.items() if name not in ("stdout", "stderr")}
        return await pre_start(self, **given)

    async def counted(self: PooledKernelManager, **kwargs: Any) -> None:
        await post_start(self, **kwargs)
        if self.pooled is not None and self.pooled.claimed is not None:
            counts["hits"] += 1
        else:  # raised from here, it fails the test wherever this runs: in a thread, in a process
            assert why_cold(self, self in restarted), f"the start of {self.kernel_name} was cold"

    setattr(PooledKernelManager, "_async_pre_start_kernel", from_pool)  # noqa: B010
    setattr(PooledKernelManager, "_async_post_start_kernel", counted)  # noqa: B010


def why_cold(manager: PooledKernelManager, restarted: bool) -> str:
    """Why a start can't be a claim; empty if it can."""
    if manager.kernel_name in NEVER_READY:
        return "it is to fail"
    if manager.kernel_name in WHOLE and manager.transport != "tcp":
        return "what is started ahead whole listens on tcp"
    if manager.kernel_name in WHOLE and restarted:
        return "what is started ahead whole has ports of its own, a restarted kernel keeps its"
    return ""


async def host(kernel_name: str) -> PoolingKernelManager:
    """The server's manager, for its pool alone: of the running loop, until that closes."""
    loop = asyncio.get_running_loop()
    if loop not in hosts:
        settings = {"launcher": "whole"} if kernel_name in WHOLE else {}
        config = Config({"KernelPool": {"warm": 1, "busy_cores": 1.0, "recipes": {kernel_name: settings}}})
        hosts[loop] = PoolingKernelManager(config=config, default_kernel_name=kernel_name, root_dir=str(Path.cwd()))
        close = loop.close

        def close_host_first() -> None:
            if loop in hosts:
                loop.run_until_complete(hosts.pop(loop).shutdown_all(now=True))
            close()

        setattr(loop, "close", close_host_first)  # noqa: B010
    await hosts[loop].start_pool()
    return hosts[loop]
