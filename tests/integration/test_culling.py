"""Kernels that nobody uses end, warned beforehand; what front ends do by themselves keeps none alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from .browsers import browser, execution
from .conftest import Server, eventually
from .limited import hearing

pytestmark = pytest.mark.integration

CULLS = ("--KernelCuller.interval=0.2", "--KernelCuller.warn_before=1")


def model(server: Server, kernel: str) -> Any:
    return server.call(f"/kernelpool/v1/kernels/{kernel}")[1]


def is_there(server: Server, kernel: str) -> bool:
    return server.call(f"/api/kernels/{kernel}")[0] == 200


def test_idle_kernel_ends_and_a_connected_one_stays(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.idle_timeout=2", *CULLS)
    server.wait_warm()
    idle, watched = server.start_kernel(), server.start_kernel()
    with browser(server, watched):
        told = model(server, idle)["cull"]
        assert told["at"] is not None
        assert "idle" in told["why"]
        assert model(server, watched)["cull"]["at"] is None
        eventually(lambda: not is_there(server, idle), "the idle one is culled")
        time.sleep(1)
        assert is_there(server, watched)
    eventually(lambda: not is_there(server, watched), "nobody is connected any more")
    assert "is culled: it is idle for 2 s" in server.log


def test_what_a_front_end_does_by_itself_keeps_no_kernel_alive(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.idle_timeout=3", "--KernelCuller.connected=True", *CULLS)
    server.wait_warm()
    kernel = server.start_kernel()
    silent = {**execution("1+1"), "silent": True, "store_history": False}
    began = time.monotonic()
    with browser(server, kernel) as tab:
        while is_there(server, kernel):
            tab.send("complete_request", {"code": "imp", "cursor_pos": 3})
            tab.send("comm_info_request", {})
            tab.send("execute_request", silent)
            time.sleep(0.3)
            assert time.monotonic() - began < 20, "it is kept alive"
    assert time.monotonic() - began > 2


def test_the_clock_begins_when_a_long_cell_has_ended(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.idle_timeout=3", "--KernelCuller.connected=True", *CULLS)
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert tab.execute("import time; time.sleep(5); print('done')") == "done"
        time.sleep(1)
        assert is_there(server, kernel)
    eventually(lambda: not is_there(server, kernel), "it is culled afterwards")


def test_busy_kernel_and_old_kernel_end_where_that_is_wanted(kp_start: Callable[..., Server]) -> None:
    recipes = '{"python3": {"cull": {"busy_timeout": 2, "max_life": 6}}}'
    server = kp_start(f"--KernelPool.recipes={recipes}", *CULLS)
    server.wait_warm()
    busy, old = server.start_kernel(), server.start_kernel()
    with browser(server, busy) as tab, browser(server, old):
        tab.send("execute_request", execution("while True: pass"))
        eventually(lambda: not is_there(server, busy), "the busy one is culled")
        assert is_there(server, old)
        eventually(lambda: not is_there(server, old), "the old one is culled, connected or not")
    assert "is culled: it is busy for 2 s" in server.log
    assert "is culled: it lives for 6 s" in server.log


def test_kernel_that_is_kept_alive_stays(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.idle_timeout=2", *CULLS)
    server.wait_warm()
    kept, other = server.start_kernel(), server.start_kernel()
    status, answer = server.call(f"/kernelpool/v1/kernels/{kept}", "PATCH", {"keep_alive": 600})
    assert status == 200, answer
    eventually(lambda: not is_there(server, other), "the other one is culled")
    time.sleep(1)
    assert is_there(server, kept)
    assert server.call(f"/kernelpool/v1/kernels/{kept}", "PATCH", {"keep_alive": 0})[0] == 200
    eventually(lambda: not is_there(server, kept), "it is kept no more")


def test_want_of_memory_ends_idle_kernels_only_the_oldest_first(kp_start: Callable[..., Server]) -> None:
    """The server is told to leave more free than the machine has, so memory stays short whatever it ends."""
    server = kp_start("--KernelCuller.reserve_memory=100T", "--KernelCuller.interval=1.5", "--KernelPool.warm=0")
    first, second, busy = (server.start_kernel() for _ in range(3))
    with browser(server, busy) as tab:
        tab.send("execute_request", execution("while True: pass"))
        eventually(lambda: not is_there(server, first), "the one that is idle for longest goes")
        assert is_there(server, second), "one at a time"
        eventually(lambda: not is_there(server, second), "then the next")
        time.sleep(2)
        assert is_there(server, busy)


def test_owned_kernel_begins_anew_only_where_its_owner_asked(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*CULLS)
    server.wait_warm()
    wanted, other = server.start_kernel(), server.start_kernel()
    with browser(server, wanted) as tab, browser(server, other) as neighbour:
        assert tab.execute("x = 1; block = bytearray(300 << 20); print(x)") == "1"
        assert neighbour.execute("x = 1; block = bytearray(300 << 20); print(x)") == "1"
        status, answer = server.call(f"/kernelpool/v1/kernels/{wanted}", "PATCH", {"recycle": {"memory": "200M"}})
        assert (status, answer["cull"]["recycle"]["memory"]) == (200, 200 << 20)
        eventually(lambda: tab.execute("'x' in globals()") == "False", "it has begun anew")
        assert neighbour.execute("print(x)") == "1"


def test_owned_kernel_begins_anew_at_the_age_that_its_owner_asked_for_and_not_within_a_cell(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start(*CULLS)
    server.wait_warm()
    wanted, other = server.start_kernel(), server.start_kernel()
    with hearing(server) as heard, browser(server, wanted) as tab, browser(server, other) as neighbour:
        for each in (tab, neighbour):
            assert each.execute("x = 1; print(x)") == "1"
        pids = [model(server, kernel)["pid"] for kernel in (wanted, other)]
        request = tab.send("execute_request", execution("import time; time.sleep(4); print(x)"))
        status, answer = server.call(f"/kernelpool/v1/kernels/{wanted}", "PATCH", {"recycle": {"age": 1}})
        assert (status, answer["cull"]["recycle"]) == (200, {"age": 1, "memory": None})
        reply, published = tab.until_idle(request)
        assert reply["status"] == "ok", "a cell is not torn"
        assert [one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream"] == ["1\n"]
        eventually(lambda: model(server, wanted)["pid"] != pids[0], "it has begun anew")
        assert server.call(f"/kernelpool/v1/kernels/{wanted}", "PATCH", {"recycle": {"age": 0}})[0] == 200
        eventually(lambda: tab.execute("'x' in globals()") == "False", "the open connection goes on")
        assert neighbour.execute("print(x)") == "1"
        assert model(server, other)["pid"] == pids[1]
        event = eventually(lambda: heard.of(wanted, "restarted"), "it is told")[0]
        assert (event["cause"], event["reason"]) == ("renewed", "its owner wants it anew after 1 s")


def test_wrong_wishes_are_refused(kp_server: Server) -> None:
    kernel = kp_server.start_kernel()
    for body in ({"keep_alive": -1}, {"keep_alive": "long"}, {"recycle": 5}, {"recycle": {"memory": "much"}},
                 {"recycle": {"uses": 3}}):  # fmt: skip
        status, refusal = kp_server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", body)
        assert (status, refusal["code"]) == (422, "not_valid"), body


def test_stock_culler_keeps_its_meaning(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--MappingKernelManager.cull_idle_timeout=2", "--MappingKernelManager.cull_interval=1")
    server.wait_warm()
    kernel = server.start_kernel()
    eventually(lambda: not is_there(server, kernel), "stock culls it")
    assert "seconds of inactivity" in server.log
