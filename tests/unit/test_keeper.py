"""The one background loop, turned by hand: it fills, gives way to users, and survives what goes wrong."""

import asyncio
import logging
import time
import types

import pytest

from jupyter_kernelpool import keeper as keeper_module
from jupyter_kernelpool import pool as pool_module
from jupyter_kernelpool import recipe_pool as recipe_pool_module
from jupyter_kernelpool.decisions import Drain, Host, Launch, Load, Stage
from jupyter_kernelpool.errors import LaunchFailed, SupervisorGone
from jupyter_kernelpool.keeper import Keeper, Round, look_at_host
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.supervision import Supervision
from jupyter_kernelpool.testing import FakeLauncher, FakeSupervision, Outcome, Script, fake_adoption, fake_request

CALM = Host(available_memory=1 << 40, busy=0.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kp_clock(monkeypatch):
    clock = Clock()
    for module in (keeper_module, pool_module, recipe_pool_module):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=clock, time=clock))
    monkeypatch.setattr(keeper_module, "look_at_host", lambda: CALM)
    return clock


@pytest.fixture
def kp_script():
    return Script()


@pytest.fixture
def kp_keeper(kp_clock, kp_script):
    pool = KernelPool(launchers=[FakeLauncher.of(kp_script)], log=logging.getLogger("test"))
    pool.supervision = FakeSupervision()
    return Keeper(pool)


async def done(keeper: Keeper) -> None:
    """All that the keeper began has ended."""
    while keeper._jobs:
        await asyncio.gather(*keeper._jobs)


async def turned(keeper: Keeper, turns: int = 20) -> list:
    """Turn until there is nothing to do."""
    all_actions = []
    for _ in range(turns):
        actions = await keeper.turn()
        await done(keeper)
        if not actions:
            return all_actions
        all_actions += actions
    raise AssertionError(f"the keeper does not come to rest: {all_actions}")


async def test_recipe_is_loaded_and_filled_to_its_floor_one_at_a_time(kp_keeper, kp_script):
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    key = recipe.recipe.key
    assert await turned(kp_keeper) == [Load(key), Launch(key, 1), Launch(key, 1)]
    assert len(recipe.warm) == 2
    assert recipe.starting == 0
    assert [process.ahead for process in kp_script.processes] == [True, True]


async def test_next_turn_does_not_begin_again_what_is_under_way(kp_keeper, kp_script):
    kp_script.prepares.append(Outcome.HANG)
    kp_script.launches.append(Outcome.HANG)
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    assert len(await kp_keeper.turn()) == 1
    assert await kp_keeper.turn() == []
    await asyncio.sleep(0)
    kp_script.release()
    await done(kp_keeper)
    assert len(await kp_keeper.turn()) == 1
    assert await kp_keeper.turn() == []
    await asyncio.sleep(0)
    assert await kp_keeper.turn() == []
    assert recipe.starting == 1
    kp_script.release()
    await done(kp_keeper)
    assert len(kp_script.processes) == 1


async def test_refill_waits_for_the_users_kernel(kp_keeper, kp_clock):
    pool = kp_keeper.pool
    recipe = pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    pool.user_start_began("mine")
    await pool.claim(recipe, fake_request("mine"), fake_adoption())
    assert await kp_keeper.turn() == []
    pool.user_start_ended("mine")
    assert await kp_keeper.turn() == []
    kp_clock.now += 0.5
    assert await kp_keeper.turn() == [Launch(recipe.recipe.key, 1)]
    await done(kp_keeper)


@pytest.mark.parametrize("every, asked", [(30.0, True), (0.0, False)])
async def test_warm_kernels_that_do_not_answer_are_replaced(kp_keeper, kp_script, kp_clock, every, asked):
    kp_keeper.check_every = every
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    silent, sound = kp_script.processes
    silent.answers = False
    await turned(kp_keeper)
    kp_clock.now += 29
    await turned(kp_keeper)
    assert silent.alive, "it is not asked all the time"
    kp_clock.now += 2
    await turned(kp_keeper)
    assert silent.alive is not asked
    recipe.suspect = True
    await turned(kp_keeper)
    assert not silent.alive, "where one did not answer at its claim, all are asked"
    assert sound.alive
    await turned(kp_keeper)
    assert len(recipe.warm) == 2


async def test_warm_kernels_do_not_wait_for_one_that_is_silent(kp_keeper, kp_script, kp_clock, monkeypatch):
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    slow, silent = kp_script.processes
    gate, asked = asyncio.Event(), []

    async def wait(timeout=0):
        asked.append(slow)
        return await gate.wait()

    monkeypatch.setattr(slow, "check", wait)
    silent.answers = False
    recipe.suspect = True
    for _ in range(5):
        await kp_keeper.turn()
        await asyncio.sleep(0)
        recipe.suspect = True
    assert not silent.alive
    assert asked == [slow], "it is not asked again before it answered"
    gate.set()
    await turned(kp_keeper)
    assert slow.alive


async def test_who_waits_is_served_beside_his_own_start(kp_keeper, kp_script):
    pool = kp_keeper.pool
    recipe = pool.recipe_pool(fake_request())
    await recipe.load()
    pool.user_start_began("mine")
    claim = asyncio.create_task(pool.claim(recipe, fake_request("mine"), fake_adoption()))
    await asyncio.sleep(0)
    assert await kp_keeper.turn() == [Launch(recipe.recipe.key, 1)]
    assert await claim is kp_script.processes[0]
    assert not kp_script.processes[0].ahead
    await done(kp_keeper)


async def test_user_start_that_never_gets_ready_stops_refilling_for_ten_seconds_only(kp_keeper, kp_clock):
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await recipe.load()
    kp_keeper.pool.user_start_began("without a client")
    kp_clock.now += 9
    assert await kp_keeper.turn() == []
    kp_clock.now += 2
    assert await kp_keeper.turn() == [Launch(recipe.recipe.key, 1)]
    await done(kp_keeper)


async def test_changed_environment_is_drained_and_filled_anew(kp_keeper, kp_script, kp_clock, tmp_path):
    kp_script.watched = [str(tmp_path / "installed")]
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    old = [process for process, _ in recipe.warm]
    (tmp_path / "installed").mkdir()
    kp_clock.now += 2  # the keeper looks at the disk once a second
    assert [type(action) for action in await turned(kp_keeper)] == [Drain, Load, Launch, Launch]
    await asyncio.sleep(0)
    assert not any(process.alive for process in old)
    assert len(recipe.warm) == 2
    assert kp_script.launchers[0].closed


async def test_failing_recipe_backs_off_and_leaves_others_alone(kp_keeper, kp_script, kp_clock):
    pool = kp_keeper.pool
    kp_script.prepares.append(LaunchFailed("the disk is full"))
    bad = pool.recipe_pool(fake_request(env={"HOME": "/bad"}))
    good = pool.recipe_pool(fake_request(env={"HOME": "/good"}))
    await turned(kp_keeper)
    assert bad.stage is Stage.FAILED
    assert len(good.warm) == 2
    kp_clock.now += 2
    await turned(kp_keeper)
    assert len(bad.warm) == 2


async def test_keeper_survives_an_error_that_nobody_foresaw(kp_keeper, kp_script, kp_clock, caplog):
    kp_script.prepares.append(ZeroDivisionError("surprise"))
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    assert "surprise" in caplog.text
    assert recipe.stage is Stage.FAILED
    kp_clock.now += 31
    await turned(kp_keeper)
    assert len(recipe.warm) == 2


async def test_lost_supervisor_is_replaced_a_second_later(kp_keeper, kp_script, kp_clock):
    kp_script.launches.append(SupervisorGone("the supervisor ended"))
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    assert recipe.stage is Stage.DOWN
    kp_clock.now += 1.1
    await turned(kp_keeper)
    assert len(recipe.warm) == 2


async def test_unused_recipe_is_forgotten_and_the_pinned_stays(kp_keeper, kp_script, kp_clock):
    pool = kp_keeper.pool
    pinned = pool.recipe_pool(fake_request(env={"HOME": "/pinned"}), pinned=True)
    pool.recipe_pool(fake_request(env={"HOME": "/other"}))
    await turned(kp_keeper)
    kp_clock.now += pool.recipe_idle + 1
    await turned(kp_keeper)
    assert list(pool.pools.values()) == [pinned]
    assert len(pinned.warm) == 2  # made anew: they were too old


async def test_warm_kernels_go_before_users_kernels_are_culled_and_none_is_made_meanwhile(
    kp_keeper, kp_clock, monkeypatch
):
    """There is more than `KernelPool.reserve_memory` all the time, and less than what culling keeps free."""
    kp_keeper.pool.culling_reserve = 8 << 30
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await turned(kp_keeper)
    assert (len(recipe.warm), kp_keeper.regains_memory) == (2, True)
    monkeypatch.setattr(keeper_module, "look_at_host", lambda: Host(available_memory=2 << 30, busy=0.0))
    kp_clock.now += keeper_module.LOOK_AT_HOST_EVERY + 1
    await turned(kp_keeper)
    assert (len(recipe.warm), kp_keeper.regains_memory) == (0, True), "what they had may not be counted yet"
    kp_clock.now += keeper_module.GIVEN_BACK_WITHIN + 1
    await turned(kp_keeper)
    assert (len(recipe.warm), kp_keeper.regains_memory) == (0, False)


async def test_paused_pool_is_let_be(kp_keeper):
    kp_keeper.pool.recipe_pool(fake_request())
    kp_keeper.pool.paused = True
    assert await kp_keeper.turn() == []


async def test_running_loop_fills_the_pool_and_stops(kp_keeper):
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    kp_keeper.start()
    kp_keeper.start()
    await kp_keeper.pool.warmed(timeout=10)
    await kp_keeper.stop()
    assert len(recipe.warm) == 2
    await kp_keeper.stop()


async def test_running_loop_survives_a_turn_that_fails(kp_keeper, monkeypatch, caplog):
    plan, calls = keeper_module.plan, []

    def stumbling(*given):
        calls.append(given)
        if len(calls) == 1:
            kp_keeper.pool.wake.set()
            raise ZeroDivisionError("surprise")
        return plan(*given)

    monkeypatch.setattr(keeper_module, "plan", stumbling)
    kp_keeper.pool.recipe_pool(fake_request())
    kp_keeper.start()
    await kp_keeper.pool.warmed(timeout=10)
    await kp_keeper.stop()
    assert "surprise" in caplog.text


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
async def test_stopping_ends_what_was_begun(kp_keeper, kp_script, turns):
    kp_script.launches.append(Outcome.HANG)
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    await recipe.load()
    await kp_keeper.turn()
    for _ in range(turns):
        await asyncio.sleep(0)
    await kp_keeper.stop()
    assert not kp_keeper._jobs
    assert not any(process.alive for process in kp_script.processes)
    assert not recipe.warm


def test_host_is_looked_at():
    host = look_at_host()
    assert host.available_memory > 0
    assert 0.0 <= host.busy <= 1.0


async def test_round_that_fails_is_done_again_and_disturbs_nothing(kp_keeper, kp_clock, caplog):
    gone = []

    async def go():
        gone.append(kp_clock.now)
        raise RuntimeError("no luck")

    kp_keeper.rounds.append(Round("luck", 5.0, go))
    recipe = kp_keeper.pool.recipe_pool(fake_request())
    for _ in range(4):
        await turned(kp_keeper)
        await asyncio.sleep(0)
        kp_clock.now += 3
    assert len(gone) == 2
    assert "luck" in caplog.text
    assert len(recipe.warm) == 2


async def test_round_that_hangs_is_not_begun_again_nor_waited_for(kp_keeper, kp_clock):
    gone = []

    async def go():
        gone.append(kp_clock.now)
        await asyncio.Event().wait()

    kp_keeper.rounds.append(Round("slow", 1.0, go))
    for _ in range(5):
        await turned(kp_keeper)
        await asyncio.sleep(0)
        kp_clock.now += 3
    assert len(gone) == 1
    await kp_keeper.stop()


@pytest.mark.parametrize(
    "has_recipe, is_supervised, is_needed, pause",
    [
        (True, False, False, 2.0),
        (False, True, False, 2.0),
        (False, False, False, 15.0),
        (False, False, True, 5.0),
        (True, True, True, 2.0),
    ],
)
def test_keeper_of_a_server_that_nobody_uses_turns_only_for_its_rounds(
    kp_keeper, has_recipe, is_supervised, is_needed, pause
):
    async def go():
        pass

    if has_recipe:
        kp_keeper.pool.recipe_pool(fake_request())
    if not is_supervised:
        kp_keeper.pool.supervision = Supervision(logging.getLogger("test"))  # not started
    kp_keeper.rounds += [Round("always", 15.0, go), Round("in use", 5.0, go, lambda: is_needed)]
    assert kp_keeper._pause() == pause


def test_keeper_never_turns_more_often_than_it_would_at_rest(kp_keeper):
    async def go():
        pass

    kp_keeper.pool.supervision = Supervision(logging.getLogger("test"))
    kp_keeper.rounds.append(Round("often", 0.1, go))
    assert kp_keeper._pause() == 2.0


@pytest.fixture
def kp_resting(monkeypatch):
    """A keeper by the real clock, whose pool has nothing to do."""
    monkeypatch.setattr(keeper_module, "look_at_host", lambda: CALM)
    pool = KernelPool(launchers=[FakeLauncher.of(Script())], log=logging.getLogger("test"))
    pool.supervision = FakeSupervision()
    return Keeper(pool)


async def until(condition, timeout=10.0):
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def test_rounds_that_are_due_do_not_wait_for_the_next_turn(kp_resting, monkeypatch):
    gone, turns, turn = [], [], kp_resting.turn

    async def go():
        gone.append(time.monotonic())

    async def counted():
        turns.append(time.monotonic())
        return await turn()

    monkeypatch.setattr(kp_resting, "turn", counted)
    kp_resting.rounds.append(Round("often", 0.1, go))
    kp_resting.start()
    await until(lambda: len(gone) >= 8)
    await kp_resting.stop()
    assert len(turns) <= len(gone) / 2, "which cost more, and are as rare as they were"


async def test_round_begins_when_what_it_waits_for_is_due(kp_resting):
    gone, began = [], time.monotonic()

    async def go():
        gone.append(time.monotonic() - began)

    kp_resting.rounds.append(Round("late", 0.05, go, due=lambda: began + 0.5 if not gone else began + 3600))
    kp_resting.start()
    await until(lambda: gone)
    await asyncio.sleep(0.3)
    await kp_resting.stop()
    assert len(gone) == 1
    assert 0.5 <= gone[0] < 1.5


async def test_round_that_takes_longer_than_its_interval_is_not_hurried(kp_resting):
    looks = []

    async def go():
        await asyncio.sleep(3600)

    kp_resting.rounds.append(Round("slow", 0.05, go, lambda: bool(looks.append(1)) or True))
    kp_resting.start()
    await asyncio.sleep(1.0)
    await kp_resting.stop()
    assert len(looks) < 30


async def test_loop_survives_a_round_that_can_not_be_judged(kp_resting, caplog):
    gone = []

    async def go():
        gone.append(1)

    def needed():
        if not gone:
            gone.append(0)
            kp_resting.pool.wake.set()
            raise OSError("the folder is gone")
        return True

    kp_resting.rounds.append(Round("odd", 0.1, go, needed))
    kp_resting.start()
    await until(lambda: len(gone) >= 3)
    await kp_resting.stop()
    assert caplog.text.count("the folder is gone") >= 1


async def test_keeper_that_was_stopped_does_not_begin_again(kp_resting):
    kp_resting.start()
    await kp_resting.stop()
    kp_resting.start()
    assert kp_resting._task is None


@pytest.mark.parametrize("fails", ["end_restless", "view", "look"])
async def test_recipe_that_fails_each_time_keeps_no_other_waiting_and_is_told_once(
    kp_keeper, kp_clock, caplog, monkeypatch, fails
):
    pool = kp_keeper.pool
    bad = pool.recipe_pool(fake_request(kernel_name="bad"))
    good = pool.recipe_pool(fake_request(kernel_name="good"))
    assert list(pool.pools.values()) == [bad, good]
    monkeypatch.setattr(bad, fails, lambda: 1 / 0)
    for _ in range(20):
        await kp_keeper.turn()
        await done(kp_keeper)
        kp_clock.now += 2.0
    assert len(good.warm) == 2
    told = [record for record in caplog.records if "bad" in record.getMessage() and record.exc_info]
    assert len(told) == 1
