"""One test per workaround: stock still has the flaw (fails when it is mended upstream), ours has not."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_events import EventLogger
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, ServerKernelManager
from tornado import web
from zmq.eventloop.zmqstream import ZMQStream

from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.notices import ANSWER_WITHIN
from jupyter_kernelpool.pooled import PooledKernelManager

from .browsers import browser, execution
from .conftest import Server

pytestmark = pytest.mark.integration


@pytest.fixture
def managers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jp_asyncio_loop: Any) -> Iterator[Any]:
    """Makes managers of many kernels, with a kernelspec whose program does not exist."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder = tmp_path / "kernels" / "broken"
    folder.mkdir(parents=True)
    argv = ["/no/such/program", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "b", "language": "toy"}))
    made = []

    def make(manager_class: type[Any], **traits: Any) -> Any:
        specs = KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")])
        made.append(manager_class(kernel_spec_manager=specs, connection_dir=str(tmp_path), **traits))
        if isinstance(made[-1], PoolingKernelManager):
            made[-1].pool.warm = made[-1].pool.max_warm = 0
        return made[-1]

    yield make
    for manager in made:
        manager._pending_kernels.clear()
        jp_asyncio_loop.run_until_complete(manager.shutdown_all(now=True))


async def fail_one_and_start_one(manager: Any) -> psutil.Process:
    """The process of the kernel that started."""
    with pytest.raises((FileNotFoundError, web.HTTPError)):
        await manager.start_kernel(kernel_name="broken")
    kernel_id = await manager.start_kernel(kernel_name="python3")
    return psutil.Process(manager.get_kernel(kernel_id).provisioner.pid)


async def test_stock_shutdown_all_stops_at_a_failed_start(managers: Any) -> None:
    """Fails when upstream forgets failed starts: `_forget_failed_starts` can then go."""
    manager = managers(AsyncMappingKernelManager)
    process = await fail_one_and_start_one(manager)
    assert len(manager._pending_kernels) == 1
    with pytest.raises(web.HTTPError) as raised:
        await manager.shutdown_all(now=True)
    assert raised.value.status_code == 404
    assert process.is_running(), "whoever called goes on, and with it the end of the other kernel is lost"
    while len(manager):  # not so here
        await asyncio.sleep(0.01)


async def test_only_the_servers_manager_stops_at_it(managers: Any) -> None:
    """jupyter_client's own forgets the failed start on the way; so the mending belongs into jupyter_server."""
    manager = managers(AsyncMultiKernelManager)
    process = await fail_one_and_start_one(manager)
    await manager.shutdown_all(now=True)
    assert not process.is_running()


async def test_our_shutdown_all_ends_every_kernel(managers: Any) -> None:
    manager = managers(PoolingKernelManager)
    process = await fail_one_and_start_one(manager)
    await manager.shutdown_all(now=True)
    assert not process.is_running()
    assert not len(manager)


async def restart_one_slowly(manager: Any) -> tuple[psutil.Process, asyncio.Future[None]]:
    """The process of a kernel that is being restarted, and what ends that."""
    kernel_id = await manager.start_kernel(kernel_name="python3")
    kernel = manager.get_kernel(kernel_id)
    await kernel.ready
    kernel._ready = asyncio.get_running_loop().create_future()
    return psutil.Process(kernel.provisioner.pid), kernel._ready


async def test_stock_shutdown_all_raises_during_a_restart(managers: Any) -> None:
    """Fails when upstream waits for what is being restarted: `_await_restarts` can then go."""
    manager = managers(AsyncMappingKernelManager)
    process, ready = await restart_one_slowly(manager)
    with pytest.raises(asyncio.InvalidStateError):
        await manager.shutdown_all(now=True)
    assert process.is_running()
    ready.set_result(None)


@pytest.mark.parametrize("ends", [True, False])
async def test_our_shutdown_all_waits_for_restarts_for_a_while(
    managers: Any, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr("jupyter_kernelpool.manager.RESTARTED_WITHIN", 30.0 if ends else 0.1)
    manager = managers(PoolingKernelManager)
    process, ready = await restart_one_slowly(manager)
    if ends:
        asyncio.get_running_loop().call_later(0.3, ready.set_result, None)
    await manager.shutdown_all(now=True)
    assert not process.is_running()
    assert not len(manager)


@pytest.fixture
def pending_sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The sleeps that jupyter_client's `in_pending_state` makes from now on."""
    sleeps: list[float] = []
    stock = asyncio.sleep

    def sleep(delay: float, *args: Any) -> Any:
        caller = sys._getframe(1)
        if caller.f_globals["__name__"] == "jupyter_client.manager" and caller.f_code.co_name == "wrapper":
            sleeps.append(delay)
        return stock(delay, *args)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return sleeps


async def use(manager: Any) -> None:
    kernel_id = await manager.start_kernel(kernel_name="python3")
    await manager.shutdown_kernel(kernel_id, now=True)


async def test_stock_still_sleeps_at_each_start_and_shutdown(managers: Any, pending_sleeps: list[float]) -> None:
    """Fails when upstream no longer sleeps: `pending` in manager.py can then go."""
    await use(managers(AsyncMappingKernelManager))
    assert pending_sleeps == [0.01, 0.01]


async def test_ours_does_not_sleep(managers: Any, pending_sleeps: list[float]) -> None:
    await use(managers(PoolingKernelManager))
    assert pending_sleeps == []


async def test_ready_means_the_same_as_in_stock(managers: Any) -> None:
    """`ready` is done, without a result, once started; it is a new one while the kernel is shut down."""
    for manager_class in (AsyncMappingKernelManager, PoolingKernelManager):
        manager = managers(manager_class)
        kernel_id = await manager.start_kernel(kernel_name="python3")
        kernel = manager.get_kernel(kernel_id)
        started = kernel.ready
        assert (started.done(), started.result()) == (True, None)
        task = asyncio.ensure_future(manager.shutdown_kernel(kernel_id, now=True))
        while kernel.ready is started:
            await asyncio.sleep(0)
        stopping = kernel.ready
        assert not stopping.done()
        await task
        assert (stopping.done(), stopping.result()) == (True, None)


@pytest.fixture
def registrations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The event schemas that are validated from now on."""
    seen: list[Any] = []
    stock = EventLogger.register_event_schema

    def register(self: EventLogger, schema: Any) -> None:
        seen.append(schema)
        stock(self, schema)

    monkeypatch.setattr(EventLogger, "register_event_schema", register)
    return seen


async def test_stock_registers_its_schemas_for_each_kernel(managers: Any, registrations: list[Any]) -> None:
    """Fails when upstream registers once: `_default_event_logger` can then go."""
    parent = managers(AsyncMappingKernelManager)
    kernels = [ServerKernelManager(parent=parent) for _ in range(3)]
    assert [kernel.event_logger is not None for kernel in kernels] == [True] * 3
    assert len(registrations) == 3


async def test_ours_registers_them_once(managers: Any, registrations: list[Any]) -> None:
    parent = managers(PoolingKernelManager)
    kernels = [PooledKernelManager(parent=parent) for _ in range(3)]
    loggers = {id(kernel.event_logger) for kernel in kernels}
    assert (len(loggers), len(registrations)) == (1, 1)


async def test_own_schemas_of_a_subclass_are_registered(managers: Any, registrations: list[Any]) -> None:
    parent = managers(PoolingKernelManager)
    schema = ServerKernelManager(parent=parent).core_event_schema_paths[0]
    kernel = PooledKernelManager(parent=parent, extra_event_schema_paths=[schema])
    assert kernel.event_logger is not None
    assert registrations == [schema, schema], "the core's and its own"


# An interrupt that comes before the first line of the next cell.
INTERRUPTED_EARLY = """
kernel = get_ipython().kernel
stock = kernel.shell_handlers["execute_request"]
async def hit(*args, **kwargs):
    kernel.shell_handlers["execute_request"] = stock
    raise KeyboardInterrupt
kernel.shell_handlers["execute_request"] = hit
"""


def test_stock_still_leaves_a_cell_that_is_interrupted_early_without_an_answer(kp_start: Any) -> None:
    """Fails when ipykernel answers: `Notices.ended` can then go."""
    server = kp_start("--KernelPool.enabled=False")
    client = server.client(server.start_kernel())
    server.run(client, INTERRUPTED_EARLY)
    request = client.execute("print(1)")
    while (message := client.get_iopub_msg(timeout=20))["content"].get("execution_state") != "idle":
        assert message["parent_header"].get("msg_id") == request
    with pytest.raises(Empty):
        client.get_shell_msg(timeout=ANSWER_WITHIN)
    assert server.run(client, "print(2)") == "2"


@pytest.mark.parametrize("warm", [1, 0], ids=["pooled", "cold"])
def test_cell_that_is_interrupted_early_is_answered(kp_start: Any, warm: int) -> None:
    server = kp_start(f"--KernelPool.warm={warm}", f"--KernelPool.max_warm={warm}")
    if warm:
        server.wait_warm(1)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        tab.execute(INTERRUPTED_EARLY)
        began = time.monotonic()
        reply, _ = tab.until_idle(tab.send("execute_request", execution("x = 1")))
        assert (reply["status"], reply["ename"]) == ("error", "NotAnswered")
        assert time.monotonic() - began < ANSWER_WITHIN + 5
        assert tab.execute("x") == "NameError", "it did not run"
        began = time.monotonic()
        assert tab.execute(f"import time; time.sleep({ANSWER_WITHIN + 1}); 2") == "2", "one that runs is waited for"


LOSES_THE_NEXT = """
session = get_ipython().kernel.session
deserialize = session.deserialize
def loses(*args, **kwargs):
    message = deserialize(*args, **kwargs)
    if message["msg_type"] == "execute_request":
        session.deserialize = deserialize
        raise ValueError("as where an interrupt comes while a request is taken up")
    return message
session.deserialize = loses
"""


def test_client_of_a_cell_that_its_kernel_has_lost_is_told(kp_server: Server) -> None:
    kp_server.wait_warm(1)
    kernel = kp_server.start_kernel()
    with browser(kp_server, kernel) as tab:
        assert tab.execute(LOSES_THE_NEXT) == ""
        reply, _ = tab.until_idle(tab.send("execute_request", execution("1+1")), 60)
        assert (reply["status"], reply["ename"]) == ("error", "NotAnswered")
        assert tab.execute("1+1") == "2"


async def test_a_stream_still_hears_nothing_after_its_callback_raised(caplog: pytest.LogCaptureFixture) -> None:
    """Fails when pyzmq reads on: what `Prompt.handle_outgoing_message` and `activity.feed` catch may then be less."""
    heard: list[list[bytes]] = []

    def hear(parts: list[bytes]) -> None:
        heard.append(parts)
        if len(heard) == 1:
            raise ValueError("not understood")

    with zmq.Context() as context, context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        pull.bind("inproc://deaf")
        push.connect("inproc://deaf")
        stream = ZMQStream(pull)
        stream.on_recv(hear)
        for number in range(3):
            push.send(b"%d" % number)
            await asyncio.sleep(0.2)
        assert heard == [[b"0"]]
        assert "not understood" in caplog.text
        stream.on_recv(hear)  # as who looks again
        await asyncio.sleep(0.2)
        stream.close()
    assert heard == [[b"0"], [b"1"], [b"2"]]
