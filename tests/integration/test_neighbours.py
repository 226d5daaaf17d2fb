"""Extensions of others that replace the class of kernels' websockets: ours goes over it, or says what it can't hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jupyter_kernelpool.notices import ANSWER_WITHIN

from .browsers import browser, execution
from .conftest import Server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

NEIGHBOURS = Path(sys.prefix) / "neighbours"
MB = 1 << 20


@pytest.fixture(scope="module")
def server(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with jupyter_server_documents, which has its own websocket class and its own session manager."""
    assert NEIGHBOURS.is_dir(), "made by ./dev from tests/neighbours.txt: see docs/developers/testing.md"
    started = kp_servers(
        tmp_path_factory.mktemp("server"),
        "--KernelLimits.output=1M",
        "--KernelLimits.grace=2",
        extensions=("jupyter_server_documents", "jupyter_server_fileid"),
        PYTHONPATH=str(NEIGHBOURS),
    )
    assert "jupyter_server_documents | extension was successfully loaded" in started.log
    yield started
    started.stop()


def texts(published: list[dict[str, dict[str, str]]]) -> str:
    return "".join(one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream")


def test_our_mixin_is_over_the_neighbours_class(server: Server) -> None:
    assert "PooledKernelWebsocketConnection" in server.log
    server.wait_warm(1)
    hits = server.hit()
    kernel = server.start_kernel()
    assert server.hit() == hits + 1
    with browser(server, kernel) as tab:
        assert tab.execute("1+1") == "2"


def test_output_limit_holds_on_the_neighbours_websocket(server: Server) -> None:
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert tab.execute("kept = 5") == ""
        _, published = tab.until_idle(tab.send("execute_request", execution("print('x' * (3 << 20))")))
        assert texts(published).count("x") <= MB
        assert "output limit of 1 MB reached" in texts(published)
        reply, published = tab.until_idle(tab.send("execute_request", execution("while True: print('x' * 99)")))
        assert reply["ename"] == "KeyboardInterrupt"
        assert "Interrupted; the kernel is ended if it prints on" in texts(published)
        assert len(texts(published)) <= MB + 1000
        assert tab.execute("kept") == "5"


def test_answers_are_noticed_and_time_that_is_waited_for_input_does_not_count(server: Server) -> None:
    kernel = server.start_kernel()
    limits = {"limits": {"execution_timeout": 2}}
    assert server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", limits)[0] == 200
    with browser(server, kernel) as tab:
        asks = {**execution("print(input())"), "allow_stdin": True}
        request = tab.send("execute_request", asks)
        tab.until_asked()
        time.sleep(5)  # longer than it may run, and than an answer may be late
        tab.send("input_reply", {"value": "given", "status": "ok"}, "stdin")
        reply, published = tab.until_idle(request)
        assert reply["status"] == "ok"
        assert texts(published) == "given\n"
        time.sleep(ANSWER_WITHIN + 1)
        with pytest.raises(TimeoutError):
            print(tab.receive(timeout=0.5))  # nobody says that it was not answered
        reply, _ = tab.until_idle(tab.send("execute_request", execution("import time; time.sleep(60)")))
        assert reply["ename"] == "KeyboardInterrupt"


def test_kernel_carries_on_after_a_restart(server: Server) -> None:
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        assert tab.execute("x = 1") == ""
        assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        time.sleep(1)  # its sockets are not ours: they take so long to connect again, and hear nothing before
        assert tab.execute("'x' in dir()") == "False"


def test_pool_says_what_reaches_the_user_past_the_websocket(server: Server) -> None:
    limits = server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]
    assert limits["output"]["enforced"] is False
    assert "writes what they put out into the document" in limits["output"]["why"]
    assert limits["execution_timeout"]["enforced"] is True
