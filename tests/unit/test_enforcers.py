"""The enforcers that need nothing of the machine, on real processes: what they read, set and leave behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.limits import rlimit
from jupyter_kernelpool.limits.base import Subject, assign
from jupyter_kernelpool.limits.rlimit import RESERVE, RlimitEnforcer
from jupyter_kernelpool.limits.watchdog import WatchdogEnforcer
from jupyter_kernelpool.usage import scan

MB = 1 << 20
ALL = frozenset({"memory", "cpu", "processes", "open_files"})
NONE: frozenset[int] = frozenset()


@pytest.fixture
def kp_spawn():
    """Starts Python programs that lead sessions of their own; they have begun once they have printed a line."""
    started = []

    def spawn(code: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", textwrap.dedent(code)], start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline()
        return process

    yield spawn
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


EATS = "x = b'x' * (100 << 20); print('ready'); input()"
EATS_IN_A_CHILD = """
    import os, time
    if os.fork() == 0:
        x = b'x' * (100 << 20)
        print('ready')
        time.sleep(60)
    os.wait()
"""


@pytest.mark.parametrize("code", [EATS, EATS_IN_A_CHILD], ids=["process", "child"])
def test_watchdog_reads_the_memory_of_the_tree_exactly_near_the_limit(kp_spawn, code):
    watchdog, pid = WatchdogEnforcer(0.1), kp_spawn(code).pid
    subject = Subject("k", pid)
    watchdog.hold(subject, Allowance(memory=150 * MB), ALL)
    reading = watchdog.read([subject], NONE)["k"]
    assert 100 * MB <= reading.used["memory"] <= 125 * MB
    assert reading.peak == reading.used["memory"]


def test_watchdog_does_not_charge_what_was_inherited(kp_spawn):
    code = """
        import os, time
        x = b'x' * (100 << 20)
        if os.fork() == 0:
            os.setsid()
            print(os.getpid())
            time.sleep(60)
        os.wait()
    """
    process = kp_spawn(code.replace("print(os.getpid())", "print('ready'); print(os.getpid())"))
    pid = int(process.stdout.readline())
    try:
        watchdog, subject = WatchdogEnforcer(0.1), Subject("k", pid, inherited=100 * MB)
        watchdog.hold(subject, Allowance(memory=50 * MB), ALL)
        assert watchdog.read([subject], NONE)["k"].used["memory"] < 20 * MB
    finally:
        os.kill(pid, signal.SIGKILL)


def test_watchdog_reads_memory_exactly_where_it_is_summed_however_little_it_is(kp_spawn):
    watchdog, pid = WatchdogEnforcer(0.1), kp_spawn("print('ready'); input()").pid
    subject = Subject("k", pid)
    watchdog.hold(subject, Allowance(), ALL)
    bound = watchdog.read([subject], NONE)["k"].used["memory"]
    watchdog.exact = True
    assert watchdog.read([subject], NONE)["k"].used["memory"] < bound


def test_watchdog_counts_processes_with_threads_and_cores(kp_spawn):
    code = """
        import subprocess, sys, threading, time
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        child = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
        print('ready')
        child.wait()
    """
    watchdog, pid = WatchdogEnforcer(0.1), kp_spawn(code).pid
    subject = Subject("k", pid)
    watchdog.hold(subject, Allowance(processes=10), ALL)
    assert "cpu" not in watchdog.read([subject], NONE)["k"].used, "there is nothing to compare with yet"
    time.sleep(1)
    used = watchdog.read([subject], NONE)["k"].used
    assert used["processes"] == 3
    assert 0.05 < used["cpu"] < 1.1


def test_watchdog_passes_over_a_process_that_has_ended_and_one_that_got_its_pid(kp_spawn):
    watchdog, process = WatchdogEnforcer(0.1), kp_spawn("print('ready'); input()")
    subject = Subject("k", process.pid)
    watchdog.hold(subject, Allowance(memory=MB), ALL)
    assert watchdog.read([subject], NONE)
    watchdog._watched["k"].started -= 1  # as if another one had begun since
    assert watchdog.read([subject], NONE) == {}
    process.kill()
    time.sleep(0.2)
    assert watchdog.read([Subject("k", process.pid)], NONE) == {}


def test_watchdog_slows_down_what_uses_too_many_cores_and_frees_it_when_told(kp_spawn):
    watchdog, pid = WatchdogEnforcer(0.1), kp_spawn("print('ready')\nwhile True: pass").pid
    subject = Subject("k", pid)
    watchdog.hold(subject, Allowance(cpu=0.05), ALL)
    try:
        deadline = time.monotonic() + 20
        while not watchdog.throttle.slowed and time.monotonic() < deadline:
            watchdog.read([subject], NONE)
            time.sleep(0.3)
        time.sleep(1.0)
        assert watchdog.read([subject], NONE)["k"].throttled > 0
        watchdog.hold(subject, Allowance(cpu=8.0), ALL)
        assert watchdog.throttle._slowed["k"].budget.cores == 8.0
        watchdog.hold(subject, Allowance(), ALL)
        assert watchdog.throttle.slowed == frozenset()
    finally:
        watchdog.close()


def test_open_files_are_limited_for_the_whole_tree_and_can_be_raised_again(kp_spawn):
    enforcer = RlimitEnforcer(0.1)
    pid = kp_spawn("import os, time\nif os.fork() == 0: time.sleep(60)\nprint('ready')\ninput()").pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    enforcer.hold(Subject("k", pid), Allowance(open_files=200), ALL)
    children = [one.pid for one in scan().tree(pid) if one.pid != pid]
    assert children
    for one in (pid, *children):
        soft, hard = resource.prlimit(one, resource.RLIMIT_NOFILE)
        assert (soft, hard) == (200, 200 if rlimit._may_raise() else before[1])


def test_limit_on_open_files_that_is_lifted_leaves_what_the_server_has(kp_spawn):
    enforcer, pid = RlimitEnforcer(0.1), kp_spawn("print('ready'); input()").pid
    subject = Subject("k", pid)
    enforcer.hold(subject, Allowance(open_files=200), ALL)
    enforcer.hold(subject, Allowance(), ALL)
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert enforcer.read([subject], NONE) == {}


def test_kernel_that_has_no_file_left_gets_a_reserve_which_is_taken_back(kp_spawn):
    enforcer = RlimitEnforcer(0.1)
    process = kp_spawn("""
        files = []
        print('ready')
        input()
        try:
            while True: files.append(open('/dev/null'))
        except OSError:
            print('full')
        input()
        files.clear()
        print('empty')
        input()
    """)
    subject = Subject("k", process.pid)
    enforcer.hold(subject, Allowance(open_files=150), ALL)

    def step(expected: str) -> int:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == expected
        return int(enforcer.read([subject], NONE)["k"].used["open_files"])

    assert step("full") == 150
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == 150 + RESERVE
    assert step("empty") < 20
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] == 150


def test_more_files_than_the_server_may_have_can_not_be_enforced(kp_spawn, monkeypatch):
    def refuse(pid: int, wanted: int) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(rlimit, "_set_limit", refuse)
    with pytest.raises(NotEnforceable, match="open_files = 500") as caught:
        RlimitEnforcer(0.1).hold(Subject("k", kp_spawn("print('ready'); input()").pid), Allowance(open_files=500), ALL)
    assert "ulimit -Hn" in caught.value.facts["needed"]


def test_each_limit_goes_to_the_first_enforcer_that_can_hold_it_here(monkeypatch):
    first, second = WatchdogEnforcer(0.1), WatchdogEnforcer(0.1)
    monkeypatch.setattr(first, "prepare", lambda: {"cpu": "no signals here"})
    held = assign([first, RlimitEnforcer(0.1), second])
    assert held.limits_of(first) == {"memory", "processes"}
    assert held.limits_of(second) == {"cpu"}
    assert held.missing == {}
    assert assign([first]).missing == {"cpu": "watchdog: no signals here"}
