"""Forks in numbers: ten generations, a hundred at once, memory that is shared; and who survives whom."""

from __future__ import annotations

import concurrent.futures
import os
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest

from .conftest import Server, eventually, gone
from .kernelside_driver import descriptors
from .test_clients import browser
from .test_forking import API, checkpoint, fork, pid_of, post

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

MANY = 100
GENERATIONS = 10


@pytest.fixture
def kernel(kp_server: Server) -> Iterator[str]:
    kp_server.wait_warm(1)
    yield kp_server.start_kernel()
    for each in kp_server.call("/api/kernels")[1]:
        kp_server.call(f"/api/kernels/{each['id']}", "DELETE")


def run(server: Server, kernel: str, code: str) -> str:
    """What *code* prints, through a client that is gone afterwards: a hundred would need too many descriptors."""
    client = server.client(kernel)
    try:
        return server.run(client, code)
    finally:
        server.clients.remove(client)
        client.stop_channels()
        client.context.destroy(linger=0)


def number_of_descriptors(pid: int) -> int:
    """How many descriptors *pid* has once the connections of who has left are closed."""
    counts: list[int] = []

    def settled() -> bool:
        counts.append(len(descriptors(pid)))
        return len(counts) > 20 and len(set(counts[-20:])) == 1

    eventually(settled, "nothing changes")
    return counts[-1]


# -- generations ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_generations_keep_the_state_and_hold_no_more_descriptors_each(kp_server: Server, kernel: str) -> None:
    run(kp_server, kernel, "x = []")
    line, held, sessions = [kernel], [], []
    for number in range(GENERATIONS):
        (forked,) = fork(kp_server, line[-1])
        line.append(forked)
        ask = f"x.append({number}); print(get_ipython().history_manager.session_number)"
        sessions.append(run(kp_server, forked, ask))
        held.append(number_of_descriptors(pid_of(kp_server, forked)))
    assert len(set(held)) == 1, held
    assert len(set(sessions)) == GENERATIONS, sessions
    for number, each in enumerate(line):
        assert run(kp_server, each, "print(x)") == str(list(range(number)))
    nodes = {node["id"]: node["parent"] for node in kp_server.call(f"{API}/lineage")[1]["nodes"]}
    assert [nodes[each] for each in line] == [None, *line[:-1]]

    *ancestors, last = line
    for each in ancestors:
        assert kp_server.call(f"/api/kernels/{each}", "DELETE")[0] == 204
    assert run(kp_server, last, "x.append('alone'); print(len(x), x[-1])") == f"{GENERATIONS + 1} alone"
    assert run(kp_server, fork(kp_server, last)[0], "print(x[-1])") == "alone"


def test_kill_of_a_kernel_leaves_its_forks_and_theirs_and_its_checkpoints(kp_server: Server, kernel: str) -> None:
    run(kp_server, kernel, "x = 'root'")
    kept = checkpoint(kp_server, kernel)
    (child,) = fork(kp_server, kernel)
    run(kp_server, child, "x = 'child'")
    (grandchild,) = fork(kp_server, child)
    (of_checkpoint,) = [each["id"] for each in post(kp_server, f"/checkpoints/{kept}/fork")["kernels"]]
    for each in (kernel, child):
        os.killpg(pid_of(kp_server, each), signal.SIGKILL)
        assert kp_server.call(f"/api/kernels/{each}", "DELETE")[0] == 204
    assert run(kp_server, grandchild, "print(x)") == "child"
    assert run(kp_server, of_checkpoint, "print(x)") == "root"


def test_state_of_any_relative_is_taken(kp_server: Server, kernel: str) -> None:
    """Down, up, sideways, and past one that has ended."""
    run(kp_server, kernel, "x = 'root'")
    kept = checkpoint(kp_server, kernel)
    first, second = fork(kp_server, kernel, count=2)
    run(kp_server, first, "x = 'first'")
    (grandchild,) = fork(kp_server, first)
    run(kp_server, grandchild, "x = 'grandchild'")
    run(kp_server, kernel, "x = 'root, later'")
    assert kp_server.call(f"/api/kernels/{first}", "DELETE")[0] == 204
    for target, source, expected in (
        (kernel, {"kernel": grandchild}, "grandchild"),
        (grandchild, {"checkpoint": kept}, "root"),
        (second, {"kernel": kernel}, "grandchild"),
        (kernel, {"kernel": grandchild}, "root"),
    ):
        with browser(kp_server, target) as tab:
            tab.execute("x = 'gone'")
            post(kp_server, f"/kernels/{target}/restore", source, 200)
            assert tab.execute("print(x)") == expected


# -- many -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hundred_forks_at_once_are_kernels_of_their_own(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm(1)
    kernel = server.start_kernel()
    server.run(kernel, "import numpy; x = numpy.ones(20_000_000); n = 'parent'")
    forked = post(server, f"/kernels/{kernel}/fork", {"count": MANY, "name": "many"}, timeout=240)["kernels"]
    ids = [each["id"] for each in forked]
    assert [each["given_name"] for each in forked] == [f"many-{number}" for number in range(1, MANY + 1)]
    assert {each["id"] for each in server.call("/api/kernels")[1]} == {kernel, *ids}
    assert len({pid_of(server, each) for each in ids}) == MANY
    for number, each in enumerate(ids):
        assert run(server, each, f"n = {number}; print(n, int(x.sum()))") == f"{number} 20000000"
    assert server.run(kernel, "print(n)") == "parent"
    for number in (0, MANY // 2, MANY - 1):
        assert run(server, ids[number], "print(n)") == str(number)
    processes = [process for process in server.ours() if process.pid != server.supervisor().pid]
    assert sum(process.memory_full_info().pss for process in processes) < 0.3 * MANY * 160_000_000
    server.stop()
    assert gone(processes)


@pytest.mark.slow
def test_forks_that_are_asked_for_at_the_same_time_all_come_to_be(kp_server: Server, kernel: str) -> None:
    """And cells that run meanwhile are all run."""
    client = kp_server.client(kernel)
    kp_server.run(client, "x = 0")
    with concurrent.futures.ThreadPoolExecutor(25) as pool:
        answers = [pool.submit(fork, kp_server, kernel) for _ in range(25)]
        for number in range(20):
            assert kp_server.run(client, "x += 1; print(x)") == str(number + 1)
        ids = [answer.result()[0] for answer in answers]
    assert len({pid_of(kp_server, each) for each in ids}) == 25
    for each in ids:
        found = int(run(kp_server, each, "print(x)"))
        assert 0 <= found <= 20
        assert run(kp_server, each, f"x = {found} + 1000; print(x)") == str(found + 1000)
    assert kp_server.run(client, "print(x)") == "20"


def test_memory_is_shared_until_one_of_them_writes_to_it(kp_server: Server, kernel: str) -> None:
    size = 300_000_000
    run(kp_server, kernel, f"import numpy; x = numpy.ones({size}, dtype='u1')")
    pids = [pid_of(kp_server, each) for each in (kernel, *fork(kp_server, kernel, count=5))]

    def used() -> int:
        return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)

    shared = used()
    assert shared < 1.7 * size, "one array, and six small processes"
    run(kp_server, kernel, "x[:] = 2")
    assert used() > shared + 0.9 * size


# -- a kernel like any other ------------------------------------------------------------------------


def test_fork_that_crashes_is_restarted_by_itself_as_any_kernel(kp_server: Server, kernel: str) -> None:
    run(kp_server, kernel, "x = 1")
    (forked,) = fork(kp_server, kernel)
    kp_server.wait_warm(1)
    pid = pid_of(kp_server, forked)
    with browser(kp_server, forked) as tab:
        assert tab.execute("print(x)") == "1"
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid_of(kp_server, forked) not in (pid, 0), "it is restarted")
        assert tab.execute("x") == "NameError"
    assert run(kp_server, kernel, "print(x)") == "1"


def test_idle_forks_are_culled_as_any_kernel(kp_start: Callable[..., Server]) -> None:
    server = kp_start(
        "--AsyncMappingKernelManager.cull_idle_timeout=2",
        "--AsyncMappingKernelManager.cull_interval=1",
    )
    server.wait_warm(1)
    kernel = server.start_kernel()
    (forked,) = fork(server, kernel)
    processes = [psutil.Process(pid_of(server, each)) for each in (kernel, forked)]
    eventually(lambda: server.call("/api/kernels")[1] == [], "both are culled")
    eventually(lambda: gone(processes), "their processes end")
    assert server.call(f"{API}/lineage")[1]["nodes"] == []
