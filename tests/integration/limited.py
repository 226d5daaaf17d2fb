"""What tests of limits need: options for each enforcer, a neighbour that works on meanwhile, events as heard."""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .browsers import Browser, browser, execution
from .conftest import TOKEN, Server, eventually

MB = 1 << 20


def options_of(*enforcers: str) -> tuple[str, ...]:
    """The options that have a server use these enforcers, by the last part of their paths.

    And look twice a second whether a kernel is to be restarted, instead of every three seconds: see `assert_dead_for`.
    """
    chosen = (f"--KernelLimits.enforcers=jupyter_kernelpool.limits.{name}" for name in enforcers)
    return (*chosen, "--KernelRestarter.time_to_dead=0.5")


# By the name of the enforcer that is to hold memory, cpu and processes: the options of the server.
ENFORCERS = {
    "cgroup": options_of("cgroup.CgroupEnforcer", "rlimit.RlimitEnforcer"),
    "watchdog": options_of("rlimit.RlimitEnforcer", "watchdog.WatchdogEnforcer"),
}


@dataclass
class Cell:
    """What came of a cell: the content of its reply, what it printed to stdout and stderr, its error's name."""

    reply: dict[str, Any]
    stdout: str = ""
    stderr: str = ""
    error: str = ""


def run(page: Browser, code: str, timeout: float = 60) -> Cell:
    """Run *code* as JupyterLab does."""
    reply, published = page.until_idle(page.send("execute_request", execution(code)), timeout)
    cell = Cell(reply)
    for message in published:
        content = message["content"]
        if message["header"]["msg_type"] == "stream":
            setattr(cell, content["name"], getattr(cell, content["name"]) + content["text"])
        elif message["header"]["msg_type"] == "error":
            cell.error = content["ename"]
    return cell


@dataclass
class Bystander:
    """A kernel that is used all the time, and its server: how long `1+1` took, and how the server's memory grew."""

    seconds: list[float] = field(default_factory=list)
    grown: int = 0
    failed: BaseException | None = None


@contextlib.contextmanager
def undisturbed(server: Server) -> Iterator[Bystander]:
    """Meanwhile a kernel computes `1+1` again and again, which it can do, and the server's memory stays flat."""
    assert server.process is not None
    kernel = server.start_kernel()
    process, seen, over = psutil.Process(server.process.pid), Bystander(), threading.Event()
    before = process.memory_info().rss

    def compute() -> None:
        try:
            with browser(server, kernel) as page:
                while not over.wait(0.05):
                    began = time.perf_counter()
                    answer = page.execute("print(1+1)")  # a thousand results are a warning of IPython's
                    assert answer == "2", f"1+1 is {answer!r}"
                    seen.seconds.append(time.perf_counter() - began)
        except BaseException as error:
            seen.failed = error

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    seen.grown = process.memory_info().rss - before
    if seen.failed is not None:
        raise seen.failed
    # Loosely: the machine that tests run on does other things, too. `./dev bench limits` has the figure.
    assert statistics.median(seen.seconds) < 0.5, sorted(seen.seconds)[-5:]
    assert seen.grown < 64 * MB


class Heard:
    """The events of this package that a server has published since."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def of(self, kernel: str, kind: str) -> list[dict[str, Any]]:
        """Those of that type of the kernel."""
        return [event for event in self.events if (event["kernel_id"], event["type"]) == (kernel, kind)]


@contextlib.contextmanager
def hearing(server: Server) -> Iterator[Heard]:
    """Listens at Jupyter's own door for events."""
    heard = Heard()
    address = f"ws://127.0.0.1:{server.port}/api/events/subscribe"
    with connect(address, additional_headers={"Authorization": f"token {TOKEN}"}) as socket:

        def listen() -> None:
            with contextlib.suppress(ConnectionClosed):
                for frame in socket:
                    event = json.loads(frame)
                    if "jupyter_kernelpool" in event.get("schema_id", ""):
                        heard.events.append(event)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            socket.close()
            thread.join()


def limited(server: Server, **limits: Any) -> str:
    """A kernel with these limits."""
    kernel = server.start_kernel()
    status, model = server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"limits": limits})
    assert status == 200, model
    return kernel


def model_of(server: Server, kernel: str) -> dict[str, Any]:
    status, model = server.call(f"/kernelpool/v1/kernels/{kernel}")
    assert status == 200, model
    return dict(model)


def assert_dead_for(server: Server, kernel: str, limit: str, pid: int) -> dict[str, Any]:
    """It is dead, says why everywhere, stays so though it would be restarted otherwise, and has left nothing."""
    eventually(lambda: model_of(server, kernel)["breach"], "the breach is told")
    model = model_of(server, kernel)
    assert (model["breach"]["limit"], model["breach"]["outcome"]) == (limit, "killed")
    assert model["breach"]["seen"] >= model["breach"]["allowed"]
    assert model["execution_state"] == "dead"
    assert f"{limit} limit" in model["reason"]
    stock = server.call(f"/api/kernels/{kernel}")[1]
    assert (stock["execution_state"], f"{limit} limit" in stock["reason"]) == ("dead", True)
    eventually(lambda: not session_of(pid), "nothing is left of it")
    time.sleep(1.5)  # longer than stock waits before it restarts a kernel, as `options_of` has it
    assert model_of(server, kernel)["execution_state"] == "dead"
    return model


def pid_of(server: Server, kernel: str) -> int:
    return int(model_of(server, kernel)["pid"])


def tree_of(pid: int) -> list[psutil.Process]:
    """The process and all that descend from it."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def session_of(pid: int) -> list[int]:
    """The living processes of the session that *pid* leads, or led."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if psutil.os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def cores_of(pid: int, seconds: float) -> float:
    """How many cores the tree of *pid* uses on average."""
    return cores_of_each([pid], seconds)[0]


def cores_of_each(pids: list[int], seconds: float) -> list[float]:
    """How many cores the tree of each uses on average, in the same time."""
    began = [(time.monotonic(), _cpu(pid)) for pid in pids]
    time.sleep(seconds)
    return [(_cpu(pid) - cpu) / (time.monotonic() - at) for pid, (at, cpu) in zip(pids, began, strict=True)]


def _cpu(pid: int) -> float:
    total = 0.0
    for process in tree_of(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
