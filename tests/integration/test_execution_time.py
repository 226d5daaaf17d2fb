"""A cell that runs longer than it may is ended, whoever sent it; what that cost is told as it is."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

from .browsers import Browser, browser, execution
from .conftest import Server, eventually, gone
from .limited import hearing

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

ALLOWED = 2.0
GRACE = 1.5
LIMITS = [f"--KernelLimits.execution_timeout={ALLOWED}", f"--KernelLimits.grace={GRACE}"]
SLOW = 40.0  # what a busy machine may take for what takes a moment

DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfor _ in range(1200): time.sleep(0.1)"
STUBBORN = """
import time
began = time.monotonic()
while time.monotonic() - began < 120:
    try:
        time.sleep(120)
    except KeyboardInterrupt:
        pass
"""

STUCK = "sum(range(10**12))"


@pytest.fixture(scope="module")
def kp_limited(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on which a cell may run for two seconds."""
    server = kp_servers(tmp_path_factory.mktemp("limited"), *LIMITS)
    yield server
    server.stop()


@pytest.fixture
def kernel(kp_limited: Server) -> Iterator[str]:
    kernel_id = kp_limited.start_kernel()
    yield kernel_id
    kp_limited.call(f"/api/kernels/{kernel_id}", "DELETE")


def breach(server: Server, kernel_id: str) -> dict[str, Any]:
    """The last limit that the kernel crossed, once there is one."""

    def found() -> Any:
        return server.call(f"/kernelpool/v1/kernels/{kernel_id}")[1]["breach"]

    return dict(eventually(found, "the kernel crossed a limit"))


def text_of(published: list[dict[str, Any]]) -> str:
    return "".join(one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream")


def pid_of(tab: Browser) -> int:
    return int(tab.execute("import os; os.getpid()"))


def test_cell_ends_at_its_time_and_its_kernel_goes_on_with_its_variables(kp_limited: Server, kernel: str) -> None:
    with hearing(kp_limited) as heard, browser(kp_limited, kernel) as tab:
        tab.execute("kept = 42")
        began = time.monotonic()
        reply, published = tab.until_idle(tab.send("execute_request", execution("import time; time.sleep(60)")))
        assert ALLOWED - 0.2 < time.monotonic() - began < SLOW
        assert reply["ename"] == "KeyboardInterrupt"
        assert "2 s allowed. Interrupted" in text_of(published)
        assert "of 2 s used" in text_of(published), "warned before"
        assert tab.execute("kept, 1 + 1") == "(42, 2)"
        eventually(lambda: heard.of(kernel, "breached"), "it is told")
    found = breach(kp_limited, kernel)
    assert (found["limit"], found["allowed"], found["outcome"]) == ("execution_timeout", 2.0, "interrupted")
    assert found["seen"] >= ALLOWED
    assert not found["state_lost"]
    (warned,), (breached,) = heard.of(kernel, "warned"), heard.of(kernel, "breached")
    assert (warned["limit"], warned["allowed"]) == ("execution_timeout", ALLOWED)
    assert warned["reason"] in text_of(published)
    assert (breached["limit"], breached["outcome"], breached["state_lost"]) == (
        "execution_timeout",
        "interrupted",
        False,
    )
    assert re.fullmatch(r"execution timeout limit: \S+ s used, 2 s allowed", breached["reason"])


def test_cell_within_its_time_is_told_nothing(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        reply, published = tab.until_idle(tab.send("execute_request", execution("import time; time.sleep(1)")))
        assert reply["status"] == "ok"
        assert text_of(published) == ""
    assert kp_limited.call(f"/kernelpool/v1/kernels/{kernel}")[1]["breach"] is None


def test_awaiting_cell_ends_at_its_time(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        tab.execute("kept = 42")
        reply, _ = tab.until_idle(tab.send("execute_request", execution("import asyncio; await asyncio.sleep(60)")))
        assert reply["status"] == "error"
        assert tab.execute("kept") == "42"


@pytest.mark.parametrize(
    "code", [DEAF, STUBBORN, STUCK], ids=["ignores SIGINT", "swallows KeyboardInterrupt", "holds the GIL in C"]
)
def test_cell_that_can_not_be_interrupted_costs_the_kernel_its_state_and_everybody_is_told(
    kp_limited: Server, kernel: str, code: str
) -> None:
    with browser(kp_limited, kernel) as tab:
        process = psutil.Process(pid_of(tab))
        tab.execute("kept = 42")
        first, second, third = (tab.send("execute_request", execution(text)) for text in (code, "kept", "1 + 1"))
        began = time.monotonic()
        ends = until_all_idle(tab, [first, second, third])
        assert time.monotonic() - began < ALLOWED + GRACE + SLOW
        assert gone([process]), "the loop has really stopped"
        reply, published = ends[first]
        assert (reply["status"], reply["ename"]) == ("error", "ExecutionTimeout")
        assert "its variables are lost" in reply["evalue"]
        assert "error" in [one["header"]["msg_type"] for one in published]
        for queued in (second, third):
            reply, published = ends[queued]
            assert reply["status"] == "aborted"
            assert "Not run" in text_of(published)
            assert "its variables are lost" in text_of(published)
        assert tab.execute("'kept' in dir(), 1 + 1") == "(False, 2)", "the open connection goes on"
    found = breach(kp_limited, kernel)
    assert (found["outcome"], found["state_lost"]) == ("restarted", True)
    # Stock hears the kernel on a connection of its own, maybe a moment later.
    eventually(lambda: kp_limited.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "idle", "it is idle")


def until_all_idle(tab: Browser, requests: list[str]) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """For each request the content of its one reply, and what was published for it, once all are idle."""
    replies: dict[str, dict[str, Any]] = {}
    published: dict[str, list[dict[str, Any]]] = {request: [] for request in requests}
    idle: set[str] = set()
    while len(replies) < len(requests) or len(idle) < len(requests):
        message = tab.receive(timeout=60)
        request = message["parent_header"].get("msg_id")
        if request not in published:
            continue
        if message["channel"] == "iopub":
            published[request].append(message)
            if message["content"].get("execution_state") == "idle":
                idle.add(request)
        elif message["channel"] == "shell":
            assert request not in replies, "answered once"
            replies[request] = message["content"]
    return {request: (replies[request], published[request]) for request in requests}


def test_every_client_is_told_and_one_that_connects_anew_as_jupyterlab_does_goes_on(
    kp_limited: Server, kernel: str
) -> None:
    with browser(kp_limited, kernel) as one, browser(kp_limited, kernel) as other:
        running = one.send("execute_request", execution(DEAF))
        time.sleep(0.5)
        queued = other.send("execute_request", execution("1 + 1"))
        assert one.until_idle(running)[0]["ename"] == "ExecutionTimeout"
        reply, published = other.until_idle(queued)
        assert reply["status"] == "aborted", "its cell never ran, though it is the first that this client waits for"
        assert "Not run" in text_of(published)
        for tab in (one, other):
            while tab.receive()["content"].get("execution_state") != "restarting":
                pass
            with browser(kp_limited, kernel) as anew:
                assert anew.execute("1 + 1") == "2"


def test_cells_queued_behind_one_that_was_interrupted_are_answered(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        requests = [
            tab.send("execute_request", execution(code)) for code in ("import time; time.sleep(60)", "1 + 1", "2 + 2")
        ]
        ends = until_all_idle(tab, requests)
        assert [ends[one][0]["status"] for one in requests] == ["error", "aborted", "aborted"]
        assert tab.execute("1 + 1") == "2"
    assert breach(kp_limited, kernel)["outcome"] == "interrupted"


def test_waiting_for_input_does_not_count(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        request = tab.send("execute_request", execution("answer = input(); answer * 2"))
        tab.until_asked()
        time.sleep(ALLOWED + 1.5)
        tab.send("input_reply", {"value": "ab", "status": "ok"}, channel="stdin")
        reply, published = tab.until_idle(request)
        assert reply["status"] == "ok"
        assert text_of(published) == ""
        request = tab.send("execute_request", execution("answer = input()\nimport time; time.sleep(60)"))
        tab.until_asked()
        tab.send("input_reply", {"value": "ab", "status": "ok"}, channel="stdin")
        reply, _ = tab.until_idle(request)
        assert reply["ename"] == "KeyboardInterrupt", "once it has its input, its time goes on"


def test_cell_whose_client_went_away_before_it_answered_goes_on_waiting(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        tab.send("execute_request", execution("answer = input()"))
        tab.until_asked()
    time.sleep(ALLOWED + 1)
    assert kp_limited.call(f"/kernelpool/v1/kernels/{kernel}")[1]["breach"] is None
    assert kp_limited.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    eventually(
        lambda: kp_limited.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "idle", "the interrupted cell ended"
    )
    with browser(kp_limited, kernel) as tab:
        assert tab.execute("1 + 1") == "2"


def test_interrupting_a_cell_that_waits_for_input_sets_the_clock_going(kp_limited: Server, kernel: str) -> None:
    code = "try:\n    input()\nexcept KeyboardInterrupt:\n    pass\nimport time; time.sleep(60)"
    with browser(kp_limited, kernel) as tab:
        request = tab.send("execute_request", execution(code))
        tab.until_asked()
        assert kp_limited.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
        reply, _ = tab.until_idle(request)
        assert reply["ename"] == "KeyboardInterrupt"


def test_subshells_overtime_is_told_and_the_innocent_main_cell_is_not_interrupted(kp_start: Any) -> None:
    server = kp_start(*LIMITS)
    kernel = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"limits": {"execution_timeout": 1}})[0] == 200
    with browser(server, kernel) as tab:
        subshell = tab.ask("create_subshell_request", {}, channel="control")["subshell_id"]
        tab.header = {"subshell_id": subshell}
        request = tab.send("execute_request", execution("import time; time.sleep(4); print('over')"))
        tab.header = {}
        time.sleep(0.3)
        assert tab.execute("import time; time.sleep(0.3); 1 + 1") == "2"
        reply, published = tab.until_idle(request)
        assert reply["status"] == "ok"
        assert "over" in text_of(published)
        assert "an interrupt would not reach its subshell" in text_of(published)
    assert breach(server, kernel)["outcome"] == "reported"


def test_third_partys_client_and_one_that_went_away_are_held_to_it(kp_limited: Server, kernel: str) -> None:
    client: BlockingKernelClient = kp_limited.client(kernel)
    reply = client.execute_interactive("import time; time.sleep(60)", timeout=60)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert breach(kp_limited, kernel)["outcome"] == "interrupted"


def test_cell_is_ended_while_nobody_is_connected_and_the_next_client_is_told(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        tab.send("execute_request", execution(DEAF))
        time.sleep(0.5)
    assert breach(kp_limited, kernel)["outcome"] == "restarted"
    with browser(kp_limited, kernel) as tab:
        told = ""
        while "Interrupted" not in told:
            told = text_of([tab.receive()])
        assert tab.execute("1 + 1") == "2"


def test_execution_may_ask_for_less_time_but_not_for_more(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        tab.metadata = {"kernelpool": {"limits": {"execution_timeout": 0.5}}}
        reply, published = tab.until_idle(tab.send("execute_request", execution("import time; time.sleep(60)")))
        assert reply["ename"] == "KeyboardInterrupt"
        assert "0.5 s allowed" in text_of(published)
        tab.metadata = {"kernelpool": {"limits": {"execution_timeout": 50}}}
        reply, published = tab.until_idle(tab.send("execute_request", execution("import time; time.sleep(60)")))
        assert reply["ename"] == "KeyboardInterrupt"
        assert "would loosen the limit" in text_of(published)
        assert "2 s allowed" in text_of(published)
        tab.metadata = {}
        reply, published = tab.until_idle(tab.send("execute_request", execution("import time; time.sleep(1)")))
        assert (reply["status"], text_of(published)) == ("ok", "")


TALKS = {
    "text": "import time\nfor _ in range(8): print('.', flush=True); time.sleep(0.5)\n",
    "a progress bar": "import time\nh = display(0, display_id=True)\nfor n in range(8): h.update(n); time.sleep(0.5)\n",
    "a widget": "import ipywidgets as w, time\np = w.IntProgress()\nfor p.value in range(1, 9): time.sleep(0.5)\n",
}


@pytest.mark.parametrize("code", TALKS.values(), ids=TALKS)
def test_cell_that_puts_something_out_goes_on_and_one_that_falls_silent_is_interrupted(
    kp_start: Callable[..., Server], code: str
) -> None:
    server = kp_start("--KernelLimits.idle_output_timeout=2", f"--KernelLimits.grace={GRACE}")
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        tab.execute("kept = 42")
        reply, _ = tab.until_idle(tab.send("execute_request", execution(code)))
        assert reply["status"] == "ok"
        assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["breach"] is None
        began = time.monotonic()
        reply, published = tab.until_idle(tab.send("execute_request", execution(code + "time.sleep(60)")))
        assert 5 < time.monotonic() - began < 12, "2 s after what came last"
        assert reply["ename"] == "KeyboardInterrupt"
        assert "Time without output: 2 s allowed. Interrupted" in text_of(published)
        assert tab.execute("kept") == "42"
    found = breach(server, kernel)
    assert (found["limit"], found["allowed"], found["outcome"]) == ("idle_output_timeout", 2.0, "interrupted")
    assert found["seen"] >= 2


def test_cell_that_waits_for_input_is_not_silent_and_one_that_ignores_its_interrupt_loses_its_kernel(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start("--KernelLimits.idle_output_timeout=1.5", f"--KernelLimits.grace={GRACE}")
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        request = tab.send("execute_request", execution("input()"))
        tab.until_asked()
        time.sleep(2.5)
        tab.send("input_reply", {"value": "late"}, "stdin")
        assert tab.until_idle(request)[0]["status"] == "ok"
        tab.execute("kept = 42")
        reply, _ = tab.until_idle(tab.send("execute_request", execution(DEAF)))
        assert reply["ename"] == "ExecutionTimeout"
        assert "Time without output: 1.5 s allowed, and the cell did not stop" in reply["evalue"]
        assert tab.execute("kept") == "NameError"
    found = breach(server, kernel)
    assert (found["limit"], found["outcome"], found["state_lost"]) == ("idle_output_timeout", "restarted", True)


def test_limit_that_is_changed_holds_for_the_cell_that_runs(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        request = tab.send("execute_request", execution("import time; time.sleep(60)"))
        time.sleep(1)
        status, model = server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"limits": {"execution_timeout": 1.5}})
        assert (status, model["limits"]["execution_timeout"]) == (200, 1.5)
        reply, _ = tab.until_idle(request)
        assert reply["ename"] == "KeyboardInterrupt"


def test_requests_that_are_no_executions_do_not_count(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        tab.execute(
            "import time\nget_ipython().kernel.comm_manager.register_target('slow', lambda *_: time.sleep(3.5))"
        )
        tab.send("comm_open", {"comm_id": "1", "target_name": "slow", "data": {}})
        assert tab.execute("1 + 1") == "2"
    assert kp_limited.call(f"/kernelpool/v1/kernels/{kernel}")[1]["breach"] is None


def test_cold_kernel_is_held_to_it_and_comes_back(kp_start: Callable[..., Server]) -> None:
    recipes = json.dumps({"python3": {"launcher": "off", "limits": {"execution_timeout": 1.5}}})
    server = kp_start("--KernelLimits.grace=1", f"--KernelPool.recipes={recipes}")
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        process = psutil.Process(pid_of(tab))
        assert tab.execute("import time; time.sleep(60)") == "KeyboardInterrupt"
        assert breach(server, kernel)["outcome"] == "interrupted"
        first, second = (tab.send("execute_request", execution(code)) for code in (DEAF, "1 + 1"))
        ends = until_all_idle(tab, [first, second])
        assert [ends[one][0]["status"] for one in (first, second)] == ["error", "aborted"]
        assert gone([process])
        eventually(lambda: breach(server, kernel)["outcome"] == "restarted", "it was restarted")
        assert tab.execute("1 + 1") == "2"


def test_kernel_goes_back_to_its_checkpoint_where_the_operator_wants_that(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*LIMITS, "--KernelLimits.on_breach=restore")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        tab.execute("kept = 42")
        assert server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})[0] == 201
        tab.execute("lost = 1")
        reply, _ = tab.until_idle(tab.send("execute_request", execution(DEAF)))
        assert "goes back to its last checkpoint" in reply["evalue"]
        assert tab.execute("kept, 'lost' in dir()") == "(42, False)"
    found = breach(server, kernel)
    assert (found["outcome"], found["state_lost"]) == ("restored", True)


def test_kernel_that_its_user_restarts_meanwhile_is_left_alone(kp_limited: Server, kernel: str) -> None:
    with browser(kp_limited, kernel) as tab:
        tab.send("execute_request", execution("import time; time.sleep(60)"))
        time.sleep(ALLOWED / 2)
        assert kp_limited.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert tab.execute("kept = 42; kept") == "42"
        time.sleep(ALLOWED + GRACE)
        assert tab.execute("kept") == "42"
    assert kp_limited.call(f"/kernelpool/v1/kernels/{kernel}")[1]["breach"] is None
