"""What is printed in one go goes out in pieces, so that neither the server nor a client has to take it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .browsers import Browser, browser, execution
from .conftest import Server
from .test_forking import checkpoint, fork, post
from .test_output_limit import MB, as_observed, breaches, run, text_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SPAWN_ONLY = "--KernelPool.launchers=jupyter_kernelpool.launchers.spawn.SpawnLauncher"
AT_ANY_RATE = "--ZMQChannelsWebsocketConnection.limit_rate=False"
LINES = 20 * MB // 9
NUMBERED = f"print(''.join(f'{{n:07}}é\\n' for n in range({LINES})), end='')"  # 22 MB
OF_A_THREAD = """
import threading
thread = threading.Thread(target=lambda: print('#' * (3 << 20)))
thread.start()
thread.join()
"""
OF_A_PROCESS = r"""
import subprocess, time
subprocess.run(r"head -c 3145728 /dev/zero | tr '\0' '#'", shell=True)
time.sleep(1)  # a thread passes the last of it on
"""
OF_A_FORK = """
import multiprocessing
child = multiprocessing.get_context('fork').Process(target=lambda: print('#' * (3 << 20)))
child.start()
child.join()
"""


@pytest.fixture(scope="module")
def kp_server(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that passes all output on, shared by this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)  # ipykernel would not capture what processes put out
        started = kp_servers(tmp_path_factory.mktemp("server"), AT_ANY_RATE)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def limited(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which a cell may put out 1 MB, shared by this module's tests."""
    started = kp_servers(tmp_path_factory.mktemp("limited"), "--KernelLimits.output=1M")
    yield started
    started.stop()


def streams(published: list[dict[str, Any]]) -> list[str]:
    return [one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream"]


def prints_in_pieces(tab: Browser) -> None:
    """What is printed in one go comes whole, in order, and in pieces."""
    reply, published = run(tab, f"{NUMBERED}; print('the end')")
    assert reply["status"] == "ok"
    came = streams(published)
    assert "".join(came) == "".join(f"{n:07}é\n" for n in range(LINES)) + "the end\n"
    assert len(came) >= 20
    assert max(len(one.encode()) for one in came) <= MB


def test_200_mb_in_one_go_never_come_to_the_server(limited: Server) -> None:
    limited.wait_warm(1)
    kernel = limited.start_kernel()
    with browser(limited, kernel) as tab:
        assert tab.execute("kept = 5") == ""
        with as_observed(limited) as observed:
            reply, published = run(tab, "print('x' * (200 << 20))")
        assert observed.grown < 64 * MB
        assert text_of(published).count("output limit of 1 MB reached: the rest is left out") == 1
        assert reply["ename"] == "KeyboardInterrupt"
        assert breaches(limited, kernel)["outcome"] == "interrupted"
        assert tab.execute("kept") == "5"
    limited.call(f"/api/kernels/{kernel}", "DELETE")


def test_interrupt_of_one_that_printed_much_does_not_hit_the_next(limited: Server) -> None:
    """The kernel is ahead of what the server has heard of it."""
    limited.wait_warm(1)
    kernel = limited.start_kernel()
    with browser(limited, kernel) as tab:
        for _ in range(5):
            tab.send("execute_request", execution("print('x' * (4 << 20))"))
            reply, _ = run(tab, "import time; time.sleep(0.7)")
            assert reply["status"] in ("ok", "aborted"), "the cell before it, or none"
    limited.call(f"/api/kernels/{kernel}", "DELETE")


def test_large_print_comes_whole_and_in_order_of_forks_and_restored_kernels_too(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        prints_in_pieces(tab)
        kept = checkpoint(kp_server, kernel)
        (fork_of_it,) = fork(kp_server, kernel)
        with browser(kp_server, fork_of_it) as of_fork:
            prints_in_pieces(of_fork)
        post(kp_server, f"/kernels/{kernel}/restore", {"checkpoint": kept}, 200)
        prints_in_pieces(tab)


def test_so_it_does_of_a_spawned_kernel(kp_start: Callable[..., Server]) -> None:
    server = kp_start(SPAWN_ONLY, AT_ANY_RATE)
    server.wait_warm(1)
    with browser(server, server.start_kernel()) as tab:
        prints_in_pieces(tab)


def test_so_it_does_of_threads_and_processes(kp_server: Server, kernel: str) -> None:
    with browser(kp_server, kernel) as tab:
        for code in (OF_A_THREAD, OF_A_PROCESS, OF_A_FORK):
            _, published = run(tab, code)
            assert text_of(published).count("#") == 3 * MB
            assert max(map(len, streams(published))) <= MB


def test_stream_that_was_configured_is_left_as_it_is(kp_start: Callable[..., Server]) -> None:
    server = kp_start(AT_ANY_RATE)
    folder = server.folder / "ipython" / "profile_default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ipython_kernel_config.py").write_text("c.IPKernelApp.outstream_class = 'ipykernel.iostream.OutStream'\n")
    server.stop()
    server.start()
    server.wait_warm(1)
    with browser(server, server.start_kernel()) as tab:
        _, published = run(tab, "print('x' * (5 << 20), end='')")
        assert [len(text) for text in streams(published)] == [5 * MB]
