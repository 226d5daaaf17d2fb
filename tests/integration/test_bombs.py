"""Bombs that fork as fast as they can, where no control group of ours refuses them: what ends them is not outrun.

For the machine's sake they are in a control group of the test's, which lets them have no more than `MOST` processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from jupyter_kernelpool.ending import end_tree
from jupyter_kernelpool.limits.cgroup import find_hierarchy, has_ended
from jupyter_kernelpool.limits.hierarchy import Hierarchy

from .browsers import browser
from .conftest import Server, eventually
from .limited import ENFORCERS, assert_dead_for, hearing, limited, pid_of, run, undisturbed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MOST = 1500
BOMB = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
# It is another process whenever one looks: it has ended when it could be signalled.
RUNS = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork():
    signal.pause()
while True:
    if os.fork():
        os._exit(0)
"""
WAITS = "import sys; sys.stdin.read(1)\n"


@pytest.fixture
def kp_fence() -> Iterator[Hierarchy]:
    """A control group for bombs; what a test leaves in it is killed."""
    found = find_hierarchy(f"kp-fence-{os.getpid()}")
    assert isinstance(found, Hierarchy), found
    found.make("")
    try:
        found.limit_processes("", MOST)
        yield found
    finally:
        assert found.end("")
        found.remove("")


def living(fence: Hierarchy) -> list[int]:
    return [pid for pid in fence.members("") if not has_ended(pid)]


@contextlib.contextmanager
def going(fence: Hierarchy, code: str) -> Iterator[int]:
    """*code* runs inside the fence, in a session of its own; its first process."""
    with subprocess.Popen([sys.executable, "-c", WAITS + code], stdin=subprocess.PIPE, start_new_session=True) as one:
        fence.put("", one.pid)
        assert one.stdin is not None
        one.stdin.write(b"x")
        one.stdin.flush()
        try:
            yield one.pid
        finally:
            fence.end("")


@pytest.mark.parametrize("grown", [20, MOST - 100])
def test_tree_that_forks_as_fast_as_it_can_is_ended_with_all_its_processes(kp_fence: Hierarchy, grown: int) -> None:
    with going(kp_fence, BOMB) as pid:
        eventually(lambda: len(kp_fence.members("")) >= grown, "it goes off")
        assert end_tree(pid, ())
        assert living(kp_fence) == []


def test_process_that_has_always_forked_and_ended_before_it_is_signalled_does_not_get_away(kp_fence: Hierarchy) -> None:
    with going(kp_fence, RUNS) as pid:
        before = set(eventually(lambda: len(found := living(kp_fence)) > 1 and found, "it runs"))
        eventually(lambda: set(living(kp_fence)) - before, "it is another one by now")
        assert end_tree(pid, ())
        assert living(kp_fence) == []


def test_live_bomb_is_ended_by_the_watchdog_with_the_reason_and_spares_its_neighbour(
    kp_fence: Hierarchy, kp_start: Callable[..., Server]
) -> None:
    server = kp_start(*ENFORCERS["watchdog"])
    server.wait_warm()
    assert server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]["processes"]["by"] == "watchdog"
    kernel = limited(server, processes=50)
    pid = pid_of(server, kernel)
    kp_fence.put("", pid)
    with undisturbed(server), hearing(server) as heard, browser(server, kernel) as page:
        cell = run(page, BOMB)
        assert (cell.reply["ename"], cell.error) == ("KernelKilled", "KernelKilled")
        assert "50 allowed" in cell.stderr
        assert_dead_for(server, kernel, "processes", pid)
        eventually(lambda: not living(kp_fence), "none of it is left, whatever session it is in")
        eventually(lambda: heard.of(kernel, "dead"), "it is told")
    assert {(event["limit"], event["allowed"]) for event in heard.of(kernel, "breached")} == {("processes", 50)}
    assert heard.of(kernel, "breached")[-1]["outcome"] == "killed"
    assert "not every process of it could be ended" not in server.log
