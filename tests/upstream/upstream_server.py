"""A pytest plugin for jupyter_server's own tests: the extension is on, and starts have to be hits.

With `--pooled`, the configurations that name the stock asynchronous manager name ours, and only
the tests that run with one of those are kept.
"""

import shutil
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.pooled import PooledKernelManager

STOCK = "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager"
OURS = f"{PoolingKernelManager.__module__}.{PoolingKernelManager.__qualname__}"
CONFIG_FILE = Path(__file__).parents[2] / "jupyter-config" / "server-config" / "jupyter_kernelpool.json"
WARM_TIMEOUT = 30.0
NOT_POOLED = frozenset({"bad", "no_curve"})  # kernelspecs of commands that are no kernel at all


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pooled", action="store_true", help="put our manager in the configurations")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "flaky: upstream may retry these; here they run once")


def use_ours(item: pytest.Item) -> bool:
    """Put our manager where the test's configuration names the stock one; say if it did.

    Tests share the dictionaries, so that one may have been rewritten for an earlier test.
    """
    callspec = getattr(item, "callspec", None)
    config = callspec.params.get("jp_server_config", {}) if callspec else {}
    server = config.get("ServerApp", {})
    if server.get("kernel_manager_class") not in (STOCK, OURS):
        return False
    server["kernel_manager_class"] = OURS
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--pooled"):
        return
    pooled = [item for item in items if use_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in pooled])
    items[:] = pooled


@pytest.fixture(autouse=True)
def kp_enabled(jp_env_config_path: Path) -> None:
    """The extension's config file lies where an installation puts it."""
    folder = jp_env_config_path / "jupyter_server_config.d"
    folder.mkdir()
    shutil.copy(CONFIG_FILE, folder)


@pytest.fixture(autouse=True)
def kp_hits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Each start waits until kernels are warm, and has to claim one; the report says how many did.

    Refill pauses once a test that counts descriptors has its kernel.
    """
    starts: list[bool] = []
    start: Callable[..., Coroutine[Any, Any, None]] = PooledKernelManager.start_kernel
    counts_descriptors = "fd_leak" in request.node.name

    async def start_from_pool(self: PooledKernelManager, *args: Any, **kwargs: Any) -> None:
        if self.pool is None or self.kernel_name in NOT_POOLED:
            return await start(self, *args, **kwargs)
        self.pool.busy_cores = 1.0  # what else the machine does must not decide
        await self.pool.warmed(WARM_TIMEOUT)
        await start(self, *args, **kwargs)
        starts.append(self.pooled is not None and self.pooled.claimed is not None)
        self.pool.paused = counts_descriptors

    monkeypatch.setattr(PooledKernelManager, "start_kernel", start_from_pool)
    yield
    request.node.user_properties.append(("hits", sum(starts)))
    assert all(starts), f"{starts.count(False)} of {len(starts)} starts were cold"
