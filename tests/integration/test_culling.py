"""Kernels that nobody uses end, warned beforehand; what front ends do by themselves keeps none alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.connect import write_connection_file

from .browsers import browser, execution
from .conftest import Server, eventually
from .limited import hearing
from .streams import follow
from .test_health import NEVER_RETURNS
from .test_metrics import value

pytestmark = pytest.mark.integration

CULLS = ("--KernelCuller.interval=0.2", "--KernelCuller.warn_before=1")


def model(server: Server, kernel: str) -> Any:
    return server.call(f"/kernelpool/v1/kernels/{kernel}")[1]


def is_there(server: Server, kernel: str) -> bool:
    return server.call(f"/api/kernels/{kernel}")[0] == 200


def culls(server: Server) -> dict[str, float]:
    """Kernels that were culled, by cause; the causes that there were."""
    counted = {
        cause: value(server, "jupyter_kernelpool_culls_total", cause=cause)
        for cause in ("idle", "busy", "age", "memory", "other")
    }
    return {cause: number for cause, number in counted.items() if number}


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
    eventually(lambda: culls(server) == {"idle": 2}, "both are counted")


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
    eventually(lambda: culls(server) == {"busy": 1, "age": 1}, "both are counted")


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
    with ExitStack() as stack:
        heard = stack.enter_context(hearing(server))
        first, second, busy = (server.start_kernel() for _ in range(3))
        tab = stack.enter_context(browser(server, busy))
        tab.send("execute_request", execution("while True: pass"))
        eventually(lambda: not is_there(server, first), "the one that is idle for longest goes")
        assert is_there(server, second), "one at a time"
        eventually(lambda: not is_there(server, second), "then the next")
        eventually(lambda: culls(server) == {"memory": 2}, "both are counted")
        time.sleep(2)
        assert is_there(server, busy)
        for kernel in (first, second):
            (culling,), (culled,) = heard.of(kernel, "culling"), heard.of(kernel, "culled")
            assert "memory is short" in culling["reason"]
            assert (round(culling["seconds"], 1), culled["cause"]) == (1.5, "memory"), (
                "told, and ended at the next look"
            )
            assert heard.events.index(culling) < heard.events.index(culled)


def test_kernel_that_is_kept_when_memory_is_short_stays_and_another_one_goes(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.reserve_memory=100T", "--KernelCuller.interval=3", "--KernelPool.warm=0")
    with hearing(server) as heard:
        first, second = server.start_kernel(), server.start_kernel()
        eventually(lambda: heard.of(first, "culling"), "it is told")
        assert "memory is short" in model(server, first)["cull"]["why"]
        assert server.call(f"/kernelpool/v1/kernels/{first}", "PATCH", {"keep_alive": 600})[0] == 200
        eventually(lambda: not is_there(server, second), "the other one goes")
        assert heard.of(second, "culling")
        assert is_there(server, first)
        assert model(server, first)["cull"]["at"] is None


def test_want_of_memory_keeps_no_kernels_warm(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.reserve_memory=100T", "--KernelCuller.interval=1")
    owned = server.start_kernel()
    eventually(lambda: not is_there(server, owned), "its user's goes")
    time.sleep(3)
    assert server.recipe()["warm"] == 0, "and so none is kept that is nobody's"


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


def test_kernel_begins_anew_after_as_many_cells_as_its_owner_said(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*CULLS)
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        status, answer = server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"recycle": {"uses": 3}})
        assert (status, answer["cull"]["recycle"]["uses"]) == (200, 3)
        pid = model(server, kernel)["pid"]
        for _ in range(5):
            tab.ask("execute_request", {**execution("0"), "silent": True, "store_history": False})
        assert tab.execute("x = 1; print(x)") == tab.execute("print(x)") == "1"
        time.sleep(1)
        assert tab.execute("import time; time.sleep(1); print(x)") == "1", "it runs its third to the end"
        eventually(lambda: model(server, kernel)["pid"] not in (pid, None), "then it begins anew")
        assert tab.execute("'x' in globals()") == "False"
        assert tab.execute("x = 2; print(x)") == "2"
        time.sleep(1)
        assert tab.execute("print(x)") == "2", "and counts anew"


def test_what_happens_while_another_kernel_takes_its_time_to_end_counts(kp_start: Callable[..., Server]) -> None:
    """All three are due in one round, and the first needs seconds to end."""
    server = kp_start(
        "--KernelCuller.idle_timeout=1", "--KernelCuller.interval=8", "--KernelCuller.connected=True",
        "--KernelCuller.warn_before=0",
    )  # fmt: skip
    server.wait_warm()
    slow, kept, used = (server.start_kernel() for _ in range(3))
    server.run(slow, "import atexit, time; atexit.register(time.sleep, 4)")
    with browser(server, used) as tab:
        eventually(lambda: f"Kernel {slow} is culled" in server.log, "the first one ends")
        assert server.call(f"/kernelpool/v1/kernels/{kept}", "PATCH", {"keep_alive": 600})[0] == 200
        assert tab.execute("import time; time.sleep(10); print('done')") == "done"
    assert not is_there(server, slow)
    assert is_there(server, kept)


def test_server_that_stops_during_a_cull_lets_the_other_kernels_end_in_their_time(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start("--KernelCuller.idle_timeout=2", *CULLS, "--KernelManager.shutdown_wait_time=60")
    server.wait_warm()
    culled, other = server.start_kernel(), server.start_kernel()
    target = server.root / "atexit.txt"
    server.run(culled, "import atexit, time; atexit.register(time.sleep, 6)")
    with browser(server, other):
        later = f"lambda: (time.sleep(6), open({str(target)!r}, 'w').write('done'))"
        server.run(other, f"import atexit, time; atexit.register({later})")
        eventually(lambda: f"Kernel {culled} is culled" in server.log, "it is culled")
    server.stop()
    assert target.read_text() == "done"
    assert "InvalidStateError" not in server.log


def test_clients_of_a_culled_kernel_are_told_why_their_cells_end(kp_start: Callable[..., Server]) -> None:
    """Also where the cell can't be interrupted, so that its kernel answers nothing."""
    server = kp_start("--KernelCuller.busy_timeout=2", *CULLS)
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        stuck = tab.send("execute_request", execution(NEVER_RETURNS))
        queued = tab.send("execute_request", execution("print('never')"))
        reply, published = tab.until_idle(stuck)
        assert (reply["status"], reply["ename"]) == ("error", "KernelKilled")
        assert reply["evalue"] == "The kernel was culled: it is busy for 2 s."
        assert [one["content"]["ename"] for one in published if one["header"]["msg_type"] == "error"] == [
            "KernelKilled"
        ]
        reply, published = tab.until_idle(queued)
        assert reply["status"] == "aborted"
        assert "Not run. The kernel was culled" in published[0]["content"]["text"]
    assert not is_there(server, kernel)


def test_clients_of_a_kernel_that_is_shut_down_are_told(kp_server: Server) -> None:
    kp_server.wait_warm(1)
    kernel = kp_server.start_kernel()
    with browser(kp_server, kernel) as tab:
        # Not at once: what holds the interpreter's lock may keep even from being told that the cell began.
        stuck = tab.send("execute_request", execution(f"import time; time.sleep(0.3); {NEVER_RETURNS}"))
        tab.receive()
        assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
        reply, _ = tab.until_idle(stuck)
        assert (reply["ename"], reply["evalue"]) == ("KernelKilled", "The kernel was shut down.")


def test_events_tell_of_a_cull_beforehand_then_of_it_and_then_of_the_end(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.idle_timeout=4", "--KernelCuller.interval=0.2", "--KernelCuller.warn_before=2")
    server.wait_warm()
    with follow(server) as heard:
        kernel = server.start_kernel()
        culling = heard.wait_for_event("culling", kernel)
        assert is_there(server, kernel)
        assert culling["reason"] == "it is idle for 4 s"
        assert 0 < culling["seconds"] <= 2
        dead = heard.wait_for_event("dead", kernel)
        culled = heard.wait_for_event("culled", kernel)
        assert (culled["reason"], culled["cause"]) == ("it is idle for 4 s", "idle")
        assert culling["seq"] < culled["seq"] < dead["seq"]
        assert heard.names(kernel) == ["starting", "ready", "culling", "culled", "dead"]


def test_kernel_whose_last_client_goes_when_it_was_idle_for_long_is_told_before_it_ends(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start("--KernelCuller.idle_timeout=3", "--KernelCuller.interval=0.2", "--KernelCuller.warn_before=2")
    server.wait_warm()
    with follow(server) as heard:
        kernel = server.start_kernel()
        with browser(server, kernel) as tab:
            assert tab.execute("print(1)") == "1"
            time.sleep(5)
            assert "culling" not in heard.names(kernel)
        culling = heard.wait_for_event("culling", kernel)
        assert culling["seconds"] > 1, "a new client has so long to come back"
        with browser(server, kernel):
            time.sleep(3)
            assert is_there(server, kernel)
        heard.wait_for_event("culling", kernel, count=2)
        heard.wait_for_event("dead", kernel)


def test_server_that_is_stopped_while_it_culls_ends(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelCuller.idle_timeout=1", "--KernelCuller.interval=0.2", "--KernelCuller.warn_before=0.5")
    server.wait_warm()
    with follow(server) as heard:
        kernel = server.start_kernel()
        server.run(kernel, "import atexit, time; atexit.register(time.sleep, 2)")
        heard.wait_for_event("culled", kernel)
        server.stop()  # which does not wait for ever
    assert "Traceback" not in server.log


def test_kernel_that_the_server_only_watches_has_no_end_ahead(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write_connection_file(str(outside / "kernel-far.json"), key=b"k", kernel_name="far")
    server = kp_start(
        "--KernelCuller.idle_timeout=600", "--ServerApp.allow_external_kernels=True",
        f"--ServerApp.external_connection_dir={outside}",
    )  # fmt: skip
    ours = server.start_kernel()
    (adopted,) = {one["id"] for one in server.call("/kernelpool/v1/kernels")[1]["kernels"]} - {ours}
    assert model(server, ours)["cull"]["at"] is not None
    assert (model(server, adopted)["cull"]["at"], model(server, adopted)["cull"]["why"]) == (None, None)


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
        assert (status, answer["cull"]["recycle"]) == (200, {"age": 1, "memory": None, "uses": None})
        reply, published = tab.until_idle(request)
        assert reply["status"] == "ok", "a cell is not torn"
        assert [one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream"] == ["1\n"]
        eventually(lambda: model(server, wanted)["pid"] != pids[0], "it has begun anew")
        assert server.call(f"/kernelpool/v1/kernels/{wanted}", "PATCH", {"recycle": {"age": None}})[0] == 200
        eventually(lambda: tab.execute("'x' in globals()") == "False", "the open connection goes on")
        assert neighbour.execute("print(x)") == "1"
        assert model(server, other)["pid"] == pids[1]
        event = eventually(lambda: heard.of(wanted, "restarted"), "it is told")[0]
        assert (event["cause"], event["reason"]) == ("renewed", "its owner wants it anew after 1 s")


def test_wrong_wishes_are_refused(kp_server: Server) -> None:
    kernel = kp_server.start_kernel()
    for body in ({"keep_alive": -1}, {"keep_alive": "long"}, {"recycle": 5}, {"recycle": {"memory": "much"}},
                 {"recycle": {"uses": "many"}}, {"recycle": {"visits": 3}}):  # fmt: skip
        status, refusal = kp_server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", body)
        assert (status, refusal["code"]) == (422, "not_valid"), body


def test_stock_culler_keeps_its_meaning(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--MappingKernelManager.cull_idle_timeout=2", "--MappingKernelManager.cull_interval=1")
    server.wait_warm()
    kernel = server.start_kernel()
    eventually(lambda: not is_there(server, kernel), "stock culls it")
    assert "seconds of inactivity" in server.log
