"""Control groups for real, as far as this machine has them: what is held, what is read, what is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.limits import cgroup
from jupyter_kernelpool.limits.base import Subject
from jupyter_kernelpool.limits.cgroup import CgroupEnforcer, group_of, is_dying
from jupyter_kernelpool.testing.enforcers import Worker, is_alive, until

MIB = 1 << 20
HEADROOM = 0.1
HOG = "import sys; bytearray(int(sys.argv[1]))"


@pytest.fixture
def kp_enforcer():
    enforcer = CgroupEnforcer(HEADROOM)
    assert enforcer.prepare() == {}, "these tests need a machine that lets them make groups"
    yield enforcer
    enforcer.close()
    assert not [path for path in enforcer.leaves() if Path(path).exists()]


@pytest.fixture
def kp_worker(kp_enforcer):
    worker = Worker("a kernel/of ours")
    yield worker
    worker.end()


def read(enforcer, worker):
    return enforcer.read([worker.subject], frozenset())[worker.subject.kernel_id]


def eat(worker, size):
    """Have a child of the worker's allocate so much; its exit code."""
    return int(worker.ask(f"__import__('subprocess').run({[sys.executable, '-c', HOG, str(size)]!r}).returncode"))


def test_memory_beyond_the_headroom_ends_the_process_and_the_reason_is_known(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    kp_worker.ask(f"globals().update(kept=bytearray({200 * MIB}))")
    until(lambda: not is_alive(kp_worker.subject.pid), "the process is ended")
    limit, seen = kp_enforcer.why_ended(kp_worker.subject)
    assert limit == "memory"
    assert 100 * MIB <= seen <= 110 * MIB


def test_memory_within_the_headroom_is_read_for_the_guard_to_act(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=200 * MIB), kp_enforcer.holds)
    kp_worker.ask(f"len(globals().setdefault('kept', bytearray({204 * MIB})))")
    reading = read(kp_enforcer, kp_worker)
    assert 200 * MIB < reading.used["memory"] < 220 * MIB
    assert reading.peak == reading.used["memory"]
    kp_worker.ask("globals().pop('kept') and 0")
    freed = read(kp_enforcer, kp_worker)
    assert freed.used["memory"] < 50 * MIB, "an upper bound, far from the limit"
    assert freed.peak == reading.peak


def test_a_childs_end_is_told_and_blamed_for_nothing_later(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    assert not kp_enforcer.has_killed(kp_worker.subject)
    assert eat(kp_worker, 300 * MIB) == -signal.SIGKILL
    assert kp_enforcer.has_killed(kp_worker.subject)
    reading = read(kp_enforcer, kp_worker)
    assert not kp_enforcer.has_killed(kp_worker.subject), "it is told"
    assert reading.refused == {"memory": 1}
    assert reading.peak >= 100 * MIB
    kp_worker.end()
    assert kp_enforcer.why_ended(kp_worker.subject) is None


def test_child_is_told_once_however_the_limit_changes(kp_enforcer, kp_worker):
    for number in (1, 2):  # as with cells that ask for a limit of their own
        kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
        assert eat(kp_worker, 300 * MIB) == -signal.SIGKILL
        assert read(kp_enforcer, kp_worker).refused == {"memory": number}
        kp_enforcer.hold(kp_worker.subject, Allowance(), kp_enforcer.holds)
        assert read(kp_enforcer, kp_worker).refused == {"memory": number}


def test_memory_from_before_it_was_limited_counts(kp_enforcer, kp_worker):
    kp_worker.ask(f"len(globals().setdefault('early', bytearray({200 * MIB})))")
    kp_enforcer.hold(kp_worker.subject, Allowance(cpu=1.0), kp_enforcer.holds)
    kp_worker.ask(f"len(globals().setdefault('late', bytearray({40 * MIB})))")
    kp_enforcer.hold(kp_worker.subject, Allowance(cpu=1.0, memory=300 * MIB), kp_enforcer.holds)
    assert 240 * MIB <= read(kp_enforcer, kp_worker).used["memory"] < 290 * MIB


def test_kernel_that_is_being_killed_is_not_taken_for_a_child_of_its(kp_enforcer, kp_worker, monkeypatch):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    assert eat(kp_worker, 300 * MIB) == -signal.SIGKILL
    with monkeypatch.context() as patch:
        patch.setattr(cgroup, "is_dying", lambda pid: pid == kp_worker.subject.pid)
        assert kp_enforcer.read([kp_worker.subject], frozenset()) == {}
    kp_worker.end()
    assert kp_enforcer.why_ended(kp_worker.subject)[0] == "memory"


@pytest.mark.parametrize("follows", [True, False], ids=["and it ends", "and it lives on"])
def test_end_of_what_runs_inside_is_the_kernels_unless_it_lives_on(kp_enforcer, kp_worker, follows):
    """As behind bwrap with process ids of its own, which ends a moment after what it runs."""
    kp_worker.ask("globals().setdefault('inner', __import__('subprocess').Popen(['sleep', '100'])).pid")
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    assert eat(kp_worker, 300 * MIB) == -signal.SIGKILL
    kp_worker.ask("inner.kill() or inner.wait()")
    assert kp_enforcer.read([kp_worker.subject], frozenset()) == {}
    if follows:
        kp_worker.end()
        assert kp_enforcer.why_ended(kp_worker.subject)[0] == "memory"
        return
    until(lambda: kp_enforcer.read([kp_worker.subject], frozenset()), "it is told")
    assert read(kp_enforcer, kp_worker).refused == {"memory": 1}
    assert eat(kp_worker, 300 * MIB) == -signal.SIGKILL
    assert read(kp_enforcer, kp_worker).refused == {"memory": 2}, "nothing is in doubt any more"


def test_process_is_dying_from_the_signal_until_it_is_gone():
    worker = Worker("k")
    pid = worker.subject.pid
    assert not is_dying(pid)
    os.kill(pid, signal.SIGKILL)
    assert is_dying(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_dying(pid), "a zombie"
    worker.end()
    assert is_dying(pid), "gone"


def test_no_limit_is_blamed_where_the_machine_or_a_container_has_no_memory_left(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=400 * MIB), kp_enforcer.holds)
    kp_enforcer._groups.limit_memory("", 0, 100 * MIB)  # as a container's: nobody told the enforcer
    assert eat(kp_worker, 200 * MIB) == -signal.SIGKILL
    assert read(kp_enforcer, kp_worker).refused == {}
    kp_worker.ask(f"globals().update(kept=bytearray({200 * MIB}))")
    until(lambda: not is_alive(kp_worker.subject.pid), "the process is ended")
    assert kp_enforcer.why_ended(kp_worker.subject) is None


def test_limit_below_what_is_used_is_set_once_that_is_freed(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=400 * MIB), kp_enforcer.holds)
    kp_worker.ask(f"len(globals().setdefault('kept', bytearray({300 * MIB})))")
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    assert read(kp_enforcer, kp_worker).used["memory"] > 300 * MIB
    assert is_alive(kp_worker.subject.pid)
    kp_worker.ask("globals().pop('kept') and 0")
    read(kp_enforcer, kp_worker)
    assert eat(kp_worker, 200 * MIB) == -signal.SIGKILL


def test_limit_that_can_not_be_set_yet_is_tried_again_and_keeps_no_other_from_being_read(
    kp_enforcer, kp_worker, monkeypatch
):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=400 * MIB), kp_enforcer.holds)
    kp_worker.ask(f"len(globals().setdefault('kept', bytearray({300 * MIB})))")
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    kp_worker.ask("globals().pop('kept') and 0")
    with monkeypatch.context() as patch:
        patch.setattr(kp_enforcer, "_limit", lambda *_: (_ for _ in ()).throw(OSError("busy")))
        assert read(kp_enforcer, kp_worker).used["memory"] < 100 * MIB
    read(kp_enforcer, kp_worker)
    assert eat(kp_worker, 200 * MIB) == -signal.SIGKILL


def test_processor_is_held_and_only_a_lasting_want_is_told(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(cpu=0.25), kp_enforcer.holds)
    read(kp_enforcer, kp_worker)
    kp_worker.ask("sum(range(10**5))")
    time.sleep(0.3)
    assert read(kp_enforcer, kp_worker).throttled == 0
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        kp_enforcer.hold(Subject("busy", loop.pid), Allowance(cpu=0.05), kp_enforcer.holds)
        used = []
        for _ in range(3):
            time.sleep(1)
            used.append(kp_enforcer.read([Subject("busy", loop.pid)], frozenset())["busy"])
        time.sleep(0.15)
        quick = kp_enforcer.read([Subject("busy", loop.pid)], frozenset())["busy"]
    finally:
        loop.kill()
        loop.wait()
    assert [reading.throttled for reading in used] == [1, 2, 3]
    assert quick.throttled == 3, "a look at once, in which it may have been paused all the time"
    assert all(0.01 < reading.used["cpu"] < 0.1 for reading in used[1:])


def test_group_in_which_nothing_ran_is_not_read_again(kp_enforcer, kp_worker, monkeypatch):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=400 * MIB, cpu=1.0), kp_enforcer.holds)
    kp_worker.ask("1")
    time.sleep(0.2)  # until it waits for the next question
    read(kp_enforcer, kp_worker)
    with monkeypatch.context() as patch:
        patch.setattr(kp_enforcer._groups, "killed", lambda group: pytest.fail("it is read again"))
        read(kp_enforcer, kp_worker)
    kp_worker.ask(f"len(globals().setdefault('kept', bytearray({300 * MIB})))")
    assert read(kp_enforcer, kp_worker).used["memory"] > 300 * MIB


def test_refused_processes_are_read_as_more_than_allowed(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(processes=20), kp_enforcer.holds)
    assert read(kp_enforcer, kp_worker).used["processes"] == 1
    start = "[__import__('threading').Thread(target=__import__('time').sleep, args=(1,)).start() for _ in range(%d)]"
    kp_worker.ask(f"len({start % 10})")
    assert read(kp_enforcer, kp_worker).used["processes"] == 11
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3 & done; wait"
    kp_worker.ask(f"__import__('subprocess').run(['sh', '-c', {script!r}], stderr=-3).returncode")
    assert read(kp_enforcer, kp_worker).used["processes"] == 21
    assert read(kp_enforcer, kp_worker).used["processes"] < 21, "nothing was refused since"


def test_process_that_is_refused_for_the_sum_is_told_as_such(kp_enforcer, kp_worker):
    kp_enforcer.hold_together(Allowance(processes=12), frozenset({"processes"}))
    kp_enforcer.hold(kp_worker.subject, Allowance(processes=100), kp_enforcer.holds)
    assert kp_enforcer.refused_together() == frozenset()
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 0.3 & done; wait"
    kp_worker.ask(f"__import__('subprocess').run(['sh', '-c', {script!r}], stderr=-3).returncode")
    assert read(kp_enforcer, kp_worker).used["processes"] <= 12, "not for its own limit"
    assert kp_enforcer.refused_together() == {"processes"}
    read(kp_enforcer, kp_worker)
    assert kp_enforcer.refused_together() == frozenset(), "nothing was refused since"


def test_all_together_are_held_to_the_sum(kp_enforcer, kp_worker):
    kp_enforcer.hold_together(Allowance(memory=200 * MIB), frozenset({"memory"}))
    other = Worker("another")
    try:
        for worker in (kp_worker, other):
            kp_enforcer.hold(worker.subject, Allowance(), kp_enforcer.holds)
        kp_worker.ask(f"len(globals().setdefault('kept', bytearray({60 * MIB})))")
        assert eat(other, 40 * MIB) == 0
        assert eat(other, 400 * MIB) == -signal.SIGKILL
        assert kp_worker.ask("len(kept)") == str(60 * MIB)
    finally:
        other.end()


def test_a_successor_is_not_blamed_for_its_predecessor(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    kp_worker.ask(f"globals().update(kept=bytearray({200 * MIB}))")
    until(lambda: not is_alive(kp_worker.subject.pid), "the process is ended")
    other = Worker(kp_worker.subject.kernel_id)
    try:
        kp_enforcer.hold(other.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
        assert kp_enforcer.why_ended(other.subject) is None
        for _ in range(2):
            assert read(kp_enforcer, other).refused == {}
    finally:
        other.end()


def test_group_without_a_controller_to_write_to_refuses_the_kernel(kp_enforcer, kp_worker, monkeypatch):
    def read_only(*_):
        raise PermissionError(13, "Permission denied", "/sys/fs/cgroup/x/memory.max")

    monkeypatch.setattr(kp_enforcer._hierarchy, "limit_memory", read_only)
    with pytest.raises(NotEnforceable) as caught:
        kp_enforcer.hold(kp_worker.subject, Allowance(memory=100 * MIB), kp_enforcer.holds)
    assert caught.value.facts["limit"] == "memory"
    assert "/sys/fs/cgroup/x/memory.max" in caught.value.facts["needed"]
    assert not kp_enforcer._hierarchy.has(group_of(kp_worker.subject.kernel_id))


def test_fork_bomb_that_leaves_its_session_is_ended(kp_enforcer, kp_worker):
    kp_enforcer.hold(kp_worker.subject, Allowance(processes=50), kp_enforcer.holds)
    code = "import os\nwhile True:\n try: os.fork() or os.setsid()\n except OSError: pass"
    kp_worker.ask(f"__import__('subprocess').Popen({[sys.executable, '-c', code]!r}).pid")
    until(lambda: read(kp_enforcer, kp_worker).used["processes"] > 50, "it is full")
    assert kp_enforcer.end(kp_worker.subject)
    assert kp_enforcer._hierarchy.members(group_of(kp_worker.subject.kernel_id)) == []
