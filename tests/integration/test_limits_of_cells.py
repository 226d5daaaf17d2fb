"""Cells that sleep, are deaf or print for ever end as the limits say, in kernels that each enforcer holds as well.

What holds a cell, the server's clock and its eye on output, has to do with kernels that are slowed down, paused and in
groups of their own. The other cases of both are in `test_execution_time` and `test_output_limit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from .browsers import browser, execution
from .conftest import Server, eventually, gone
from .limited import ENFORCERS, MB, hearing, limited, model_of, pid_of, run, undisturbed
from .test_output_limit import (
    LIMIT,
    MARKED,
    PRINTS_WITHOUT_END,
    come_back,
    leave_printing,
    size_of,
    text_of,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

HELD: dict[str, Any] = {"memory": "600M", "cpu": 0.8, "processes": 200}
SLEEPS = "import time; time.sleep(1e9)"
BLOCKS = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
time.sleep(600)
"""


@pytest.fixture(scope="module", params=list(ENFORCERS))
def kp_holding(
    request: pytest.FixtureRequest, kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose kernels the enforcer holds, and of whose cells each test holds its own."""
    server = kp_servers(tmp_path_factory.mktemp("server"), *ENFORCERS[request.param], "--KernelLimits.grace=1.5")
    server.wait_warm()
    _, pool = server.call("/kernelpool/v1/pool")
    for limit in HELD:
        assert pool["capabilities"]["limits"][limit]["by"] == request.param
    yield server
    server.stop()


def told_of(events: list[dict[str, Any]], limit: str) -> list[tuple[str, bool]]:
    """What came of each breach of *limit*, the only one there was, and whether it cost the variables."""
    assert {event["limit"] for event in events} == {limit}
    assert all(re.match(rf"{limit.replace('_', ' ')} limit: .* used, .* allowed$", event["reason"]) for event in events)
    return [(event["outcome"], event["state_lost"]) for event in events]


def test_cell_that_sleeps_for_ever_is_interrupted_and_its_kernel_goes_on(kp_holding: Server) -> None:
    kernel = limited(kp_holding, execution_timeout=2, **HELD)
    pid = pid_of(kp_holding, kernel)
    with undisturbed(kp_holding), hearing(kp_holding) as heard, browser(kp_holding, kernel) as page:
        assert page.execute("kept = 42") == ""
        cell = run(page, SLEEPS)
        assert cell.error == "KeyboardInterrupt"
        assert re.search(r"Execution time: 1\.\d+ s of 2 s used\.", cell.stderr), cell
        assert "Execution time: 2 s allowed. Interrupted" in cell.stderr
        assert page.execute("kept, 1 + 1") == "(42, 2)"
        eventually(lambda: heard.of(kernel, "breached"), "it is told")
    breach = model_of(kp_holding, kernel)["breach"]
    assert (breach["limit"], breach["outcome"], breach["state_lost"]) == ("execution_timeout", "interrupted", False)
    assert pid_of(kp_holding, kernel) == pid
    (warned,) = heard.of(kernel, "warned")
    assert (warned["limit"], warned["allowed"]) == ("execution_timeout", 2)
    assert warned["reason"] in cell.stderr
    assert told_of(heard.of(kernel, "breached"), "execution_timeout") == [("interrupted", False)]


def test_cell_that_blocks_sigint_costs_the_kernel_its_state_and_its_limits_stay(kp_holding: Server) -> None:
    kernel = limited(kp_holding, execution_timeout=2, **HELD)
    process = psutil.Process(pid_of(kp_holding, kernel))
    with undisturbed(kp_holding), hearing(kp_holding) as heard, browser(kp_holding, kernel) as page:
        assert page.execute("kept = 42") == ""
        cell = run(page, BLOCKS)
        assert (cell.reply["ename"], cell.error) == ("ExecutionTimeout", "ExecutionTimeout")
        assert "its variables are lost" in cell.reply["evalue"]
        assert gone([process])
        assert page.execute("'kept' in dir(), 1 + 1") == "(False, 2)", "the open connection goes on"
        eventually(lambda: heard.of(kernel, "breached"), "it is told")
        assert (len(heard.of(kernel, "warned")), heard.of(kernel, "warned")[0]["limit"]) == (1, "execution_timeout")
        assert told_of(heard.of(kernel, "breached"), "execution_timeout") == [("restarted", True)]
        model = model_of(kp_holding, kernel)
        assert (model["breach"]["outcome"], model["breach"]["state_lost"]) == ("restarted", True)
        assert (model["limits"]["memory"], model["limits"]["processes"]) == (600 * MB, 200)
        # What took its place is held as well.
        assert run(page, "x = b'x' * (2 << 30)\nimport time; time.sleep(30)").reply["ename"] == "KernelKilled"


def test_cell_that_prints_for_ever_is_cut_and_interrupted(kp_holding: Server) -> None:
    kernel = limited(kp_holding, output="10M", **HELD)
    with undisturbed(kp_holding), hearing(kp_holding) as heard, browser(kp_holding, kernel) as page:
        assert page.execute("kept = 42") == ""
        reply, published = page.until_idle(page.send("execute_request", execution(PRINTS_WITHOUT_END)), 90)
        assert reply["ename"] == "KeyboardInterrupt"
        assert text_of(published).count(MARKED) == 1
        assert "Interrupted; the kernel is ended if it prints on" in text_of(published)
        assert size_of(published) <= LIMIT + 4000
        assert page.execute("kept") == "42"
        eventually(lambda: len(heard.of(kernel, "breached")) == 2, "it is told")
    assert_printer_is_told(kp_holding, kernel, heard.of(kernel, "warned"), heard.of(kernel, "breached"))


def test_printer_whose_client_has_gone_is_stopped_and_costs_no_memory(kp_holding: Server) -> None:
    kernel = limited(kp_holding, output="10M", **HELD)
    with undisturbed(kp_holding), hearing(kp_holding) as heard:
        leave_printing(kp_holding, kernel, "import time; time.sleep(1)\n" + PRINTS_WITHOUT_END)
        eventually(lambda: len(heard.of(kernel, "breached")) == 2, "it is stopped", 60)
        eventually(lambda: model_of(kp_holding, kernel)["execution_state"] == "idle", "it rests")
        replayed = come_back(kp_holding, kernel)
        assert text_of(replayed).count(MARKED) == 1
        assert size_of(replayed) <= LIMIT + 4000
        replies = [one["content"]["ename"] for one in replayed if one["header"]["msg_type"] == "execute_reply"]
        assert replies == ["KeyboardInterrupt"]
        assert kp_holding.run(kernel, "print(1+1)") == "2"
    assert_printer_is_told(kp_holding, kernel, heard.of(kernel, "warned"), heard.of(kernel, "breached"))


def assert_printer_is_told(
    server: Server, kernel: str, warned: list[dict[str, Any]], breached: list[dict[str, Any]]
) -> None:
    """It was warned once at most, cut, and then interrupted; nothing of it was lost."""
    # Not where a single message goes from below the one share to above the other: `test_output_limit` has the rest.
    for event in warned:
        assert (event["limit"], event["allowed"]) == ("output", LIMIT)
        assert re.fullmatch(r"Output: \S+ MB of 10 MB used\.", event["reason"])
    assert len(warned) <= 1
    assert told_of(breached, "output") == [("truncated", False), ("interrupted", False)]
    breach = model_of(server, kernel)["breach"]
    assert (breach["limit"], breach["allowed"], breach["outcome"]) == ("output", LIMIT, "interrupted")
