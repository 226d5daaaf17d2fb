"""A simulated pool that lives by `decisions.plan`: whatever happens, in whatever order, its promises hold."""

import itertools
from dataclasses import dataclass, field

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jupyter_kernelpool.decisions import (
    Drain,
    Evict,
    Host,
    Launch,
    Load,
    Policy,
    RecipeView,
    Stage,
    Unload,
    View,
    WarmView,
    backoff,
    plan,
    target,
)

MIB = 1 << 20
POLICY = Policy(max_warm_age=100.0, recipe_idle=300.0, parallel_starts=3, demand_window=60.0)
PLENTY = 4096 * MIB
WITHOUT_EXPLAINING = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]  # it takes minutes
KEYS = st.sampled_from(["a", "b"])


@dataclass
class Simulated:
    """A recipe of the simulation; `launches` holds the generation that each launch under way belongs to."""

    key: str
    floor: int
    ceiling: int
    pinned: bool
    last_used: float
    stage: Stage = Stage.DOWN
    warm: list[WarmView] = field(default_factory=list)
    launches: list[int] = field(default_factory=list)
    generation: int = 0
    waiting: int = 0
    claims: list[float] = field(default_factory=list)
    failures: int = 0
    retry_at: float = 0.0
    stale: bool = False

    def view(self) -> RecipeView:
        return RecipeView(
            key=self.key,
            stage=self.stage,
            warm=tuple(self.warm),
            starting=len(self.launches),
            waiting=self.waiting,
            floor=self.floor,
            ceiling=self.ceiling,
            claims=tuple(self.claims),
            last_used=self.last_used,
            retry_at=self.retry_at,
            stale=self.stale,
            pinned=self.pinned,
        )

    def emptied(self) -> None:
        self.warm.clear()
        self.stage = Stage.DOWN
        self.stale = False
        self.generation += 1


class PoolOverTime(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.available = PLENTY
        self.busy = 0.0
        self.users_starting = 0
        self.last_start = 0.0
        self.ids = itertools.count()
        self.recipes: dict[str, Simulated] = {}
        self.unfit: set[str] = set()

    @initialize(floors=st.tuples(st.integers(0, 3), st.integers(0, 3)), more=st.integers(0, 4), pinned=st.booleans())
    def begin(self, floors, more, pinned):
        for key, floor in zip("ab", floors, strict=True):
            self.recipes[key] = Simulated(key, floor, floor + more, pinned, last_used=self.now)

    # -- what others do -----------------------------------------------------------------------------

    @rule(key=KEYS)
    def somebody_claims(self, key):
        recipe = self.recipes[key]
        recipe.claims.append(self.now)
        recipe.last_used = self.now
        if recipe.warm:
            recipe.warm.pop(0)
        elif recipe.stage is Stage.READY and recipe.ceiling:
            recipe.waiting += 1

    @rule(key=KEYS)
    def somebody_gives_up(self, key):
        recipe = self.recipes[key]
        recipe.waiting = max(0, recipe.waiting - 1)

    @rule(key=KEYS)
    def warm_kernel_dies(self, key):
        if self.recipes[key].warm:
            self.recipes[key].warm.pop()

    @rule(key=KEYS)
    def template_dies(self, key):
        if self.recipes[key].stage is Stage.READY:
            self.recipes[key].stage = Stage.DOWN

    @rule(key=KEYS)
    def something_is_installed(self, key):
        if self.recipes[key].stage is Stage.READY:
            self.recipes[key].stale = True

    @rule(key=KEYS, floor=st.integers(0, 3), more=st.integers(0, 3))
    def settings_change(self, key, floor, more):
        recipe = self.recipes[key]
        recipe.floor, recipe.ceiling = floor, floor + more

    @rule(seconds=st.sampled_from([0.05, 0.5, 5.0, 50.0, 120.0, 400.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(mib=st.sampled_from([0, 500, 512, 530, 600, 4096]))
    def memory_changes(self, mib):
        self.available = mib * MIB

    @rule(busy=st.sampled_from([0.0, 0.5, 1.0]))
    def load_changes(self, busy):
        self.busy = busy

    @rule()
    def user_starts_a_kernel(self):
        self.users_starting += 1

    @precondition(lambda self: self.users_starting)
    @rule()
    def kernel_of_a_user_is_ready(self):
        self.users_starting -= 1
        self.last_start = self.now

    # -- what the keeper's jobs come to -------------------------------------------------------------

    @rule(key=KEYS, well=st.booleans())
    def load_ends(self, key, well):
        recipe = self.recipes[key]
        if recipe.stage is Stage.LOADING:
            if well:
                recipe.stage, recipe.retry_at = Stage.READY, 0.0
            else:
                recipe.stage = Stage.FAILED
                recipe.waiting = 0  # all who wait start cold
                self.failed(recipe)

    @rule(key=KEYS, well=st.booleans())
    def launch_ends(self, key, well):
        recipe = self.recipes[key]
        if not recipe.launches:
            return
        generation = recipe.launches.pop(0)
        if generation != recipe.generation:
            return  # discarded: its template is gone
        if not well:
            recipe.waiting = max(0, recipe.waiting - 1)
            self.failed(recipe)
        elif recipe.waiting:
            recipe.waiting -= 1
            recipe.failures = 0
        else:
            recipe.warm.append(WarmView(str(next(self.ids)), self.now))
            recipe.failures = 0

    def failed(self, recipe: Simulated) -> None:
        recipe.failures += 1
        recipe.retry_at = self.now + backoff(recipe.failures)

    # -- the keeper ---------------------------------------------------------------------------------

    @rule()
    def keeper_turns(self):
        self.turn()

    def turn(self) -> list:
        view = View(
            recipes=tuple(recipe.view() for recipe in self.recipes.values()),
            host=Host(available_memory=self.available, busy=self.busy),
            users_starting=self.users_starting,
            last_start=self.last_start,
        )
        actions = plan(view, POLICY, self.now)
        self.check_the_whole(view, actions)
        for recipe in view.recipes:
            self.check_recipe(view, recipe, [action for action in actions if action.key == recipe.key])
        for action in actions:
            self.carry_out(action)
        return actions

    def carry_out(self, action) -> None:
        recipe = self.recipes[action.key]
        match action:
            case Load():
                recipe.stage = Stage.LOADING
            case Launch(count=count):
                recipe.launches += [recipe.generation] * count
            case Evict(id=evicted):
                recipe.warm = [warm for warm in recipe.warm if warm.id != evicted]
            case Drain():
                recipe.emptied()
            case Unload():
                recipe.emptied()
                recipe.last_used = self.now  # the next claim makes it anew
                recipe.failures, recipe.retry_at = 0, 0.0

    def check_the_whole(self, view: View, actions: list) -> None:
        started = sum(action.count for action in actions if isinstance(action, Launch))
        under_way = sum(recipe.starting for recipe in view.recipes)
        assert started + under_way <= max(POLICY.parallel_starts, under_way)
        if any(recipe.waiting for recipe in view.recipes) or view.users_starting:
            for recipe in view.recipes:
                mine = sum(a.count for a in actions if isinstance(a, Launch) and a.key == recipe.key)
                assert mine <= max(0, recipe.waiting - recipe.starting), "made ahead beside a user's start"
        room = view.host.available_memory - POLICY.reserve_memory
        given_up = sum(1 for action in actions if isinstance(action, Evict) and action.why == "memory is short")
        assert given_up == 0 or room + (given_up - 1) * 32 * MIB < 0, "more was given up than memory asked for"

    def check_recipe(self, view: View, recipe: RecipeView, actions: list) -> None:
        launches = [action for action in actions if isinstance(action, Launch)]
        loads = [action for action in actions if isinstance(action, Load)]
        evictions = [action for action in actions if isinstance(action, Evict)]
        ids = [action.id for action in evictions]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= {warm.id for warm in recipe.warm}
        assert len(launches) <= 1
        assert len(loads) <= 1
        if any(isinstance(action, Drain | Unload) for action in actions):
            assert len(actions) == 1
        if recipe.stale:
            assert [type(action) for action in actions] == [Drain]
        if launches:
            assert recipe.stage is Stage.READY
            assert self.now >= recipe.retry_at
        if loads:
            assert recipe.stage in (Stage.DOWN, Stage.FAILED)
            assert self.now >= recipe.retry_at
            assert recipe.ceiling or recipe.waiting
        if any(isinstance(action, Unload) for action in actions):
            assert not recipe.pinned
            assert not recipe.waiting
        count = sum(action.count for action in launches)
        left = len(recipe.warm) - len(evictions)
        if count:
            assert count > 0
            assert left + recipe.starting + count <= max(recipe.ceiling, left) + recipe.waiting
        room = view.host.available_memory - POLICY.reserve_memory
        if count > max(0, recipe.waiting - recipe.starting):
            assert view.host.busy < POLICY.busy_cores
            assert self.now - view.last_start >= POLICY.settle
            assert room >= recipe.bytes_each
            assert count == 1
            assert recipe.starting == 0
        surplus = [action for action in evictions if action.why == "no longer needed"]
        if surplus:
            assert left >= min(target(recipe, POLICY, self.now), len(recipe.warm))
            assert left >= min(recipe.floor, recipe.ceiling)

    # -- promises -----------------------------------------------------------------------------------

    @invariant()
    def same_view_gives_the_same_plan(self):
        """`plan` reads a view and keeps nothing: planning twice is planning once."""
        view = View(
            recipes=tuple(recipe.view() for recipe in self.recipes.values()),
            host=Host(available_memory=self.available, busy=self.busy),
            users_starting=self.users_starting,
            last_start=self.last_start,
        )
        assert plan(view, POLICY, self.now) == plan(view, POLICY, self.now)

    @rule()
    def who_waits_is_served_when_launches_succeed(self):
        """However busy the machine is, however little memory it has, whoever else starts kernels."""
        self.all_goes_well(until=lambda: not any(recipe.waiting for recipe in self.recipes.values()))

    @rule()
    def pool_fills_up_when_all_is_well(self):
        self.available, self.busy, self.users_starting = PLENTY, 0.0, 0
        self.all_goes_well(until=self.is_full)
        for recipe in self.recipes.values():
            recipe.last_used = self.now
        assert self.turn() == [], "a full pool at rest is left alone"

    def is_full(self) -> bool:
        return all(
            not recipe.launches
            and not recipe.stale
            and recipe.stage is not Stage.LOADING
            and len(recipe.warm) == target(recipe.view(), POLICY, self.now)
            and all(self.now - warm.since <= POLICY.max_warm_age for warm in recipe.warm)
            and (recipe.stage is Stage.READY or not recipe.ceiling)
            for recipe in self.recipes.values()
        )

    def all_goes_well(self, until) -> None:
        for _ in range(200):
            for key, recipe in self.recipes.items():
                recipe.last_used = max(recipe.last_used, self.now - 1)
                self.load_ends(key, True)
                while recipe.launches:
                    self.launch_ends(key, True)
            if until():
                return
            acted = self.turn()
            if not acted:
                self.now += max([0.5, *(recipe.retry_at - self.now for recipe in self.recipes.values())])
        raise AssertionError("it never came to that")


TestPoolOverTime = PoolOverTime.TestCase
TestPoolOverTime.settings = settings(max_examples=60, stateful_step_count=30, phases=WITHOUT_EXPLAINING)
