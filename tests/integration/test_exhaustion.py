"""The server runs out of what it needs: what can't be done fails at once and says so, what runs goes on, and all is
well again when there is room."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_kernelpool.limits.hierarchy import write
from jupyter_kernelpool.limits.places import is_root, pids_in, read_mounts, readable

from .browsers import browser, execution
from .conftest import PATIENCE, TOKEN, Server, eventually, gone
from .streams import came, follow
from .test_health import INTERVAL, QUICK, SLACK, TIMEOUT, model, until
from .test_recovery import lost

EATS = "import numpy; numpy.ones(2 << 30, dtype='u1').sum()"
RESTARTER_LOOKS = 3.0  # every so many seconds: stock's, where a restart failed

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def kp_small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 256 KiB. Needs root, as in a container."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_in_the_runtime_folder_refuses_starts_and_ends_no_kernel(
    kp_start: Callable[..., Server], kp_small_disk: Path
) -> None:
    server = kp_start(*QUICK, "--ServerApp.iopub_data_rate_limit=1e10", JUPYTER_RUNTIME_DIR=str(kp_small_disk))
    server.wait_warm(2)
    kernel, ended = server.start_kernel(), server.start_kernel()
    with browser(server, kernel) as tab, browser(server, ended) as other, follow(server) as heard:
        tab.execute("x = 'kept'")
        other.execute("x = 'lost'")
        ballast = kp_small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            fill(ballast)
        assert server.call("/api/kernels", "POST", {"name": "python3"})[0] == 500
        assert "No space left" in server.log
        assert len(server.call("/api/kernels")[1]) == 2, "nothing is left of it"
        began = time.time()
        assert "exit code 3" in lost(other, "import os; os._exit(3)")
        assert came(heard.wait_for_event("restarted", ended)) - began < INTERVAL + TIMEOUT + SLACK
        assert other.execute("x") == "NameError"
        assert server.call(f"/api/kernels/{ended}/restart", "POST")[0] == 200, "what has its file needs no room"
        assert other.execute("print('again')") == "again"
        with pytest.raises(OSError, match="No space left"):
            fill(kp_small_disk / "more")
        assert tab.execute("print(x)") == "kept"
        assert model(server, kernel)["failure_count"] == 0
        assert model(server, ended)["failure_count"] == 1
        ballast.unlink()
        for _ in range(4):  # had it been taken for the kernelspec's fault, these would be refused
            assert server.run(server.start_kernel(), "print('room')") == "room"
        assert tab.execute("print(x)") == "kept"


def test_server_without_descriptors_blames_no_kernel_and_recovers(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK, "--KernelHealth.on_unresponsive=restart")
    server.wait_warm(2)
    kernel, killed = server.start_kernel(), server.start_kernel()
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    with (
        browser(server, kernel) as tab,
        browser(server, killed) as other,
        connected(server) as asking,
        follow(server) as heard,
    ):
        tab.execute("x = 'kept'")
        other.execute("x = 'lost'")
        pid = model(server, killed)["pid"]
        before = until(server, kernel, "responsive")
        soft, hard = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (lowest_free(process.pid), hard))
        try:
            eventually(lambda: "could not be nudged: Too many open files" in server.log, "it is tried")
            assert tab.execute("print(x)") == "kept", "what is open works"
            status, refusal = asking("POST", "/api/kernels", {"name": "python3"})
            assert (status, refusal["message"]) == (500, "Unhandled error"), "as stock; the log has the reason"
            assert len(asking("GET", "/api/kernels")[1]) == 2, "nothing is left of it"
            request = other.send("execute_request", execution("import time; time.sleep(600)"))
            while other.receive()["header"]["msg_type"] != "execute_input":
                pass  # else the next process would run it
            began = time.time()
            os.kill(pid, signal.SIGKILL)
            reply, _ = other.until_idle(request)
            assert (reply["ename"], "SIGKILL" in reply["evalue"]) == ("KernelDied", True), "and it is told at once"
            assert time.time() - began < SLACK
            eventually(lambda: "start cold: no socket for it: Too many open files" in server.log, "a warm one is tried")
            assert tab.execute("print(x)") == "kept"
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
        freed = time.time()
        assert process.is_running()
        restarted = heard.wait_for_event("restarted", killed)
        assert restarted["cause"] == "died"
        assert came(restarted) - freed < RESTARTER_LOOKS + SLACK
        assert other.execute("x") == "NameError"
        assert model(server, killed)["failure_count"] == 1
        after = until(server, kernel, "responsive")
        assert (after["pid"], after["failure_count"]) == (before["pid"], 0)
        eventually(lambda: model(server, kernel)["health"]["checked"] > after["health"]["checked"], "it is asked again")
        assert tab.execute("print(x)") == "kept"
        server.wait_warm(2)
        assert time.time() - freed < 15, "no recipe is set aside for it"
        assert server.run(server.start_kernel(), "print('new')") == "new"


@pytest.fixture
def kp_enclosed(kp_start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Starts a server in a group around it and its kernels, a container's so to say, that has no more than *memory*.

    Needs what the tests of control groups do (docs/developers/testing.md).
    """
    mounts = read_mounts(readable("/proc/self/cgroup"), readable("/proc/self/mountinfo"))
    limit, own = "memory.limit_in_bytes", mounts.legacy.get("memory", "")
    base = own
    if not own:  # version 2 has groups below one without processes only
        assert mounts.unified is not None
        limit, own = "memory.max", mounts.unified
        base = own if is_root(own) else str(Path(own).parent)
        write(f"{base}/cgroup.subtree_control", "+memory")
    group = Path(base) / f"kp-enclosure-{os.getpid()}"
    servers: list[Server] = []

    def start(memory: int, *options: str) -> Server:
        group.mkdir()
        write(f"{group}/{limit}", memory)
        write(f"{group}/cgroup.procs", os.getpid())
        try:
            servers.append(kp_start(*options))  # in our group, for it is our child
        finally:
            write(f"{own}/cgroup.procs", os.getpid())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    for folder in sorted(group.glob("**/"), reverse=True):
        eventually(partial(is_empty, folder), "all that ran in it has ended")
        folder.rmdir()


def test_a_kernel_that_a_limit_around_the_server_ends_has_died_and_no_limit_of_ours_is_blamed(
    kp_enclosed: Callable[..., Server],
) -> None:
    server = kp_enclosed(900 << 20, *QUICK, "--KernelLimits.memory=4G")
    assert server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]["memory"]["by"] == "cgroup"
    server.wait_warm(1)
    hog, neighbour = server.start_kernel(), server.start_kernel()
    with browser(server, hog) as tab, browser(server, neighbour) as other, follow(server) as heard:
        tab.execute("x = 1")
        other.execute("x = 'kept'")
        process = psutil.Process(model(server, hog)["pid"])
        request = tab.send("execute_request", execution(EATS))
        eventually(lambda: gone([process]), "it is ended")
        ended = time.time()
        reply, _ = tab.until_idle(request)
        assert reply["ename"] == "KernelDied", "and not KernelKilled"
        assert "SIGKILL" in reply["evalue"]
        assert "limit" not in reply["evalue"]
        restarted = heard.wait_for_event("restarted", hog)
        died = model(server, hog)
        assert (restarted["cause"], "SIGKILL" in restarted["reason"]) == ("died", True)
        assert came(restarted) - ended < INTERVAL + TIMEOUT + SLACK
        assert (died["breach"], died["failure_count"]) == (None, 1)
        assert "breached" not in heard.names()
        assert tab.execute("x") == "NameError"
        assert server.call("/kernelpool/v1/pools/python3", "PATCH", {"recovery": "never"})[0] == 200
        assert "stays dead" in lost(tab, EATS)
        assert "SIGKILL" in heard.wait_for_event("dead", hog)["reason"]
        assert model(server, hog)["breach"] is None
        assert other.execute("print(x)") == "kept"


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Callable[..., tuple[int, Any]]]:
    """Asks the server over one connection that is open already: status and parsed body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.connect()

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"Authorization": f"token {TOKEN}"})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"null")

    with contextlib.closing(connection):
        assert ask("GET", "/api")[0] == 200
        yield ask


def is_empty(group: Path) -> bool:
    """Whether no process is in the control group."""
    return not pids_in(str(group))


def lowest_free(pid: int) -> int:
    """The lowest number that no descriptor of the process had in the last two seconds: a limit below which it has no
    room, whatever closes meanwhile."""
    found = []
    for _ in range(100):
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        found.append(next(number for number in itertools.count() if number not in taken))
        time.sleep(0.02)
    return min(found)


def fill(path: Path) -> None:
    """Write to *path* for as long as there is space."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
