"""What is told of a kernel's usage: on a server in this process, with real kernels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import AsyncKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_server.utils import url_path_join
from prometheus_client import REGISTRY

from jupyter_kernelpool.decisions import Host
from jupyter_kernelpool.rest import usage as usage_module
from jupyter_kernelpool.rest.streams import Event

pytestmark = pytest.mark.integration

MB = 1_000_000
PATIENCE = 60.0


@pytest.fixture
def kp_config() -> dict[str, Any]:
    return {"warm": 1, "max_warm": 2}


@pytest.fixture
def kp_pool(jp_serverapp: Any, jp_asyncio_loop: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("jupyter_kernelpool.keeper.look_at_host", lambda: Host(available_memory=1 << 40, busy=0.0))
    manager = jp_serverapp.kernel_manager
    jp_asyncio_loop.run_until_complete(manager.start_pool())
    jp_asyncio_loop.run_until_complete(manager.pool.warmed())
    return manager.pool


@pytest.fixture
def kp_run(jp_serverapp: Any, jp_asyncio_loop: Any) -> Any:
    """Runs code in a kernel: `await kp_run(kernel_id, code)`; returns what it printed."""
    clients: dict[str, AsyncKernelClient] = {}

    async def run(kernel_id: str, code: str, *, wait: bool = True) -> str:
        if kernel_id not in clients:
            client = clients[kernel_id] = jp_serverapp.kernel_manager.get_kernel(kernel_id).client()
            client.start_channels()
            await client.wait_for_ready(timeout=PATIENCE)
        printed: list[str] = []
        if not wait:
            clients[kernel_id].execute(code)
            return ""
        reply = await clients[kernel_id].execute_interactive(
            code, timeout=PATIENCE, output_hook=lambda message: printed.append(message["content"].get("text", ""))
        )
        assert reply["content"]["status"] == "ok", reply
        return "".join(printed)

    yield run
    for client in clients.values():
        client.stop_channels()


async def start_kernel(kp_fetch: Any) -> str:
    response = await kp_fetch("POST", "/api/kernels", body="{}")
    assert response.code == 201, response.body
    return str(json.loads(response.body)["id"])


async def fork(kp_call: Any, kernel_id: str) -> str:
    reply = await kp_call("POST", f"/kernels/{kernel_id}/fork", {})
    assert reply.code == 201, reply.model
    return str(reply.model["kernels"][0]["id"])


async def usage_of(kp_call: Any, kernel_id: str) -> Any:
    reply = await kp_call("GET", f"/kernels/{kernel_id}/usage")
    assert reply.code == 200, reply.model
    return reply.model


async def private(kp_call: Any, kernel_id: str) -> float:
    return float((await usage_of(kp_call, kernel_id))["memory"]["private"]) / MB


class Stream:
    """A client of a stream, in HTTP/1.0, whose answers have no chunks: the events that came so far."""

    def __init__(self, port: int, path: str, headers: dict[str, str]) -> None:
        self.events: list[tuple[str, Any, str | None]] = []
        self.head = ""
        self._came = asyncio.Event()
        lines = [f"GET {path} HTTP/1.0", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.answer = asyncio.ensure_future(self._hear(port, "\r\n".join(lines) + "\r\n\r\n"))

    async def _hear(self, port: int, request: str) -> None:
        """Returns when the server has ended the answer; when cancelled, the client leaves."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request.encode())
            self.head = (await reader.readuntil(b"\r\n\r\n")).decode()
            while not reader.at_eof():
                with contextlib.suppress(asyncio.IncompleteReadError):  # the end
                    self._note((await reader.readuntil(b"\n\n")).decode().strip())
        finally:
            writer.close()

    def _note(self, block: str) -> None:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        self.events.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
        self._came.set()

    async def wait_for(self, count: int) -> list[tuple[str, Any, str | None]]:
        async with asyncio.timeout(PATIENCE):
            while len(self.events) < count:
                self._came.clear()
                await self._came.wait()
        return self.events

    async def leave(self) -> None:
        self.answer.cancel()
        await asyncio.wait([self.answer])


@pytest.fixture
def kp_stream(jp_http_port: int, jp_base_url: str, jp_auth_header: dict[str, str], jp_asyncio_loop: Any) -> Any:
    streams: list[Stream] = []

    def open_stream(path: str) -> Stream:
        streams.append(Stream(jp_http_port, url_path_join(jp_base_url, "/kernelpool/v1", path), jp_auth_header))
        return streams[-1]

    yield open_stream
    for stream in streams:
        jp_asyncio_loop.run_until_complete(stream.leave())


# -- memory -----------------------------------------------------------------------------------------


async def test_200_mb_in_kernel_and_child_are_told_alike_everywhere(
    kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_run: Any, kp_stream: Any, jp_serverapp: Any
) -> None:
    kernel_id = await start_kernel(kp_fetch)
    assert next(iter(kp_pool.pools.values())).hits == 1
    await kp_run(kernel_id, "import subprocess, sys")
    quiet = await private(kp_call, kernel_id)

    await kp_run(kernel_id, "x = bytearray(b'x') * 100_000_000")
    alone = await private(kp_call, kernel_id)
    assert alone - quiet == pytest.approx(100, rel=0.15)

    child = "x = bytearray(b'x') * 100_000_000; print('ready', flush=True); input()"
    await kp_run(
        kernel_id,
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "assert p.stdout.readline()",
    )
    model = await usage_of(kp_call, kernel_id)
    told = model["memory"]["private"] / MB
    assert told - quiet == pytest.approx(200, rel=0.15)
    assert model["processes"] == 2
    assert model["memory"]["peak"] >= model["memory"]["private"]
    assert model["memory"]["rss"] == model["memory"]["private"] + model["memory"]["shared"]

    (event, *_) = await kp_stream(f"/kernels/{kernel_id}/usage").wait_for(1)
    assert event[1]["memory"]["private"] / MB == pytest.approx(told, rel=0.02)
    (kernel,) = (await kp_call("GET", "/kernels")).model["kernels"]
    assert kernel["usage"]["memory"]["private"] / MB == pytest.approx(told, rel=0.02)
    assert (await kp_call("GET", f"/kernels/{kernel_id}")).model["usage"]["processes"] == 2
    await jp_serverapp.kernel_manager.meter.sample()
    gauge = REGISTRY.get_sample_value("jupyter_kernelpool_kernels_private_memory_bytes")
    assert gauge is not None
    assert gauge / MB == pytest.approx(told, rel=0.02)

    await kp_run(kernel_id, "p.communicate(); del x")
    after = await usage_of(kp_call, kernel_id)
    assert after["memory"]["private"] / MB == pytest.approx(quiet, abs=15)
    assert after["memory"]["peak"] >= model["memory"]["private"]


async def test_a_fork_is_charged_for_what_it_has_for_itself_and_its_parent_for_the_rest(
    kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_run: Any
) -> None:
    parent = await start_kernel(kp_fetch)
    await kp_run(parent, "x = bytearray(b'x') * 500_000_000")
    before = await private(kp_call, parent)
    assert 500 <= before < 575
    child = await fork(kp_call, parent)
    assert await private(kp_call, child) < 50
    assert await private(kp_call, parent) == pytest.approx(before, rel=0.05)
    assert (await usage_of(kp_call, child))["memory"]["rss"] > 500 * MB

    await kp_run(child, "y = bytearray(b'y') * 100_000_000")
    assert 100 <= await private(kp_call, child) < 150
    await kp_run(child, "x[:200_000_000] = y + y")
    assert 300 <= await private(kp_call, child) < 350
    assert await private(kp_call, parent) == pytest.approx(before, rel=0.05)


async def test_checkpoints_and_restores_leave_a_kernel_charged_for_its_memory(
    kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_run: Any
) -> None:
    kernel_id = await start_kernel(kp_fetch)
    await kp_run(kernel_id, "x = bytearray(b'x') * 300_000_000")
    before = await private(kp_call, kernel_id)
    checkpoint = (await kp_call("POST", f"/kernels/{kernel_id}/checkpoints", {})).model["id"]
    assert await private(kp_call, kernel_id) == pytest.approx(before, rel=0.05)
    assert (await usage_of(kp_call, kernel_id))["processes"] == 1
    assert (await kp_call("POST", f"/kernels/{kernel_id}/restore", {"checkpoint": checkpoint})).code == 200
    assert await private(kp_call, kernel_id) == pytest.approx(before, rel=0.05)
    other = (await kp_call("POST", f"/checkpoints/{checkpoint}/fork", {})).model["kernels"][0]["id"]
    assert await private(kp_call, other) < 50


# -- cores, processes, descriptors ------------------------------------------------------------------


async def test_a_busy_kernel_is_told_of_at_once_and_with_its_cores(
    kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_run: Any, jp_serverapp: Any
) -> None:
    kernel_id = await start_kernel(kp_fetch)
    await kp_run(kernel_id, "pass")
    await asyncio.sleep(1)
    await usage_of(kp_call, kernel_id)
    await asyncio.sleep(0.5)
    assert (await usage_of(kp_call, kernel_id))["cpu"] < 0.3
    await kp_run(kernel_id, "while True: pass", wait=False)
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await usage_of(kp_call, kernel_id)
    assert time.monotonic() - began < 5
    await asyncio.sleep(2)
    assert 0.3 < (await usage_of(kp_call, kernel_id))["cpu"] < 1.5
    await jp_serverapp.kernel_manager.interrupt_kernel(kernel_id)


async def test_descriptors_and_processes_are_counted(kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_run: Any) -> None:
    kernel_id = await start_kernel(kp_fetch)
    await kp_run(kernel_id, "import os, subprocess")
    before = await usage_of(kp_call, kernel_id)
    assert before["processes"] == 1
    await kp_run(kernel_id, "files = [open(os.devnull) for _ in range(100)]")
    assert (await usage_of(kp_call, kernel_id))["fds"] == pytest.approx(before["fds"] + 100, abs=10)
    detached = "p = subprocess.Popen(['sleep', '300'], start_new_session=True)"
    await kp_run(kernel_id, detached)
    orphan = "print(subprocess.check_output(['sh', '-c', 'sleep 300 >/dev/null 2>&1 & echo $!'], text=True))"
    pid = int(await kp_run(kernel_id, orphan))
    assert (await usage_of(kp_call, kernel_id))["processes"] == 3
    await kp_run(kernel_id, "p.kill(), p.wait()")
    assert (await usage_of(kp_call, kernel_id))["processes"] == 2
    os.kill(pid, signal.SIGKILL)


async def test_this_machines_gpus_are_no_error(kp_call: Any, kp_fetch: Any, kp_pool: Any) -> None:
    model = await usage_of(kp_call, await start_kernel(kp_fetch))
    assert isinstance(model["gpu"], list)
    if not Path("/dev/nvidia0").exists():
        assert model["gpu"] == []


# -- the stream -------------------------------------------------------------------------------------


async def test_the_stream_goes_on_through_a_restart_and_ends_with_the_kernel(
    kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_stream: Any
) -> None:
    kernel_id = await start_kernel(kp_fetch)
    stream = kp_stream(f"/kernels/{kernel_id}/usage?interval=0.2")
    first = await stream.wait_for(3)
    assert [event[0] for event in first[:3]] == ["usage"] * 3
    assert [event[2] for event in first[:3]] == [f"{kernel_id}:{number}" for number in (1, 2, 3)]
    assert all(event[1]["cpu"] is not None for event in first)
    assert (await kp_fetch("POST", f"/api/kernels/{kernel_id}/restart", body="")).code == 200
    seen = len(stream.events)
    await stream.wait_for(seen + 3)
    assert (await kp_fetch("DELETE", f"/api/kernels/{kernel_id}")).code == 204
    await asyncio.wait_for(stream.answer, PATIENCE)
    assert "content-type: text/event-stream" in stream.head.lower()
    assert [event[0] for event in stream.events] == ["usage"] * (len(stream.events) - 1) + ["done"]
    assert [event[1]["seq"] for event in stream.events] == list(range(1, len(stream.events) + 1))


async def test_a_stream_with_a_long_interval_ends_soon_after_the_kernel(
    kp_call: Any, kp_fetch: Any, kp_pool: Any, kp_stream: Any
) -> None:
    kernel_id = await start_kernel(kp_fetch)
    stream = kp_stream(f"/kernels/{kernel_id}/usage?interval=3600")
    await stream.wait_for(1)
    assert (await kp_fetch("DELETE", f"/api/kernels/{kernel_id}")).code == 204
    await asyncio.wait_for(stream.answer, 20)
    assert stream.events[-1][0] == "done"


async def test_nothing_is_read_any_more_for_a_client_that_left_and_pings_came_meanwhile(
    kp_fetch: Any, kp_pool: Any, kp_stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = asyncio.Event()

    async def silent(*_: Any) -> AsyncGenerator[Event]:
        try:
            yield Event("usage", {}, "1")
            await asyncio.sleep(3600)
        finally:
            closed.set()

    whole = usage_module.UsageHandler.stream
    monkeypatch.setattr(usage_module, "usage_events", silent)
    monkeypatch.setattr(usage_module.UsageHandler, "stream", lambda self, events: whole(self, events, ping_every=0.05))
    stream = kp_stream(f"/kernels/{await start_kernel(kp_fetch)}/usage")
    events = await stream.wait_for(4)
    assert [event[0] for event in events[:4]] == ["usage", "ping", "ping", "ping"]
    assert 0 < events[1][1]["elapsed"] < events[3][1]["elapsed"]
    assert events[1][2] is None
    await stream.leave()
    await asyncio.wait_for(closed.wait(), PATIENCE)


# -- what has no usage ------------------------------------------------------------------------------


async def test_kernels_without_a_process_here_have_no_usage(
    kp_call: Any, jp_serverapp: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_connection_file(str(tmp_path / "kernel-x.json"), key=b"k", kernel_name="far")
    monkeypatch.setattr(jp_serverapp.kernel_manager, "external_connection_dir", str(tmp_path))
    (kernel,) = (await kp_call("GET", "/kernels")).model["kernels"]
    assert (kernel["way"], kernel["usage"]) == ("external", None)
    reply = await kp_call("GET", f"/kernels/{kernel['id']}/usage")
    assert (reply.code, reply.model["code"], reply.model["reason"]) == (409, "wrong_state", "no_process")


@pytest.mark.parametrize("interval", ["0", "0.1", "3601", "nan", "inf", "-1", "x", ""])
async def test_a_wrong_interval_is_refused(kp_call: Any, kp_fetch: Any, kp_pool: Any, interval: str) -> None:
    reply = await kp_call("GET", f"/kernels/{await start_kernel(kp_fetch)}/usage?interval={interval}")
    assert (reply.code, reply.model["field"]) == (422, "interval")


async def test_a_kernel_that_is_not_there_is_not_found(kp_call: Any) -> None:
    assert (await kp_call("GET", "/kernels/none/usage")).code == 404


class TestWithoutAPool:
    @pytest.fixture
    def kp_config(self) -> dict[str, Any]:
        return {"enabled": False}

    async def test_stock_kernels_are_measured_too(self, kp_call: Any, kp_fetch: Any, jp_serverapp: Any) -> None:
        kernel_id = await start_kernel(kp_fetch)
        model = await usage_of(kp_call, kernel_id)
        pid = jp_serverapp.kernel_manager.get_kernel(kernel_id).provisioner.pid
        facts: Any = psutil.Process(pid).memory_full_info()
        assert model["processes"] == 1
        assert 0.5 * facts.uss < model["memory"]["private"] <= 1.1 * facts.uss
