"""What kernels may use together: all of the server's, and those of an owner; on each enforcer, with real kernels."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from .browsers import browser, execution
from .conftest import Server, eventually, gone
from .limited import ENFORCERS, assert_dead_for, cores_of_each, hearing, model_of, pid_of, run
from .test_owners import KNOWN, ask_as

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SPINS = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
# So slowly that it is looked at several times between what is told and what is allowed. `apart`: in sessions of their
# own, where no interrupt of the kernel's reaches them.
STARTS = """
import subprocess, time
started = []
def start(most, apart):
    while len(started) < most:
        try:
            started.append(subprocess.Popen(["sleep", "60"], start_new_session=apart))
        except OSError:  # it is refused one more, and asks again
            pass
        time.sleep(0.03)
def end():
    while started:
        one = started.pop()
        one.kill()
        one.wait()
"""


@pytest.fixture(params=list(ENFORCERS))
def kp_summing(
    request: pytest.FixtureRequest, kp_start: Callable[..., Server], tmp_path: Path
) -> Callable[..., Server]:
    """Starts a server with the enforcer, which knows its users, and further options."""
    (tmp_path / "known.py").write_text(KNOWN)

    def start(*options: str) -> Server:
        known = ("--ServerApp.identity_provider_class=known.Known", "--KernelPool.ownership=user")
        patient = ("--KernelLimits.headroom=3", "--KernelLimits.grace=1.5")
        server = kp_start(*ENFORCERS[request.param], *known, *patient, *options, PYTHONPATH=str(tmp_path))
        server.wait_warm()
        held = server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]
        assert {held[limit]["by"] for limit in ("memory", "cpu", "processes")} == {request.param}
        return server

    return start


def start_as(server: Server, user: str) -> str:
    status, _, kernel = ask_as(server, user, "/api/kernels", {"name": "python3"})
    assert status == 201, kernel
    return str(kernel["id"])


def test_processes_over_the_sum_interrupt_the_kernel_that_has_most_and_end_it_if_that_does_not_help(
    kp_summing: Callable[..., Server],
) -> None:
    server = kp_summing("--KernelLimits.total_processes=120")
    large, small = start_as(server, "ada"), start_as(server, "bob")
    ends_over_the_sum(server, "all kernels", large, small)


def test_processes_over_an_owners_quota_end_his_kernel_that_has_most_and_no_other_owners(
    kp_summing: Callable[..., Server],
) -> None:
    server = kp_summing('--KernelPool.owner_quota={"processes": 120}')
    large, small, others = (start_as(server, user) for user in ("ada", "ada", "bob"))
    with browser(server, others) as page:
        assert run(page, STARTS + "start(60, False)").reply["status"] == "ok"
        ends_over_the_sum(server, "owner ada", large, small)
        assert page.execute("[one.poll() for one in started] == [None] * 60") == "True"
    assert model_of(server, others)["breach"] is None


def ends_over_the_sum(server: Server, group: str, large: str, small: str) -> None:
    """*large* brings the group, in which *small* is too, over the 120 processes that are allowed, twice."""
    pid, told = pid_of(server, large), rf"processes limit of {group}: \d+ used together, 120 allowed"
    with hearing(server) as heard, browser(server, large) as page, browser(server, small) as neighbour:
        assert run(neighbour, STARTS + "start(10, False)").reply["status"] == "ok"
        cell = run(page, STARTS + "start(200, False)")
        assert cell.error == "KeyboardInterrupt", cell
        assert re.search(told + r"\. Interrupted", cell.stderr), cell
        breach = model_of(server, large)["breach"]
        assert (breach["limit"], breach["group"], breach["outcome"]) == ("processes", group, "interrupted")
        assert page.execute("end(); 1+1") == "2", "it lives, as what it started ended with the interrupt"

        heedless = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); start(200, True); time.sleep(60)"
        request = page.send("execute_request", execution(heedless))
        started = eventually(lambda: len(found := psutil.Process(pid).children()) > 50 and found, "it starts some")
        reply, _ = page.until_idle(request, 60)
        assert reply["ename"] == "KernelKilled"
        breach = assert_dead_for(server, large, "processes", pid)["breach"]
        assert (breach["group"], breach["allowed"]) == (group, 120)
        eventually(lambda: gone(started), "nothing of it is left, in sessions of their own though they are")
        assert neighbour.execute("[one.poll() for one in started] == [None] * 10") == "True"
    assert re.fullmatch(told, model_of(server, large)["reason"])
    assert {event["kernel_id"] for event in heard.events if event["type"] in ("warned", "breached")} == {large}
    assert model_of(server, small)["breach"] is None


@pytest.mark.parametrize(
    "whose, limit, option, takes, lets_go, told",
    [
        (
            "all kernels", "memory", "--KernelLimits.total_memory=1G", "x = b'x' * ({} << 20)", "del x",
            r"Memory of all kernels: \d+(\.\d)? MB of 1 GB used together\.",
        ),
        (
            "owner ada", "processes", '--KernelPool.owner_quota={"processes": 200}',
            STARTS + "start({}, False)", "end()",
            r"Processes of owner ada: 1[6-9]\d of 200 used together\.",
        ),
    ],
    ids=["memory of all kernels", "processes of an owner"],
)  # fmt: skip
def test_kernel_that_has_most_is_warned_once_each_time_that_a_sum_comes_near(
    kp_summing: Callable[..., Server], whose: str, limit: str, option: str, takes: str, lets_go: str, told: str
) -> None:
    server = kp_summing(option)
    small, large = start_as(server, "ada"), start_as(server, "ada")
    less, more = (200, 650) if limit == "memory" else (30, 120)
    with hearing(server) as heard, browser(server, small) as one, browser(server, large) as other:
        assert run(one, takes.format(less)).reply["status"] == "ok"
        for time in (1, 2):
            cell = run(other, takes.format(more) + "\nimport time; time.sleep(3)")
            assert cell.reply["status"] == "ok"
            assert re.fullmatch(told + "\n", cell.stderr), cell
            assert len(heard.of(large, "warned")) == time
            assert run(other, lets_go + "\nimport time; time.sleep(3)").stderr == ""
    for event in heard.of(large, "warned"):
        assert (event["limit"], event["group"], event["seen"] >= 0.8 * event["allowed"]) == (limit, whose, True)
        assert re.fullmatch(told, event["reason"])
    assert not heard.of(small, "warned")
    assert not [event for event in heard.events if event["type"] == "breached"]


def test_cores_of_an_owner_are_shared_by_his_kernels_and_not_with_another_owners(
    kp_summing: Callable[..., Server],
) -> None:
    server = kp_summing('--KernelPool.owner_quota={"cpu": 0.1}')
    kernels = [start_as(server, user) for user in ("ada", "ada", "bob")]
    pids = [pid_of(server, kernel) for kernel in kernels]
    with hearing(server) as heard, contextlib.ExitStack() as stack:
        for kernel in kernels:
            stack.enter_context(browser(server, kernel)).send("execute_request", execution(SPINS))
        eventually(lambda: sum(cores_of_each(pids, 1)) < 0.26, "all are slowed down")
        eventually(lambda: all(heard.of(kernel, "throttled") for kernel in kernels), "it is told")
        first, second, others = cores_of_each(pids, 4)
        assert 0.02 < first < 0.08
        assert 0.02 < second < 0.08
        assert 0.06 < others < 0.12
