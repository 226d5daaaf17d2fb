"""Warm kernels that hang, but are not stopped: claims pass over them, and an idle pool replaces them by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from .conftest import Server, eventually, gone
from .test_metrics import value

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

# A library's thread in each kernel, which takes the GIL for ever as soon as a file with the kernel's pid is there.
# PyDLL keeps the GIL while the C function sleeps; so does `re`, which computes for longer than anybody waits.
WEDGED = {
    "it sleeps": "ctypes.PyDLL(None).sleep(3600)",
    "it computes": "re.match('(a|a)+$', 'a' * 60 + 'b')",
}
LIBRARY = """
import ctypes, os, re, threading, time
def hang_when_told():
    while not os.path.exists(f"{folder}/{{os.getpid()}}"):
        time.sleep(0.05)
    {wedge}
os.register_at_fork(after_in_child=lambda: threading.Thread(target=hang_when_told, daemon=True).start())
"""


@pytest.fixture
def start(kp_start: Callable[..., Server], tmp_path: Path) -> Callable[..., Server]:
    """Starts a server with that library in its kernels."""

    def start(*options: str, wedge: str = "it sleeps", warm: int = 3) -> Server:
        code = LIBRARY.format(folder=tmp_path, wedge=WEDGED[wedge])
        server = kp_start(f"--KernelPool.init_code={code}", f"--KernelPool.warm={warm}", *options)
        server.wait_warm(warm)
        return server

    return start


def warm_kernels(server: Server) -> list[psutil.Process]:
    """The warm ones, where none is in use: the one that is claimed first in front."""
    template = server.template()
    return sorted((each for each in server.ours()[1:] if each.pid != template), key=lambda each: each.create_time())


def wedge(folder: Path, *processes: psutil.Process) -> None:
    """Have them hang, and wait until they do: nothing of them, but what waits for the GIL, wakes any more."""
    for process in processes:
        (folder / str(process.pid)).touch()
    time.sleep(0.5)
    assert all(process.is_running() for process in processes)


def test_claim_gets_the_next_kernel_where_the_first_two_hang(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start("--KernelHealth.interval=600")
    first, second, sound = warm_kernels(server)
    wedge(tmp_path, first, second)
    began = time.monotonic()
    kernel = server.start_kernel()
    took = time.monotonic() - began
    assert server.run(kernel, "import os; print(os.getpid())") == str(sound.pid)
    assert (server.hit(), server.recipe()["misses"]) == (1, 0)
    assert "hangs" in server.log, "known before the time to adopt was over"
    assert took < 2.0, "less than waiting that long for both"
    assert gone([first, second])
    server.wait_warm(3)
    another = server.start_kernel()
    assert server.run(another, "print(6 * 7)") == "42"
    assert server.run(kernel, "print(len(In))") == "3", "it is a kernel like any other"


def test_claim_gets_the_next_kernel_where_the_first_computes_with_the_gil_held(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start("--KernelHealth.interval=600", wedge="it computes", warm=2)
    first, sound = warm_kernels(server)
    wedge(tmp_path, first)
    kernel = server.start_kernel()
    assert server.run(kernel, "import os; print(os.getpid())") == str(sound.pid)
    assert (server.hit(), server.recipe()["misses"]) == (1, 0)
    assert "took no identity" in server.log
    assert gone([first])


def test_other_warm_kernels_that_hang_are_ended_after_a_claim_met_one(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start("--KernelHealth.interval=600", warm=4)
    first, sound, *others = warm_kernels(server)
    wedge(tmp_path, first, *others)
    kernel = server.start_kernel()
    assert server.run(kernel, "import os; print(os.getpid())") == str(sound.pid)
    eventually(lambda: gone([first, *others]), "all that hang are ended, though nobody claims them", 20)


def test_idle_pool_replaces_kernels_that_hang(start: Callable[..., Server], tmp_path: Path) -> None:
    server = start("--KernelHealth.interval=1")
    *hung, sound = warm_kernels(server)
    wedge(tmp_path, *hung)
    eventually(lambda: gone(hung), "those that do not answer are ended", 20)
    server.wait_warm(3)
    assert sound in warm_kernels(server)
    assert value(server, "jupyter_kernelpool_evictions_total", why="does not answer") == len(hung)
    kernel = server.start_kernel()
    assert server.run(kernel, "import os; print(os.getpid())") == str(sound.pid)
    assert server.recipe()["misses"] == 0
