"""Processes that a cell starts: killed for the kernel's limit, forked without an end of their own, left behind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import psutil
import pytest

from .browsers import browser, execution
from .conftest import Server, eventually, gone
from .limited import options_of, run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

DIES = f"import subprocess\nsubprocess.run([{sys.executable!r}, '-c', 'x = b\"x\" * (2 << 30)']).returncode"


def test_cell_that_is_over_before_the_guard_looks_says_why_its_child_ended(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*options_of("cgroup.CgroupEnforcer"), "--KernelLimits.interval=20")
    kernel = server.start_kernel()
    status, _ = server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"limits": {"memory": "300M"}})
    assert status == 200
    with browser(server, kernel) as page:
        for number in range(3):
            cells = [page.send("execute_request", execution(code)) for code in (DIES, "import time; time.sleep(0.5)")]
            told: dict[str, str] = dict.fromkeys(cells, "")
            replied: list[str] = []
            while len(replied) < len(cells):
                message = page.receive()
                cell = message["parent_header"].get("msg_id", "")
                if message["header"]["msg_type"] == "execute_reply":
                    replied.append(cell)
                    assert message["content"]["status"] == "ok"
                elif cell not in replied:  # what comes later is no output of the cell any more
                    told[cell] = told.get(cell, "") + str(message["content"].get("text", ""))
            assert replied == cells
            assert "300 MB allowed" in told[cells[0]], number
            assert "A process that the kernel had started was ended; the kernel goes on." in told[cells[0]]
            assert told[cells[1]] == ""


@pytest.mark.parametrize("then", ["", "; 1 / 0"], ids=["at its last line", "by an error"])
def test_process_that_a_cell_forks_is_no_kernel_and_ends_when_it_comes_out_of_the_cell(
    kp_start: Callable[..., Server], then: str
) -> None:
    server = kp_start()
    server.wait_warm()
    kernel = server.start_kernel()
    status, fork = server.call(f"/kernelpool/v1/kernels/{kernel}/fork", "POST")
    assert status == 201, fork
    for one in (kernel, fork["kernels"][0]["id"]):
        with browser(server, one) as page:
            forks = f"import os\nchild = os.fork()\nif child == 0:\n    print('from it'){then}\n"
            cell = run(page, forks + "else:\n    print('ended with', os.waitpid(child, 0)[1])")
            assert cell.reply["status"] == "ok", cell
            assert ("from it" in cell.stdout, "ended with 0" in cell.stdout) == (True, True), cell
            assert page.execute("1 + 1") == "2"


def test_what_a_limited_kernel_leaves_is_held_to_nothing_any_more_and_ends_with_it(
    kp_start: Callable[..., Server],
) -> None:
    server = kp_start()
    server.wait_warm()
    processes = {}
    for limits in ({"processes": 100}, {}):
        kernel = server.start_kernel()
        assert server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"limits": limits})[0] == 200
        with browser(server, kernel) as page:
            orphan = "sleep 600 >/dev/null 2>&1 & echo $!"  # children are ended by ipykernel
            pid = int(page.execute(f"import subprocess\nint(subprocess.check_output({orphan!r}, shell=True))"))
        processes[bool(limits)] = psutil.Process(pid)
        assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    try:
        eventually(lambda: gone([processes[True]]), "it is ended")
        assert processes[False].is_running(), "as with stock"
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[False].kill()
