"""However server, supervisor, template or kernel end: nothing of ours is left, and nobody else's is touched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from .conftest import Server, eventually, gone
from .traces import (
    SOON,
    files,
    is_kernelside,
    listeners,
    listening,
    nothing_left,
    supervisor_is_ready,
    traces,
    warm_processes,
    write_spec,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BUSY = "while True: pass"
STUCK_IN_C = "import ctypes; ctypes.PyDLL(None).sleep(1000)"  # PyDLL holds the GIL


def pid_of(server: Server, kernel: str) -> int:
    return int(server.call(f"/kernelpool/v1/kernels/{kernel}")[1].get("pid") or 0)


def way_of(server: Server, kernel: str) -> str:
    return str(server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"])


def is_spinning(pid: int) -> bool:
    return psutil.Process(pid).cpu_percent(0.2) > 20


def with_a_cold_spec(kp_start: Callable[..., Server], *options: str) -> Server:
    server = kp_start("--KernelPool.recipes={'never': {'launcher': 'off'}}", *options)
    write_spec(server.folder / "data", "never")
    server.wait_warm()
    return server


def populate(server: Server) -> dict[str, str]:
    """An idle, a spinning and a stuck kernel of the pool's, and a cold one that spins; warm ones besides."""
    kernels = {}
    for state, code in (("idle", "x = 1"), ("busy", BUSY), ("stuck", STUCK_IN_C), ("cold", BUSY)):
        kernel = kernels[state] = server.start_kernel(name="never" if state == "cold" else "python3")
        client = server.client(kernel)
        client.execute(code)
        assert (way_of(server, kernel) == "cold") == (state == "cold")
        if code is BUSY:
            eventually(lambda kernel=kernel: is_spinning(pid_of(server, kernel)), "it spins")
    server.wait_warm()
    return kernels


def test_sigkill_of_the_server_leaves_nothing(kp_start: Callable[..., Server]) -> None:
    server = with_a_cold_spec(kp_start)
    kernels = populate(server)
    before = traces(server)
    assert len(before.processes) >= 1 + 2 + 3 + 2 + 1, "server, supervisor, template, claimed, warm, cold"
    assert before.ports >= {server.port}
    assert len(before.ports) >= 1 + 5 * len(kernels)
    assert len(files(server.runtime)) == len(kernels)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(before.left)


def test_sigkill_of_an_ipc_server_leaves_no_socket_file(kp_start: Callable[..., Server]) -> None:
    with tempfile.TemporaryDirectory(prefix="kp") as short:  # a socket's path has 107 characters at most
        server = kp_start(
            "--KernelManager.transport=ipc",
            "--KernelPool.recipes={'never': {'launcher': 'off'}}",
            JUPYTER_RUNTIME_DIR=short,
        )
        write_spec(server.folder / "data", "never")
        server.wait_warm()
        kernels = [server.start_kernel(name=name) for name in ("python3", "never")]
        for kernel in kernels:
            server.client(kernel)
        assert len(files(server.runtime)) == 2 * 6, "a connection file and five sockets each"
        before = traces(server)
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        nothing_left(before.left)


def test_sigkill_of_server_and_supervisor_at_once_leaves_no_process(kp_start: Callable[..., Server]) -> None:
    """The lifelines alone have to do it. Files stay then: nobody is left to remove them."""
    server = kp_start()
    server.wait_warm()
    client = server.client(server.start_kernel())
    client.execute(STUCK_IN_C)
    server.wait_warm()
    before = traces(server)
    supervisor = server.supervisor()
    assert server.process is not None
    supervisor.suspend()  # so that it can't clear away in between
    server.process.kill()
    supervisor.kill()
    server.process.wait()
    nothing_left(lambda: [line for line in before.left() if not line.startswith("file")])


@pytest.mark.parametrize("how", ["SIGTERM", "REST"])
def test_normal_stop_leaves_nothing(kp_start: Callable[..., Server], how: str) -> None:
    server = with_a_cold_spec(kp_start)
    populate(server)
    before = traces(server)
    assert server.process is not None
    if how == "REST":
        assert server.call("/api/shutdown", "POST")[0] == 200
    else:
        server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    nothing_left(before.left, timeout=2)


def test_stop_right_after_the_start_leaves_nothing(kp_start: Callable[..., Server]) -> None:
    """While the template is still loading."""
    server = kp_start()
    eventually(server.ours, "the supervisor runs")
    before = traces(server)
    server.stop()
    nothing_left(before.left, timeout=2)


def test_sigkill_of_the_supervisor_restarts_its_kernels_under_their_ids(kp_start: Callable[..., Server]) -> None:
    server = with_a_cold_spec(kp_start)
    kernels = populate(server)
    connections = {kernel: server.connection_file(kernel).read_text() for kernel in kernels.values()}
    supervisor, *below = server.ours()
    cold = pid_of(server, kernels["cold"])
    old = {kernel: pid_of(server, kernel) for kernel in kernels.values()}
    supervisor.kill()
    eventually(lambda: gone([supervisor, *below]), "its processes died by their lifelines", SOON)
    assert psutil.pid_exists(cold), "the server's own child lives on"
    for state, kernel in kernels.items():
        if state != "cold":
            eventually(
                lambda kernel=kernel: pid_of(server, kernel) not in (0, old[kernel]), f"the {state} one came back"
            )
            assert server.run(kernel, "print(6 * 7, 'x' in globals())") == "42 False"
        assert server.connection_file(kernel).read_text() == connections[kernel]
    assert server.run(server.start_kernel(), "print(1)") == "1"
    server.wait_warm()
    assert server.supervisor().pid != supervisor.pid
    # What the first supervisor had been asked to clear away, the second clears away too.
    before = traces(server)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(before.left)


def test_supervisor_is_replaced_also_where_no_kernel_is_made_ahead(kp_start: Callable[..., Server]) -> None:
    """It clears away the files of kernels that started cold, too."""
    server = kp_start("--KernelPool.warm=0", "--KernelPool.max_warm=0")
    kernel = server.start_kernel()
    assert way_of(server, kernel) == "cold"
    supervisor = server.supervisor()
    supervisor.kill()
    eventually(lambda: supervisor_is_ready(server, supervisor), "another supervisor")
    before = traces(server)
    assert len(files(server.runtime)) == 1
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(before.left)


def test_supervisor_that_is_killed_again_and_again_is_replaced(kp_start: Callable[..., Server]) -> None:
    server = kp_start()

    def supervisors() -> list[int]:
        found = []
        for process in server.ours():
            with contextlib.suppress(psutil.Error):
                found += [process.pid] if "jupyter_kernelpool.supervisor" in process.cmdline() else []
        return found

    for _ in range(4):
        server.wait_warm(1)
        former = server.supervisor()
        former.kill()
        # Ready, so that what is said to be warm is the other one's: killed while its template loads, time and again, it
        # would be tried less and less often.
        eventually(lambda former=former: supervisor_is_ready(server, former), "there is another one")  # type: ignore[misc]
    server.wait_warm()
    assert server.run(server.start_kernel(), "print(1)") == "1"
    assert supervisors() == [server.supervisor().pid]


def test_warm_kernels_survive_their_template_which_is_replaced(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm()
    template = server.template()
    warm = {process.pid for process in warm_processes(server)}
    assert len(warm) == 2
    os.kill(template, signal.SIGKILL)
    kernel = server.start_kernel()
    assert pid_of(server, kernel) in warm
    assert server.run(kernel, "print(6 * 7)") == "42"
    eventually(lambda: (server.recipe()["template"] or {}).get("pid") not in (None, template), "a new template")
    server.wait_warm()
    before = server.hit()
    assert server.run(server.start_kernel(), "print(1)") == "1"
    assert server.hit() == before + 1


def test_a_dead_template_is_replaced_before_anybody_needs_it(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm()
    template = server.template()
    os.kill(template, signal.SIGKILL)
    eventually(lambda: (server.recipe()["template"] or {}).get("pid") not in (None, template), "a new template")
    assert server.recipe()["last_error"] is None or "template ended" in server.recipe()["last_error"]["reason"]


@pytest.mark.parametrize("launcher", ["template", "spawn"])
def test_killing_warm_kernels_beside_posts_loses_and_doubles_nothing(
    kp_start: Callable[..., Server], launcher: str
) -> None:
    rounds = 6 if launcher == "template" else 4
    server = kp_start(f"--KernelPool.recipes={{'python3': {{'launcher': '{launcher}'}}}}")
    kernels: list[str] = []
    for number in range(rounds):
        server.wait_warm()
        doomed = warm_processes(server)
        assert doomed
        begin = threading.Barrier(2)

        def kill(doomed: list[psutil.Process] = doomed, number: int = number, begin: threading.Barrier = begin) -> None:
            begin.wait()
            # From well before the claim to just after: the start of a request takes some milliseconds.
            time.sleep(number * 0.003)
            for process in doomed:
                with contextlib.suppress(psutil.NoSuchProcess):  # not kept meanwhile
                    process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        begin.wait()
        kernels.append(server.start_kernel())
        killer.join()
        assert server.run(kernels[-1], "print(6 * 7)") == "42", "a kernel, or its successor, answers"
    server.wait_warm()
    exactly_one_process_each(server, kernels)


def exactly_one_process_each(server: Server, kernels: list[str]) -> None:
    assert sorted(kernel["id"] for kernel in server.call("/api/kernels")[1]) == sorted(kernels)
    assert server.process is not None
    owner = {}
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that is being evicted
            for connection in listeners(process):
                owner.setdefault(connection.laddr.port, set()).add(process.pid)
    for kernel in kernels:
        port = json.loads(server.connection_file(kernel).read_text())["shell_port"]
        assert owner[port] == {pid_of(server, kernel)}

    def unknown() -> int:
        """Processes that are no kernel's, no template and not known as warm."""
        before = server.recipe()
        pooled = {process.pid for process in server.ours()[1:] if is_kernelside(process)}
        owned = {pid_of(server, kernel) for kernel in kernels}
        template = {before["template"]["pid"]} if before["template"] else set()
        return len(pooled - owned - template) - before["warm"]

    eventually(lambda: unknown() == 0, "every process under the supervisor is accounted for")


def test_killed_warm_kernels_are_no_claim_lost_under_a_burst(kp_start: Callable[..., Server]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server = kp_start()
    kernels: list[str] = []
    for _ in range(4):
        server.wait_warm()
        doomed = warm_processes(server)
        with ThreadPoolExecutor(4) as threads:
            starts = [threads.submit(server.start_kernel) for _ in range(3)]
            for process in doomed:
                process.kill()
            kernels += [start.result() for start in starts]
        for kernel in kernels[-3:]:
            assert server.run(kernel, "print(6 * 7)") == "42"
    server.wait_warm()
    exactly_one_process_each(server, kernels)


@pytest.mark.parametrize("end", ["DELETE", "SIGTERM", "SIGKILL of the server"])
def test_daemon_of_the_users_outlives_the_kernel_as_on_stock(
    kp_start: Callable[..., Server], end: str, tmp_path: Path
) -> None:
    survived = []
    for options in ((), ("--KernelPool.enabled=False",)):
        server = kp_start(*options)
        if not options:
            server.wait_warm()
        kernel = server.start_kernel()
        code = (
            "import subprocess, os\n"
            "daemon = subprocess.Popen(['sleep', '120'], start_new_session=True)\n"
            "child = subprocess.Popen(['sleep', '121'])\n"
            "print(daemon.pid, child.pid)"
        )
        daemon, child = (psutil.Process(int(pid)) for pid in server.run(kernel, code).split())
        kernel_process = daemon.parent()
        assert kernel_process is not None
        assert server.process is not None
        if end == "DELETE":
            assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
        elif end == "SIGTERM":
            server.stop()
        else:
            server.process.kill()
            server.process.wait()
        if not options:
            eventually(lambda kernel_process=kernel_process: gone([kernel_process]), "the kernel ended", SOON)
            eventually(lambda child=child: gone([child]), "the child in the kernel's session ended with it", SOON)
            time.sleep(0.5)
        survived.append(not gone([daemon]))
        for process in (daemon, child):
            if process.is_running():
                process.kill()
    assert survived == [True, True]


def test_kernel_that_stock_gives_up_leaves_nothing(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelRestarter.restart_limit=2")
    server.wait_warm()
    kernel = server.start_kernel()
    ports = {v for k, v in json.loads(server.connection_file(kernel).read_text()).items() if k.endswith("_port")}

    def forgotten() -> bool:
        pid = pid_of(server, kernel)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return server.call(f"/api/kernels/{kernel}")[0] == 404

    eventually(forgotten, "killed again and again, it is given up")
    eventually(lambda: not ports & listening(), "nobody listens there", 5)
    eventually(lambda: files(server.runtime) == [], "no file is left", 5)
    assert server.run(server.start_kernel(), "print(1)") == "1"


def test_ports_of_a_deleted_kernel_are_free(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm()
    kernel = server.start_kernel()
    info = json.loads(server.connection_file(kernel).read_text())
    ports = {value for name, value in info.items() if name.endswith("_port")}
    assert ports <= listening()
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: not ports & listening(), "nobody listens there", 5)


def test_warm_kernels_that_are_stuck_cost_their_user_no_more_than_a_cold_start(kp_start: Callable[..., Server]) -> None:
    server = kp_start()
    server.wait_warm()
    template, supervisor = server.template(), server.supervisor().pid
    stuck = [process for process in server.ours() if process.pid not in (template, supervisor)]
    assert len(stuck) >= 2
    for process in stuck:
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    kernel = server.start_kernel()
    assert time.monotonic() - began < 10
    assert server.run(kernel, "print(6 * 7)") == "42"
    eventually(lambda: gone(stuck), "those that do not answer are ended")
    assert "does not answer" in server.log or "could not be adopted" in server.log
    assert server.run(kernel, "import os; print(os.getpid())") not in {str(process.pid) for process in stuck}
    server.wait_warm()


def test_cold_kernels_that_were_killed_leave_nothing_open_in_the_supervisor(kp_start: Callable[..., Server]) -> None:
    """Whether another one started cold takes its place, or one of the pool's, or the kernel is shut down."""
    server = kp_start()
    server.wait_warm(1)
    before = server.supervisor().num_fds()
    changed = server.call("/kernelpool/v1/pools/python3", "PATCH", {"max": 0, "warm": 0})
    assert changed[0] == 200
    kernels = [server.start_kernel() for _ in range(3)]

    def pid_of(kernel: str) -> int:
        return int(server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"] or 0)

    def kill(kernel: str) -> None:
        pid = pid_of(kernel)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: pid_of(kernel) not in (0, pid), "it is restarted")

    assert server.supervisor().num_fds() == before + 3, "one for each kernel that it did not start"
    kill(kernels[0])
    eventually(lambda: server.supervisor().num_fds() == before + 3, "and none for one that ended")
    assert server.call("/kernelpool/v1/pools/python3", "PATCH", {"max": 4, "warm": 2})[0] == 200
    server.wait_warm(2)
    kill(kernels[1])
    eventually(lambda: server.supervisor().num_fds() == before + 2, "the pool's are its children")
    for kernel in kernels:
        assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: server.supervisor().num_fds() == before, "all are gone")
