"""One recipe's warm kernels, with a launcher that does what the test says, and a clock that the test sets."""

import asyncio
import logging
import os
import types

import pytest

from jupyter_kernelpool import recipe_pool
from jupyter_kernelpool.decisions import Stage
from jupyter_kernelpool.errors import LaunchFailed, SupervisorGone, Unfit
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.recipe_pool import BREAKER_FAILURES, RecipePool
from jupyter_kernelpool.testing import FakeLauncher, FakeProcess, FakeSupervision, Outcome, Script, fake_recipe

HANG, DIE = Outcome.HANG, Outcome.DIE


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kp_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(recipe_pool, "time", types.SimpleNamespace(monotonic=clock, time=clock))
    monkeypatch.setattr(recipe_pool, "random", types.SimpleNamespace(uniform=lambda low, high: 1.0))
    return clock


@pytest.fixture
def kp_script():
    return Script()


def pool_of(*launchers, **settings) -> RecipePool:
    return RecipePool(fake_recipe(**settings), launchers, FakeSupervision(), logging.getLogger("test"))


async def loaded(script: Script, **options) -> RecipePool:
    pool = pool_of(FakeLauncher.of(script, **options))
    await pool.load()
    return pool


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def waiters(pool: RecipePool, count: int) -> list[asyncio.Task]:
    return [asyncio.create_task(pool.wait(30.0)) for _ in range(count)]


# -- handing out ------------------------------------------------------------------------------------


async def test_kernel_that_nobody_waits_for_becomes_warm(kp_script, kp_clock):
    pool = await loaded(kp_script)
    await pool.launch_one()
    assert [process for process, _ in pool.warm] == kp_script.processes
    assert kp_script.processes[0].record.state is State.WARM
    assert pool.view().warm[0].since == kp_clock.now
    assert pool.starting == 0


async def test_kernel_that_is_warm_longest_is_taken_first(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    await pool.launch_one()
    assert [pool.take(), pool.take(), pool.take()] == [*kp_script.processes, None]


async def test_each_asking_counts_as_a_claim_whether_served_or_not(kp_script, kp_clock):
    pool = await loaded(kp_script)
    kp_clock.now += 5
    assert pool.take() is None
    assert list(pool.claims) == [kp_clock.now]
    assert pool.view().last_used == kp_clock.now


async def test_dead_warm_kernel_is_skipped(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    await pool.launch_one()
    dead, alive = kp_script.processes
    dead.die()
    assert pool.take() is alive
    assert pool.take() is None


async def test_warm_kernel_that_dies_is_forgotten(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    kp_script.processes[0].die()
    assert pool.view().warm == ()
    await settle()
    assert not pool.warm


async def test_kernel_that_died_at_once_is_given_to_nobody(kp_script):
    kp_script.launches.extend([DIE])
    pool = await loaded(kp_script)
    (waiter,) = waiters(pool, 1)
    await settle()
    await pool.launch_one()
    assert not pool.warm
    assert pool.waiting == 1
    await pool.launch_one()
    assert await waiter is kp_script.processes[1]


async def test_who_waits_is_served_in_order(kp_script):
    pool = await loaded(kp_script)
    tasks = waiters(pool, 3)
    await settle()
    assert pool.waiting == 3
    for _ in range(3):
        await pool.launch_one()
    assert await asyncio.gather(*tasks) == kp_script.processes
    assert not pool.warm


async def test_cancelled_waiter_loses_no_kernel(kp_script):
    pool = await loaded(kp_script)
    first, second = waiters(pool, 2)
    await settle()
    first.cancel()
    await settle()
    await pool.launch_one()
    assert await second is kp_script.processes[0]
    assert pool.waiting == 0


async def test_waiter_cancelled_in_the_moment_it_is_served_leaves_the_kernel_to_the_next(kp_script):
    pool = await loaded(kp_script)
    first, second = waiters(pool, 2)
    await settle()
    await pool.launch_one()
    first.cancel()
    assert await second is kp_script.processes[0]
    assert first.cancelled()


async def test_waiter_cancelled_in_the_moment_it_is_served_leaves_kernel_warm(kp_script):
    pool = await loaded(kp_script)
    (first,) = waiters(pool, 1)
    await settle()
    await pool.launch_one()
    first.cancel()
    await settle()
    assert pool.take() is kp_script.processes[0]


async def test_waiter_that_times_out_is_told_and_loses_no_kernel(kp_script):
    pool = await loaded(kp_script)
    with pytest.raises(LaunchFailed, match=r"within 0\.01 s"):
        await pool.wait(0.01)
    assert pool.waiting == 0
    await pool.launch_one()
    assert pool.take() is kp_script.processes[0]


# -- launches that fail -----------------------------------------------------------------------------


async def test_failing_launch_refuses_one_waiter(kp_script):
    kp_script.launches.extend([HANG, HANG])
    pool = await loaded(kp_script)
    launches = [asyncio.create_task(pool.launch_one()) for _ in range(2)]
    first, second = waiters(pool, 2)
    await settle()
    kp_script.release(LaunchFailed("no more processes"))
    await settle()
    with pytest.raises(LaunchFailed, match="no more processes"):
        await first
    assert not second.done()
    kp_script.release()
    assert await second is kp_script.processes[1]
    await asyncio.gather(*launches)


async def test_failing_launch_lets_nobody_wait_for_the_retry(kp_script):
    """The next launch is a second or more away: a cold start is there before."""
    kp_script.launches.append(LaunchFailed("no more processes"))
    pool = await loaded(kp_script)
    tasks = waiters(pool, 3)
    await settle()
    await pool.launch_one()
    await settle()
    assert all(task.done() for task in tasks)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LaunchFailed] * 3


async def test_failing_launch_is_noted_with_its_reason(kp_script, kp_clock, caplog):
    kp_script.launches.append(LaunchFailed("no more processes"))
    pool = await loaded(kp_script)
    await pool.launch_one()
    assert pool.failures == 1
    assert pool.last_error.reason == "no more processes"
    assert pool.last_error.at == kp_clock.now
    assert pool.retry_at == kp_clock.now + 1
    assert "Kernels of python3 start cold: no more processes" in caplog.text


async def test_same_reason_is_logged_once(kp_script, caplog):
    kp_script.launches.extend([LaunchFailed("the disk is full")] * 3)
    pool = await loaded(kp_script)
    for _ in range(3):
        await pool.launch_one()
    assert caplog.text.count("the disk is full") == 1


async def test_success_forgets_failures(kp_script, kp_clock):
    kp_script.launches.append(LaunchFailed("for a moment"))
    pool = await loaded(kp_script)
    await pool.launch_one()
    await pool.launch_one()
    assert pool.failures == 0
    assert pool.last_error is None
    assert pool.breaker == "closed"


async def test_launch_that_is_stopped_refuses_its_waiter_and_is_no_longer_counted(kp_script):
    kp_script.launches.append(HANG)
    pool = await loaded(kp_script)
    launch = asyncio.create_task(pool.launch_one())
    (waiter,) = waiters(pool, 1)
    await settle()
    assert pool.starting == 1
    launch.cancel()
    with pytest.raises(LaunchFailed, match="stopped"):
        await waiter
    assert launch.cancelled()
    assert pool.starting == 0


async def test_lost_supervisor_refuses_who_waits(kp_script):
    kp_script.launches.append(SupervisorGone("the supervisor ended"))
    pool = await loaded(kp_script)
    (waiter,) = waiters(pool, 1)
    await settle()
    with pytest.raises(SupervisorGone):
        await pool.launch_one()
    with pytest.raises(LaunchFailed):
        await waiter


async def test_template_that_is_gone_is_loaded_anew(kp_script):
    kp_script.launches.append(LaunchFailed("the template is gone"))
    pool = await loaded(kp_script)
    kp_script.launchers[0].closed = True  # no longer quick
    await pool.launch_one()
    assert pool.stage is Stage.DOWN
    await pool.load()
    assert pool.stage is Stage.READY


async def test_template_that_ends_lets_nobody_wait_for_the_next(kp_script, monkeypatch):
    """Its successor is a second or more away; but a launch under way is waited for: it fails by itself, or not."""
    kp_script.launches.append(HANG)
    pool = await loaded(kp_script)
    tasks = waiters(pool, 3)
    launch = asyncio.create_task(pool.launch_one())
    await settle()
    monkeypatch.setattr(type(pool.launcher), "alive", False)
    pool.notice_lost_launcher()
    await settle()
    assert [task.done() for task in tasks] == [True, True, False]
    kp_script.release()
    await launch
    assert await tasks[2] is kp_script.processes[0]
    outcomes = await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LaunchFailed] * 2


# -- loading ----------------------------------------------------------------------------------------


def unfit(kind: str) -> Unfit:
    return Unfit(f"{kind} is no good", reason=f"{kind} is no good", kind=kind, traceback="Traceback …")


@pytest.mark.parametrize("kind", ["threads", "environment", ""])
async def test_next_launcher_is_tried_where_the_first_is_unfit(kind):
    first, second = Script(), Script()
    first.prepares.append(unfit(kind))
    pool = pool_of(FakeLauncher.of(first), FakeLauncher.of(second, way="other"))
    await pool.load()
    assert pool.stage is Stage.READY
    assert pool.launcher is second.launchers[0]
    assert first.launchers[0].closed
    assert pool.last_error is None


@pytest.mark.parametrize("kind", ["preload", "init_code"])
async def test_code_that_fails_is_not_tried_with_another_launcher(kind, kp_clock):
    first, second = Script(), Script()
    first.prepares.append(unfit(kind))
    pool = pool_of(FakeLauncher.of(first), FakeLauncher.of(second))
    await pool.load()
    assert pool.stage is Stage.FAILED
    assert second.launchers == []
    assert first.launchers[0].closed
    assert pool.last_error.reason == f"{kind} is no good"
    assert pool.last_error.traceback == "Traceback …"
    assert pool.retry_at >= kp_clock.now + 16  # it will hardly have changed in a second


async def test_failing_load_refuses_all_who_wait(kp_script):
    pool = pool_of(FakeLauncher.of(kp_script))
    kp_script.prepares.append(unfit("init_code"))
    tasks = waiters(pool, 3)
    await settle()
    await pool.load()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unfit] * 3


async def test_code_that_works_again_is_loaded(kp_script, kp_clock):
    pool = pool_of(FakeLauncher.of(kp_script))
    kp_script.prepares.append(unfit("init_code"))
    await pool.load()
    await pool.load()
    assert pool.stage is Stage.READY
    assert pool.retry_at == 0.0
    await pool.launch_one()
    assert pool.last_error is None
    assert pool.breaker == "closed"


async def test_recipe_without_a_launcher_says_so():
    pool = pool_of()
    await pool.load()
    assert pool.stage is Stage.FAILED
    assert "no launcher" in pool.last_error.reason


async def test_load_that_is_stopped_leaves_the_recipe_down(kp_script):
    kp_script.prepares.append(HANG)
    pool = pool_of(FakeLauncher.of(kp_script))
    load = asyncio.create_task(pool.load())
    await settle()
    load.cancel()
    await settle()
    assert load.cancelled()
    assert pool.stage is Stage.DOWN


async def test_former_template_is_let_go_when_the_recipe_is_loaded_again(kp_script):
    pool = await loaded(kp_script)
    pool.stage = Stage.FAILED  # as the keeper notes an error that nobody foresaw
    await pool.load()
    former, present = kp_script.launchers
    assert former.closed
    assert pool.launcher is present
    assert not present.closed


# -- the breaker ------------------------------------------------------------------------------------


async def test_breaker_opens_after_failures_in_a_row_tries_again_and_closes(kp_script, kp_clock):
    kp_script.launches.extend([LaunchFailed("again")] * BREAKER_FAILURES)
    pool = await loaded(kp_script)
    for _ in range(BREAKER_FAILURES):
        assert pool.breaker == "closed"
        await pool.launch_one()
    assert pool.breaker == "open"
    assert not pool.worth_waiting
    assert pool.view().retry_at == kp_clock.now + 4
    kp_clock.now += 4
    assert pool.breaker == "half-open"
    assert pool.worth_waiting
    await pool.launch_one()
    assert pool.breaker == "closed"


async def test_breaker_opens_again_when_the_trial_fails(kp_script, kp_clock):
    kp_script.launches.extend([LaunchFailed("again")] * (BREAKER_FAILURES + 1))
    pool = await loaded(kp_script)
    for _ in range(BREAKER_FAILURES):
        await pool.launch_one()
    kp_clock.now += 4
    await pool.launch_one()
    assert pool.breaker == "open"
    assert pool.retry_at == kp_clock.now + 8


async def test_breaker_is_open_while_the_recipe_is_unfit(kp_script, kp_clock):
    kp_script.prepares.append(unfit("init_code"))
    pool = pool_of(FakeLauncher.of(kp_script))
    await pool.load()
    assert pool.breaker == "open"
    kp_clock.now += 60
    assert pool.breaker == "half-open"


# -- worth waiting ----------------------------------------------------------------------------------


async def test_slow_launcher_is_waited_for_only_where_a_launch_is_under_way_for_nobody(kp_script):
    kp_script.launches.append(HANG)
    pool = await loaded(kp_script, quick=False)
    assert not pool.worth_waiting
    launch = asyncio.create_task(pool.launch_one())
    await settle()
    assert pool.worth_waiting
    (waiter,) = waiters(pool, 1)
    await settle()
    assert not pool.worth_waiting
    kp_script.release()
    assert await waiter is kp_script.processes[0]
    await launch


async def test_quick_launcher_is_worth_waiting_for(kp_script):
    assert (await loaded(kp_script)).worth_waiting


async def test_recipe_that_is_not_ready_is_not_worth_waiting_for(kp_script):
    assert not pool_of(FakeLauncher.of(kp_script)).worth_waiting


# -- going down -------------------------------------------------------------------------------------


async def test_eviction_ends_that_kernel_and_no_other(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    await pool.launch_one()
    gone, kept = kp_script.processes
    pool.evict(gone.record.id, "older than max_warm_age")
    pool.evict("no such record", "no longer needed")
    assert gone.record.state is State.STOPPING
    assert gone.record.story[-1].why == "older than max_warm_age"
    assert pool.take() is kept
    await settle()
    assert not gone.alive
    assert kept.alive


async def test_drain_ends_warm_kernels_and_template(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    await pool.drain("its environment changed")
    await settle()
    assert not kp_script.processes[0].alive
    assert kp_script.launchers[0].closed
    assert pool.stage is Stage.DOWN
    assert pool.take() is None
    await pool.load()
    assert pool.launcher is kp_script.launchers[1]


async def test_kernel_of_a_drained_template_is_discarded_when_it_arrives(kp_script):
    kp_script.launches.append(HANG)
    pool = await loaded(kp_script)
    launch = asyncio.create_task(pool.launch_one())
    await settle()
    await pool.drain("its environment changed")
    await pool.load()
    kp_script.release()
    await launch
    assert not pool.warm
    await settle()
    assert not kp_script.processes[0].alive


async def test_launch_that_fails_because_its_template_was_drained_is_no_failure_of_the_next(kp_script):
    kp_script.launches.append(HANG)
    kp_script.prepares.extend([Outcome.SUCCEED, HANG])
    pool = await loaded(kp_script)
    launch = asyncio.create_task(pool.launch_one())
    await settle()
    await pool.drain("its environment changed")
    load = asyncio.create_task(pool.load())
    await settle()
    kp_script._hanging[0].set_result(LaunchFailed("the template is gone"))
    await launch
    assert pool.stage is Stage.LOADING  # else the keeper would load it a second time beside this
    assert pool.failures == 0
    kp_script.release()
    await load
    assert pool.stage is Stage.READY
    assert pool.retry_at == 0.0


async def test_closing_refuses_who_waits_and_ends_everything(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    (waiter,) = waiters(pool, 1)
    await settle()
    await pool.close()
    with pytest.raises(LaunchFailed, match="stopping"):
        await waiter
    await settle()
    assert not kp_script.processes[0].alive
    assert kp_script.launchers[0].closed
    assert not pool.worth_waiting


async def test_kernel_that_arrives_after_closing_is_discarded(kp_script):
    kp_script.launches.append(HANG)
    pool = await loaded(kp_script)
    launch = asyncio.create_task(pool.launch_one())
    await settle()
    await pool.close()
    kp_script.release()
    await launch
    assert not pool.warm
    await settle()
    assert not kp_script.processes[0].alive


async def test_template_that_is_ready_after_closing_is_let_go(kp_script):
    kp_script.prepares.append(HANG)
    pool = pool_of(FakeLauncher.of(kp_script))
    load = asyncio.create_task(pool.load())
    await settle()
    await pool.close()
    kp_script.release()
    await load
    assert kp_script.launchers[0].closed
    assert pool.launcher is None
    assert pool.stage is not Stage.READY


async def test_load_that_begins_after_closing_leaves_nothing(kp_script):
    pool = pool_of(FakeLauncher.of(kp_script))
    await pool.close()
    await pool.load()
    assert all(launcher.closed for launcher in kp_script.launchers)
    assert pool.launcher is None


async def test_recipe_is_stale_once_something_was_installed(kp_script, tmp_path):
    kp_script.watched = [str(tmp_path)]
    os.utime(tmp_path, ns=(1, 1))
    pool = pool_of(FakeLauncher.of(kp_script))
    assert not pool.stale
    await pool.load()
    assert not pool.view().stale
    (tmp_path / "installed").mkdir()
    pool.look()
    assert pool.view().stale
    await pool.drain("its environment changed")
    assert not pool.stale
    await pool.load()
    assert not pool.stale


async def test_process_given_to_an_owner_is_never_warm_again(kp_script):
    pool = await loaded(kp_script)
    await pool.launch_one()
    process: FakeProcess = pool.take()
    process.record.move(State.ACTIVE, why="claimed", now=1.0)
    await pool.launch_one()
    assert process not in [warm for warm, _ in pool.warm]
    await pool.drain("its environment changed")
    await settle()
    assert process.alive


# -- what was handed out, and crashed before it answered --------------------------------------------


async def test_kernels_made_as_one_that_crashed_before_it_answered_are_made_anew_later_each_time(kp_script, kp_clock):
    pool = await loaded(kp_script)
    for failures in range(1, BREAKER_FAILURES + 1):
        await pool.launch_one()
        await pool.launch_one()
        claimed, other = pool.take(), pool.warm[0][0]
        launcher = pool.launcher
        pool.did_not_serve(launcher, "ended by the signal SIGSEGV")
        pool.did_not_serve(launcher, "ended by the signal SIGSEGV")  # one that was claimed beside it says nothing new
        await settle()
        assert (pool.stage, len(pool.warm), other.alive, claimed.alive) == (Stage.DOWN, 0, False, True)
        assert pool.failures == failures
        assert pool.retry_at > kp_clock.now
        assert pool.last_error.reason == "a kernel ended by the signal SIGSEGV before it answered"
        kp_clock.now = pool.retry_at
        await pool.load()
    assert len(kp_script.launchers) == BREAKER_FAILURES + 1
    await pool.launch_one()
    assert pool.last_error is not None, "that one is warm proves nothing"
    pool.did_not_serve(kp_script.launchers[0], "ended late")
    assert pool.warm, "it says nothing of what was made since"
    pool.served()
    assert (pool.failures, pool.last_error, pool.breaker) == (0, None, "closed")


async def test_who_waits_for_a_kernel_made_as_one_that_crashed_is_refused_at_once(kp_script, kp_clock):
    pool = await loaded(kp_script)
    kp_script.launches.append(HANG)
    waiting, launch = waiters(pool, 2), asyncio.create_task(pool.launch_one())
    await settle()
    launcher = pool.launcher
    pool.did_not_serve(launcher, "ended by the signal SIGSEGV")
    for waiter in waiting:
        with pytest.raises(LaunchFailed, match="before it answered"):
            await waiter
    kp_script.release()
    await launch
    await settle()
    assert not pool.warm, "what was under way is of the same template"
    assert launcher.closed
