"""For those who write an enforcer: the contract that every one keeps.

It is a class of tests; what yours is like is said by a subclass::

    class TestMyEnforcer(EnforcerContract):
        enforcer_class = MyEnforcer
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from jupyter_kernelpool.allowance import LIMITS, Allowance
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject

PATIENCE = 20.0
QUICK = 0.2  # prepare takes some milliseconds; it is called when the server starts
GENEROUS = Allowance(memory=1 << 30, cpu=4.0, processes=500, open_files=512)
TIGHTER = Allowance(memory=1 << 29, cpu=2.0, processes=400, open_files=256)
WORKER = "import sys\nfor line in sys.stdin: print(eval(line), flush=True)"


class Worker:
    """A process as a kernel's is, which leads a session; `ask` has it evaluate an expression."""

    def __init__(self, kernel_id: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.subject = Subject(kernel_id, self._process.pid)
        self.pids = [self._process.pid]
        self.ask("1")  # it runs

    def ask(self, expression: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{expression}\n".encode())
        self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()

    def start_child(self) -> int:
        """The pid of a child of its, which has left its session."""
        arguments = "['sleep', '300'], stdout=-3, start_new_session=True"
        self.pids.append(int(self.ask(f"__import__('subprocess').Popen({arguments}).pid")))
        return self.pids[-1]

    def end(self) -> None:
        """Kill it and its children, and wait until they are gone."""
        for pid in reversed(self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.communicate()
        until(lambda: not any(map(is_alive, self.pids)), "the processes are gone")


class EnforcerContract:
    """What every enforcer keeps, shown with real processes; *enforcer_class* is the one under test."""

    enforcer_class: type[Enforcer]

    def make(self) -> Enforcer:
        """A new one."""
        return self.enforcer_class(0.1)

    def left(self, enforcer: Enforcer) -> list[str]:
        """What there is of *enforcer* on the machine."""
        return [path for path in enforcer.leaves() if os.path.exists(path)]

    @contextlib.contextmanager
    def prepared(self, workers: int = 1) -> Iterator[tuple[Enforcer, frozenset[str], list[Worker]]]:
        """One that is prepared, the limits that it can hold here, and processes to hold; all are gone in the end."""
        enforcer = self.make()
        limits = enforcer.holds - set(enforcer.prepare())
        assert limits, f"{enforcer.name} can hold nothing on this machine: {enforcer.prepare()}"
        started = [Worker(f"worker/{number}") for number in range(workers)]
        try:
            yield enforcer, limits, started
        finally:
            for worker in started:
                worker.end()
            enforcer.close()
        assert self.left(enforcer) == []

    def test_it_names_what_it_can_hold_and_why_it_can_not(self) -> None:
        enforcer = self.make()
        assert enforcer.name
        assert enforcer.holds <= set(LIMITS)
        missing = enforcer.prepare()
        assert set(missing) <= enforcer.holds
        assert all(missing.values())

    def test_its_preparation_is_quick_and_leaves_nothing(self) -> None:
        enforcer = self.make()
        began = time.monotonic()
        enforcer.prepare()
        assert time.monotonic() - began < QUICK
        assert self.left(enforcer) == []
        enforcer.close()
        assert self.left(enforcer) == []

    def test_what_it_holds_it_reads(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            enforcer.hold(worker.subject, GENEROUS, limits)
            reading = Reading()

            def all_is_read() -> bool:
                nonlocal reading
                reading = enforcer.read([worker.subject], frozenset())["worker/0"]
                return set(reading.used) >= limits

            until(all_is_read, f"all of {sorted(limits)} is read")
            assert all(value >= 0 for value in reading.used.values())
            assert reading.refused == {}
            assert reading.throttled == 0

    def test_it_reads_only_what_it_is_asked_for_and_what_lives(self) -> None:
        with self.prepared(3) as (enforcer, limits, [one, two, ended]):
            for worker in (one, two, ended):
                enforcer.hold(worker.subject, GENEROUS, limits)
            ended.end()
            assert set(enforcer.read([one.subject, ended.subject], frozenset())) == {"worker/0"}
            assert set(enforcer.read([one.subject, two.subject], frozenset())) == {"worker/0", "worker/1"}
            assert enforcer.read([], frozenset()) == {}

    def test_limits_change_while_they_hold_and_end(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            for allowance in (GENEROUS, TIGHTER, GENEROUS):
                enforcer.hold(worker.subject, allowance, limits)
                assert worker.ask("1 + 1") == "2"
                assert "worker/0" in enforcer.read([worker.subject], frozenset())
            enforcer.hold(worker.subject, Allowance(), limits)
            assert worker.ask("1 + 1") == "2"

    def test_another_process_takes_the_place_of_the_first(self) -> None:
        with self.prepared(2) as (enforcer, limits, [former, latter]):
            enforcer.hold(former.subject, GENEROUS, limits)
            former.end()
            successor = Subject(former.subject.kernel_id, latter.subject.pid)
            enforcer.hold(successor, GENEROUS, limits)
            assert set(enforcer.read([successor], frozenset())) == {"worker/0"}

    def test_process_that_has_ended_can_be_held_or_refused_but_no_more(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            worker.end()
            with contextlib.suppress(NotEnforceable):
                enforcer.hold(worker.subject, GENEROUS, limits)
            assert enforcer.read([worker.subject], frozenset()) == {}

    def test_it_ends_every_process_or_says_that_it_can_not(self) -> None:
        with self.prepared(2) as (enforcer, limits, [worker, neighbour]):
            for one in (worker, neighbour):
                enforcer.hold(one.subject, GENEROUS, limits)
            child = worker.start_child()
            ended = enforcer.end(worker.subject)
            assert is_alive(child) is not ended
            assert is_alive(worker.subject.pid) is not ended
            assert neighbour.ask("1 + 1") == "2"

    def test_what_is_set_apart_is_not_ended_with_its_kernel(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            enforcer.set_apart(worker.subject.pid)  # which is held to nothing so far
            assert worker.ask("1 + 1") == "2"
            enforcer.hold(worker.subject, GENEROUS, limits)
            child = worker.start_child()
            enforcer.set_apart(child)
            enforcer.end(worker.subject)
            assert is_alive(child)
            enforcer.let_go(worker.subject.kernel_id)
            assert is_alive(child)

    def test_many_are_held_at_the_same_time(self) -> None:
        with self.prepared(6) as (enforcer, limits, workers), ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda worker: enforcer.hold(worker.subject, GENEROUS, limits), workers))
            assert len(enforcer.read([worker.subject for worker in workers], frozenset())) == 6

    def test_it_does_not_blame_a_limit_for_every_end(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            assert enforcer.why_ended(worker.subject) is None
            enforcer.hold(worker.subject, GENEROUS, limits)
            worker.end()
            assert enforcer.why_ended(worker.subject) is None

    def test_what_it_lets_go_lives_on(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            enforcer.hold_together(Allowance(cpu=8.0), limits)
            enforcer.hold(worker.subject, GENEROUS, limits)
            child = worker.start_child()
            for _ in range(2):
                enforcer.let_go(worker.subject.kernel_id)
            enforcer.let_go("unknown")
            assert worker.ask("1 + 1") == "2"
            assert is_alive(child)

    def test_it_leaves_nothing_but_the_processes_when_it_is_closed(self) -> None:
        with self.prepared() as (enforcer, limits, [worker]):
            enforcer.hold(worker.subject, GENEROUS, limits)
            for _ in range(2):
                enforcer.close()
                assert self.left(enforcer) == []
            assert worker.ask("1 + 1") == "2"


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until *condition* is true; raises `AssertionError` after a while."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.01)
