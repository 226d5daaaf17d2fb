"""The lives of real kernels as their events tell them, on our stream and on Jupyter's, in their true order."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from .browsers import browser
from .conftest import Server
from .streams import follow, subscribe
from .test_metrics import value

pytestmark = pytest.mark.integration

START = ["starting", "ready"]
CELL = ["busy", "idle"]


def post(server: Server, path: str, body: object = None) -> dict[str, object]:
    status, answer = server.call(path, "POST", body)
    assert status < 300, answer
    return dict(answer or {})


@pytest.mark.timeout(180)
def test_a_whole_life_is_told_in_its_order_on_both_streams(kp_server: Server) -> None:
    kp_server.wait_warm()
    with subscribe(kp_server) as jupyters, follow(kp_server) as ours:
        kernel = kp_server.start_kernel()
        client = kp_server.client(kernel)
        kp_server.run(client, "x = 1")
        ours.wait_for_event("idle", kernel)

        sleeping = client.execute("import time; time.sleep(300)")
        ours.wait_for_event("busy", kernel, 2)
        assert kp_server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
        ours.wait_for_event("idle", kernel, 2)
        while client.get_shell_msg(timeout=30)["parent_header"]["msg_id"] != sleeping:
            pass

        child = str(post(kp_server, f"/kernelpool/v1/kernels/{kernel}/fork", {"name": "kid"})["kernels"][0]["id"])  # type: ignore[index]
        checkpoint = str(post(kp_server, f"/kernelpool/v1/kernels/{kernel}/checkpoints", {"name": "one"})["id"])
        post(kp_server, f"/kernelpool/v1/kernels/{kernel}/restore", {"checkpoint": checkpoint})
        again = str(post(kp_server, f"/kernelpool/v1/checkpoints/{checkpoint}/fork", {})["kernels"][0]["id"])  # type: ignore[index]
        assert kp_server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        ours.wait_for_event("restarted", kernel)
        kp_server.run(kp_server.client(kernel), "x = 2")
        ours.wait_for_event("idle", kernel, 3)
        for one in (kernel, child, again):
            assert kp_server.call(f"/api/kernels/{one}", "DELETE")[0] == 204
            ours.wait_for_event("dead", one)

        life = [
            *START, *CELL, *CELL, "forked", "checkpointed", "restored", "forked", *START, "restarted", *CELL, "dead",
        ]  # fmt: skip
        assert ours.names(kernel) == life
        assert ours.names(child) == ours.names(again) == [*START, "dead"]
        of_both = [(name, data["kernel_id"]) for name, data, _ in ours.events if name != "ping"]
        jupyters.wait_for(lambda heard: len(heard.events) >= len(of_both), "Jupyter's stream is as long")
        assert [(name, data["kernel_id"]) for name, data, _ in jupyters.events] == of_both

        def facts(name: str, number: int = 1) -> dict[str, object]:
            data = ours.wait_for_event(name, kernel, number)
            return {key: value for key, value in data.items() if key not in ("seq", "time", "type", "kernel_id")}

        ready = facts("ready")
        assert ready["way"] == "template"
        assert 0 < float(str(ready["seconds"])) < 30
        assert [facts("idle", number)["status"] for number in (1, 2, 3)] == ["ok", "error", "ok"]
        assert facts("forked") == {"reason": "", "child": child, "name": "kid"}
        assert facts("checkpointed") == {"reason": "", "checkpoint": checkpoint, "name": "one"}
        assert facts("restored") == {"reason": "", "source": checkpoint, "checkpoint": checkpoint}
        assert facts("forked", 2) == {"reason": "", "child": again, "checkpoint": checkpoint}
        assert facts("restarted") == {"reason": "asked for", "cause": "asked"}
        assert facts("dead") == {"reason": "shut down"}
        numbers = [data["seq"] for _, data, _ in ours.events]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert [number for *_, number in ours.events] == [str(number) for number in numbers]


def test_a_kernel_that_died_while_a_cell_ran_was_never_idle(kp_server: Server) -> None:
    kp_server.wait_warm()
    with follow(kp_server) as heard:
        kernel = kp_server.start_kernel()
        kp_server.client(kernel).execute("import os, time; time.sleep(0.5); os._exit(1)")
        heard.wait_for_event("restarted", kernel)
        assert heard.names(kernel) == [*START, "busy", *START, "restarted"]
        assert heard.wait_for_event("restarted", kernel)["cause"] == "died"


def test_front_end_chatter_makes_no_kernel_busy(kp_server: Server) -> None:
    with follow(kp_server) as heard:
        kernel = kp_server.start_kernel()
        with browser(kp_server, kernel) as tab:
            tab.ask("kernel_info_request", {})
            tab.ask("complete_request", {"code": "impo", "cursor_pos": 4})
            tab.ask("comm_info_request", {})
            assert tab.execute("1 + 1") == "2"
        heard.wait_for_event("idle", kernel)
        assert heard.names(kernel) == [*START, *CELL]


def test_a_cold_kernel_is_ready_when_it_is_first_heard(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.warm=0", "--KernelPool.max_warm=0")
    with follow(server) as heard:
        kernel = server.start_kernel()
        assert heard.wait_for_event("ready", kernel)["way"] == "cold"
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        heard.wait_for_event("restarted", kernel)
        server.run(kernel, "x = 1")
        heard.wait_for_event("idle", kernel)
        assert heard.names(kernel) == [*START, *START, "restarted", *CELL]


def test_warm_kernels_are_nobodys_and_told_to_nobody(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    with follow(server) as heard:
        server.wait_warm()
        assert server.call("/kernelpool/v1/pools/python3", "PATCH", {"drain": True})[0] == 200
        server.wait_warm()
        kernel = server.start_kernel()
        heard.wait_for_event("ready", kernel)
        assert {data["kernel_id"] for _, data, _ in heard.events} == {kernel}


def test_a_start_that_fails_is_told_to_its_end_and_counted_only_if_the_server_failed(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start()
    spec = server.folder / "data" / "kernels" / "broken"
    spec.mkdir(parents=True)
    program = str(server.folder / "no-such-program")
    (spec / "kernel.json").write_text(json.dumps({"argv": [program], "display_name": "Broken", "language": "none"}))
    with follow(server) as heard:
        for number, (name, failures) in enumerate([("no-such-kernelspec", 0), ("broken", 1)], 1):
            assert server.call("/api/kernels", "POST", {"name": name})[0] == 500
            heard.wait_for(lambda one, seen=number: len(one.events) == 2 * seen, "two more events")
            assert heard.names() == ["starting", "dead"] * number
            assert heard.events[-1][1]["reason"].startswith("not started: ")
            assert value(server, "jupyter_kernelpool_start_failures_total") == failures


def test_filters_keep_what_was_asked_for(kp_server: Server) -> None:
    first, second = kp_server.start_kernel(), kp_server.start_kernel()
    with follow(kp_server, f"?kernel={first}&type=busy,idle") as some, follow(kp_server) as everything:
        for kernel in (second, first):
            kp_server.run(kernel, "x = 1")
        everything.wait_for_event("idle", first)
        some.wait_for_event("idle", first)
        assert some.names() == CELL
        assert {data["kernel_id"] for _, data, _ in some.events} == {first}


def test_who_comes_back_hears_what_was_missed_and_nothing_twice(kp_server: Server) -> None:
    kernel = kp_server.start_kernel()
    client = kp_server.client(kernel)
    with follow(kp_server) as before:
        kp_server.run(client, "x = 1")
        before.wait_for_event("idle", kernel)
    last = before.events[-1][2]
    kp_server.run(client, "x = 2")
    with follow(kp_server, last=last) as after:
        after.wait_for_event("idle", kernel)
        kp_server.run(client, "x = 3")
        after.wait_for_event("idle", kernel, 2)
    assert after.names() == [*CELL, *CELL]
    assert int(after.events[0][2] or 0) == int(last or 0) + 1


def test_the_number_of_another_server_is_told_as_a_gap(kp_server: Server) -> None:
    with follow(kp_server, last="7") as heard:
        (name, data, number) = heard.wait_for(lambda one: one.events, "the gap")[0]
        assert (name, data["code"], data["facts"], number) == ("warning", "gap", {"lost": None}, None)


def test_the_stream_ends_with_the_server(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    with follow(server) as heard:
        kernel = server.start_kernel()
        heard.wait_for_event("ready", kernel)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert heard.ended.wait(30)
        assert heard.names(kernel) == [*START, "dead"]


def test_a_limit_that_ends_a_kernel_is_told_before_its_death(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelLimits.memory=300M", "--KernelLimits.grace=1")
    with follow(server) as heard:
        kernel = server.start_kernel()
        # It is heard to be busy first: what takes memory in one step keeps the kernel from saying so.
        code = "import time\ntime.sleep(1)\nwhile True:\n    try:\n        x = bytearray(900_000_000)\n"
        code += "        time.sleep(60)\n"
        code += "    except BaseException:\n        pass"
        server.client(kernel).execute(code)
        heard.wait_for_event("dead", kernel)
        names = [name for name in heard.names(kernel) if name != "warned"]
        assert names[:3] == [*START, "busy"]
        assert set(names[3:-1]) == {"breached"}
        assert names[-1] == "dead"
        assert "idle" not in names
