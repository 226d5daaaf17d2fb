"""What is printed in one go goes out in pieces, so that neither the server nor a client has to take it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .browsers import Browser, browser, execution
from .conftest import Server, eventually
from .test_forking import checkpoint, fork, post
from .test_output_limit import MB, as_observed, breaches, run, text_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

COLD = ("--KernelPool.recipes={'python3': {'launcher': 'off'}}", "--KernelLimits.output=1G")
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
CAPTURE = "from IPython.utils.capture import capture_output\nwith capture_output() as got: "
AS_STOCK: dict[str, tuple[str, list[str]]] = {
    "class": (
        "import sys; print(sys.stdout.__class__, sys.stdout.name)",
        ["<class 'ipykernel.iostream.OutStream'> stdout\n"],
    ),
    "flush": ("for n in range(3): print(n, flush=True)", ["0\n", "1\n", "2\n"]),
    "capture": (
        CAPTURE + "print('x')\nprint([got.stdout])",
        ["['x\\n']\n"],
    ),
    "capture, large": (
        CAPTURE + "print('x' * (3 << 20))\nprint(len(got.stdout))",
        [f"{3 * MB + 1}\n"],
    ),
    "redirected": (
        "import contextlib as c, io\nwith c.redirect_stdout(io.StringIO()) as got: print('x')\nprint([got.getvalue()])",
        ["['x\\n']\n"],
    ),
    "process": ("import subprocess, time; subprocess.run(['echo', 'x']); time.sleep(1)", ["x\n"]),
    "shell": ("!echo x", ["x\r\n"]),
    "descriptor": ("import os, time; os.write(1, b'x'); time.sleep(1)", ["x"]),
    "environment": ("import os; print(os.environ.get('PYTHONPATH'))", ["None\n"]),
}


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


@pytest.fixture(scope="module")
def cold(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One on which kernels start the stock way and output has a limit, shared by this module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)
        started = kp_servers(tmp_path_factory.mktemp("cold"), *COLD)
    yield started
    started.stop()


@pytest.fixture(params=["pooled", "cold"])
def page(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A notebook of a kernel of the pool's, and of one that started cold."""
    pooled = request.param == "pooled"
    server: Server = request.getfixturevalue("kp_server" if pooled else "cold")
    if pooled:
        server.wait_warm(1)
    started = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{started}")[1]["way"] == ("template" if pooled else "cold")
    with browser(server, started) as tab:
        yield tab
    server.call(f"/api/kernels/{started}", "DELETE")


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


def test_so_it_does_of_one_that_started_cold_where_output_has_a_limit(cold: Server) -> None:
    kernel = cold.start_kernel()
    with browser(cold, kernel) as tab:
        prints_in_pieces(tab)
        assert cold.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        prints_in_pieces(tab)
    cold.call(f"/api/kernels/{kernel}", "DELETE")


def test_so_it_does_in_a_sandbox(kp_start: Callable[..., Server]) -> None:
    confined = {"launcher": "whole", "max": 0, "warm": 0, "writable": []}
    server = kp_start("--KernelPool.recipes=" + str({"python3": confined}), COLD[1])
    kernel = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "cold"
    with browser(server, kernel) as tab:
        prints_in_pieces(tab)


def test_so_it_does_where_there_is_no_supervisor(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'jupyter_kernelpool.supervisor' in sys.orig_argv:\n    raise SystemExit(1)\n"
    )
    server = kp_start(COLD[1], PYTHONPATH=str(tmp_path))
    eventually(lambda: "Kernels start cold" in server.log, "there is no pool", 60)
    with browser(server, server.start_kernel()) as tab:
        prints_in_pieces(tab)


def test_one_that_started_cold_is_stocks_where_output_has_none(kp_start: Callable[..., Server]) -> None:
    server = kp_start(COLD[0], AT_ANY_RATE)
    with browser(server, server.start_kernel()) as tab:
        _, published = run(tab, "print('x' * (5 << 20), end='')")
        assert [len(text) for text in streams(published)] == [5 * MB]
        assert tab.execute("import sys; print([name for name in sys.modules if 'kernelpool' in name])") == "[]"


def test_so_it_does_of_threads_and_processes(page: Browser) -> None:
    for code in (OF_A_THREAD, OF_A_PROCESS, OF_A_FORK):
        _, published = run(page, code)
        assert text_of(published).count("#") == 3 * MB
        assert max(map(len, streams(published))) <= MB


@pytest.mark.parametrize("code, expected", AS_STOCK.values(), ids=AS_STOCK)
def test_what_is_small_is_as_with_stock(page: Browser, code: str, expected: list[str]) -> None:
    reply, published = run(page, code)
    assert reply["status"] == "ok"
    assert streams(published) == expected


def test_widget_gets_what_is_printed_in_it(page: Browser) -> None:
    _, published = run(page, "import ipywidgets\nout = ipywidgets.Output()\nwith out: print('within')\nprint('behind')")
    kinds = [one["header"]["msg_type"] for one in published]
    told = [one["content"]["data"]["state"]["msg_id"] for one in published if one["header"]["msg_type"] == "comm_msg"]
    assert [bool(parent) for parent in told] == [True, False]  # from one to the other, what comes is the widget's
    assert kinds[kinds.index("comm_msg") :][:4] == ["comm_msg", "stream", "comm_msg", "stream"]
    assert streams(published) == ["within\n", "behind\n"]


@pytest.mark.parametrize("options", [(), COLD], ids=["pooled", "cold"])
def test_stream_that_was_configured_is_left_as_it_is(kp_start: Callable[..., Server], options: tuple[str, ...]) -> None:
    server = kp_start(AT_ANY_RATE, *options)
    folder = server.folder / "ipython" / "profile_default"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ipython_kernel_config.py").write_text("c.IPKernelApp.outstream_class = 'ipykernel.iostream.OutStream'\n")
    server.stop()
    server.start()
    if not options:
        server.wait_warm(1)
    with browser(server, server.start_kernel()) as tab:
        _, published = run(tab, "print('x' * (5 << 20), end='')")
        assert [len(text) for text in streams(published)] == [5 * MB]
