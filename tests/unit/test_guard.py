"""The guard with enforcers and kernels that are fakes: whom it judges, what it does, and whom it leaves alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any, ClassVar

import pytest
from traitlets import TraitError
from traitlets.config import Config

from jupyter_kernelpool import consequences
from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.cell_ends import CellEnd
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.errors import Loosens, NotEnforceable
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.guard import Guard
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.sandbox import Sandbox

MB = 1 << 20


class FakeEnforcer(Enforcer):
    """Tells what the test says that kernels use, by pid."""

    name = "fake"
    holds = frozenset({"memory", "cpu", "processes"})
    made: ClassVar[list[FakeEnforcer]] = []

    def __init__(self, headroom: float) -> None:
        super().__init__(headroom)
        self.used: dict[int, dict[str, float]] = {}
        self.pauses: dict[int, int] = {}
        self.held: list[tuple[int, Allowance]] = []
        self.ended: list[int] = []
        self.gone: list[str] = []
        self.closed = 0
        self.fails: Exception | None = None
        self.refuses: Exception | None = None
        self.reads = 0
        self.on_read: Any = None
        self.cause: tuple[str, float] | None = None
        self.killed: dict[int, int] = {}  # how many processes of the kernel with that pid, as known at a look
        self.read_of: dict[int, int] = {}  # so many of them were read
        self.doubts = 0  # at so many looks it is not sure yet whether it was the kernel itself
        self.made.append(self)

    def prepare(self) -> dict[str, str]:
        return {}

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.held.append((subject.pid, allowance))

    def read(self, subjects, others):
        self.reads += 1
        if self.on_read is not None:
            self.on_read()
        if self.fails is not None:
            raise self.fails
        if self.doubts:
            self.doubts -= 1
            return {}
        self.read_of |= {one.pid: self.killed.get(one.pid, 0) for one in subjects}
        return {
            one.kernel_id: Reading(
                dict(self.used[one.pid]), 0, {"memory": self.killed.get(one.pid, 0)}, self.pauses.get(one.pid, 0)
            )
            for one in subjects
            if one.pid in self.used
        }

    def why_ended(self, subject: Subject) -> tuple[str, float] | None:
        return self.cause

    def has_killed(self, subject: Subject) -> bool:
        return self.killed.get(subject.pid, 0) > self.read_of.get(subject.pid, 0)

    def end(self, subject: Subject) -> bool:
        self.ended.append(subject.pid)
        return True

    def let_go(self, kernel_id: str) -> None:
        self.gone.append(kernel_id)

    def close(self) -> None:
        self.closed += 1


class OtherEnforcer(FakeEnforcer):
    """A second one, which fails."""

    name = "other"
    holds = frozenset({"open_files"})


class FakeKernel:
    """A kernel's manager."""

    kernel_name = "python3"

    def __init__(self) -> None:
        self.stays_dead_for: Any = None
        self.reason = ""
        self.execution_state = "busy"
        self.shutting_down = False
        self.has_kernel = True
        self.interrupts = 0

    async def interrupt_kernel(self) -> None:
        self.interrupts += 1


class FakeManager(dict[str, FakeKernel]):
    """The server's: kernels by id, and of the pool what the guard asks for."""

    def __init__(self, limits: dict[str, float]) -> None:
        super().__init__()
        self.pool = self
        self.supervision = self
        self.recipes: dict[str, Any] = {}
        self.pids: frozenset[int] = frozenset()
        self.limits: Any = tuple(limits.items())
        self.sandbox = Sandbox()
        self.brought_back: list[tuple[str, bool]] = []
        self.cannot: Exception | None = None

    def settings_for(self, kernel_name: str) -> FakeManager:
        return self

    def get_kernel(self, kernel_id: str) -> FakeKernel:
        return self[kernel_id]

    def guard_groups(self, leaves: dict[str, str]) -> None:
        assert leaves == {}

    async def bring_back(self, kernel_id: str, *, restore: bool) -> str:
        if self.cannot is not None:
            raise self.cannot
        self.brought_back.append((kernel_id, restore))
        return "restored" if restore else "restarted"


class Bench:
    """A guard, and what came of it."""

    def __init__(self, *, recipe: dict[str, float], **traits: Any) -> None:
        FakeEnforcer.made.clear()
        traits.setdefault("enforcers", [FakeEnforcer])
        self.manager = FakeManager(recipe)
        self.events = Events()
        self.edge = Edge()
        self.guard = Guard(self.manager, KernelLimits(**traits), self.edge, self.events)
        self.enforcer = FakeEnforcer.made[0]
        self.trees: list[int] = []

    async def start(self, kernel_id: str, pid: int, **used: float) -> FakeKernel:
        kernel = self.manager.setdefault(kernel_id, FakeKernel())
        self.enforcer.used[pid] = used
        await self.guard.hold(kernel_id, "python3", pid)
        return kernel

    async def look(self) -> None:
        """One look, and all that comes of it; the guard's own loop does not run."""
        watched = self.guard._watched()
        await self.guard._look(watched)
        await self.settle()

    async def settle(self) -> None:
        while self.guard._acts:
            await asyncio.gather(*self.guard._acts, return_exceptions=True)

    def told(self, kernel_id: str = "k") -> list[str]:
        return [
            event.facts.get("outcome") or event.type for event in self.events.recent if event.kernel_id == kernel_id
        ]


@pytest.fixture
def kp_bench(monkeypatch):
    """Makes a bench: `kp_bench(memory=100)` is the limit of the recipe, other names are traits."""
    made: list[Bench] = []

    def make(recipe: dict[str, float] | None = None, **traits: Any) -> Bench:
        bench = Bench(recipe=recipe if recipe is not None else {"memory": 100}, **traits)
        monkeypatch.setattr(consequences, "end_tree", lambda pid, others: bench.trees.append(pid) or True)
        monkeypatch.setattr(bench.guard, "_wake", lambda: None)
        made.append(bench)
        return bench

    return make


async def test_kernel_is_warned_interrupted_given_time_and_ended(kp_bench, monkeypatch):
    bench = kp_bench(grace=5.0)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    kernel = await bench.start("k", 10, memory=85)
    await bench.look()
    await bench.look()
    assert bench.told() == ["warned"]
    bench.enforcer.used[10]["memory"] = 105
    await bench.look()
    await bench.look()
    assert (bench.told(), kernel.interrupts) == (["warned", "interrupted"], 1)
    clock[0] += 5.0
    await bench.look()
    assert bench.told() == ["warned", "interrupted", "killed", "dead"]
    assert bench.trees == [10]
    assert (kernel.execution_state, kernel.reason) == ("dead", "memory limit: 105 bytes used, 100 bytes allowed")
    assert kernel.stays_dead_for is bench.guard.breaches["k"]
    assert bench.manager.brought_back == []
    assert bench.edge.unread["k"], "a client that comes later is told"


@pytest.mark.parametrize("traits", [{}, {"total_memory": 500}])
async def test_memory_that_is_in_no_process_is_refused_where_only_processes_are_looked_at(kp_bench, traits):
    bench = kp_bench({} if traits else {"memory": 100}, **traits)
    bench.manager.sandbox = Sandbox(launch_prefix=("/usr/bin/runsc", "do", "--"))
    with pytest.raises(NotEnforceable, match="runsc keeps theirs apart from their processes, which fake looks at"):
        await bench.start("k", 1)
    assert not bench.guard._subjects
    bench.enforcer.charges = True
    await bench.start("k", 1)
    bench = kp_bench({"processes": 100})
    bench.manager.sandbox = Sandbox(launch_prefix=("runsc", "do", "--"))
    await bench.start("k", 1)
    with pytest.raises(NotEnforceable):
        await bench.guard.change("k", {"memory": 50})


async def test_enforcer_that_fails_keeps_no_other_from_being_heard(kp_bench, caplog):
    bench = kp_bench(enforcers=[OtherEnforcer, FakeEnforcer], open_files=200)
    bench.enforcer = FakeEnforcer.made[1]
    FakeEnforcer.made[0].fails = RuntimeError("broken")
    await bench.start("k", 10, memory=500)
    await bench.look()
    assert bench.trees == [10]
    assert "Enforcer other could not read" in caplog.text


async def test_kernel_that_can_not_be_judged_keeps_no_other_from_being_judged(kp_bench, caplog):
    bench = kp_bench()
    await bench.start("a", 10, memory="much")
    await bench.start("b", 20, memory=500)
    await bench.look()
    assert bench.trees == [20]
    assert "Kernel a" in caplog.text


async def test_loop_goes_on_after_a_failing_look_and_ends_with_the_last_kernel(kp_bench, monkeypatch, caplog):
    bench = kp_bench(interval=0.05)
    monkeypatch.undo()  # its own loop runs
    await bench.start("k", 10, memory=1)
    bench.enforcer.fails = RuntimeError("broken")
    while bench.enforcer.reads < 3:
        await asyncio.sleep(0.01)
    assert not bench.guard._task.done()
    bench.guard.forget("k")
    await asyncio.wait_for(bench.guard._task, 5)
    await bench.settle()
    assert bench.enforcer.gone == ["k"]


async def test_kernel_that_can_not_be_held_to_its_recipes_new_limits_keeps_the_former(kp_bench, monkeypatch, caplog):
    bench = kp_bench()
    for kernel_id, pid in (("a", 10), ("b", 20)):
        await bench.start(kernel_id, pid, memory=70)
    hold = bench.enforcer.hold

    def hold_others(subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        if subject.pid == 10:
            raise OSError("no")
        hold(subject, allowance, limits)

    monkeypatch.setattr(bench.enforcer, "hold", hold_others)
    bench.manager.limits = (("memory", 50),)
    await bench.guard.recipe_changed("python3")
    assert [bench.guard.allowances.of(kernel_id).memory for kernel_id in "ab"] == [100, 50]
    assert "Kernel a: its recipe's new limits could not be set" in caplog.text
    await bench.look()
    assert (bench.trees, bench.told("a")) == ([20], []), "it is judged by what it is held to"
    await bench.start("a", 30)
    assert bench.guard.allowances.of("a").memory == 50, "its next process has the new ones"


async def test_kernel_that_was_replaced_while_it_was_read_is_not_judged_by_its_predecessor(kp_bench):
    bench = kp_bench()
    loop, kernel = asyncio.get_running_loop(), await bench.start("k", 10, memory=500)

    def replace() -> None:
        bench.enforcer.on_read = None
        asyncio.run_coroutine_threadsafe(bench.start("k", 11, memory=5), loop).result(5)

    bench.enforcer.on_read = replace
    await bench.look()
    assert (bench.trees, bench.told(), kernel.execution_state) == ([], [], "busy")
    await bench.look()
    assert bench.told() == []


async def test_kernel_that_was_replaced_between_judgement_and_act_is_left_alone(kp_bench):
    bench = kp_bench()
    kernel = await bench.start("k", 10, memory=500)
    watched = bench.guard._watched()
    await bench.guard._look(watched)  # what comes of it has not begun
    await bench.start("k", 11, memory=5)
    await bench.settle()
    assert (bench.trees, kernel.stays_dead_for) == ([], None)


@pytest.mark.parametrize("used", [85, 105, 500])
async def test_kernel_that_was_shut_down_meanwhile_is_passed_over_in_silence(kp_bench, caplog, used):
    bench = kp_bench()
    await bench.start("k", 10, memory=used)
    await bench.guard._look(bench.guard._watched())
    del bench.manager["k"]
    bench.guard.forget("k")
    await bench.settle()
    assert (bench.told(), bench.trees, caplog.text) == ([], [], "")
    assert "k" not in bench.guard.breaches
    assert bench.guard._standings.readings == {}


async def test_two_breaches_at_once_end_the_kernel_once(kp_bench):
    bench = kp_bench({"memory": 100, "processes": 10}, on_breach="restart")
    await bench.start("k", 10, memory=500, processes=50)
    await bench.look()
    await bench.look()
    assert bench.told() == ["killed"]
    assert bench.manager.brought_back == [("k", False)]
    assert bench.guard.breaches["k"].outcome == "restarted"


async def test_user_who_restarts_while_it_is_ended_has_a_clean_slate(kp_bench, monkeypatch):
    bench = kp_bench(on_breach="restart")
    kernel = await bench.start("k", 10, memory=500)
    ending, go_on = threading.Event(), threading.Event()

    def end(pid: int, others: Any) -> bool:
        ending.set()
        return go_on.wait(5)

    monkeypatch.setattr(consequences, "end_tree", end)
    await bench.guard._look(bench.guard._watched())
    await asyncio.to_thread(ending.wait, 5)
    await bench.start("k", 11, memory=5)
    kernel.stays_dead_for = None  # as the manager does, once it is held
    go_on.set()
    await bench.settle()
    assert (kernel.execution_state, kernel.stays_dead_for) == ("busy", None)
    assert bench.manager.brought_back == []
    await bench.look()
    assert bench.told() == ["killed"]


async def test_restarted_kernel_is_warned_anew(kp_bench):
    bench = kp_bench()
    await bench.start("k", 10, memory=85)
    await bench.look()
    await bench.start("k", 11, memory=85)
    await bench.look()
    assert bench.told() == ["warned", "warned"]


async def test_kernel_that_can_not_be_brought_back_is_declared_dead(kp_bench, caplog):
    bench = kp_bench(on_breach="restore")
    bench.manager.cannot = RuntimeError("no process")
    await bench.start("k", 10, memory=500)
    await bench.look()
    assert bench.told() == ["killed", "dead"]


async def test_on_breach_restore_asks_for_the_checkpoint(kp_bench):
    bench = kp_bench(on_breach="restore")
    await bench.start("k", 10, memory=500)
    await bench.look()
    assert bench.manager.brought_back == [("k", True)]
    assert bench.guard.breaches["k"].outcome == "restored"


async def test_end_by_the_operating_system_is_explained_once_and_the_kernel_stays_dead(kp_bench):
    bench = kp_bench()
    kernel = await bench.start("k", 10, memory=50)
    assert not await bench.guard.explain_end("k"), "no limit was the cause"
    bench.enforcer.cause = ("memory", 130.0)
    assert await bench.guard.explain_end("k")
    assert (kernel.stays_dead_for.limit, bench.told()) == ("memory", ["killed", "dead"])
    assert not await bench.guard.explain_end("k")


# -- changes ----------------------------------------------------------------------------------------


async def test_change_that_fails_leaves_the_limits_as_they_were(kp_bench):
    bench = kp_bench()
    await bench.start("k", 10, memory=50)
    bench.enforcer.refuses = NotEnforceable("no")
    with pytest.raises(NotEnforceable):
        await bench.guard.change("k", {"memory": 60})
    assert bench.guard.allowances.of("k").memory == 100
    with pytest.raises(Loosens):
        await bench.guard.change("k", {"memory": 200})


async def test_of_two_changes_at_once_the_second_can_not_loosen_the_first(kp_bench):
    bench = kp_bench()
    await bench.start("k", 10, memory=5)
    first = asyncio.create_task(bench.guard.change("k", {"memory": 30}))
    await asyncio.sleep(0)
    with pytest.raises(Loosens):
        await bench.guard.change("k", {"memory": 50})
    await first
    assert bench.guard.allowances.of("k").memory == 30


async def test_change_of_the_recipe_holds_from_the_next_process_on(kp_bench):
    bench = kp_bench()
    await bench.start("k", 10, memory=50)
    bench.manager.limits = (("memory", 20),)
    await bench.look()
    assert bench.told() == [], "its enforcers were told of 100"
    await bench.start("k", 11, memory=50)
    await bench.look()
    assert bench.told() == ["killed", "dead"]


async def test_kernel_that_can_not_be_held_is_not_watched(kp_bench):
    bench = kp_bench()
    bench.enforcer.refuses = NotEnforceable("no")
    with pytest.raises(NotEnforceable):
        await bench.start("k", 10, memory=500)
    await bench.look()
    assert bench.trees == []


async def test_enforcers_know_nothing_of_kernels_without_limits(kp_bench):
    bench = kp_bench({})
    await bench.start("k", 10, memory=500)
    bench.guard.forget("k")
    await bench.settle()
    assert (bench.enforcer.held, bench.enforcer.gone, bench.guard._watched()) == ([], [], {})


async def test_close_reaches_every_enforcer(kp_bench):
    bench = kp_bench(enforcers=[OtherEnforcer, FakeEnforcer])
    FakeEnforcer.made[0].close = lambda: 1 / 0
    await bench.guard.close()
    assert FakeEnforcer.made[1].closed == 0, "kernels still end, each as it is held"
    await bench.guard.let_all_go()
    assert FakeEnforcer.made[1].closed == 1


# -- processor and sums -----------------------------------------------------------------------------


async def test_slowing_down_is_told_once_until_it_was_quiet(kp_bench, monkeypatch):
    bench = kp_bench({"cpu": 0.5})
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    await bench.start("k", 10, cpu=1.0)
    await bench.look()
    for pauses in (5, 10, 15):
        bench.enforcer.pauses[10] = pauses
        await bench.look()
    assert bench.told() == ["throttled"]
    clock[0] += 60
    await bench.look()
    bench.enforcer.pauses[10] = 20
    await bench.look()
    assert bench.told() == ["throttled", "throttled"]


async def test_sum_that_is_crossed_ends_the_one_that_uses_most_and_says_so(kp_bench):
    bench = kp_bench({}, total_memory=1000)
    await bench.start("small", 10, memory=400)
    large = await bench.start("large", 20, memory=900)
    assert bench.enforcer.exact
    await bench.look()
    await bench.look()
    assert bench.trees == [20]
    assert large.reason == "memory limit of all kernels: 1.27 KB used together, 1000 bytes allowed"
    assert (bench.told("small"), bench.told("large")) == ([], ["killed", "dead"])


async def test_cores_that_kernels_use_together_are_shared_and_given_back(kp_bench):
    bench = kp_bench({}, total_cpu=1.0)
    await bench.start("a", 10, cpu=1.0)
    await bench.start("b", 20, cpu=1.0)
    await bench.look()
    assert [(pid, held.cpu) for pid, held in bench.enforcer.held[-2:]] == [(10, 0.5), (20, 0.5)]
    assert bench.guard.allowances.of("a").cpu == 0, "it is no limit of its own"
    bench.enforcer.used = {10: {"cpu": 0.0}, 20: {"cpu": 0.1}}
    bench.guard.sums._slowed.clear()  # as after a while
    await bench.look()
    assert [(pid, held.cpu) for pid, held in bench.enforcer.held[-2:]] == [(10, 0.0), (20, 0.0)]


def test_limit_whose_name_is_misspelt_is_refused_with_those_that_there_are():
    with pytest.raises(TraitError, match=r"KernelLimits\.memmory is no setting; limits are: memory, cpu"):
        KernelLimits(config=Config({"KernelLimits": {"memmory": "1G"}}))


def test_sum_that_nothing_enforces_is_refused(kp_bench):
    with pytest.raises(NotEnforceable, match=r"KernelLimits\.total"):
        kp_bench({}, total_memory=1000, enforcers=[OtherEnforcer])


async def test_idle_kernels_are_looked_at_seldom_and_at_once_when_a_cell_is_asked_for(kp_bench, monkeypatch):
    bench = kp_bench(interval=0.05)
    monkeypatch.undo()  # its own loop runs
    monkeypatch.setattr("jupyter_kernelpool.pace.SLOWER", 1000.0)  # "seldom" is never, for as long as this takes
    await bench.start("k", 10, memory=1, cpu=0.0)
    while bench.enforcer.reads < 1:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    seen = bench.enforcer.reads
    assert seen <= 2
    header = {"msg_id": "1", "msg_type": "execute_request"}
    ledger = bench.edge.ledger("k")
    ledger.heard("status", header, 1, "busy", time.monotonic())
    while bench.enforcer.reads < seen + 3:
        await asyncio.sleep(0.01)  # it goes on while the cell runs
    ledger.heard("status", header, 1, "idle", time.monotonic())
    bench.guard.forget("k")
    await bench.guard.close()


async def test_only_kernels_near_a_limit_are_looked_at_more_often(kp_bench, monkeypatch):
    bench = kp_bench(interval=0.5)
    looked_at = Counter()
    read = bench.enforcer.read
    bench.enforcer.read = lambda subjects, others: (looked_at.update(one.kernel_id for one in subjects),
                                                    read(subjects, others))[1]  # fmt: skip
    monkeypatch.undo()
    await bench.start("near", 10, memory=60, cpu=0.5)
    await bench.start("far", 20, memory=10, cpu=0.5)
    while looked_at["near"] < 20:
        await asyncio.sleep(0.01)
    assert 2 <= looked_at["far"] <= 8
    await bench.guard.close()


async def test_kernel_near_a_limit_in_which_nothing_runs_is_looked_at_seldom_and_at_once_when_a_cell_is_asked_for(
    kp_bench, monkeypatch
):
    bench = kp_bench(interval=0.05)
    monkeypatch.undo()
    monkeypatch.setattr("jupyter_kernelpool.pace.SLOWER", 1000.0)
    await bench.start("k", 10, memory=70, cpu=0.0)
    await asyncio.sleep(0.5)
    seen = bench.enforcer.reads
    assert seen <= 2
    ends = begins(bench, "1")
    while bench.enforcer.reads < seen + 5:
        await asyncio.sleep(0.01)
    ends()
    bench.guard.forget("k")
    await bench.guard.close()


async def test_kernel_that_computes_though_nothing_runs_in_it_is_looked_at_as_often_as_one_that_runs(
    kp_bench, monkeypatch
):
    bench = kp_bench(interval=0.05)
    monkeypatch.undo()
    monkeypatch.setattr("jupyter_kernelpool.pace.SLOWER", 1000.0)
    await bench.start("k", 10, memory=1, cpu=0.5)
    while bench.enforcer.reads < 4:
        await asyncio.sleep(0.01)
    await bench.guard.close()


# -- processes that the system killed ---------------------------------------------------------------


class KillingEnforcer(FakeEnforcer):
    """One that has the system kill what takes too much."""

    kills = True


def let_loop_run(bench, monkeypatch):
    """The guard's own loop, and for as long as a busy machine may need."""
    monkeypatch.setattr(bench.guard, "_wake", type(bench.guard)._wake.__get__(bench.guard))
    monkeypatch.setattr("jupyter_kernelpool.guard.SETTLED_WITHIN", 30.0)


@pytest.mark.parametrize("doubts", [0, 2])
async def test_what_was_killed_is_told_before_the_answer_of_its_cell(kp_bench, monkeypatch, doubts):
    bench = kp_bench(enforcers=[KillingEnforcer], interval=60)
    monkeypatch.undo()  # the guard's own loop runs
    monkeypatch.setattr("jupyter_kernelpool.guard.SETTLED_WITHIN", 30.0)  # this machine may be busy
    await bench.start("k", 1, memory=10)
    client = Client()
    bench.edge.enter("k", client)
    header, brief = {"msg_id": "cell"}, CellEnd({"msg_id": "cell"}, brief=True)
    await bench.guard.settle("k", brief)
    assert client.heard == [], "nothing was killed"
    while "k" not in bench.guard._standings.readings:
        await asyncio.sleep(0.01)  # its first look is not to be the one that finds it
    bench.enforcer.killed[1], bench.enforcer.doubts = 1, doubts
    async with asyncio.timeout(20):  # long before the next look would be
        await bench.guard.settle("k", brief)
    assert [parent for _, parent in client.heard] == [header]
    assert "A process that the kernel had started was ended" in client.heard[0][0]
    bench.edge.say("k", "later")
    assert client.heard[-1] == ("later", {})
    await bench.guard.close()


async def test_answers_are_kept_back_where_a_limit_may_have_been_crossed(kp_bench):
    brief, long = CellEnd({}, brief=True), CellEnd({})
    bench = kp_bench(enforcers=[KillingEnforcer])
    assert not bench.guard.looks_at_ends("k"), "unknown"
    await bench.start("k", 1, memory=10)
    assert bench.guard.looks_at_ends("k")
    assert bench.guard.is_worth_a_look("k", brief), "however quickly something is killed"
    bench = kp_bench()
    await bench.start("k", 1, memory=10)
    assert bench.guard.looks_at_ends("k")
    assert [bench.guard.is_worth_a_look("k", end) for end in (brief, long)] == [False, True]
    assert not bench.guard.is_worth_a_look("k", CellEnd({}, brief=True, refused="processes")), "they are not limited"
    bench = kp_bench({"processes": 10})
    await bench.start("k", 1, processes=1)
    assert bench.guard.is_worth_a_look("k", CellEnd({}, brief=True, refused="processes"))
    bench = kp_bench({"cpu": 1.0}, enforcers=[KillingEnforcer])
    await bench.start("k", 1, cpu=0.1)
    assert not bench.guard.looks_at_ends("k"), "it is only slowed down"


async def test_limit_that_a_cell_crossed_is_told_in_it_though_it_is_over(kp_bench, monkeypatch):
    bench = kp_bench(interval=60)
    let_loop_run(bench, monkeypatch)
    await bench.start("k", 1, memory=10)
    await bench.start("other", 2, memory=10)
    client = Client()
    bench.edge.enter("k", client)
    while "k" not in bench.guard._standings.readings:
        await asyncio.sleep(0.01)
    bench.enforcer.used[1]["memory"] = 105
    await bench.guard.settle("k", CellEnd({"msg_id": "cell"}))
    assert [parent["msg_id"] for _, parent in client.heard] == ["cell"]
    assert "Interrupted" in client.heard[0][0]
    bench.enforcer.used[1]["memory"] = 500
    await bench.guard.settle("k", CellEnd({"msg_id": "second"}))
    assert bench.trees == [1]
    assert [parent["msg_id"] for _, parent in client.heard] == ["cell", "second"], "also what it ended by"
    await bench.guard.close()


async def test_look_under_way_may_have_read_what_is_to_be_told(kp_bench, monkeypatch):
    bench = kp_bench(enforcers=[KillingEnforcer], interval=60)
    let_loop_run(bench, monkeypatch)
    reading, going_on = threading.Event(), threading.Event()
    bench.enforcer.on_read = lambda: (reading.set(), going_on.wait(20))
    monkeypatch.setattr(bench.enforcer, "has_killed", lambda subject: False)  # it is read, and not judged yet
    await bench.start("k", 1, memory=10)
    bench.enforcer.killed[1] = 1
    client = Client()
    bench.edge.enter("k", client)
    await asyncio.to_thread(reading.wait, 20)
    settling = asyncio.create_task(bench.guard.settle("k", CellEnd({"msg_id": "cell"}, brief=True)))
    await asyncio.sleep(0.05)
    assert not settling.done()
    going_on.set()
    await settling
    assert [parent["msg_id"] for _, parent in client.heard] == ["cell"]
    await bench.guard.close()


async def test_refused_file_is_told_in_its_cell_once_though_all_are_closed_again(kp_bench, monkeypatch):
    bench = kp_bench({"open_files": 200}, enforcers=[OtherEnforcer], interval=60)
    let_loop_run(bench, monkeypatch)
    await bench.start("k", 1, open_files=60)
    client = Client()
    bench.edge.enter("k", client)
    await bench.guard.settle("k", CellEnd({"msg_id": "cell"}, brief=True, refused="open_files"))
    assert bench.told() == ["refused"]
    assert [parent["msg_id"] for _, parent in client.heard] == ["cell"]
    assert bench.guard.breaches["k"].seen == 200
    await bench.look()
    bench.enforcer.used[1]["open_files"] = 199
    await bench.guard.settle("k", CellEnd({"msg_id": "next"}, brief=True, refused="open_files"))
    assert bench.told() == ["refused", "refused"], "another crossing, which was looked at: told once"
    await bench.guard.close()


async def test_server_that_stops_waits_until_what_limited_kernels_left_is_ended(kp_bench, monkeypatch):
    bench, ended = kp_bench(), []
    monkeypatch.setattr(
        "jupyter_kernelpool.enforcement.end_rest", lambda pid, others: time.sleep(0.2) or ended.append(pid)
    )
    await bench.start("k", 1, memory=10)
    await bench.guard.close()
    bench.guard.forget("k")
    await bench.guard.let_all_go()
    assert (ended, bench.enforcer.gone, bench.enforcer.closed) == ([1], ["k"], 1)


async def test_kernel_that_ended_keeps_nobody_waiting_for_a_look(kp_bench, monkeypatch):
    bench = kp_bench()
    await bench.start("ended", 1, memory=60, cpu=1.0)
    await bench.start("other", 2, memory=1, cpu=0.0)
    await bench.look()
    assert bench.guard._attention.is_near(bench.guard._watched())
    bench.enforcer.used[1]["memory"] = 500
    await bench.look()
    assert bench.trees == [1]
    assert not bench.guard._attention.is_near(bench.guard._watched())


async def test_cell_that_begins_beside_a_kernel_near_its_limit_is_looked_at_after_an_interval(kp_bench, monkeypatch):
    bench = kp_bench(interval=1.0)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    await bench.start("near", 1, memory=60, cpu=1.0)
    await bench.start("k", 2, memory=1, cpu=0.0)
    await bench.look()
    assert bench.guard._attention.due(bench.guard._watched()).keys() == {"near", "k"}
    clock[0] += 0.5
    assert bench.guard._attention.due(bench.guard._watched()).keys() == {"near"}
    begins(bench, "cell")
    clock[0] += 0.5
    assert bench.guard._attention.due(bench.guard._watched()).keys() == {"near", "k"}


# -- what a single execution asks for ---------------------------------------------------------------


def begins(bench, msg_id, limits=None):
    if limits is not None:
        bench.edge.request("k", msg_id, limits)
    header = {"msg_id": msg_id, "msg_type": "execute_request"}
    bench.edge.ledger("k").heard("status", header, 1, "busy", time.monotonic())
    return lambda: bench.edge.ledger("k").heard("status", header, 1, "idle", time.monotonic())


async def test_kernel_is_held_to_what_a_cell_asks_for_as_long_as_that_runs(kp_bench):
    bench = kp_bench({"memory": 100, "cpu": 2.0})
    await bench.start("k", 1, memory=42)
    ends = begins(bench, "1", {"memory": 40, "cpu": 4.0, "processes": 9, "output": 5})
    await bench.settle()
    assert bench.enforcer.held[-1] == (1, Allowance(memory=40, cpu=2.0, processes=9)), "cpu would be loosened"
    assert bench.guard.allowances.of("k") == Allowance(memory=100, cpu=2.0), "its own are as before"
    await bench.look()
    assert bench.told() == ["interrupted"]
    assert bench.guard.breaches["k"].allowed == 40
    ends()
    await bench.settle()
    assert bench.guard.allowances.in_force("k") == Allowance(memory=100, cpu=2.0)


async def test_next_cell_has_the_kernels_limits_again_however_quickly_it_follows(kp_bench):
    bench = kp_bench({"memory": 100})
    await bench.start("k", 1, memory=5)
    for number in range(5):
        begins(bench, f"tight {number}", {"memory": 40 + number})()
        begins(bench, f"loose {number}")()
    ends = begins(bench, "last", {"memory": 30})
    await bench.settle()
    assert bench.enforcer.held[-1] == (1, Allowance(memory=30))
    ends()
    await bench.settle()
    assert bench.enforcer.held[-1] == (1, Allowance(memory=100))


async def test_what_a_cell_asked_for_explains_the_end_of_its_process_and_binds_no_other(kp_bench):
    bench = kp_bench({"cpu": 1.0})
    kernel = await bench.start("k", 1, memory=5)
    begins(bench, "1", {"memory": 40})
    await bench.settle()
    bench.enforcer.cause = ("memory", 44)
    assert await bench.guard.explain_end("k")
    assert (kernel.stays_dead_for.limit, kernel.stays_dead_for.allowed) == ("memory", 40)
    await bench.start("k", 2, memory=5)
    assert bench.enforcer.held[-1] == (2, Allowance(cpu=1.0))


async def test_cell_that_asks_for_what_nothing_holds_here_is_told_and_goes_on(kp_bench):
    bench = kp_bench({"memory": 100})
    await bench.start("k", 1, memory=5)
    allowance, (refusal,) = bench.guard.allowances.for_execution("k", {"open_files": 200, "memory": 50})
    assert allowance == Allowance(memory=50)
    assert "open files can't be enforced here" in refusal


class Client:
    """A connection that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def say(self, text: str, parent: dict[str, Any]) -> None:
        self.heard.append((text, parent))
