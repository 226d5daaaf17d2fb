"""Output in bounds: a cell that prints without end is cut, marked and stopped, with and without a client."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.client import ClientConnection, connect

from .browsers import PROTOCOL, Browser, browser, execution
from .conftest import TOKEN, Server, eventually
from .limited import hearing

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

MB = 1 << 20
LIMIT = 10 * MB
MARKED = "output limit of 10 MB reached: the rest is left out"
PRINTS_WITHOUT_END = "import time\nwhile True: print('x' * 99)"
PRINTS_AGAIN_LATER = """
import time
print('x' * (11 << 20))
input()
time.sleep(2)  # the second client has subscribed by then
print('y' * 1000)
"""
PRINTS_SLOWLY = """
import time
for n in range(100):
    print(n, 'x' * (1 << 20), flush=True)
    time.sleep(0.05)  # what has not yet come to the server is ZeroMQ's to bound
"""
STUBBORN = """
while True:
    try:
        while True: print('x' * 99)
    except KeyboardInterrupt:
        pass
"""

PUBLISHES_NO_MESSAGES = """
publish = get_ipython().kernel.iopub_thread.send_multipart
publish([b'no message'])
publish([b'forged', b'<IDS|MSG>', b'no signature', b'{}', b'{}', b'{}', b'{}'])
"""


@pytest.fixture(scope="module")
def server(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One on which a cell may put out 10 MB, shared by this module's tests."""
    started = kp_servers(tmp_path_factory.mktemp("server"), "--KernelLimits.output=10M", "--KernelLimits.grace=2")
    yield started
    started.stop()


@pytest.fixture
def kernel(server: Server) -> Iterator[str]:
    started = server.start_kernel()
    yield started
    server.call(f"/api/kernels/{started}", "DELETE")


def run(tab: Browser, code: str, timeout: float = 90) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return tab.until_idle(tab.send("execute_request", execution(code)), timeout)


def text_of(published: list[dict[str, Any]]) -> str:
    return "".join(one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream")


def size_of(published: list[dict[str, Any]]) -> int:
    """Bytes of what was appended to the cell, as sent."""
    return sum(
        len(json.dumps(one["content"], ensure_ascii=False).encode())
        for one in published
        if one["header"]["msg_type"] in ("stream", "display_data", "execute_result")
    )


def memory_of(server: Server) -> int:
    assert server.process is not None
    return int(psutil.Process(server.process.pid).memory_info().rss)


@dataclass
class Observed:
    """The most by which the server's memory had grown."""

    grown: int = 0


@contextlib.contextmanager
def as_observed(server: Server) -> Iterator[Observed]:
    """Look at the server's memory all the time."""
    observed, before, ended = Observed(), memory_of(server), threading.Event()

    def look() -> None:
        while True:
            observed.grown = max(observed.grown, memory_of(server) - before)
            if ended.wait(0.02):
                return

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield observed
    finally:
        ended.set()
        looker.join()


@contextlib.contextmanager
def as_reader(tab: Browser) -> Iterator[None]:
    """Read what comes to *tab*, and forget it."""
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                tab.receive(timeout=0.2)

    reader = threading.Thread(target=read)
    reader.start()
    yield
    ended.set()
    reader.join()


def breaches(server: Server, kernel: str) -> Any:
    return server.call(f"/kernelpool/v1/kernels/{kernel}")[1].get("breach")


@contextlib.contextmanager
def old_browser(server: Server, kernel: str) -> Iterator[ClientConnection]:
    """A client that speaks the protocol of old: JSON, without a subprotocol."""
    address = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel}/channels?session_id=old"
    with connect(address, additional_headers={"Authorization": f"token {TOKEN}"}, max_size=None) as websocket:
        assert websocket.subprotocol is None
        yield websocket


def run_of_old(websocket: ClientConnection, code: str) -> list[dict[str, Any]]:
    """What is published for *code*."""
    header = {
        "msg_id": f"{time.monotonic_ns():x}", "msg_type": "execute_request", "session": "old", "username": "",
        "version": "5.3",
    }  # fmt: skip
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": execution(code), "channel": "shell"}
    websocket.send(json.dumps(message))
    published = []
    while True:
        told = json.loads(websocket.recv(timeout=60))
        if told["channel"] != "iopub" or told["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        published.append(told)
        if told["content"].get("execution_state") == "idle":
            return published


@pytest.mark.parametrize("flush", [True, False], ids=["flushed", "as it comes"])
def test_50_mb_come_back_as_10_marked_and_leave_no_memory_behind(server: Server, kernel: str, flush: bool) -> None:
    with browser(server, kernel) as tab:
        assert tab.execute("1+1") == "2"
        before = memory_of(server)
        with as_observed(server) as observed:
            _, published = run(tab, f"for _ in range(50): print('x' * ((1 << 20) - 1), flush={flush})")
        text = text_of(published)
        assert text.count(MARKED) == 1
        assert 9.9 * MB < text.count("x") <= LIMIT
        assert size_of(published) <= LIMIT + 2000
        assert tab.execute("1+1") == "2"
        assert observed.grown < 100 * MB
        eventually(lambda: memory_of(server) - before < 64 * MB, "what it took is given back", 40)


def test_user_is_warned_once_before_the_limit(server: Server, kernel: str) -> None:
    with hearing(server) as heard, browser(server, kernel) as tab:
        _, published = run(tab, "for _ in range(9): print('x' * (1 << 20), flush=True)")
        (told,) = [one for one in published if one["content"].get("name") == "stderr"]
        assert re.fullmatch(r"Output: [89]\.\d+ MB of 10 MB used\.\n", told["content"]["text"])
        assert tab.execute("1+1") == "2"
    (warned,) = heard.of(kernel, "warned")
    assert (warned["limit"], warned["allowed"]) == ("output", LIMIT)
    assert warned["reason"] == told["content"]["text"].strip()
    assert not heard.of(kernel, "breached")


def test_output_within_the_limit_is_untouched(server: Server, kernel: str) -> None:
    with browser(server, kernel) as tab:
        for _ in range(2):  # each cell has its own
            reply, published = run(tab, "for _ in range(7): print('x' * (1 << 20))")
            assert reply["status"] == "ok"
            assert text_of(published) == ("x" * MB + "\n") * 7
        assert breaches(server, kernel) is None


def test_one_large_output_is_cut_and_its_cell_goes_on(server: Server, kernel: str) -> None:
    with browser(server, kernel) as tab:
        reply, published = run(tab, "print('é' * (9 << 20)); survived = 1")  # not twice the limit
        assert reply["status"] == "ok"
        text = text_of(published)
        assert MARKED in text
        assert 4.9 * MB < text.count("é") <= LIMIT / 2
        assert tab.execute("survived") == "1"
        assert breaches(server, kernel)["outcome"] == "truncated"


def test_error_that_is_huge_is_shortened_also_in_the_answer(server: Server, kernel: str) -> None:
    with browser(server, kernel) as tab:
        reply, published = run(tab, "raise RuntimeError('x' * (30 << 20))")
        error = next(message["content"] for message in published if message["header"]["msg_type"] == "error")
        for content in (error, reply):
            assert content["ename"] == "RuntimeError"
            assert content["evalue"].startswith("xxxx")
            assert len(json.dumps(content)) < 10.1 * MB
            assert "output limit of 10 MB reached" in content["traceback"][-1]
        reply, published = run(tab, "print('more'); raise RuntimeError('short')")
        assert "".join(reply["traceback"]).count("RuntimeError") >= 1
        assert "left out" not in json.dumps(reply)
        assert "more" in text_of(published)


def test_image_that_does_not_fit_is_left_out_whole_and_said(server: Server, kernel: str) -> None:
    show = "from IPython.display import display\ndisplay({'image/png': 'A' * %d, 'text/plain': ''}, raw=True)"
    with browser(server, kernel) as tab:
        _, published = run(tab, show % (6 * MB) + "\n" + show % (6 * MB) + "\nprint('goes on')")
        images = [one for one in published if one["header"]["msg_type"] == "display_data"]
        assert [len(one["content"]["data"]["image/png"]) for one in images] == [6 * MB]
        text = text_of(published)
        assert "an output of 6 MB is left out: the output limit is 10 MB" in text
        assert text.endswith("goes on\n")


def test_cell_that_prints_without_end_is_interrupted(server: Server, kernel: str) -> None:
    with hearing(server) as heard, browser(server, kernel) as tab:
        assert tab.execute("kept = 5") == ""
        reply, published = run(tab, PRINTS_WITHOUT_END)
        assert reply["ename"] == "KeyboardInterrupt"
        text = text_of(published)
        assert MARKED in text
        assert "Interrupted; the kernel is ended if it prints on" in text
        assert size_of(published) <= LIMIT + 2000
        reply, published = run(tab, "1+1")
        shown = [one["content"] for one in published if one["header"]["msg_type"] not in ("status", "execute_input")]
        assert [one["data"]["text/plain"] for one in shown] == ["2"], "and nothing stray"
        assert tab.execute("kept") == "5"
        assert breaches(server, kernel)["limit"] == "output"
        assert breaches(server, kernel)["outcome"] == "interrupted"
        eventually(lambda: len(heard.of(kernel, "breached")) == 2, "it is told")
    assert [event["outcome"] for event in heard.of(kernel, "breached")] == ["truncated", "interrupted"]
    assert all("used, 10 MB allowed" in event["reason"] for event in heard.of(kernel, "breached"))


def test_limit_holds_in_a_kernel_that_published_what_is_no_message(server: Server, kernel: str) -> None:
    """An error in what hears a kernel once made the server deaf to it for ever, also to its next processes."""
    pid = server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"]
    with browser(server, kernel) as tab:
        tab.execute(PUBLISHES_NO_MESSAGES)
        for number in range(10):  # more than the server takes of a kernel's messages before it has read some
            assert tab.execute(f"print({number})") == str(number)
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "idle", "the server has heard it")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"] not in (pid, None), "the next one")
    with browser(server, kernel) as tab:
        assert run(tab, PRINTS_WITHOUT_END)[0]["ename"] == "KeyboardInterrupt"
    assert breaches(server, kernel)["outcome"] == "interrupted"


def test_cell_that_prints_on_after_the_interrupt_is_ended(server: Server) -> None:
    kernel, neighbour = server.start_kernel(), server.start_kernel()
    with browser(server, kernel) as tab, browser(server, neighbour) as other:
        assert other.execute("kept = 5") == ""
        reply, published = run(tab, STUBBORN)
        assert reply["ename"] == "KernelKilled"
        assert size_of(published) <= LIMIT + 2000
        assert other.execute("kept") == "5"
        model = eventually(lambda: (found := server.call(f"/api/kernels/{kernel}")[1])["execution_state"] == "dead"
                           and found, "the kernel is dead")  # fmt: skip
        assert "output limit" in model["reason"]
        assert breaches(server, kernel)["outcome"] == "killed"
    for one in (kernel, neighbour):
        server.call(f"/api/kernels/{one}", "DELETE")


def test_cell_limits_its_own_output_and_cannot_loosen_it(server: Server, kernel: str) -> None:
    with browser(server, kernel) as tab:
        tab.metadata = {"kernelpool": {"limits": {"output": "1M"}}}
        _, published = run(tab, "print('x' * (3 << 20))")
        assert "output limit of 1 MB reached" in text_of(published)
        assert size_of(published) <= MB + 2000
        tab.metadata = {"kernelpool": {"limits": {"output": "20M"}}}
        _, published = run(tab, "print('x' * (15 << 20))")
        assert MARKED in text_of(published)
        assert size_of(published) <= LIMIT + 2000
        tab.metadata = {}
        _, published = run(tab, "print('x' * (3 << 20))")
        assert size_of(published) > 3 * MB


def test_limit_of_one_cell_holds_where_the_kernel_has_none(kp_server: Server) -> None:
    kernel = kp_server.start_kernel()
    with browser(kp_server, kernel) as tab:
        tab.metadata = {"kernelpool": {"limits": {"output": "1M"}}}
        for _ in range(5):
            _, published = run(tab, "print('x' * (2 << 20))")
            assert "output limit of 1 MB reached" in text_of(published)
    kp_server.call(f"/api/kernels/{kernel}", "DELETE")


def test_progress_bars_and_widgets_survive_a_budget_that_is_used_up(server: Server, kernel: str) -> None:
    code = """
import ipywidgets
from IPython.display import display
slider = ipywidgets.IntProgress()
bar = display({'text/plain': 'bar 0'}, raw=True, display_id=True)
print('x' * (11 << 20))
for step in range(1, 2001):
    bar.update({'text/plain': f'bar {step}'}, raw=True)
    slider.value = step % 100
"""
    with browser(server, kernel) as tab:
        reply, published = run(tab, code)
        assert reply["status"] == "ok"
        assert MARKED in text_of(published)
        updates = [one for one in published if one["header"]["msg_type"] == "update_display_data"]
        assert [one["content"]["data"]["text/plain"] for one in updates] == [f"bar {step}" for step in range(1, 2001)]
        values = [one["content"]["data"]["state"].get("value") for one in published
                  if one["header"]["msg_type"] == "comm_msg"]  # fmt: skip
        assert len(values) >= 1900
        assert values[-1] == 2000 % 100


def test_plots_that_are_drawn_anew_do_not_use_the_budget_up(server: Server, kernel: str) -> None:
    code = """
from IPython.display import clear_output, display
for frame in range(60):
    clear_output(wait=True)
    display({'image/png': 'A' * (1 << 20), 'text/plain': str(frame)}, raw=True)
"""
    with browser(server, kernel) as tab:
        reply, published = run(tab, code)
        assert reply["status"] == "ok"
        assert text_of(published) == ""
        assert sum(one["header"]["msg_type"] == "display_data" for one in published) == 60


def test_client_of_old_gets_the_same(server: Server, kernel: str) -> None:
    with old_browser(server, kernel) as websocket:
        published = run_of_old(websocket, "print('x' * (30 << 20))")
        text = text_of(published)
        assert MARKED in text
        assert size_of(published) <= LIMIT + 2000
        assert text_of(run_of_old(websocket, "print('next')")) == "next\n"
        published = run_of_old(websocket, "from IPython.display import display\n"
                               "display({'image/png': 'A' * (11 << 20)}, raw=True)")  # fmt: skip
        assert "is left out: the output limit is 10 MB" in text_of(published)


def test_second_client_sees_no_more_than_the_first(server: Server, kernel: str) -> None:
    with browser(server, kernel) as first:
        request = first.send("execute_request", execution(PRINTS_AGAIN_LATER))
        eventually(lambda: breaches(server, kernel), "the first output was cut")
        with browser(server, kernel) as second:
            first.send("input_reply", {"value": ""}, "stdin")
            _, published = first.until_idle(request)
            assert "y" not in text_of(published)
            late = []
            while not (late and late[-1]["content"].get("execution_state") == "idle"):
                late.append(second.receive())
            assert "yyy" not in text_of(late)


@contextlib.contextmanager
def raw_client(server: Server, kernel: str, session: str) -> Iterator[socket.socket]:
    """A websocket whose client reads nothing but what it asks for."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        one.connect(("127.0.0.1", server.port))
        lines = [
            f"GET /api/kernels/{kernel}/channels?session_id={session} HTTP/1.1", f"Host: 127.0.0.1:{server.port}",
            "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Protocol: {PROTOCOL}", f"Authorization: token {TOKEN}",
        ]  # fmt: skip
        one.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert one.recv(12).endswith(b"101")
        yield one


@pytest.mark.parametrize("warm", [1, 0], ids=["pooled", "cold"])
def test_client_that_does_not_read_is_disconnected(kp_start: Callable[..., Server], warm: int) -> None:
    rate = "--ZMQChannelsWebsocketConnection.limit_rate=False"
    server = kp_start("--KernelLimits.pending=8M", rate, f"--KernelPool.warm={warm}", f"--KernelPool.max_warm={warm}")
    if warm:
        server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab, raw_client(server, kernel, "slow"):
        assert tab.execute("1+1") == "2"
        before = memory_of(server)
        request = tab.send("execute_request", execution(PRINTS_SLOWLY))
        reply, published = tab.until_idle(request, 90)
        assert reply["status"] == "ok"
        assert text_of(published).count("x") == 100 * MB, "the other one gets all"
        assert memory_of(server) - before < 50 * MB
        eventually(lambda: "a client is disconnected for not reading" in server.log, "the log says so")
        eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["connections"] == 1, "it is gone")
        assert tab.execute("1+1") == "2"


def test_client_that_reads_slowly_gets_all_and_costs_little(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelLimits.pending=4M", "--ZMQChannelsWebsocketConnection.limit_rate=False")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert tab.execute("1+1") == "2"
        before, most, images, idle = memory_of(server), 0, 0, False
        code = "d = {'image/png': 'x' * (1 << 20)}\nfor n in range(150): display(d, raw=True)"
        request = tab.send("execute_request", execution(code))
        while not idle:
            message = tab.receive()
            if message["parent_header"].get("msg_id") == request and message["channel"] == "iopub":
                images += message["header"]["msg_type"] == "display_data"
                idle = message["content"].get("execution_state") == "idle"
                time.sleep(0.03)
            most = max(most, memory_of(server))
        assert images == 150
        assert most - before < 80 * MB, "of 150 MB"
        assert "disconnected for not reading" not in server.log


def leave_printing(server: Server, kernel: str, code: str) -> None:
    """Send *code* as the session "away", and go away."""
    with browser(server, kernel, "away") as tab:
        request = tab.send("execute_request", execution(code))
        while tab.receive()["parent_header"].get("msg_id") != request:
            pass


def come_back(server: Server, kernel: str) -> list[dict[str, Any]]:
    """What the client that went away gets when it is there again."""
    replayed = []
    with browser(server, kernel, "away") as tab, contextlib.suppress(TimeoutError):
        while True:
            replayed.append(tab.receive(timeout=3))
    return replayed


def test_disconnected_printer_is_stopped_and_costs_no_memory(server: Server) -> None:
    kernel, neighbour = server.start_kernel(), server.start_kernel()
    with browser(server, neighbour) as other:
        assert other.execute("1+1") == "2"
        before = memory_of(server)
        leave_printing(server, kernel, "import time; time.sleep(1)\n" + PRINTS_WITHOUT_END)
        most, slowest = 0, 0.0
        deadline = time.monotonic() + 60
        while breaches(server, kernel) is None or breaches(server, kernel)["outcome"] != "interrupted":
            assert time.monotonic() < deadline, "it was not interrupted"
            began = time.monotonic()
            assert other.execute("1+1") == "2"
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, memory_of(server))
        eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "idle", "it has stopped")
        most = max(most, memory_of(server))
        assert most - before < 50 * MB
        assert slowest < 5
        replayed = come_back(server, kernel)
        text = text_of(replayed)
        assert text.count(MARKED) == 1
        assert size_of(replayed) <= LIMIT + 4000
        assert "Interrupted; the kernel is ended" in text
        assert [one["content"]["status"] for one in replayed if one["header"]["msg_type"] == "execute_reply"] == [
            "error"
        ]
    for one in (kernel, neighbour):
        server.call(f"/api/kernels/{one}", "DELETE")


@pytest.fixture(scope="module")
def cold(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One on which kernels start the stock way, and a cell may put out 1 MB, shared by this module's tests."""
    folder = tmp_path_factory.mktemp("cold")
    started = kp_servers(folder, "--KernelLimits.output=1M", "--KernelPool.recipes={'python3': {'launcher': 'off'}}")
    yield started
    started.stop()


COLD = {
    "small": "while True: print('x' * 99)",
    "large": "while True: print('x' * 1000000)",
    "at once": "print('x' * (300 << 20))",
}


@pytest.mark.parametrize("away", [False, True], ids=["connected", "away"])
@pytest.mark.parametrize("code", COLD.values(), ids=COLD)
def test_printer_that_started_cold_is_stopped_and_costs_the_server_no_memory(
    cold: Server, code: str, away: bool
) -> None:
    kernel = cold.start_kernel()
    with browser(cold, kernel) as tab:
        assert tab.execute("kept = 5") == ""
    assert cold.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "cold"
    with as_observed(cold) as observed:
        if away:
            leave_printing(cold, kernel, "import time; time.sleep(1)\n" + code)
            eventually(lambda: (breaches(cold, kernel) or {}).get("outcome") == "interrupted", "it is interrupted", 60)
            eventually(lambda: cold.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "idle", "it has stopped")
        else:
            with browser(cold, kernel) as tab:
                reply, published = run(tab, code)
            assert reply["ename"] == "KeyboardInterrupt"
            assert size_of(published) <= MB + 4000
        with browser(cold, kernel) as tab:
            assert tab.execute("kept") == "5"
    assert observed.grown < 64 * MB
    cold.call(f"/api/kernels/{kernel}", "DELETE")


def test_replay_is_bounded_where_output_is_not(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelLimits.replay=8M")
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert tab.execute("1+1") == "2"
    before = memory_of(server)
    leave_printing(server, kernel, "import time; time.sleep(1)" + PRINTS_SLOWLY)
    most = 0
    while server.call(f"/api/kernels/{kernel}")[1]["execution_state"] != "idle":
        most = max(most, memory_of(server))
        time.sleep(0.05)
    assert max(most, memory_of(server)) - before < 50 * MB
    replayed = come_back(server, kernel)
    kinds = [one["header"]["msg_type"] for one in replayed]
    assert "execute_reply" in kinds
    texts = [one["content"]["text"] for one in replayed if one["header"]["msg_type"] == "stream"]
    assert "some output is left out: 8 MB are kept while no client is connected" in texts[0]
    assert texts[-1].startswith("99 ")
    assert 2 * MB < size_of(replayed) <= 8 * MB


LARGE = {
    "images": ("d = {'image/png': 'x' * (1 << 20)}\nfor n in range(200): display(d, raw=True)", "display_data", 200),
    "updates": (
        "h = display({'text/plain': 'x'}, raw=True, display_id=True)\n"
        "for n in range(2000): h.update({'text/plain': 'x' * 60_000}, raw=True)",
        "update_display_data",
        2000,
    ),
}


@pytest.mark.parametrize("code, kind, count", LARGE.values(), ids=LARGE)
def test_large_outputs_in_a_tight_loop_come_whole_and_cost_the_server_little(
    kp_start: Callable[..., Server], code: str, kind: str, count: int
) -> None:
    server = kp_start("--ZMQChannelsWebsocketConnection.limit_rate=False")
    server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab, browser(server, kernel) as other:
        assert tab.execute("1+1") == "2"
        before, most, came, idle = memory_of(server), 0, 0, False
        request = tab.send("execute_request", execution(code))
        with as_reader(other):
            while not idle:
                message = tab.receive()
                if message["parent_header"].get("msg_id") == request and message["channel"] == "iopub":
                    came += message["header"]["msg_type"] == kind
                    idle = message["content"].get("execution_state") == "idle"
                most = max(most, memory_of(server)) if came % 10 == 0 else most
        assert came == count
        assert most - before < 120 * MB, "of 200 MB"


def test_capabilities_say_who_holds_output(server: Server) -> None:
    limits = server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]
    assert limits["output"] == {"enforced": True, "by": "server", "why": None}


def test_server_stops_while_a_cell_prints(kp_servers: Callable[..., Server], tmp_path: Path) -> None:
    server = kp_servers(tmp_path, "--KernelLimits.output=1M")
    kernel = server.start_kernel()
    leave_printing(server, kernel, "import time; time.sleep(1)\n" + STUBBORN)
    eventually(lambda: breaches(server, kernel), "it is cut")
    server.stop()
    assert "Traceback" not in server.log
