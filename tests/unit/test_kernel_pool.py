"""The pool as the provisioner sees it: traits, recipes, claims. Fake launchers, no processes."""

import asyncio

import pytest
from traitlets import TraitError
from traitlets.config import Config

from jupyter_kernelpool.decisions import Stage
from jupyter_kernelpool.errors import LaunchFailed, NotFound, NotValid, WrongState
from jupyter_kernelpool.launchers.spawn import SpawnLauncher
from jupyter_kernelpool.launchers.template import TemplateLauncher
from jupyter_kernelpool.launchers.whole import WholeLauncher
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.pool import CLAIM_ATTEMPTS, CLAIM_TIMEOUTS, KernelPool
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.testing import (
    FakeLauncher,
    FakeSupervision,
    Outcome,
    Script,
    fake_adoption,
    fake_request,
    python_spec,
)

HANG, DIE = Outcome.HANG, Outcome.DIE


@pytest.fixture
def kp_script():
    return Script()


def kernel_pool(script: Script, way: str = "fake", **traits) -> KernelPool:
    pool = KernelPool(launchers=[FakeLauncher.of(script, way=way)], **traits)
    pool.supervision = FakeSupervision()
    return pool


async def filled(pool: KernelPool, count: int) -> RecipePool:
    """The recipe of a plain request, loaded, with *count* warm kernels."""
    recipe = pool.recipe_pool(fake_request())
    await recipe.load()
    for _ in range(count):
        await recipe.launch_one()
    return recipe


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def claim(pool: KernelPool, recipe: RecipePool, **request) -> asyncio.Task:
    return asyncio.create_task(pool.claim(recipe, fake_request(**request), fake_adoption()))


# -- traits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "traits, said",
    [
        ({"warm": -1}, ["warm", "-1", "0"]),
        ({"warm": "two"}, ["warm", "two", "int"]),
        ({"max_warm": -1}, ["max_warm", "-1", "0"]),
        ({"warm": 4, "max_warm": 3}, ["KernelPool.max_warm = 3", "0 or at least KernelPool.warm = 4"]),
        ({"max_kernels": -1}, ["max_kernels", "-1", "0"]),
        ({"exhausted": "explode"}, ["exhausted", "explode", "wait", "fail", "temporary"]),
        ({"wait_timeout": -0.5}, ["wait_timeout", "-0.5", "0"]),
        ({"busy_cores": 1.5}, ["busy_cores", "1.5", "1"]),
        ({"parallel_starts": 0}, ["parallel_starts", "0", "1"]),
        ({"claim_timeout": 0}, ["claim_timeout", "0.1"]),
        ({"max_warm_age": 0}, ["max_warm_age", "1"]),
        ({"recipes": {"ir": {"wam": 1}}}, ["'ir'", "'wam'", "preload, recovery, restore, sandbox, warm, writable"]),
        ({"recipes": {"ir": {"warm": -1}}}, ["'ir'", "warm = -1", "0 or more"]),
        ({"recipes": {"ir": {"warm": True}}}, ["'ir'", "warm = True", "0 or more"]),
        ({"recipes": {"ir": {"max": 1.5}}}, ["'ir'", "max = 1.5", "whole number"]),
        ({"recipes": {"ir": {"warm": 3, "max": 2}}}, ["'ir'", "warm = 3", "max = 2"]),
        ({"recipes": {"ir": {"launcher": "rocket"}}}, ["'ir'", "rocket", "auto, template, spawn, whole, off"]),
        ({"recipes": {"ir": {"preload": "numpy"}}}, ["'ir'", "preload = 'numpy'", "list of module names"]),
        ({"recipes": {"ir": {"preload": [1]}}}, ["'ir'", "preload = [1]", "list of module names"]),
        ({"recipes": {"ir": {"init_code": 3}}}, ["'ir'", "init_code", "text"]),
        ({"recipes": {"ir": {"recovery": "perhaps"}}}, ["'ir'", "'perhaps'", "never, on_failure, always"]),
        ({"recipes": {"ir": {"on_unresponsive": "panic"}}}, ["'ir'", "'panic'", "report, interrupt, restart"]),
        ({"recipes": {"ir": {"restore": "yes"}}}, ["'ir'", "restore = 'yes'", "true or false"]),
        ({"recipes": {"ir": "whole"}}, ["'ir'", "'whole'", "dict"]),
        ({"launchers": ["jupyter_kernelpool.pool.KernelPool"]}, ["launchers", "KernelPool", "Launcher"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_trait_stops_the_server_and_says_what_is_allowed(traits, said):
    with pytest.raises(TraitError) as refused:
        KernelPool(config=Config(KernelPool=traits))
    for part in said:
        assert part in str(refused.value)


def test_defaults_are_two_to_eight_warm_kernels_and_no_limit():
    pool = KernelPool()
    settings = pool.settings_for("python3")
    assert (settings.warm, settings.max, settings.launcher) == (2, 8, "auto")
    assert pool.max_kernels == 0
    assert pool.launchers == [TemplateLauncher, SpawnLauncher, WholeLauncher]


@pytest.mark.parametrize(
    "traits, expected",
    [
        ({"warm": 10}, (10, 10)),
        ({"warm": 0}, (0, 8)),
        ({"max_warm": 0}, (0, 0)),
        ({"recipes": {"python3": {"warm": 9}}}, (9, 9)),
        ({"recipes": {"python3": {"warm": 1}}}, (1, 8)),
        ({"recipes": {"python3": {"max": 1}}}, (1, 1)),
        ({"recipes": {"python3": {"max": 0}}}, (0, 0)),
        ({"recipes": {"other": {"max": 0}}}, (2, 8)),
    ],
    ids=str,
)
def test_settings_of_a_recipe(traits, expected):
    settings = KernelPool(**traits).settings_for("python3")
    assert (settings.warm, settings.max) == expected


def test_launcher_may_be_named_by_its_dotted_path():
    name = "jupyter_kernelpool.launchers.spawn.SpawnLauncher"
    assert KernelPool(config=Config(KernelPool={"launchers": [name]})).launchers == [SpawnLauncher]


# -- recipes ----------------------------------------------------------------------------------------


def test_equal_requests_share_a_recipe_and_others_do_not(kp_script):
    pool = kernel_pool(kp_script)
    one = pool.recipe_pool(fake_request(env={"HOME": "/home/me"}))
    assert pool.recipe_pool(fake_request("other", env={"HOME": "/home/me", "JPY_SESSION_NAME": "x"})) is one
    two = pool.recipe_pool(fake_request(env={"HOME": "/home/you"}))
    assert two is not one
    assert one.recipe.name == "python3"
    assert two.recipe.name == f"python3-{two.recipe.key}"
    assert pool.find(two.recipe.name) is two


@pytest.mark.parametrize("settings", [{"max": 0}, {"launcher": "off"}], ids=str)
def test_recipe_that_is_off_is_not_pooled(kp_script, settings):
    pool = kernel_pool(kp_script, recipes={"python3": settings})
    assert pool.recipe_pool(fake_request()) is None
    assert pool.poolable(fake_request()) is None
    assert pool.pools == {}


def test_other_languages_are_pooled_only_when_asked_to_be(kp_script):
    spec = python_spec(["R", "-e", "IRkernel::main()", "--args", "{connection_file}"])
    spec.language = "R"
    request = fake_request(kernel_name="ir", spec=spec)
    assert kernel_pool(kp_script).recipe_pool(request) is None
    pool = kernel_pool(kp_script, way="whole", recipes={"ir": {"launcher": "whole"}})
    assert pool.recipe_pool(request) is not None
    assert pool.poolable(request) is None  # it can't be given an identity: claim_whole serves it


@pytest.mark.parametrize("traits", [{"enabled": False}], ids=str)
def test_pool_that_is_off_serves_nobody(kp_script, traits):
    assert kernel_pool(kp_script, **traits).poolable(fake_request()) is None


async def test_numbers_change_in_place_and_all_else_makes_another_recipe(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 1)
    pool.change_settings("python3", {"warm": 5})
    assert pool.recipe_pool(fake_request()) is recipe
    assert recipe.view().floor == 5
    pool.change_settings("python3", {"preload": ["json"]})
    assert pool.recipe_pool(fake_request()) is not recipe
    await pool.close()


def test_wrong_change_changes_nothing(kp_script):
    pool = kernel_pool(kp_script)
    before = pool.settings_for("python3")
    with pytest.raises(NotValid, match="'python3': warm = -3 must be a whole number"):
        pool.change_settings("python3", {"warm": -3})
    assert pool.settings_for("python3") == before


async def test_added_recipe_is_pinned_and_cannot_be_added_twice(kp_script):
    pool = kernel_pool(kp_script)
    recipe = pool.add(fake_request(), {"warm": 1})
    assert recipe.pinned
    assert recipe.view().floor == 1
    with pytest.raises(WrongState, match="'python3' exists already"):
        pool.add(fake_request(), {})


def test_recipe_that_cannot_be_pooled_is_refused_and_leaves_nothing(kp_script):
    pool = kernel_pool(kp_script)
    spec = python_spec(["R", "--args", "{connection_file}"])
    with pytest.raises(NotValid, match="can't be pooled"):
        pool.add(fake_request(kernel_name="ir", spec=spec), {"warm": 1})
    assert pool.pools == {}
    assert pool.overrides == {}


async def test_removed_recipe_is_drained_and_made_anew_on_request(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    await pool.remove("python3")
    await settle()
    assert not any(process.alive for process in kp_script.processes)
    assert kp_script.launchers[0].closed
    with pytest.raises(NotFound, match="'python3'"):
        pool.find("python3")
    assert pool.recipe_pool(fake_request()) is not recipe


# -- claims -----------------------------------------------------------------------------------------


async def test_claim_is_handed_a_warm_kernel_that_has_adopted(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 1)
    request = fake_request("mine", cwd="/home", env={"A": "1"})
    process = await pool.claim(recipe, request, fake_adoption())
    assert process is kp_script.processes[0]
    assert process.record.state is State.ACTIVE
    assert process.record.kernel_id == "mine"
    assert process.order["cwd"] == "/home"
    assert process.order["env"] == {"A": "1"}
    assert recipe.hits == 1
    assert recipe.misses == 0
    assert pool.wake.is_set()


async def test_begun_claim_has_told_its_kernel_already_and_counts_once(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    request = fake_request("mine", cwd="/home")
    begun = pool.begin_claim(recipe, request, fake_adoption())
    assert begun is kp_script.processes[0]
    assert begun.order["cwd"] == "/home"
    assert recipe.hits == 0
    assert await pool.claim(recipe, request, fake_adoption(), begun) is begun
    assert (recipe.hits, recipe.misses, len(recipe.claims)) == (1, 0, 1)
    assert len(recipe.warm) == 1


async def test_begun_claim_whose_kernel_fails_goes_on_with_the_next(kp_script):
    kp_script.adoptions.append(DIE)
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    begun = pool.begin_claim(recipe, fake_request("mine"), fake_adoption())
    process = await pool.claim(recipe, fake_request("mine"), fake_adoption(), begun)
    assert process is kp_script.processes[1]
    assert not begun.alive


async def test_claim_is_not_begun_where_nothing_is_warm_or_all_is_stale(kp_script, tmp_path):
    kp_script.watched = [str(tmp_path / "package.py")]
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 0)
    assert pool.begin_claim(recipe, fake_request(), fake_adoption()) is None
    assert not recipe.claims
    await recipe.launch_one()
    (tmp_path / "package.py").write_text("new")
    assert pool.begin_claim(recipe, fake_request(), fake_adoption()) is None
    assert len(recipe.warm) == 1


async def test_claim_waits_for_a_quick_launch(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 0)
    task = claim(pool, recipe)
    await settle()
    assert recipe.waiting == 1
    assert pool.wake.is_set()
    await recipe.launch_one()
    assert await task is kp_script.processes[0]
    assert recipe.hits == 1


async def test_claim_of_a_recipe_that_is_not_ready_goes_cold_at_once(kp_script):
    pool = kernel_pool(kp_script)
    recipe = pool.recipe_pool(fake_request())
    assert await pool.claim(recipe, fake_request(), fake_adoption()) is None
    assert recipe.misses == 1
    assert pool.wake.is_set()


async def test_claim_goes_cold_when_its_launch_fails(kp_script):
    kp_script.launches.append(LaunchFailed("no more processes"))
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 0)
    task = claim(pool, recipe)
    await settle()
    await recipe.launch_one()
    assert await task is None
    assert recipe.misses == 1
    assert recipe.last_error.reason == "no more processes"


async def test_claim_goes_cold_when_its_launch_takes_too_long(kp_script):
    pool = kernel_pool(kp_script, claim_timeout=0.1)
    recipe = await filled(pool, 0)
    assert await claim(pool, recipe) is None
    assert recipe.waiting == 0


async def test_claim_of_a_stale_recipe_goes_cold(kp_script, tmp_path):
    kp_script.watched = [str(tmp_path / "installed")]
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 1)
    (tmp_path / "installed").mkdir()
    assert await claim(pool, recipe) is None
    assert kp_script.processes[0].record.state is State.WARM  # for the keeper to drain


async def test_kernel_that_cannot_be_adopted_is_ended_and_the_next_taken(kp_script, caplog):
    kp_script.adoptions.append(LaunchFailed("adopting failed: it is broken"))
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    broken, sound = kp_script.processes
    assert await claim(pool, recipe, kernel_id="mine") is sound
    await settle()
    assert not broken.alive
    assert "mine" in caplog.text
    assert "it is broken" in caplog.text


async def test_kernel_that_dies_while_adopting_is_replaced(kp_script):
    kp_script.adoptions.append(DIE)
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    assert await claim(pool, recipe) is kp_script.processes[1]


async def test_claim_goes_cold_after_some_kernels_that_cannot_be_adopted(kp_script):
    kp_script.adoptions.extend([LaunchFailed("broken")] * CLAIM_ATTEMPTS)
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, CLAIM_ATTEMPTS + 1)
    assert await claim(pool, recipe) is None
    assert len(recipe.warm) == 1


@pytest.mark.parametrize("reason", ["hung", "timeout"])
async def test_kernel_that_hangs_is_ended_the_next_taken_and_the_others_asked(kp_script, reason):
    kp_script.adoptions.append(LaunchFailed("it hangs", reason=reason))
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    hung, sound = kp_script.processes
    assert await claim(pool, recipe) is sound
    await settle()
    assert not hung.alive
    assert recipe.suspect
    assert (recipe.hits, recipe.misses) == (1, 0)


@pytest.mark.parametrize("reason, most", [("hung", CLAIM_ATTEMPTS), ("timeout", CLAIM_TIMEOUTS)])
async def test_claim_goes_cold_after_some_kernels_that_hang(kp_script, reason, most):
    kp_script.adoptions.extend([LaunchFailed("it hangs", reason=reason)] * most)
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, most + 1)
    assert await claim(pool, recipe) is None
    await settle()
    assert [process.alive for process in kp_script.processes] == [False] * most + [True]
    assert recipe.misses == 1


async def test_kernel_that_dies_on_its_way_to_who_waits_is_replaced(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 0)
    task = claim(pool, recipe)
    await settle()
    await recipe.launch_one()  # given, but the claim does not run before the next turn of the loop
    kp_script.processes[0].die()
    await settle()
    await recipe.launch_one()
    assert await task is kp_script.processes[1]


async def test_claim_cancelled_while_it_waits_leaves_kernel_warm(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 0)
    task = claim(pool, recipe)
    await settle()
    await recipe.launch_one()
    task.cancel()
    await settle()
    assert task.cancelled()
    assert [process for process, _ in recipe.warm] == kp_script.processes
    assert kp_script.processes[0].record.state is State.WARM


async def test_claim_cancelled_while_the_kernel_adopts_ends_that_kernel(kp_script):
    kp_script.adoptions.append(HANG)
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 1)
    task = claim(pool, recipe)
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()
    assert not kp_script.processes[0].alive
    assert recipe.take() is None


async def test_claims_at_the_same_time_get_kernels_of_their_own(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 3)
    processes = await asyncio.gather(*(claim(pool, recipe, kernel_id=str(n)) for n in range(3)))
    assert set(processes) == set(kp_script.processes)
    assert {process.record.kernel_id for process in processes} == {"0", "1", "2"}


WHOLE = {"python3": {"launcher": "whole"}}


async def test_whole_kernel_is_handed_over_as_it_is(kp_script):
    pool = kernel_pool(kp_script, way="whole", recipes=WHOLE)
    recipe = await filled(pool, 1)
    process = await pool.claim_whole(fake_request("mine"))
    assert process is kp_script.processes[0]
    assert process.record.state is State.ACTIVE
    assert process.record.kernel_id == "mine"
    assert recipe.hits == 1
    assert await pool.claim_whole(fake_request("other")) is None
    assert recipe.misses == 1


async def test_whole_kernel_of_a_stale_recipe_is_left_to_be_drained(kp_script, tmp_path):
    kp_script.watched = [str(tmp_path / "installed")]
    pool = kernel_pool(kp_script, way="whole", recipes=WHOLE)
    recipe = await filled(pool, 1)
    (tmp_path / "installed").mkdir()
    assert await pool.claim_whole(fake_request()) is None
    await recipe.drain("its environment changed")
    await settle()
    assert not kp_script.processes[0].alive


async def test_whole_kernel_in_another_folder_is_another_recipe(kp_script):
    pool = kernel_pool(kp_script, way="whole", recipes=WHOLE)
    await filled(pool, 1)
    assert await pool.claim_whole(fake_request(cwd="/elsewhere")) is None
    assert len(pool.pools) == 2


# -- ends -------------------------------------------------------------------------------------------


async def test_closing_ends_what_has_no_owner_and_only_that(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 2)
    owned = await claim(pool, recipe)
    await pool.close()
    await settle()
    assert [process.alive for process in kp_script.processes] == [process is owned for process in kp_script.processes]
    assert pool.poolable(fake_request()) is None
    assert recipe.stage is Stage.DOWN


async def test_retired_process_that_does_not_end_by_itself_is_terminated(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 1)
    process = await claim(pool, recipe)
    pool.retire(process, 0.01)
    await asyncio.wait_for(asyncio.shield(process.exited), 5)
    assert process.signals == [15]


async def test_retired_process_that_ends_is_not_signalled(kp_script):
    pool = kernel_pool(kp_script)
    recipe = await filled(pool, 1)
    process = await claim(pool, recipe)
    pool.retire(process, 30)
    await settle()
    process.die(0)
    await settle()
    assert process.signals == []
    assert not pool._retiring


def test_user_start_counts_until_it_ended(kp_script):
    pool = kernel_pool(kp_script)
    before = pool.last_start
    pool.user_start_began("mine")
    assert pool.users_starting == 1
    assert pool.last_start == before
    pool.user_start_ended("mine")
    pool.user_start_ended("mine")
    assert pool.users_starting == 0
    assert pool.last_start > before
