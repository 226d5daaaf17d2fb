"""What an execution's time asks for, decided from tables; and the clock that does it, with a kernel that is none."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.allowance import Allowance, Breach
from jupyter_kernelpool.clock import Clock
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.ledger import Execution
from jupyter_kernelpool.overtime import (
    LAST_GRACE,
    LEAST_GRACE,
    RUNNING,
    SILENT,
    Interrupt,
    Replace,
    Report,
    Standing,
    Step,
    Terms,
    Wait,
    Warn,
    decide,
)

BEGAN = 1000.0
TERMS = Terms(allowed=10.0, warn_at=0.8, grace=3.0)
OF_TIME = frozenset({RUNNING})
WARNED = Standing(warned=OF_TIME)
INTERRUPTED = Standing(warned=OF_TIME, interrupted_at=BEGAN + 10)
AGAIN = Standing(warned=OF_TIME, interrupted_at=BEGAN + 10, again_at=BEGAN + 13)
UNLIMITED = dataclasses.replace(TERMS, allowed=0.0)
UNREACHABLE = dataclasses.replace(TERMS, reachable=False)
UNWARNED = dataclasses.replace(TERMS, warn_at=1.0)
HASTY = dataclasses.replace(TERMS, grace=0.0)

# standing, terms, seconds since it began, what comes next
CASES: dict[str, tuple[Standing, Terms, float, Step]] = {
    "it has just begun": (Standing(), TERMS, 0, Wait(8)),
    "it runs": (Standing(), TERMS, 5, Wait(3)),
    "it has not much time left": (Standing(), TERMS, 8, Warn()),
    "it was warned": (WARNED, TERMS, 8, Wait(2)),
    "it was warned, and has more time now": (WARNED, dataclasses.replace(TERMS, allowed=100.0), 8, Wait(72)),
    "nobody wants warnings": (Standing(), UNWARNED, 9, Wait(1)),
    "its time is up": (WARNED, TERMS, 10, Interrupt()),
    "its time was up when a limit was set": (Standing(), TERMS, 500, Interrupt()),
    "nothing limits it": (Standing(), UNLIMITED, 1e9, Wait(None)),
    "nothing limits it any more": (WARNED, UNLIMITED, 9, Wait(None)),
    "it has its grace": (INTERRUPTED, TERMS, 11, Wait(2)),
    "it used up its grace": (INTERRUPTED, TERMS, 13, Interrupt(again=True)),
    "it was interrupted again": (AGAIN, TERMS, 13, Wait(LAST_GRACE)),
    "nothing helped": (AGAIN, TERMS, 13 + LAST_GRACE, Replace()),
    "an interrupt that works has time to, whatever the grace": (INTERRUPTED, HASTY, 10, Wait(LEAST_GRACE)),
    "no grace": (INTERRUPTED, HASTY, 10 + LEAST_GRACE, Interrupt(again=True)),
    "an interrupt would hit another": (WARNED, UNREACHABLE, 10, Report()),
    "that was told": (Standing(done=True), UNREACHABLE, 500, Wait(None)),
    "it is being replaced": (dataclasses.replace(AGAIN, done=True), TERMS, 500, Wait(None)),
}


@pytest.mark.parametrize("standing, terms, ran, step", CASES.values(), ids=CASES)
def test_what_comes_next(standing, terms, ran, step):
    _, decided = decide(standing, Execution({}, BEGAN), terms, BEGAN + ran)
    if isinstance(step, Wait) and step.seconds is not None:
        assert isinstance(decided, Wait)
        assert decided.seconds == pytest.approx(step.seconds)
    else:
        assert decided == step


def test_one_that_waits_for_input_is_waited_for_without_end():
    execution = Execution({}, BEGAN, waits_since=BEGAN + 5)
    assert decide(Standing(), execution, TERMS, BEGAN + 500) == (Standing(), Wait(None))


TALKATIVE = Terms(allowed=0.0, warn_at=0.8, grace=3.0, silence=5.0)

# when it last put something out, standing, terms, seconds since it began, what comes next
SILENCES: dict[str, tuple[float | None, Standing, Terms, float, Step]] = {
    "it has said nothing yet": (None, Standing(), TALKATIVE, 1, Wait(3)),
    "it said something": (100, Standing(), TALKATIVE, 101, Wait(3)),
    "it has long said nothing": (100, Standing(), TALKATIVE, 104, Warn(SILENT)),
    "it was warned": (100, Standing(warned=frozenset({SILENT})), TALKATIVE, 104, Wait(1)),
    "it was warned, and spoke": (104, Standing(warned=frozenset({SILENT})), TALKATIVE, 104, Wait(4)),
    "it is silent": (100, Standing(), TALKATIVE, 105, Interrupt()),
    "it was silent from its beginning": (None, Standing(), TALKATIVE, 5, Interrupt()),
    "both, silence is nearer": (100, WARNED, dataclasses.replace(TALKATIVE, allowed=200.0), 101, Wait(3)),
    "both, time is nearer": (100, WARNED, dataclasses.replace(TALKATIVE, allowed=102.0), 101, Wait(1)),
    "it speaks, and its time is up": (100, WARNED, dataclasses.replace(TALKATIVE, allowed=101.0), 101, Interrupt()),
    "what it said when it was interrupted": (
        106, Standing(limit=SILENT, interrupted_at=BEGAN + 105), TALKATIVE, 106, Wait(2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoke, standing, terms, ran, step", SILENCES.values(), ids=SILENCES)
def test_what_comes_next_for_one_that_is_silent(spoke, standing, terms, ran, step):
    execution = Execution({}, BEGAN, quiet_since=None if spoke is None else BEGAN + spoke)
    stands, decided = decide(standing, execution, terms, BEGAN + ran)
    if isinstance(step, Wait):
        assert isinstance(decided, Wait)
        assert decided.seconds == pytest.approx(step.seconds)
    else:
        assert decided == step
    if isinstance(step, Interrupt):
        assert stands.limit == (RUNNING if terms.allowed else SILENT)


def test_one_that_waits_for_input_is_not_silent():
    execution = Execution({}, BEGAN, waits_since=BEGAN + 1)
    assert decide(Standing(), execution, TALKATIVE, BEGAN + 500) == (Standing(), Wait(None))


def test_seconds_in_which_it_waited_are_added():
    execution = Execution({}, BEGAN, waited=100)
    assert decide(Standing(), execution, TERMS, BEGAN + 105)[1] == Wait(3)


@given(st.floats(0, 100), st.floats(0.1, 1.0), st.floats(0, 10), st.booleans(), st.floats(0, 200), st.floats(0, 50))
def test_each_step_comes_once_in_order_and_none_before_its_time(allowed, warn_at, grace, reachable, ends, late):
    """Play one execution that ends after *ends* seconds, whatever is done; timers are up to *late* seconds late."""
    terms, execution, standing, now = Terms(allowed, warn_at, grace, reachable), Execution({}, 0.0), Standing(), 0.0
    taken: list[tuple[float, Step]] = []
    for _ in range(20):
        standing, step = decide(standing, execution, terms, now)
        if isinstance(step, Wait):
            if step.seconds is None:
                break
            assert step.seconds >= 0
            now = max(now + step.seconds + late, now + 1e-6)
            if now >= ends:
                break
        else:
            taken.append((now, step))
    else:
        raise AssertionError("it never comes to rest")
    steps = [step for _, step in taken]
    order: list[Step] = [Warn(), Interrupt(), Interrupt(again=True), Replace()] if reachable else [Warn(), Report()]
    assert [order.index(step) for step in steps] == sorted({order.index(step) for step in steps})
    at = {step: when for when, step in taken}
    assert at.get(Interrupt(), allowed) >= allowed
    assert at.get(Report(), allowed) >= allowed
    if Replace() in at:
        assert at[Interrupt(again=True)] - at[Interrupt()] >= grace * 0.999
        assert at[Replace()] > at[Interrupt(again=True)]
    if not allowed:
        assert steps == []


# -- the clock --------------------------------------------------------------------------------------

KERNEL = "k"


class Client:
    """A connection that notes what its client is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str, parent: dict[str, Any]) -> None:
        self.told.append(text)

    def give_up(self, ename: str, evalue: str) -> list[dict[str, Any]]:
        self.told.append(f"{ename}: {evalue}")
        return []

    def declare_restarting(self) -> None:
        self.told.append("restarting")

    def ended(self, msg_id: str) -> None:
        pass


class FakeProcess:
    """A process that *rests* or not, and *lives*."""

    def __init__(self) -> None:
        self.rests = False
        self.is_forking = False
        self.exited = asyncio.get_running_loop().create_future()

    async def check(self, timeout: float) -> bool:
        return self.rests


class FakeKernel:
    """A kernel that notes its interrupts; *heeds* them by going idle."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.interrupts = 0
        self.heeds = True
        self.lives = True
        self.shutting_down = False
        self.has_kernel = True
        self.stays_dead_for: Breach | None = None
        self.execution_state = "busy"
        self.reason = ""
        self.process = FakeProcess()
        self.pooled = SimpleNamespace(claimed=self.process)

    async def interrupt_kernel(self) -> None:
        self.interrupts += 1
        if self.heeds:
            self.bench.idle()

    async def is_alive(self) -> bool:
        return self.lives


class Bench:
    """A clock with one kernel; the guard, the manager and forking in one."""

    def __init__(self, allowed: float, on_breach: str = "interrupt") -> None:
        self.limits = SimpleNamespace(warn_at=0.8, grace=0.3, on_breach=on_breach)
        self.allowance = Allowance(execution_timeout=allowed)
        self.on_change: list[Any] = []
        self.edge, self.events = Edge(), Events()
        self.clock = Clock(self, self, self.edge, self.events)  # type: ignore[arg-type]
        self.kernel = FakeKernel(self)
        self.kernels = {KERNEL: self.kernel}
        self.forking = self
        self.checkpoints: list[Any] = []
        self.noted: list[str] = []
        self.ended: list[str] = []
        self.brings: Any = "restarted"
        self.client = Client()
        self.edge.enter(KERNEL, self.client)

    # what the clock asks of the guard, the manager and forking
    @property
    def allowances(self) -> Any:
        """Those of all kernels: this one has `of`."""
        return self

    def for_execution(self, kernel_id: str, asked: Any) -> tuple[Allowance, list[str]]:
        return self.of(kernel_id).for_execution(asked)

    def of(self, kernel_id: str) -> Allowance:
        return self.allowance

    @property
    def consequences(self) -> Any:
        return self

    def note(self, kernel_id: str, breach: Breach) -> None:
        self.noted.append(breach.outcome)

    async def end_for(self, kernel_id: str, breach: Breach) -> None:
        self.kernels[kernel_id].stays_dead_for = breach
        self.kernels[kernel_id].process.exited.set_result(-9)
        self.ended.append(kernel_id)

    async def bring_back(self, kernel_id: str, *, restore: bool) -> str:
        if isinstance(self.brings, Exception):
            raise self.brings
        self.kernel.stays_dead_for = None
        return str(self.brings)

    def checkpoints_of(self, kernel_id: str) -> list[Any]:
        return self.checkpoints

    def get_kernel(self, kernel_id: str) -> FakeKernel:
        return self.kernels[kernel_id]

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self.kernels

    # what happens in the kernel
    @property
    def ledger(self) -> Any:
        return self.edge.ledger(KERNEL)

    def busy(self, msg_id: str = "1", **more: Any) -> None:
        header = {"msg_id": msg_id, "msg_type": "execute_request", **more}
        self.ledger.heard("status", header, 1, "busy", time.monotonic())

    def idle(self, msg_id: str = "1") -> None:
        header = {"msg_id": msg_id, "msg_type": "execute_request"}
        self.ledger.heard("status", header, 1, "idle", time.monotonic())

    async def until(self, condition: Any, timeout: float = 10) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                await asyncio.sleep(0.005)

    def types(self) -> list[str]:
        return [event.type for event in self.events.recent]


@asynccontextmanager
async def bench(allowed: float, on_breach: str = "interrupt") -> AsyncIterator[Bench]:
    made = Bench(allowed, on_breach)
    try:
        yield made
    finally:
        await made.clock.close()


def nothing_left(made: Bench) -> bool:
    return not made.clock._watches and not made.clock._acts


async def test_interrupt_that_helps_is_noted_once_it_helped():
    async with bench(0.1) as made:
        made.busy()
        await made.until(lambda: made.noted)
        assert made.noted == ["interrupted"]
        assert made.kernel.interrupts == 1
        assert made.types() == ["warned"]
        assert "0.1 s allowed. Interrupted" in made.client.told[-1]
        await made.until(lambda: nothing_left(made))


async def test_one_that_ends_in_time_is_left_alone_and_leaves_no_timer():
    async with bench(0.3) as made:
        made.busy()
        (watch,) = made.clock._watches.values()
        timer = watch.timer
        made.idle()
        assert timer.cancelled()
        await asyncio.sleep(0.5)
        assert (made.kernel.interrupts, made.noted, made.client.told) == (0, [], [])
        assert nothing_left(made)


async def test_one_that_does_not_end_is_replaced_after_its_process_was_ended():
    async with bench(0.1) as made:
        made.kernel.heeds = False
        made.busy()
        await made.until(lambda: made.noted)
        assert (made.kernel.interrupts, made.ended, made.noted) == (2, [KERNEL], ["restarted"])
        last, restarting = made.client.told[-2:]
        assert "variables are lost" in last
        assert restarting == "restarting"
        await made.until(lambda: nothing_left(made))


async def test_checkpoint_that_can_not_be_restored_is_told_of():
    async with bench(0.1, "restore") as made:
        made.checkpoints = ["one"]
        made.kernel.heeds = False
        made.busy()
        await made.until(lambda: made.noted)
        assert "goes back to its last checkpoint" in made.client.told[-3]
        assert "could not be restored: all variables are lost" in made.client.told[-1]


async def test_kernel_that_does_not_come_back_is_declared_dead():
    async with bench(0.1) as made:
        made.kernel.heeds, made.brings = False, RuntimeError("no")
        made.busy()
        await made.until(lambda: "dead" in made.types())
        assert made.noted == ["killed"]
        assert made.kernel.execution_state == "dead"
        assert "execution timeout" in made.kernel.reason


async def test_kernel_that_is_at_rest_is_not_replaced_though_its_idle_was_lost():
    async with bench(0.1) as made:
        made.kernel.heeds, made.kernel.process.rests = False, True
        made.busy()
        await made.until(lambda: made.noted)
        assert (made.ended, made.noted) == ([], ["interrupted"])
        assert made.ledger.running is None


@pytest.mark.parametrize("meanwhile", ["shut down", "gone", "dead", "ended for another limit", "starting"])
async def test_kernel_whose_process_somebody_else_ends_is_left_to_them(meanwhile):
    async with bench(0.1) as made:
        made.kernel.heeds = False
        made.busy()
        await made.until(lambda: made.kernel.interrupts == 1)
        if meanwhile == "shut down":
            made.kernel.shutting_down = True
        elif meanwhile == "gone":
            del made.kernels[KERNEL]
        elif meanwhile == "dead":
            made.kernel.lives = False
        elif meanwhile == "starting":
            made.kernel.has_kernel = False
        else:
            made.kernel.stays_dead_for = Breach("memory", 1, 2, 0, "killed")
        await made.until(lambda: nothing_left(made))
        assert (made.ended, made.noted) == ([], [])


async def test_restart_meanwhile_is_no_interrupt_that_helped():
    async with bench(0.1) as made:
        made.kernel.heeds = False
        made.busy()
        await made.until(lambda: made.kernel.interrupts == 1)
        made.edge.clear(KERNEL)
        await asyncio.sleep(0.6)
        assert (made.ended, made.noted) == ([], [])
        assert nothing_left(made)


async def test_kernel_that_is_shut_down_leaves_nothing():
    async with bench(5) as made:
        made.busy()
        made.busy("2", subshell_id="s")
        made.edge.request(KERNEL, "3", {"execution_timeout": 1})
        made.edge.forget(KERNEL)
        assert nothing_left(made)
        assert made.edge.requested == {}


async def test_subshell_is_reported_and_never_interrupted():
    async with bench(0.1) as made:
        made.busy("main")
        made.busy("2", subshell_id="s")
        made.idle("main")
        await made.until(lambda: made.noted)
        await asyncio.sleep(0.5)
        assert (made.kernel.interrupts, made.noted) == (0, ["reported"])
        assert "would not reach its subshell" in made.client.told[-1]


async def test_input_stops_the_clock_until_it_comes():
    async with bench(0.3) as made:
        made.busy()
        made.ledger.waits("1", time.monotonic())
        await asyncio.sleep(0.6)
        assert made.kernel.interrupts == 0
        made.ledger.goes_on(time.monotonic())
        await made.until(lambda: made.noted)
        assert made.kernel.interrupts == 1


async def test_kernel_that_says_nothing_of_what_it_was_asked_to_run_is_taken_to_run_it():
    async with bench(1.5) as made:
        made.busy("0")
        made.idle("0")
        made.kernel.heeds = False
        made.ledger.expect({"msg_id": "1", "msg_type": "execute_request"}, time.monotonic())
        await made.until(lambda: made.noted)
        assert (made.kernel.interrupts, made.noted) == (2, ["restarted"])
        await made.until(lambda: nothing_left(made))


async def test_kernel_that_forks_itself_is_not_taken_to_run_what_it_was_asked_to():
    async with bench(0.1) as made:
        made.busy("0")
        made.idle("0")
        made.kernel.process.is_forking = True
        made.ledger.expect({"msg_id": "1", "msg_type": "execute_request"}, time.monotonic())
        await asyncio.sleep(2.5)
        assert (made.kernel.interrupts, made.ledger.running) == (0, None)
        made.kernel.process.is_forking = False
        await made.until(lambda: made.kernel.interrupts)


async def test_limit_that_is_set_tightened_or_lifted_holds_for_what_runs():
    async with bench(0) as made:
        made.busy()
        made.allowance = Allowance(execution_timeout=60)
        made.on_change[0](KERNEL)
        (watch,) = made.clock._watches.values()
        assert watch.timer is not None
        made.allowance = Allowance()
        made.on_change[0](KERNEL)
        assert watch.timer is None
        made.allowance = Allowance(execution_timeout=0.1)
        made.on_change[0](KERNEL)
        await made.until(lambda: made.noted)


async def test_execution_may_tighten_its_own_time_only():
    async with bench(0.4) as made:
        made.edge.request(KERNEL, "1", {"execution_timeout": 0.1})
        made.edge.request(KERNEL, "2", {"execution_timeout": 60})
        began = time.monotonic()
        made.busy("1")
        made.kernel.heeds = False
        await made.until(lambda: made.kernel.interrupts == 1)
        assert time.monotonic() - began < 0.4
        made.idle("1")
        made.busy("2")
        await made.until(lambda: made.kernel.interrupts == 2)
        assert any("would loosen" in text for text in made.client.told)


async def test_failing_step_is_not_tried_for_ever(caplog):
    async with bench(0.1) as made:
        made.kernel.heeds = False

        async def fails(kernel_id: str, breach: Breach) -> None:
            made.ended.append(kernel_id)
            raise OSError("no")

        made.end_for = fails  # type: ignore[method-assign]
        made.busy()
        await made.until(lambda: made.ended)
        await asyncio.sleep(0.3)
        assert made.ended == [KERNEL]
        assert "could not be done" in caplog.text


# -- what an execution asks for ---------------------------------------------------------------------

OWN = Allowance(memory=100, execution_timeout=30, output=1000)


@pytest.mark.parametrize(
    "asked, allowance",
    [
        ({}, OWN),
        ({"execution_timeout": 5}, dataclasses.replace(OWN, execution_timeout=5)),
        ({"output": "500"}, dataclasses.replace(OWN, output=500)),
        ({"execution_timeout": 30}, OWN),
        ({"memory": 50, "processes": 9}, dataclasses.replace(OWN, memory=50, processes=9)),
    ],
)
def test_tighter_limits_of_an_execution_are_heeded(asked, allowance):
    assert OWN.for_execution(asked) == (allowance, [])


@pytest.mark.parametrize(
    "asked, word",
    [
        ({"execution_timeout": 31}, "would loosen"),
        ({"execution_timeout": None}, "would loosen"),
        ({"execution_timeout": 0}, "would loosen"),
        ({"execution_timeout": "soon"}, "must be a number"),
        ({"memory": 500}, "would loosen"),
        ({"patience": 5}, "'patience' is no limit"),
        ({1: 5}, "1 is no limit"),
        ("5 s", "must be an object of limits"),
        ([], "must be an object of limits"),
    ],
)
def test_others_are_not_and_it_is_said_why(asked, word):
    allowance, (refusal,) = OWN.for_execution(asked)
    assert allowance == OWN
    assert word in refusal


def test_one_refused_limit_leaves_the_others():
    allowance, refusals = OWN.for_execution({"execution_timeout": 5, "output": 2000})
    assert (allowance.execution_timeout, allowance.output, len(refusals)) == (5, 1000, 1)


def test_where_nothing_is_limited_an_execution_may_limit_itself():
    assert Allowance().for_execution({"execution_timeout": 5}) == (Allowance(execution_timeout=5), [])
