"""Usage on a server of its own: the metrics that it gives by itself, and that nobody has to wait for it."""

from __future__ import annotations

import statistics
import threading
import time
import urllib.request
from collections.abc import Callable

import pytest

from .conftest import TOKEN, Server, eventually

pytestmark = pytest.mark.integration

MB = 1_000_000


def metric(server: Server, name: str) -> float:
    page = server.call("/metrics")[1]
    line = next(line for line in page.splitlines() if line.startswith(f"jupyter_kernelpool_kernels_{name} "))
    return float(line.split()[1])


def usage(server: Server, kernel: str) -> dict:  # type: ignore[type-arg]
    status, model = server.call(f"/kernelpool/v1/kernels/{kernel}/usage")
    assert status == 200, model
    return dict(model)


@pytest.mark.timeout(120)
def test_metrics_follow_what_all_kernels_use_and_go_back_to_nothing(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm(1)
    assert metric(server, "private_memory_bytes") == metric(server, "processes") == 0
    kernels = [server.start_kernel(), server.start_kernel()]
    clients = [server.client(kernel) for kernel in kernels]
    for client in clients:
        server.run(client, "x = bytearray(b'x') * 100_000_000")
    eventually(lambda: metric(server, "private_memory_bytes") > 200 * MB, "the gauge rises")
    told = sum(usage(server, kernel)["memory"]["private"] for kernel in kernels)
    assert metric(server, "private_memory_bytes") == pytest.approx(told, rel=0.05)
    assert metric(server, "processes") == 2
    assert metric(server, "open_fds") == sum(usage(server, kernel)["fds"] for kernel in kernels)
    assert metric(server, "gpu_memory_bytes") == 0
    before = metric(server, "cpu_seconds_total")
    server.run(clients[0], "import time\nbegan = time.process_time()\nwhile time.process_time() < began + 2: pass")
    eventually(lambda: metric(server, "cpu_seconds_total") >= before + 1.9, "the processor time is counted")
    counted = metric(server, "cpu_seconds_total")
    for kernel in kernels:
        assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: metric(server, "private_memory_bytes") == metric(server, "processes") == 0, "the gauges go back")
    assert metric(server, "cpu_seconds_total") >= counted


@pytest.mark.timeout(180)
def test_the_event_loop_is_not_held_up_by_measuring_large_kernels(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.warm=1")
    server.wait_warm(1)
    kernel = server.start_kernel()
    client = server.client(kernel)
    # Many mappings of small pages are what takes long to add up.
    server.run(client, "import mmap\nx = mmap.mmap(-1, 1 << 30)\nx.madvise(mmap.MADV_NOHUGEPAGE)")
    server.run(client, "for i in range(0, 1 << 30, 4096): x[i] = 1", timeout=120)
    assert usage(server, kernel)["memory"]["private"] > 1 << 30

    def slowest(seconds: float) -> float:
        times, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            assert server.call("/kernelpool/v1/healthz")[0] == 200
            times.append(time.monotonic() - began)
        return statistics.quantiles(times, n=20)[-1]

    quiet = slowest(2)
    stopped = threading.Event()
    counted = []

    def measure() -> None:
        while not stopped.is_set():
            counted.append(usage(server, kernel)["processes"])

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        loaded = slowest(3)
    finally:
        stopped.set()
        thread.join()
    assert len(counted) > 3
    assert loaded < 3 * quiet + 0.05


@pytest.mark.timeout(120)
def test_a_cell_that_holds_the_lock_of_python_does_not_hold_up_its_usage(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm(1)
    kernel = server.start_kernel()
    client = server.client(kernel)
    client.execute("import re\nre.match('(a*)*$', 'a' * 200 + 'b')")  # in C code that lets nobody else run
    eventually(lambda: usage(server, kernel)["cpu"] > 0.4, "it is seen to compute")
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/kernelpool/v1/kernels/{kernel}/usage?interval=0.2",
        headers={"Authorization": f"token {TOKEN}", "Accept": "text/event-stream"},
    )
    with urllib.request.urlopen(request, timeout=30) as stream:
        assert [stream.readline().split(b":")[0] for _ in range(3)] == [b"id", b"event", b"data"]
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
