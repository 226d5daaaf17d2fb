"""Wrong configuration, wrong requests, wrong code in a template: clear answers, and kernels start all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Server, command_of, eventually

pytestmark = pytest.mark.integration


def test_unknown_kernelspec_answers_as_stock(kp_server: Server, kp_start: Callable[..., Server]) -> None:
    stock = kp_start("--KernelPool.enabled=False")
    body = {"path": "x.ipynb", "type": "notebook", "name": "", "kernel": {"name": "no_such_kernel"}}
    for path, request in (("/api/kernels", {"name": "no_such_kernel"}), ("/api/sessions", body)):
        ours, theirs = kp_server.call(path, "POST", request), stock.call(path, "POST", request)
        assert ours[0] == theirs[0]
        assert ours[1]["message"] == theirs[1]["message"]


@pytest.mark.parametrize(
    "option, told",
    [
        ("--KernelPool.warm=-1", ["warm", "-1", "0"]),
        ("--KernelPool.exhausted=never", ["exhausted", "never", "'wait'", "'fail'", "'temporary'"]),
        ("--KernelPool.recipes={'python3': {'wram': 3}}", ["recipes", "wram", "warm"]),
        ("--KernelPool.recipes={'python3': {'warm': 9, 'max': 2}}", ["recipes", "warm = 9", "max = 2"]),
        ("--KernelPool.preload=['numpy', 'pandas']", ["--KernelPool.preload=numpy --KernelPool.preload=pandas"]),
        ("--KernelPool.launchers=no.such.Launcher", ["launchers", "no.such.Launcher"]),
    ],
)
def test_wrong_trait_stops_the_server_and_says_what_is_allowed(option: str, told: list[str], tmp_path: object) -> None:
    ended = subprocess.run(
        [*command_of("jupyter_server"), "--port=0", "--ip=127.0.0.1", "--ServerApp.allow_root=True",
         "--ServerApp.open_browser=False", "--ServerApp.jpserver_extensions={'jupyter_kernelpool': True}",
         f"--ServerApp.root_dir={tmp_path}", option],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    for part in told:
        assert part in ended.stderr, ended.stderr


def starts_cold_and_says(server: Server, *told: str) -> None:
    """The recipe's last error says *told*, and a kernel starts all the same."""
    error = eventually(lambda: server.recipe().get("last_error"), "the failure is in /pool")
    for part in told:
        assert part in error["reason"] + error["traceback"], error
    began = time.monotonic()
    kernel = server.start_kernel()
    assert server.run(kernel, "print(6 * 7)") == "42"
    assert time.monotonic() - began < 20
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "cold"
    assert server.recipe()["warm"] == 0
    assert server.log.count("start cold") == 1, "the log says why, once"


# What a driver of CUDA would answer once it is initialised; tests/integration/test_gpu.py has a real one.
WITH_CUDA = "import sys; sys.modules['_jupyter_kernelpool.hazards'].cuda_is_initialised = lambda _: True"


def test_template_whose_init_code_began_cuda_is_not_used(kp_start: Callable[..., Server]) -> None:
    starts_cold_and_says(kp_start(f"--KernelPool.init_code={WITH_CUDA}"), "CUDA is initialised")


def test_kernels_are_spawned_ahead_where_a_preload_began_cuda(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "cuda_user.py").write_text(WITH_CUDA)
    server = kp_start("--KernelPool.preload=cuda_user", PYTHONPATH=str(tmp_path))
    server.wait_warm(1)
    kernel = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "spawn"


def test_preload_that_fails_shows_its_traceback(kp_start: Callable[..., Server]) -> None:
    starts_cold_and_says(kp_start("--KernelPool.preload=no_such_module"), "no_such_module", "ModuleNotFoundError")


def test_init_code_that_raises_is_reported(kp_start: Callable[..., Server]) -> None:
    starts_cold_and_says(kp_start("--KernelPool.init_code=1/0"), "ZeroDivisionError")


def test_init_code_that_exits_is_reported(kp_start: Callable[..., Server]) -> None:
    starts_cold_and_says(kp_start("--KernelPool.init_code=import os; os._exit(0)"), "ended while it was loading")


def test_init_code_that_hangs_is_reported(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.init_code=import time; time.sleep(600)", "--KernelPool.load_timeout=4")
    starts_cold_and_says(server, "hangs", "load_timeout")
    eventually(lambda: len(server.ours()) == 1, "only the supervisor is left")


def test_init_code_that_hangs_holds_up_the_first_start_no_longer_than_claim_timeout(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start("--KernelPool.init_code=import time; time.sleep(600)", "--KernelPool.claim_timeout=2")
    began = time.monotonic()
    kernel = server.start_kernel()
    assert time.monotonic() - began < 15
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "cold"
    assert server.log.count(f"Kernel {kernel} starts cold") == 1


def test_init_code_that_starts_a_thread_is_reported(kp_start: Callable[..., Server]) -> None:
    code = "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True, name='mine').start()"
    starts_cold_and_says(kp_start(f"--KernelPool.init_code={code}"), "mine")


def test_init_code_names_are_there_and_hidden(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.init_code=import math; answer = 42")
    server.wait_warm()
    client = server.client(server.start_kernel())
    assert server.run(client, "print(answer, math.pi > 3)") == "42 True"
    assert "answer" not in server.run(client, "%who")


def test_kernel_that_starts_cold_runs_the_init_code_too(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.init_code=answer = 42", "--KernelPool.warm=0", "--KernelPool.max_warm=1")
    eventually(lambda: server.recipe().get("template"), "the template is loaded")
    os.kill(server.template(), signal.SIGKILL)
    kernel = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "cold"
    assert server.run(kernel, "print(answer)") == "42"
    assert server.log.count(f"Kernel {kernel} starts cold") == 1, "the log says why"


def test_module_with_native_threads_is_spawned_ahead_instead(kp_start: Callable[..., Server], tmp_path: object) -> None:
    (tmp_path / "threaded.py").write_text(  # type: ignore[operator]
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    server = kp_start("--KernelPool.preload=threaded", PYTHONPATH=str(tmp_path))
    server.wait_warm()
    kernel = server.start_kernel()
    assert server.run(kernel, "import sys; print('threaded' in sys.modules)") == "True"
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "spawn"


def test_max_kernels_refuses_with_retry_after(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.max_kernels=2", "--KernelPool.exhausted=fail")
    server.wait_warm()
    kernels = [server.start_kernel() for _ in range(2)]
    status, headers, reply = server.exchange("/api/kernels", "POST", {"name": "python3"})
    assert status == 503
    assert int(headers["Retry-After"]) > 0
    assert "max_kernels" in reply["message"]
    assert server.call(f"/api/kernels/{kernels[0]}", "DELETE")[0] == 204
    server.start_kernel()


def test_max_kernels_waits_for_a_place(kp_start: Callable[..., Server]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = kp_start("--KernelPool.max_kernels=1", "--KernelPool.wait_timeout=20")
    first = server.start_kernel()
    with ThreadPoolExecutor() as threads:
        second = threads.submit(server.start_kernel)
        time.sleep(0.5)
        assert not second.done()
        assert server.call(f"/api/kernels/{first}", "DELETE")[0] == 204
        assert second.result(20) != first
    assert len(server.call("/api/kernels")[1]) == 1
