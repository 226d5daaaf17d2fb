"""A pytest plugin for jupyter_client's own tests: its asynchronous kernel managers become ours.

Loaded before any test module, so that `from jupyter_client import AsyncKernelManager`, the default
`kernel_manager_class` of the multi-kernel manager and `start_new_async_kernel` all meet our class.
"""

import sys
from collections.abc import Generator
from types import ModuleType
from typing import Any

import jupyter_client.ioloop
import jupyter_client.manager
import pytest
from traitlets.utils.importstring import import_item

PLACES = (jupyter_client, jupyter_client.manager, jupyter_client.ioloop)
STOCK = {
    "AsyncKernelManager": jupyter_client.manager.AsyncKernelManager,
    "AsyncIOLoopKernelManager": jupyter_client.ioloop.AsyncIOLoopKernelManager,
}
made = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-manager", required=True, help="dotted name of the class to put in")


def pytest_configure(config: pytest.Config) -> None:
    ours: type[Any] = import_item(config.getoption("--kernel-manager"))
    init = ours.__init__

    def counting_init(self: object, *args: Any, **kwargs: Any) -> None:
        global made
        made += 1
        init(self, *args, **kwargs)

    setattr(ours, "__init__", counting_init)  # noqa: B010  mypy refuses the plain assignment
    for place in PLACES:
        for name in STOCK.keys() & vars(place).keys():
            setattr(place, name, ours)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run, should a test module have found a stock class somewhere else."""
    modules: set[ModuleType] = {item.module for item in session.items}  # type: ignore[attr-defined]
    for module in modules | {sys.modules["tests.utils"]}:
        for name, value in vars(module).items():
            if any(value is stock for stock in STOCK.values()):
                raise pytest.UsageError(f"{module.__name__}.{name} is jupyter_client's, not ours")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Tell the report how many kernel managers of ours the test and its fixtures made."""
    global made
    item.user_properties.append(("ours", made))
    made = 0
    yield
