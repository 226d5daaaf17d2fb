"""Each way in which a kernel can be silent or dead, produced for real, ends as its policy says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from .browsers import browser, execution, unpack
from .conftest import Server, eventually
from .streams import came, follow
from .test_metrics import value

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

P = "jupyter_kernelpool_"
INTERVAL, TIMEOUT, GRACE = 1.0, 1.0, 1.0
SLACK = 2.0  # the keeper's turn, and a machine that does other things, too
QUICK = (
    f"--KernelHealth.interval={INTERVAL}",
    f"--KernelHealth.timeout={TIMEOUT}",
    f"--KernelHealth.grace={GRACE}",
    "--KernelHealth.backoff=1.5",
)
# PyDLL keeps the GIL: nothing else of Python runs. The one returns when a signal comes, the other waits for itself.
SLEEPS_IN_C = "import ctypes; ctypes.PyDLL(None).sleep(3600)"
NEVER_RETURNS = (
    "import ctypes; c = ctypes.PyDLL(None); lock = ctypes.create_string_buffer(64); "
    "c.pthread_mutex_lock(lock); c.pthread_mutex_lock(lock)"
)
# In C as well, and at work: the one looks for signals now and then, the other never does.
SEARCHES_IN_C = "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')"
LOOPS_IN_C = "import itertools; sum(itertools.repeat(0))"
IGNORES_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


def model(server: Server, kernel: str) -> dict[str, Any]:
    status, found = server.call(f"/kernelpool/v1/kernels/{kernel}")
    assert status == 200, found
    return dict(found)


def status(server: Server, kernel: str) -> str:
    return str(model(server, kernel)["health"]["status"])


def until(server: Server, kernel: str, *wanted: str) -> dict[str, Any]:
    def reached() -> Any:
        found = model(server, kernel)
        return found if found["health"]["status"] in wanted else None

    found: dict[str, Any] = eventually(reached, f"the kernel is found to be {wanted}")
    return found


@pytest.fixture(scope="module")
def watched(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that asks often, and reports."""
    server = kp_servers(tmp_path_factory.mktemp("watched"), *QUICK)
    server.wait_warm(1)
    yield server
    server.stop()


def test_busy_kernel_is_fine_however_long_and_is_not_disturbed(watched: Server) -> None:
    kernel = watched.start_kernel()
    with browser(watched, kernel) as tab:
        tab.execute("1")
        request = tab.send("execute_request", execution("import time; time.sleep(6)"))
        found = until(watched, kernel, "busy")
        began = model(watched, kernel)
        assert began["current"]["execution_id"] == request
        time.sleep(2 * INTERVAL)
        later = model(watched, kernel)
        assert later["health"]["status"] == "busy"
        assert later["health"]["checked"] > found["health"]["checked"], "it was asked meanwhile"
        assert later["last_activity"] == began["last_activity"]
        assert later["execution_state"] == "busy"
        reply, published = tab.until_idle(request)
        assert reply["execution_count"] == 2, "no nudge was counted"
        states = [each["content"].get("execution_state") for each in published]
        assert [state for state in states if state] == ["busy", "idle"]
        idle = until(watched, kernel, "responsive")
        time.sleep(2 * INTERVAL)
        after = model(watched, kernel)
        assert after["health"]["checked"] > idle["health"]["checked"]
        assert (after["last_activity"], after["current"]) == (idle["last_activity"], None)
        assert tab.execute("print(len(In))") == "4"


def test_stopped_kernel_is_reported_once_and_is_well_again_when_it_goes_on(watched: Server) -> None:
    kernel = watched.start_kernel()
    pid = int(watched.run(kernel, "import os; print(os.getpid())"))
    until(watched, kernel, "responsive")
    with follow(watched) as heard:
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        try:
            told = heard.wait_for_event("unresponsive", kernel)
            assert told["cause"] == "stopped"
            assert came(told) - began < INTERVAL + TIMEOUT + SLACK
            assert until(watched, kernel, "stopped")["state"] == "unresponsive"
            eventually(lambda: model(watched, kernel)["health"]["failures"] >= 3, "it is asked again")
            assert watched.log.count(f"Kernel {kernel} does not answer") == 1
            assert model(watched, kernel)["failure_count"] == 1
            assert heard.names(kernel) == ["unresponsive"]
        finally:
            os.kill(pid, signal.SIGCONT)
    found = until(watched, kernel, "responsive")
    assert found["state"] == "active"
    assert found["health"]["failures"] == 0
    assert watched.run(kernel, "print(os.getpid())") == str(pid), "nothing was done to it"


def test_nudges_of_a_stopped_kernel_are_counted_and_one_in_ten_is_logged(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        "--KernelHealth.interval=0.2", "--KernelHealth.timeout=0.4", "--KernelHealth.retries=0",
        "--KernelHealth.backoff=1", "--KernelPool.warm=1",
    )  # fmt: skip
    kernel = server.start_kernel()
    pid = int(server.run(kernel, "import os; print(os.getpid())"))
    until(server, kernel, "responsive")
    eventually(lambda: value(server, f"{P}nudges_total", verdict="responsive") >= 3, "it is asked")
    log = len(server.log)
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: model(server, kernel)["health"]["failures"] >= 12, "it is asked again and again", 90)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(server, kernel, "responsive")
    told = [int(number) for number in re.findall(rf"Kernel {kernel} does not answer \(\w+, (\d+) in", server.log[log:])]
    assert told[:2] == [1, 11]
    assert all(number % 10 == 1 for number in told)
    assert value(server, f"{P}unresponsive_total", cause="stopped") == 1
    # The server may be asked between a nudge's answer and its verdict.
    verdicts = ("responsive", "busy", "stopped", "wedged", "hung")
    nudges = {verdict: value(server, f"{P}nudges_total", verdict=verdict) for verdict in verdicts}
    assert sum(nudges[verdict] for verdict in ("stopped", "wedged", "hung")) >= 12
    assert nudges["stopped"] >= 11, "the first one may have begun before"
    measured = value(server, f"{P}nudge_round_trip_seconds_count")
    assert nudges["responsive"] + nudges["busy"] <= measured <= nudges["responsive"] + nudges["busy"] + 2
    assert 0 < value(server, f"{P}nudge_round_trip_seconds_sum") / measured < 0.4, "silence is no round trip"


def test_kernel_that_is_stopped_for_moments_is_slow_and_well(watched: Server) -> None:
    kernel = watched.start_kernel()
    pid = int(watched.run(kernel, "import os; print(os.getpid())"))
    checked = until(watched, kernel, "responsive")["health"]["checked"]
    deadline = time.monotonic() + 4 * INTERVAL
    try:
        while time.monotonic() < deadline:  # as a limit on processor time does it
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.08)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)
    finally:
        os.kill(pid, signal.SIGCONT)
    found = model(watched, kernel)
    assert found["health"]["checked"] > checked
    assert found["failure_count"] == 0
    assert "unresponsive" not in [move["to"] for move in found["story"]]


def test_kernel_is_held_while_it_is_forked(watched: Server) -> None:
    kernel = watched.start_kernel()
    with browser(watched, kernel) as tab:
        request = tab.send("execute_request", execution("import time; time.sleep(3)"))
        eventually(lambda: model(watched, kernel)["current"], "it runs")
        fork = threading.Thread(
            target=watched.call, args=(f"/kernelpool/v1/kernels/{kernel}/fork", "POST", {"timeout": 20})
        )
        fork.start()
        eventually(lambda: model(watched, kernel)["state"] == "held", "its fork waits for the cell")
        assert tab.until_idle(request)[0]["status"] == "ok"
        fork.join()
    assert model(watched, kernel)["state"] == "active"


def test_clients_hear_nothing_of_nudges(watched: Server) -> None:
    kernel = watched.start_kernel()
    with browser(watched, kernel) as tab:
        tab.execute("1")
        checked = model(watched, kernel)["health"]["checked"]
        heard = []
        with contextlib.suppress(TimeoutError):
            while True:
                heard.append(unpack(tab.socket.recv(timeout=3 * INTERVAL)))  # type: ignore[arg-type]
        assert [message["header"]["msg_type"] for message in heard] == []
        assert model(watched, kernel)["health"]["checked"] != checked


@pytest.mark.parametrize("code", [NEVER_RETURNS, LOOPS_IN_C, SEARCHES_IN_C], ids=["waits", "loops", "searches"])
def test_kernel_that_holds_the_gil_in_c_is_wedged(watched: Server, code: str) -> None:
    kernel = watched.start_kernel()
    before = value(watched, f"{P}unresponsive_total", cause="wedged")
    with browser(watched, kernel) as tab, follow(watched) as heard:
        tab.execute("1")
        began = time.time()
        tab.send("execute_request", execution(code))
        told = heard.wait_for_event("unresponsive", kernel)
        assert told["cause"] == "wedged"
        assert came(told) - began < INTERVAL + TIMEOUT + SLACK
        found = until(watched, kernel, "wedged")
        assert value(watched, f"{P}unresponsive_total", cause="wedged") == before + 1
        assert found["state"] == "unresponsive"
        assert found["current"] is not None
    assert watched.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204


def test_claims_are_quick_beside_kernels_that_hang(watched: Server) -> None:
    kernels = [watched.start_kernel() for _ in range(2)]
    stopped = int(watched.run(kernels[0], "import os; print(os.getpid())"))
    os.kill(stopped, signal.SIGSTOP)
    watched.client(kernels[1]).execute(NEVER_RETURNS)
    until(watched, kernels[0], "stopped")
    until(watched, kernels[1], "wedged")
    walls = []
    for _ in range(5):
        watched.wait_warm(2)
        before = watched.recipe()["waits"]
        hits = watched.hit()
        kernel = watched.start_kernel()
        assert watched.hit() == hits + 1
        assert before is not None
        walls.append(watched.recipe()["waits"]["p50"])
        assert watched.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    assert min(walls) < 0.05
    for kernel in kernels:
        assert watched.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204


def test_claim_passes_over_a_stopped_warm_kernel(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.warm=2", *QUICK)
    server.wait_warm(2)
    template = server.template()
    oldest = min((each for each in server.ours()[1:] if each.pid != template), key=lambda each: each.create_time())
    oldest.suspend()
    began = time.monotonic()
    kernel = server.start_kernel()
    assert time.monotonic() - began < 1.0
    assert server.run(kernel, "import os; print(os.getpid())") != str(oldest.pid)
    eventually(lambda: not psutil.pid_exists(oldest.pid), "the one that does not answer is ended")


def test_healthy_kernels_do_not_wait_for_those_that_hang(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        "--KernelPool.max_warm=4", "--KernelHealth.interval=1", "--KernelHealth.timeout=12", "--KernelHealth.backoff=1",
    )  # fmt: skip
    server.wait_warm(2)
    healthy = server.start_kernel()
    kernels = [server.start_kernel() for _ in range(20)]
    pids = [model(server, kernel)["pid"] for kernel in kernels]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        for kernel in kernels:
            until(server, kernel, "stopped")
        assert time.monotonic() - began < 20, "all at once, and not one lot after the other"
        began = time.monotonic()
        checks = {model(server, healthy)["health"]["checked"]}
        while len(checks) < 5:
            time.sleep(0.2)
            checks.add(model(server, healthy)["health"]["checked"])
            assert time.monotonic() - began < 16, "it is asked every second or two, and not between those that hang"
        assert status(server, healthy) == "responsive"
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_kernels_are_looked_after_where_the_supervisor_can_not_be_started(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'jupyter_kernelpool.supervisor' in sys.orig_argv:\n    raise SystemExit(1)\n"
    )
    metrics = tmp_path / "kernels.prom"
    server = kp_start(
        *QUICK, f"--KernelPool.metrics_file={metrics}", "--KernelCuller.idle_timeout=2", PYTHONPATH=str(tmp_path)
    )
    eventually(lambda: "Kernels start cold" in server.log, "there is no pool", 60)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab, follow(server) as heard:  # the tab keeps it from being culled
        until(server, kernel, "responsive")
        pid = int(tab.execute("import os; print(os.getpid())"))
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        try:
            assert came(heard.wait_for_event("unresponsive", kernel)) - began < INTERVAL + TIMEOUT + SLACK
            assert until(server, kernel, "stopped")["state"] == "unresponsive"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert until(server, kernel, "responsive")["state"] == "active"
        for times in (1, 2):
            reply, _ = tab.until_idle(tab.send("execute_request", execution("import os; os._exit(1)")))
            assert reply["ename"] == "KernelDied", "told each time"
            until(server, kernel, "responsive")
            assert model(server, kernel)["failure_count"] == 1 + times
    assert metrics.is_file()
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[0] == 404, "it is culled")
