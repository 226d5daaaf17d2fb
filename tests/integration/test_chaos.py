"""A steady load while everything is killed at random: no kernel is lost, nothing is left, nothing grows.

One server lives as long as the load and must not grow; then one server after the other is killed in the middle of it.
`KERNELPOOL_CHAOS_SECONDS` makes each longer, `KERNELPOOL_CHAOS_SEED` repeats a run's choices.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import os
import random
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient
from jupyter_core.utils import ensure_event_loop

from .conftest import Server, eventually
from .traces import files, is_kernelside, nothing_left, supervisor_is_ready, traces

SECONDS = float(os.environ.get("KERNELPOOL_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("KERNELPOOL_CHAOS_SEED", "0")) or secrets.randbelow(1 << 31)
CLIENTS = 3
# Between the first third, when everything was used once, and the end.
FILES_MAY_GROW = 24
BYTES_MAY_GROW = 40 * 1024 * 1024
# A kernel that is killed again and again may take as many restarts until it answers.
ANSWER_WITHIN = 60.0
# Seconds after it answers for the first time: the template is still loading, or all is warm and in use.
A_SERVER_LIVES_AT_MOST = 10.0

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]


class Client(threading.Thread):
    """Starts a kernel, has it compute, restarts it, has it compute, deletes it; again and again.

    *cut* is set just before the server is killed: what fails afterwards fails for that, and ends the client.
    """

    def __init__(self, server: Server, stop: threading.Event, seed: int, cut: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.stop_asked = stop
        self.cut = cut
        self.doing = ""
        self.choice = random.Random(seed)
        self.kernel: str | None = None
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop_asked.is_set():
            try:
                self.round()
            except Exception as error:
                if self.cut.is_set():
                    self.counts[f"cut off at {self.doing}"] += 1
                    break
                told: Any = ()
                with contextlib.suppress(OSError, http.client.HTTPException):
                    told = self.server.call(f"/kernelpool/v1/kernels/{self.kernel}") if self.kernel else ()
                self.failures.append(f"kernel {self.kernel}: {type(error).__name__}: {error}; it is {told}")
            self.kernel = None
        ensure_event_loop().close()  # the blocking client's, of this thread

    def round(self) -> None:
        self.doing = "POST"
        status, model = self.server.call("/api/kernels", "POST", {"name": "python3"})
        self.counts[f"POST {status}"] += 1
        assert status == 201, model
        kernel = self.kernel = model["id"]
        with self.channels(kernel) as client:
            self.compute(client)
            if self.choice.random() < 0.6:
                self.doing = "restart"
                status, model = self.server.call(f"/api/kernels/{kernel}/restart", "POST")
                self.counts[f"restart {status}"] += 1
                # One that is killed while it restarts is a 500, as on stock; it has to work all the same.
                assert status in (200, 500), (status, model)
                self.compute(client)
        self.doing = "DELETE"
        status, model = self.server.call(f"/api/kernels/{kernel}", "DELETE")
        self.counts[f"DELETE {status}"] += 1
        assert status == 204, (status, model)
        assert not self.server.connection_file(kernel).exists()

    @contextlib.contextmanager
    def channels(self, kernel: str) -> Iterator[BlockingKernelClient]:
        client = BlockingKernelClient(connection_file=str(self.server.connection_file(kernel)))
        client.load_connection_file()
        client.start_channels(hb=False)
        try:
            yield client
        finally:
            client.stop_channels()
            client.context.term()

    def compute(self, client: BlockingKernelClient) -> None:
        """Ask until it is answered: what was asked of a kernel that was killed is gone with it."""
        self.doing = "answer"
        deadline = time.monotonic() + ANSWER_WITHIN
        while True:
            asked = client.execute("1 + 1", silent=False, user_expressions={"two": "1 + 1"})
            with contextlib.suppress(Empty):
                while True:
                    reply = client.get_shell_msg(timeout=2)
                    if reply["parent_header"].get("msg_id") == asked:
                        break
                content = reply["content"]
                if content["status"] == "ok":
                    assert content["user_expressions"]["two"]["data"]["text/plain"] == "2"
                    self.counts["answers"] += 1
                    return
            assert not self.cut.is_set(), "the kernel ended with its server"
            self.counts["asked again"] += 1
            assert time.monotonic() < deadline, f"no answer within {ANSWER_WITHIN} s"


class Killer(threading.Thread):
    """Kills one process below the server at a time: mostly kernels, sometimes a template, rarely the supervisor."""

    def __init__(self, server: Server, stop: threading.Event, seed: int) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.stop_asked = stop
        self.choice = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.supervisor: psutil.Process | None = None  # the last one that was killed

    def run(self) -> None:
        while not self.stop_asked.wait(self.choice.uniform(0.3, 1.5)):
            self.strike()

    def strike_until(self, moment: float) -> None:
        """Like `run`, in the caller's thread and exactly until *moment*."""
        while (pause := self.choice.uniform(0.3, 1.5)) < moment - time.monotonic():
            time.sleep(pause)
            self.strike()
        time.sleep(max(0.0, moment - time.monotonic()))

    def strike(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, psutil.Error, AssertionError):
            kind, victim = self.choose()
            if victim is not None:
                if kind == "supervisor":
                    self.supervisor = victim
                victim.kill()
                self.counts[kind] += 1

    def choose(self) -> tuple[str, psutil.Process | None]:
        kind = self.choice.choices(["kernel", "template", "supervisor"], [12, 3, 1])[0]
        if kind == "template":
            template = self.server.recipe().get("template")
            return kind, psutil.Process(template["pid"]) if template else None
        processes = self.server.ours()
        if kind == "supervisor":
            return kind, processes[0] if processes else None
        assert self.server.process is not None
        template = (self.server.recipe().get("template") or {}).get("pid")
        children = psutil.Process(self.server.process.pid).children(recursive=True)
        kernels = [p for p in children if p.pid != template and (is_kernelside(p) or is_cold(p))]
        return kind, self.choice.choice(kernels) if kernels else None


def is_cold(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "ipykernel_launcher" in process.cmdline()
    return False


def size_of(server: Server) -> tuple[int, int]:
    """Open files and private memory (bytes) of the server process."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    return process.num_fds(), process.memory_full_info().uss


def test_chaos_loses_nothing_and_leaves_nothing(kp_start: Callable[..., Server]) -> None:
    print(f"KERNELPOOL_CHAOS_SEED={SEED} KERNELPOOL_CHAOS_SECONDS={SECONDS:g}")
    # Stock gives up a kernel that ends six times with less than ten seconds between: that is not the point here.
    server = kp_start("--KernelRestarter.restart_limit=1000")
    server.wait_warm()
    stop = threading.Event()
    clients = [Client(server, stop, SEED + number, threading.Event()) for number in range(CLIENTS)]
    killer = Killer(server, stop, SEED)
    threads: list[Any] = [*clients, killer]
    for thread in threads:
        thread.start()
    sizes = []
    for share in (1 / 3, 2 / 3):
        time.sleep(SECONDS * share)
        sizes.append(size_of(server))
    stop.set()
    for thread in threads:
        thread.join(ANSWER_WITHIN + 60)
        assert not thread.is_alive()
    counts = sum((client.counts for client in clients), collections.Counter[str]())
    print(dict(counts), dict(killer.counts), sizes)

    assert [failure for client in clients for failure in client.failures] == []
    assert counts["POST 201"] > SECONDS / 10
    assert counts["DELETE 204"] == counts["POST 201"]
    assert counts["answers"] >= counts["POST 201"]
    assert killer.counts["kernel"] > 0
    assert killer.counts["template"] > 0
    assert server.call("/api/kernels") == (200, [])
    assert "Traceback" not in of_ours(server.log), "no exception of ours"

    # Each template that was killed while it loaded has the next wait twice as long, as a failing one has.
    row = server.recipe()
    patience = 30 + (row["retry_in"] or 0)
    print(row["breaker"], row["stage"], row["retry_in"], row["last_error"])
    assert patience < 120
    eventually(lambda: server.recipe()["warm"] >= 2, "the pool has come to rest, and works", patience)
    time.sleep(2)
    fds, memory = size_of(server)
    sizes.append((fds, memory))
    print(sizes)
    assert fds - sizes[0][0] <= FILES_MAY_GROW, sizes
    assert memory - sizes[0][1] <= BYTES_MAY_GROW, sizes
    everything_is_accounted_for(server)
    before = server.hit()
    kernel = server.start_kernel()
    assert server.run(kernel, "print(6 * 7)") == "42"
    assert server.hit() == before + 1
    left_now = traces(server)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(left_now.left)


def test_servers_killed_under_load_leave_nothing(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    print(f"KERNELPOOL_CHAOS_SEED={SEED} KERNELPOOL_CHAOS_SECONDS={SECONDS:g}")
    choice = random.Random(SEED)
    counts = collections.Counter[str]()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="kp") as runtime:  # a socket's path has 107 characters at most
            temporary = tmp_path / f"temporary{counts['server']}"
            temporary.mkdir()
            transport = choice.choice(["tcp", "ipc"])
            server = kp_start(
                "--KernelRestarter.restart_limit=1000", f"--KernelManager.transport={transport}",
                JUPYTER_RUNTIME_DIR=runtime, TMPDIR=str(temporary),
            )  # fmt: skip
            counts += use_and_kill(server, choice)
            assert list(temporary.iterdir()) == []
        counts += collections.Counter({"server": 1, transport: 1})
    print(dict(counts))
    # So that all this was not about nothing.
    assert counts["server"] > SECONDS / 30
    assert counts["processes at the end"] > 4 * counts["server"]
    assert counts["files at the end"] > 0
    assert counts["answers"] > 0
    assert counts["kernel"] > 0
    assert sum(count for name, count in counts.items() if name.startswith("cut off")) > 0


def use_and_kill(server: Server, choice: random.Random) -> collections.Counter[str]:
    """Load *server*, kill what is below it, kill it in the middle of that; returns what happened how often."""
    cut = threading.Event()
    clients = [Client(server, cut, choice.getrandbits(32), cut) for _ in range(CLIENTS)]
    killer = Killer(server, cut, choice.getrandbits(32))
    for client in clients:
        client.start()
    killer.strike_until(time.monotonic() + choice.uniform(0, A_SERVER_LIVES_AT_MOST))
    # Where the server goes before its supervisor was replaced, nobody is there to remove files: documented
    # (docs/operators/operating.md). Processes end all the same.
    both_at_once = killer.supervisor is not None and choice.random() < 0.3
    if killer.supervisor is not None and not both_at_once:
        former = killer.supervisor
        eventually(lambda: supervisor_is_ready(server, former), "another supervisor")
        time.sleep(choice.uniform(0, 1))
    there = traces(server)
    counts = collections.Counter(
        {"processes at the end": len(there.processes), "files at the end": len(files(server.runtime))}
    )
    assert server.process is not None
    cut.set()
    server.process.kill()
    server.process.wait()
    if both_at_once:
        counts["supervisor and server"] += 1
        nothing_left(lambda: [line for line in there.left() if not line.startswith("file")])
    else:
        nothing_left(there.left)
    for client in clients:
        client.join(ANSWER_WITHIN)
        assert not client.is_alive()
        counts += client.counts
    counts += killer.counts
    assert [failure for client in clients for failure in client.failures] == [], "failed while the server lived"
    assert "Traceback" not in of_ours(server.log), "no exception of ours"
    return counts


def everything_is_accounted_for(server: Server) -> None:
    """No kernel runs, so what is there is: the supervisor, one template, the warm ones."""

    def unknown() -> int:
        row = server.recipe()
        pooled = [process for process in server.ours()[1:] if is_kernelside(process)]
        return len(pooled) - row["warm"] - (row["template"] is not None)

    eventually(lambda: unknown() == 0, "every process is known to the pool", 20)
    assert server.process is not None
    assert not [p for p in psutil.Process(server.process.pid).children(recursive=True) if is_cold(p)]


def of_ours(log: str) -> str:
    """The log without what jupyter_client says when a kernel is killed as it starts, as on stock."""
    return "\n".join(line for line in log.splitlines() if "jupyter_kernelpool" in line or "Traceback" not in line)
