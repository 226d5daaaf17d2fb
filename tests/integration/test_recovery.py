"""What follows the end of a kernel's process, or its silence, as the policy says; and kernelspecs that can't start."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .browsers import Browser, browser, execution
from .conftest import Server, eventually
from .streams import came, follow
from .test_health import (
    GRACE,
    IGNORES_SIGINT,
    INTERVAL,
    LOOPS_IN_C,
    NEVER_RETURNS,
    QUICK,
    SEARCHES_IN_C,
    SLACK,
    SLEEPS_IN_C,
    TIMEOUT,
    model,
    until,
)
from .test_metrics import value

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

UNHURRIED = 3.0  # seconds between nudges that are not many times the slack
ENDS = {
    "exit": ("import os; os._exit(1)", "exit code 1"),
    "SIGSEGV": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    "a pointer to nowhere": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    "SIGKILL, as when memory is short": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
}
# Its heartbeat ends, too; what runs ignores interrupts.
ANSWERS_NOTHING = f"""
from ipykernel.kernelapp import IPKernelApp
IPKernelApp.instance().heartbeat.socket.close()
{IGNORES_SIGINT}
{NEVER_RETURNS}"""
# What falls silent, and what it is found to be.
SILENT = {
    "waits": (NEVER_RETURNS, "wedged"),
    "loops": (LOOPS_IN_C, "wedged"),
    "ignores interrupts": (f"{IGNORES_SIGINT}\n{SEARCHES_IN_C}", "wedged"),
    "answers nothing": (ANSWERS_NOTHING, "hung"),
}


def lost(tab: Browser, code: str) -> str:
    """What is told of a cell whose kernel ends."""
    reply, _ = tab.until_idle(tab.send("execute_request", execution(code)))
    assert (reply["status"], reply["ename"]) == ("error", "KernelDied"), reply
    return str(reply["evalue"])


@pytest.fixture(scope="module")
def server(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that restarts what does not answer."""
    server = kp_servers(tmp_path_factory.mktemp("recovery"), *QUICK, "--KernelHealth.on_unresponsive=restart")
    server.wait_warm(1)
    yield server
    server.stop()


@pytest.mark.parametrize("how", ENDS)
def test_a_crash_is_told_to_who_waits_and_the_kernel_comes_back(server: Server, how: str) -> None:
    code, told = ENDS[how]
    kernel, sibling = server.start_kernel(), server.start_kernel()
    with browser(server, kernel) as tab, browser(server, sibling) as other, follow(server) as heard:
        tab.execute("x = 1")
        slow = other.send("execute_request", execution("import time; time.sleep(2); print('kept on')"))
        began = time.time()
        text = lost(tab, code)
        assert told in text
        assert kernel in text, "whose death it was"
        assert tab.execute("x") == "NameError"
        restarted = heard.wait_for_event("restarted", kernel)
        assert restarted["cause"] == "died"
        assert came(restarted) - began < INTERVAL + TIMEOUT + SLACK
        reply, _ = other.until_idle(slow)
        assert reply["status"] == "ok", "a sibling never notices"
        assert (model(server, kernel)["failure_count"], model(server, sibling)["failure_count"]) == (1, 0)


def test_a_client_that_was_away_when_its_kernel_ended_is_told_when_it_comes_back(server: Server) -> None:
    kernel = server.start_kernel()
    with browser(server, kernel, "away") as tab:
        tab.execute("x = 1")
        running = tab.send("execute_request", execution("import time; time.sleep(60)"))
        queued = tab.send("execute_request", execution("print(x)"))
        eventually(lambda: model(server, kernel)["execution_state"] == "busy", "it runs")
    os.kill(model(server, kernel)["pid"], signal.SIGKILL)
    eventually(lambda: model(server, kernel)["failure_count"] == 1 and model(server, kernel)["pid"], "it came back")
    with browser(server, kernel, "away") as tab:
        replies = {}
        while len(replies) < 2:
            message = tab.receive()
            if message["header"]["msg_type"] == "execute_reply":
                replies[message["parent_header"]["msg_id"]] = message["content"]
        assert {reply["ename"] for reply in (replies[running], replies[queued])} == {"KernelDied"}
        assert "SIGKILL" in replies[running]["evalue"]
        assert tab.execute("x") == "NameError"


def test_a_client_that_was_away_while_its_cell_went_on_is_told_nothing_of_ours(server: Server) -> None:
    kernel = server.start_kernel()
    with browser(server, kernel, "back") as tab:
        tab.execute("x = 1")
        ended = tab.send("execute_request", execution("import time; time.sleep(1); 6 * 7"))
        running = tab.send("execute_request", execution("time.sleep(8); 7 * 8"))
        eventually(lambda: model(server, kernel)["execution_state"] == "busy", "it runs")
    time.sleep(3)
    with browser(server, kernel, "back") as tab:
        told: dict[str, list[str]] = {ended: [], running: []}
        while not any(kind == "execute_reply" for kind in told[running]):
            message = tab.receive()
            told.setdefault(message["parent_header"].get("msg_id", ""), []).append(message["header"]["msg_type"])
            assert message["content"].get("status") != "error", message
        assert [kinds.count("execute_reply") for kinds in (told[ended], told[running])] == [1, 1]
        assert tab.execute("print(x)") == "1"


def test_an_exception_runs_once_and_is_no_failure(server: Server) -> None:
    kernel = server.start_kernel()
    marks = server.root / "marks"
    with browser(server, kernel) as tab:
        assert tab.execute(f"open({str(marks)!r}, 'a').write('x'); 1/0") == "ZeroDivisionError"
        assert tab.execute("print(1)") == "1"
    found = until(server, kernel, "responsive")
    assert marks.read_text() == "x"
    assert (found["failure_count"], found["health"]["failures"], found["state"]) == (0, 0, "active")


def test_a_cell_that_an_interrupt_reaches_costs_no_state(server: Server) -> None:
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        reply, _ = tab.until_idle(tab.send("execute_request", execution(SLEEPS_IN_C)))
        assert reply["ename"] == "KeyboardInterrupt"
        assert tab.execute("print(x)") == "kept"
    assert "since it was interrupted" in server.log


def test_a_stopped_kernel_is_continued_and_loses_nothing(server: Server) -> None:
    kernel = server.start_kernel()
    with browser(server, kernel) as tab, follow(server) as heard:
        tab.execute("x = 'kept'")
        pid = model(server, kernel)["pid"]
        until(server, kernel, "responsive")
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        assert tab.execute("print(x)") == "kept"
        again = heard.wait_for_event("ready", kernel)
        assert came(again) - began < INTERVAL + TIMEOUT + GRACE + SLACK
        assert model(server, kernel)["pid"] == pid


def test_whatever_answers_nothing_is_replaced_within_interval_timeout_and_grace(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start(
        f"--KernelHealth.interval={UNHURRIED}", f"--KernelHealth.timeout={TIMEOUT}", f"--KernelHealth.grace={GRACE}",
        "--KernelHealth.on_unresponsive=restart", f"--KernelPool.warm={len(SILENT)}",
        f"--KernelPool.max_warm={len(SILENT)}",
    )  # fmt: skip
    server.wait_warm(len(SILENT))
    kernels = [server.start_kernel() for _ in SILENT]

    def replaced(kernel: str, how: str) -> None:
        code, cause = SILENT[how]
        with browser(server, kernel) as tab:
            tab.execute("x = 1")
            pid = model(server, kernel)["pid"]
            asked = model(server, kernel)["health"]["checked"]
            eventually(
                lambda: model(server, kernel)["health"]["checked"] != asked, "it is asked, and not again so soon"
            )
            began = time.time()
            assert f"did not answer ({cause})" in lost(tab, code), how
            silent = heard.wait_for_event("unresponsive", kernel)
            assert silent["cause"] == cause, how
            assert came(silent) - began < UNHURRIED + TIMEOUT + SLACK, how
            restarted = heard.wait_for_event("restarted", kernel)
            assert restarted["cause"] == "unresponsive", how
            assert came(restarted) - began < UNHURRIED + TIMEOUT + GRACE + SLACK, how
            assert tab.execute("x") == "NameError"
            assert tab.execute("print('again')") == "again"
            found = model(server, kernel)
            assert (found["pid"] != pid, alive(pid), found["failure_count"]) == (True, False, 1), how

    with follow(server) as heard, ThreadPoolExecutor() as threads:
        for each in [threads.submit(replaced, kernel, how) for kernel, how in zip(kernels, SILENT, strict=True)]:
            each.result()


def test_silence_and_recovery_are_told_as_events_in_their_order(server: Server) -> None:
    with follow(server) as heard:
        kernel = server.start_kernel()
        heard.wait_for_event("ready", kernel)
        pid = model(server, kernel)["pid"]
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        silent = heard.wait_for_event("unresponsive", kernel)
        assert silent["cause"] == "stopped"
        assert came(silent) - began < INTERVAL + TIMEOUT + SLACK
        again = heard.wait_for_event("ready", kernel, 2)
        assert "since it was continued" in again["reason"]
        with browser(server, kernel) as tab:
            lost(tab, NEVER_RETURNS)
        assert heard.wait_for_event("unresponsive", kernel, 2)["cause"] == "wedged"
        restarted = heard.wait_for_event("restarted", kernel)
        assert (restarted["cause"], "did not answer (wedged)" in restarted["reason"]) == ("unresponsive", True)
        names = [name for name in heard.names(kernel) if name not in ("busy", "idle")]
        life = ["starting", "ready"]
        assert names == [*life, "unresponsive", "ready", "unresponsive", *life, "restarted"]


@pytest.fixture(scope="module")
def interrupting(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that interrupts what does not answer, and leaves it at that."""
    server = kp_servers(tmp_path_factory.mktemp("interrupting"), *QUICK, "--KernelHealth.on_unresponsive=interrupt")
    server.wait_warm(2)
    yield server
    server.stop()


@pytest.mark.parametrize("code", [SLEEPS_IN_C, SEARCHES_IN_C], ids=["waits", "searches"])
def test_where_silence_is_only_interrupted_a_cell_that_answers_nothing_until_then_ends(
    interrupting: Server, code: str
) -> None:
    kernel = interrupting.start_kernel()
    with browser(interrupting, kernel) as tab, follow(interrupting) as heard:
        tab.execute("x = 'kept'")
        pid = model(interrupting, kernel)["pid"]
        began = time.time()
        reply, _ = tab.until_idle(tab.send("execute_request", execution(code)))
        assert reply["ename"] == "KeyboardInterrupt"
        silent, again = heard.wait_for_event("unresponsive", kernel), heard.wait_for_event("ready", kernel)
        assert silent["cause"] == "wedged"
        assert came(silent) - began < INTERVAL + TIMEOUT + SLACK
        assert came(again) - began < INTERVAL + TIMEOUT + GRACE + SLACK
        assert "since it was interrupted" in again["reason"]
        assert tab.execute("print(x)") == "kept"
        assert model(interrupting, kernel)["pid"] == pid


def test_where_silence_is_only_interrupted_a_stopped_kernel_is_continued(interrupting: Server) -> None:
    kernel = interrupting.start_kernel()
    with browser(interrupting, kernel) as tab, follow(interrupting) as heard:
        tab.execute("x = 'kept'")
        pid = model(interrupting, kernel)["pid"]
        until(interrupting, kernel, "responsive")
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        again = heard.wait_for_event("ready", kernel)
        assert came(again) - began < INTERVAL + TIMEOUT + GRACE + SLACK
        assert "since it was continued" in again["reason"]
        assert tab.execute("print(x)") == "kept"
        assert model(interrupting, kernel)["pid"] == pid


def test_where_silence_is_only_interrupted_nothing_is_killed(interrupting: Server) -> None:
    kernel = interrupting.start_kernel()
    with browser(interrupting, kernel) as tab, follow(interrupting) as heard:
        tab.execute("x = 1")
        pid = model(interrupting, kernel)["pid"]
        tab.send("execute_request", execution(LOOPS_IN_C))
        eventually(lambda: model(interrupting, kernel)["health"]["failures"] >= 3, "it is asked again and again")
        found = model(interrupting, kernel)
        assert (found["health"]["status"], found["state"], found["pid"]) == ("wedged", "unresponsive", pid)
        assert alive(pid)
        assert [name for name in heard.names(kernel) if name not in ("busy", "idle")] == ["unresponsive"]
    assert interrupting.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200, "its user may"
    assert interrupting.run(kernel, "print('again')") == "again"


def test_recovery_brings_the_last_checkpoint_back(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK, "--KernelHealth.restore=True", "--KernelHealth.on_unresponsive=restart")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with follow(server) as heard, browser(server, kernel) as tab:
        tab.execute("x = 'before'")
        assert server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})[0] == 201
        tab.execute("x = 'after'")
        assert "last checkpoint" in lost(tab, "import os; os._exit(1)")
        assert tab.execute("print(x)") == "before"
        restored = heard.wait_for_event("restored", kernel)
        assert (restored["cause"], restored["reason"]) == ("died", "Its process ended with exit code 1")
        lost(tab, NEVER_RETURNS)
        assert tab.execute("print(x)") == "before"
        restored = heard.wait_for_event("restored", kernel, 2)
        assert restored["cause"] == "unresponsive"
        assert "did not answer (wedged)" in restored["reason"]
        assert "restarted" not in heard.names(kernel)
    for cause in ("died", "unresponsive"):
        assert value(server, "jupyter_kernelpool_restarts_total", cause=cause) == 1, "alerts ask that"
        assert value(server, "jupyter_kernelpool_recovery_seconds_count", cause=cause) == 1
    silence = value(server, "jupyter_kernelpool_recovery_seconds_sum", cause="unresponsive")
    assert silence >= GRACE, "it was waited for, and then replaced"


def test_policy_of_a_recipe_leaves_kernels_dead_with_the_reason(kp_start: Callable[..., Server]) -> None:
    recipes = json.dumps({"python3": {"recovery": "on_failure"}})
    server = kp_start(*QUICK, f"--KernelPool.recipes={recipes}")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        lost(tab, "import os; os._exit(3)")
        assert tab.execute("print('back')") == "back"
        assert "stays dead" in lost(tab, "import os; os._exit(0)")
    found = until(server, kernel, "dead")
    assert (found["state"], found["execution_state"]) == ("dead", "dead")
    assert "exit code 0" in found["reason"]
    assert server.call("/kernelpool/v1/pools/python3", "PATCH", {"recovery": "never"})[0] == 200
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200, "its user may restart it"
    assert server.run(kernel, "print('user')") == "user"
    assert model(server, kernel)["execution_state"] in ("idle", "busy")
    with browser(server, kernel) as tab:
        assert "stays dead" in lost(tab, "import os; os._exit(1)")


def test_recipe_says_what_becomes_of_a_kernel_that_does_not_answer(kp_start: Callable[..., Server]) -> None:
    """`recovery: never` spares it whatever else is said: it is interrupted, and told of, and answers again or not."""
    recipes = json.dumps({"python3": {"on_unresponsive": "restart", "recovery": "never"}})
    server = kp_start(*QUICK, f"--KernelPool.recipes={recipes}")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with follow(server) as heard, browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        pid = model(server, kernel)["pid"]
        stuck = tab.send("execute_request", execution(IGNORES_SIGINT + "\n" + NEVER_RETURNS))
        heard.wait_for_event("unresponsive", kernel)
        time.sleep(INTERVAL + TIMEOUT + GRACE + 2)
        assert alive(pid)
        assert "was ended" not in server.log
        changes = {"recovery": "always", "restore": False}
        status, recipe = server.call("/kernelpool/v1/pools/python3", "PATCH", changes)
        assert (status, recipe["settings"]["on_unresponsive"], recipe["settings"]["restore"]) == (200, "restart", False)
        reply, _ = tab.until_idle(stuck)
        assert "did not answer" in reply["evalue"], "now it is replaced"
        heard.wait_for_event("restarted", kernel)
    status, refusal = server.call("/kernelpool/v1/pools/python3", "PATCH", {"on_unresponsive": "panic"})
    assert (status, refusal["field"]) == (422, "on_unresponsive")


def test_a_client_that_leaves_as_it_asks_a_dead_kernel_is_told_when_it_comes_back(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start("--KernelHealth.recovery=never", *QUICK)
    server.wait_warm()
    kernel = server.start_kernel()
    server.client(kernel).execute("import os; os._exit(3)")
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "dead", "it stays dead")
    with browser(server, kernel, session="tab") as tab:
        assert tab.ask("execute_request", execution("1"))["status"] == "aborted"
        asked = tab.send("execute_request", execution("2"))  # and it closes in the same moment
    with browser(server, kernel, session="tab") as tab:
        reply = tab.until_idle(asked)[0]
        assert (reply["status"], reply["ename"]) == ("aborted", "KernelDied")
        assert tab.ask("execute_request", execution("3"))["status"] == "aborted", "and so is the next one, once"


def test_a_crash_loop_is_slowed_down_and_ends(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        *QUICK, "--KernelHealth.restart_limit=2", "--KernelHealth.restart_pause=2", "--KernelHealth.restart_window=120"
    )
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        lost(tab, "import os; os._exit(1)")
        assert tab.execute("print(1)") == "1"
        lost(tab, "import os; os._exit(1)")
        began = time.monotonic()
        assert tab.execute("print(1)") == "1"
        assert time.monotonic() - began > 1.5, "the second restart waits"
        assert "KernelHealth.restart_limit" in lost(tab, "import os; os._exit(1)")
    assert "3 times" in until(server, kernel, "dead")["reason"]


def test_what_is_restored_again_and_again_is_capped_as_jupyter_does(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        *QUICK, "--KernelHealth.restore=True", "--KernelHealth.restart_pause=0.1", "--KernelRestarter.restart_limit=1"
    )
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})[0] == 201
        assert "last checkpoint" in lost(tab, "import os; os._exit(1)")
        assert tab.execute("print(1)") == "1"
        told = lost(tab, "import os; os._exit(1)")
        assert "stays dead" in told
        assert "KernelRestarter.restart_limit is 1" in told
    assert server.call(f"/api/kernels/{kernel}")[0] == 200, "it is not forgotten"


def test_a_death_while_another_process_waits_for_its_turn_is_told_at_once(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK, "--KernelHealth.restore=True", "--KernelHealth.restart_pause=25")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})[0] == 201
        lost(tab, "import os; os._exit(1)")
        assert tab.execute("print(1)") == "1"
        lost(tab, "import os; os._exit(1)")
        began = time.monotonic()
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200, "its user does not wait"
        assert tab.execute("print(2)") == "2"
        lost(tab, "import os; os._exit(1)")
        assert time.monotonic() - began < 15
        assert model(server, kernel)["failure_count"] == 3


def test_a_kernelspec_that_starts_and_never_answers_is_given_up(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        "--KernelHealth.on_unresponsive=restart", "--KernelHealth.interval=0.5", "--KernelHealth.timeout=0.5",
        "--KernelHealth.grace=0.2", "--KernelHealth.start_timeout=1", "--KernelHealth.restart_window=1",
        "--KernelHealth.restart_pause=0.1", "--KernelHealth.breaker_failures=2", "--KernelHealth.breaker_pause=60",
        "--KernelRestarter.restart_limit=2",
    )  # fmt: skip
    server.wait_warm(1)
    code = IGNORES_SIGINT + "; import time; time.sleep(3600)"
    install(server, "silent", [sys.executable, "-c", code, "{connection_file}"])
    status, kernel = server.call("/api/kernels", "POST", {"name": "silent"})
    assert status == 201
    eventually(lambda: breaker(server).get("state") == "open", "its starts are refused", 60)
    found = eventually(
        lambda: model(server, kernel["id"]) if model(server, kernel["id"])["execution_state"] == "dead" else None,
        "it stays dead",
        60,
    )
    assert "none of its last 3 processes answered for 1 s, and KernelRestarter.restart_limit is 2" in found["reason"]
    status, _, refused = server.exchange("/api/kernels", "POST", {"name": "silent"})
    assert (status, refused["code"]) == (503, "starts_fail")
    assert "did not answer" in refused["message"]


def test_without_autorestart_a_dead_kernel_is_told_of(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK, "--PooledKernelManager.autorestart=False")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert "autorestart" in lost(tab, "import os; os._exit(1)")
    assert until(server, kernel, "dead")["execution_state"] == "dead"


def test_a_broken_kernelspec_opens_its_breaker_and_a_mended_one_closes_it(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK, "--KernelHealth.breaker_pause=6", "--KernelHealth.restart_pause=0.1")
    server.wait_warm(1)
    script = server.folder / "broken.py"
    script.write_text("raise SystemExit(7)\n")
    install(server, "broken", [sys.executable, str(script), "-f", "{connection_file}"])
    status, first = server.call("/api/kernels", "POST", {"name": "broken"})
    assert status == 201, "as stock, it is restarted first"
    eventually(lambda: breaker(server).get("state") == "open", "its starts are refused")
    for path, body in (
        ("/api/kernels", {"name": "broken"}),
        ("/api/sessions", {"path": "a.ipynb", "name": "", "type": "notebook", "kernel": {"name": "broken"}}),
    ):
        began = time.monotonic()
        status, headers, refused = server.exchange(path, "POST", body)
        assert time.monotonic() - began < 1.0
        assert (status, refused["code"]) == (503, "starts_fail"), refused
        assert "exit code 7" in refused["message"]
        assert 1 <= int(headers["Retry-After"]) <= 60
    assert server.run(server.start_kernel(), "print('others start')") == "others start"
    eventually(lambda: server.call(f"/api/kernels/{first['id']}")[0] == 404, "Jupyter gives up restarting it", 60)
    assert "Jupyter gave up" in server.log
    script.write_text("from ipykernel.kernelapp import launch_new_instance; launch_new_instance()\n")
    eventually(lambda: breaker(server).get("state") == "half-open", "one may try")
    status, trial = server.call("/api/kernels", "POST", {"name": "broken"})
    assert status == 201
    assert server.run(trial["id"], "print('mended')") == "mended"
    eventually(lambda: not breaker(server), "it is closed")
    assert server.call("/api/kernels", "POST", {"name": "broken"})[0] == 201


def test_a_command_that_is_not_there_opens_the_breaker(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK)
    install(server, "absent", [str(server.folder / "no-such-python"), "-f", "{connection_file}"])
    for _ in range(3):
        assert server.call("/api/kernels", "POST", {"name": "absent"})[0] == 500
    status, _, refused = server.exchange("/api/kernels", "POST", {"name": "absent"})
    assert (status, refused["code"]) == (503, "starts_fail")


def test_a_kernel_that_can_not_be_restarted_is_dead_and_says_why_until_its_user_restarts_it(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start(*QUICK, "--KernelPool.recipes={'mine': {'warm': 0}}")
    server.wait_warm(1)
    command = server.folder / "python-of-mine"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ipykernel_launcher "$@"\n')
    command.chmod(0o755)
    install(server, "mine", [str(command), "-f", "{connection_file}"])
    kernel = server.start_kernel(name="mine")
    with browser(server, kernel) as tab:
        assert tab.execute("print(1)") == "1"
        away = command.rename(server.folder / "away")
        lost(tab, "import os; os._exit(3)")
        eventually(lambda: model(server, kernel)["execution_state"] == "dead", "nobody can restart it")
        assert "exit code 3, and it could not be restarted: [Errno 2]" in model(server, kernel)["reason"]
        reply = tab.ask("execute_request", execution("print(1)"))
        assert (reply["status"], reply["ename"]) == ("aborted", "KernelDied")
        assert "could not be restarted" in reply["evalue"]
        away.rename(command)
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert tab.execute("print(2)") == "2"
        away = command.rename(server.folder / "away")
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 500, "nor can its user"
        assert model(server, kernel)["execution_state"] == "dead"
        reply = tab.ask("execute_request", execution("print(1)"))
        assert (reply["status"], reply["ename"]) == ("aborted", "KernelDied")
        away.rename(command)
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert tab.execute("print(2)") == "2"
        lost(tab, "import os; os._exit(3)")
        assert tab.execute("print(3)") == "3", "it is watched again"


def test_kernel_of_the_pool_that_crashes_before_it_answers_starts_cold(kp_start: Callable[..., Server]) -> None:
    """As where a library can't be forked: stock's kernel has no such trouble."""
    server = kp_start(*QUICK)
    startup = server.folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    crash = "import os, sys\nif '_jupyter_kernelpool.warm' in sys.modules: os.kill(os.getpid(), 11)\n"
    (startup / "crash.py").write_text(crash)
    server.wait_warm(1)
    with follow(server) as heard:
        kernel = server.start_kernel()
        assert heard.wait_for_event("restarted", kernel)["cause"] == "died"
        with browser(server, kernel) as tab:
            assert tab.execute("print(1)") == "1"
        assert model(server, kernel)["way"] == "cold"
        assert f"Kernel {kernel} starts cold: its process ended by the signal SIGSEGV before it answered" in server.log
        assert server.recipe("python3")["last_error"]["reason"] == (
            "a kernel ended by the signal SIGSEGV before it answered"
        )
        (startup / "crash.py").unlink()
        server.wait_warm(1)
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert model(server, kernel)["way"] == "template", "tried again where it is asked for"
        assert server.run(kernel, "print(2)") == "2"
        assert server.recipe("python3")["last_error"] is None


@pytest.mark.parametrize("preset", ["laptop", "hub"])
def test_a_kernel_that_ran_already_is_adopted_shown_and_nudged(
    kp_start: Callable[..., Server], tmp_path: Path, preset: str
) -> None:
    first = kp_start()
    first.wait_warm(1)
    kernel = first.start_kernel()
    pid = int(first.run(kernel, "import os; print(os.getpid())"))
    outside = tmp_path / "outside"
    outside.mkdir()
    info = json.loads(first.connection_file(kernel).read_text())
    (outside / "kernel-far.json").write_text(json.dumps({**info, "kernel_name": "python3"}))
    second = kp_start(
        *QUICK, "--ServerApp.allow_external_kernels=True", f"--ServerApp.external_connection_dir={outside}",
        "--KernelHealth.on_unresponsive=restart", f"--KernelPool.preset={preset}",
    )  # fmt: skip
    (found,) = second.call("/kernelpool/v1/kernels")[1]["kernels"]
    assert (found["way"], found["state"], found["pid"]) == ("external", "active", None)
    adopted = found["id"]
    until(second, adopted, "responsive")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert until(second, adopted, "hung")["state"] == "unresponsive"
        (found,) = second.call("/kernelpool/v1/kernels?state=unresponsive")[1]["kernels"]
        assert found["id"] == adopted
    finally:
        os.kill(pid, signal.SIGCONT)
    assert until(second, adopted, "responsive")["state"] == "active"
    assert value(second, "jupyter_kernelpool_adopted_kernels_total") == 1
    assert value(second, "jupyter_kernelpool_unresponsive_total", cause="hung") == 1
    assert first.run(kernel, "print(os.getpid())") == str(pid), "it is not ours to restart"
    assert value(first, "jupyter_kernelpool_adopted_kernels_total") == 0
    (outside / "kernel-far.json").unlink()
    eventually(lambda: second.call("/kernelpool/v1/kernels")[1]["kernels"] == [], "it is forgotten")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def breaker(server: Server) -> dict[str, Any]:
    found = server.call("/kernelpool/v1/pool")[1]["breakers"]
    return dict(found[0]) if found else {}


def install(server: Server, name: str, argv: list[str]) -> None:
    folder = server.folder / "data" / "kernels" / name
    folder.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
