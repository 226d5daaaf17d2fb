"""A process that a cell has started, and that the operating system kills at once for the kernel's limit on memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from .browsers import browser, execution
from .conftest import Server
from .limited import options_of

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
