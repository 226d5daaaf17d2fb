"""Whether a process hangs is told from its order, which it did not read, and its threads, which sleep: real ones."""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from jupyter_kernelpool import process as process_module
from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.kernelside import wire
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.testing import FakeLauncher, FakeSupervision, Script, fake_recipe
from jupyter_kernelpool.usage import is_asleep

SLEEPS = "import time; print(flush=True); time.sleep(600)"
COMPUTES = "print(flush=True)\nwhile True: pass"
COMPUTES_IN_A_THREAD = (
    "import threading, time\ndef compute():\n    while True: pass\n"
    "threading.Thread(target=compute, daemon=True).start()\nprint(flush=True)\ntime.sleep(600)"
)
SLEEPS_IN_THREADS = (
    "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(600,)).start()\n"
    "print(flush=True)\ntime.sleep(600)"
)
LONG = 30.0


@contextlib.contextmanager
def running(code):
    """A real process's pid, once it does what *code* says."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.2)
        try:
            yield child.pid
        finally:
            child.kill()


async def offered(pid):
    """A process of ours that was offered an identity, and the kernel's end of its socket."""
    ours, its = socket.socketpair()
    launcher = FakeLauncher.of(Script())(fake_recipe(), FakeSupervision(), logging.getLogger("test"))
    process = Process(launcher.new_record(), launcher.supervision, ours)
    process.pid = pid
    process.offer({"info": {}}, [])
    return process, its


@pytest.mark.parametrize(
    "code, sleeps",
    [(SLEEPS, True), (SLEEPS_IN_THREADS, True), (COMPUTES, False), (COMPUTES_IN_A_THREAD, False)],
)
def test_process_is_asleep_when_no_thread_wants_a_processor(code, sleeps):
    with running(code) as pid:
        looks = [is_asleep(pid) for _ in range(20)]
        assert sum(looks) > 15 if sleeps else not any(looks)


def test_stopped_process_is_asleep_and_one_that_is_gone_is_not():
    with running(COMPUTES) as pid:
        psutil.Process(pid).send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert is_asleep(pid)
    assert not is_asleep(pid)


async def test_what_the_other_side_read_only_in_part_is_unread():
    ours, its = socket.socketpair()
    channel = Channel(ours, lambda _: None, lambda: None)
    assert not channel.is_unread
    channel.send({"op": "adopt"})
    assert channel.is_unread
    header = its.recv(wire.HEADER.size)
    assert channel.is_unread
    its.recv(*wire.HEADER.unpack(header))
    assert not channel.is_unread
    channel.close()
    assert not channel.is_unread
    its.close()


@pytest.mark.parametrize("read", [0, wire.HEADER.size])
async def test_process_that_sleeps_over_its_order_hangs_and_is_not_waited_for(monkeypatch, read):
    monkeypatch.setattr(process_module, "ADOPT_TIMEOUT", LONG)
    with running(SLEEPS) as pid:
        process, its = await offered(pid)
        its.recv(read)  # with the interpreter's lock taken, a kernel still reads the length
        with pytest.raises(LaunchFailed) as failure:
            await process.adopted(replaceable=True)
        assert failure.value.facts["reason"] == "hung"
        its.close()


@pytest.mark.parametrize("code", [COMPUTES, COMPUTES_IN_A_THREAD])
async def test_process_that_has_not_had_a_processor_is_waited_for(code):
    with running(code) as pid:
        process, its = await offered(pid)
        asyncio.get_running_loop().call_later(0.3, wire.send, its, {"event": "adopted"})
        await process.adopted(replaceable=True)
        its.close()


async def test_process_that_read_its_order_is_waited_for_though_it_sleeps():
    with running(SLEEPS) as pid:
        process, its = await offered(pid)
        assert wire.receive(its) is not None  # and it changes to a folder on a slow file system, say
        asyncio.get_running_loop().call_later(0.3, wire.send, its, {"event": "adopted"})
        await process.adopted(replaceable=True)
        its.close()


async def test_process_that_can_not_be_replaced_is_given_all_its_time(monkeypatch):
    monkeypatch.setattr(process_module, "ADOPT_TIMEOUT", 0.3)
    with running(SLEEPS) as pid:
        process, its = await offered(pid)
        with pytest.raises(LaunchFailed) as failure:
            await process.adopted()
        assert failure.value.facts["reason"] == "timeout"
        its.close()
