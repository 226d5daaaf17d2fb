"""The pool: which recipes there are, and the claim of a warm kernel for an owner.

Configured with traits; filled by the keeper; asked by the provisioner. There is no way back into it: a
kernel that had an owner is never warm again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from traitlets import Bool, CaselessStrEnum, Dict, Float, Integer, List, TraitError, Type, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool import metrics
from jupyter_kernelpool.admission import Admission
from jupyter_kernelpool.allowance import read_size
from jupyter_kernelpool.decisions import Policy, Stage
from jupyter_kernelpool.errors import LaunchFailed, NotFound, NotValid, SupervisorGone, WrongState
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.launchers.spawn import SpawnLauncher
from jupyter_kernelpool.launchers.template import TemplateLauncher
from jupyter_kernelpool.launchers.whole import WholeLauncher
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.owners import read_quota
from jupyter_kernelpool.presets import PRESETS
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.recipes import Recipe, Settings, build_recipe
from jupyter_kernelpool.sandboxing import Sandboxing
from jupyter_kernelpool.settings import read_settings
from jupyter_kernelpool.supervision import Supervision
from jupyter_kernelpool.textfile import SUFFIX, find_path

CLAIM_ATTEMPTS = 3


@dataclass(frozen=True)
class Request:
    """One start of a kernel, as far as the pool is concerned. *environment* is what stock would pass."""

    kernel_id: str
    kernel_name: str
    spec: Any
    environment: Mapping[str, str]
    cwd: str
    transport: str


@dataclass(frozen=True)
class Identity:
    """What the claimed kernel becomes: see `kernelside.warm` for the order it is sent as."""

    info: dict[str, Any]
    connection_file: str
    listeners: list[int]
    command: list[str]
    arguments: list[str]


class KernelPool(LoggingConfigurable):
    """Warm kernels, ready before anybody asks for them."""

    enabled = Bool(
        True,
        config=True,
        help="""Whether to pool kernels. False is exactly stock: the server then uses its own kernel
        manager and websocket classes.""",
    )
    preset = CaselessStrEnum(
        list(PRESETS),
        default_value="laptop",
        config=True,
        help="""Settings that belong together, below all that is set otherwise: "laptop" (the defaults), "hub" (one of
        many servers, mostly idle: nothing warm before the first kernel, templates unloaded soon) or "coderunner" (code
        that language models write: few kernels, short cells, what hangs is replaced).""",
    )
    warm_at_start = Bool(
        True,
        config=True,
        help="""Whether kernels of the default kernelspec, and of those named in recipes, are kept warm from the
        server's start. Else a kernelspec's are once a kernel of it was started, until nobody used them for recipe_idle
        seconds; the supervisor process too is there only while it is needed.""",
    )
    warm = Integer(
        2,
        min=0,
        config=True,
        help="""Warm kernels kept per recipe, at least (the floor). 0 keeps none ahead of demand; with a
        template a kernel is then forked when it is asked for.""",
    )
    max_warm = Integer(
        8,
        min=0,
        config=True,
        help="""Warm kernels kept per recipe, at most (the ceiling that demand can raise the number to).
        0 makes no warm kernels and no templates at all: every start is cold.""",
    )
    preload = List(
        Unicode(),
        config=True,
        help="""Modules that templates import beforehand, such as ["numpy", "pandas"]: kernels then have
        them at once, and share their memory. A module that fails to import is reported in /pool, and kernels
        start cold. Where one starts threads, kernels are spawned ahead instead, and share no memory.""",
    )
    init_code = Unicode(
        "",
        config=True,
        help="""Code that is run once in each template, in the namespace the user gets. It must end, start no
        threads and open nothing that forks can't share. Where it fails, the reason is in /pool, and kernels
        start cold, without it.""",
    )
    recipes = Dict(
        config=True,
        help="""Settings per kernelspec that differ from the general ones: {kernelspec name: {"warm": n,
        "max": n, "preload": [modules], "init_code": code, "launcher": name, "limits": {limit: value}, "cull":
        {setting: value}, "recovery": policy}}.
        Launchers: "auto" (the default), "template" (forks), "spawn" (Python started ahead), "whole" (any
        language, started ahead with its own connection; the only one for languages other than Python), "off"
        (always cold). Limits are those of KernelLimits, cull those of KernelCuller and recovery that of
        KernelHealth, and hold for these kernels in their place.
        A sandbox: "launch_prefix": [a program that starts kernels in it, with its arguments], "network": "none",
        "writable": [the only folders that kernels write to], or "sandbox": true, which is all that can be had
        without a prefix. What can't be held here refuses the start.
        The kernelspecs named here are kept warm from the server's start.""",
    )
    max_kernels = Integer(
        0,
        min=0,
        config=True,
        help="Kernels that may run at once, pending starts counted. 0 sets no limit.",
    )
    exhausted = CaselessStrEnum(
        ["wait", "fail", "temporary"],
        default_value="wait",
        config=True,
        help="""What a start does when max_kernels run: "wait" for one to end (up to wait_timeout),
        "fail" with status 503 and Retry-After at once, or "temporary": start anyway, cold and marked.""",
    )
    wait_timeout = Float(
        30.0,
        min=0,
        config=True,
        help="Seconds that a start waits when exhausted is 'wait', before it is refused with 503.",
    )
    ownership = CaselessStrEnum(
        ["single", "user"],
        default_value="single",
        config=True,
        help="""Whose kernels are whose, for owner_quota: "single" takes all for one owner's; "user" asks Jupyter
        Server's identity provider, which must know its users: with a token or password alone each login is another
        one, and the server does not start. This is book-keeping, no isolation.""",
    )
    owner_quota = Dict(
        config=True,
        help="""What each owner's kernels may use together: {"kernels": n, "memory": size, "cpu": cores, "processes":
        n}; what is left out is not limited. One kernel too many is refused with status 429; the rest are limits as
        those of KernelLimits.total_memory and its like.""",
    )
    max_warm_age = Float(
        3600.0,
        min=1,
        config=True,
        help="Seconds after which a warm kernel that nobody claimed is replaced.",
    )
    max_warm_memory: Any = Union(
        [Integer(min=0), Unicode()],
        default_value=0,
        config=True,
        help="""Memory that a warm kernel may have for itself before it is replaced: bytes, or text such as "200M". For
        kernels in which something grows though nobody uses them. 0 sets no bound.""",
    )
    recipe_idle = Float(
        3600.0,
        min=1,
        config=True,
        help="""Seconds after which a recipe that nobody used is unloaded, with its template. The default
        kernelspec's and those named in recipes stay.""",
    )
    reserve_memory = Integer(
        512 * 1024 * 1024,
        min=0,
        config=True,
        help="Bytes of memory to leave free: below it nothing is made ahead, and warm kernels are given up.",
    )
    busy_cores = Float(
        0.9,
        min=0.0,
        max=1.0,
        config=True,
        help="Share of the cores (0 to 1) above which nothing is made ahead of demand.",
    )
    parallel_starts = Integer(
        max(2, (os.cpu_count() or 1) + 1),
        min=1,
        config=True,
        help="Warm kernels that are being started at the same time, at most.",
    )
    load_timeout = Float(
        60.0,
        min=0.1,
        config=True,
        help="""Seconds that a template may take to load (its preloads and init code included), and a warm
        kernel to become ready. What takes longer is ended and reported in /pool.""",
    )
    claim_timeout = Float(
        20.0,
        min=0.1,
        config=True,
        help="""Seconds that a claim waits for a kernel that is being made, before the kernel is started
        cold instead.""",
    )
    max_checkpoints = Integer(
        20,
        min=0,
        config=True,
        help="""Checkpoints that a kernel may have. Beyond it the oldest without a name is dropped; where all have
        names, no more are taken. Each costs what changes in the kernel afterwards.""",
    )
    max_checkpoint_memory = Integer(
        0,
        min=0,
        config=True,
        help="""Bytes that the checkpoints of all kernels may cost together: what would be free without them. Beyond
        it the oldest without a name go, first those of the kernel whose cost most. 0 stands for a quarter of the
        machine's memory.""",
    )
    undo_steps = Integer(
        0,
        min=0,
        max=1000,
        config=True,
        help="""Cells that can be undone in each kernel; 0 is off. The state after each cell is then kept as an
        automatic checkpoint, the last undo_steps of them (max_checkpoints does not count them). PATCH
        /kernels/{kernel} changes it for one kernel.""",
    )
    magics = Bool(
        True,
        config=True,
        help="""Whether cells may fork their own kernel, keep and restore it, with %fork, %checkpoint, %restore and
        %undo. They need no token: they reach the server through the kernel's private socket.""",
    )
    copies_dir = Unicode(
        "",
        config=True,
        help="""Folder in which forks with files of their own get them: an absolute path. On the file system of
        the notebooks copies cost next to nothing where it can clone files (btrfs, XFS). Empty: Jupyter's
        runtime folder.""",
    )
    max_copied_bytes = Integer(
        1024 * 1024 * 1024,
        min=0,
        config=True,
        help="""Bytes that a working directory may hold for a fork to get a copy of it; beyond it such a fork is
        refused. 0 allows empty files only.""",
    )
    max_copied_files = Integer(
        100_000,
        min=0,
        config=True,
        help="Files and folders that a working directory may hold for a fork to get a copy of it.",
    )
    metrics_file = Unicode(
        "",
        config=True,
        help="""File to which the metrics are written every 15 seconds, for node_exporter's textfile collector: an
        absolute path that ends in .prom; `~` and variables of the environment are replaced. Each server needs one of
        its own: its name is the label `server`. Empty: no file.""",
    )
    launchers = List(
        Type(klass=Launcher),
        default_value=[TemplateLauncher, SpawnLauncher, WholeLauncher],
        config=True,
        help="Ways to launch warm kernels, as dotted paths, in the order in which they are tried.",
    )

    @validate("recipes")
    def _valid_recipes(self, proposal: Any) -> Any:
        for name, settings in proposal["value"].items():
            try:
                read_settings(name, settings, self._general)
            except NotValid as error:
                raise TraitError(f"KernelPool.recipes: {error}") from error
        return proposal["value"]

    @validate("max_warm_memory")
    def _valid_max_warm_memory(self, proposal: Any) -> Any:
        try:
            return read_size(proposal["value"])
        except NotValid as error:
            raise TraitError(f"KernelPool.max_warm_memory: {error}") from error

    @validate("owner_quota")
    def _valid_owner_quota(self, proposal: Any) -> Any:
        try:
            read_quota(proposal["value"])
        except NotValid as error:
            raise TraitError(f"KernelPool.owner_quota: {error}") from error
        return proposal["value"]

    @validate("max_warm")
    def _valid_max_warm(self, proposal: Any) -> Any:
        if 0 < proposal["value"] < self.warm:
            raise TraitError(
                f"KernelPool.max_warm = {proposal['value']} must be 0 or at least KernelPool.warm = {self.warm}"
            )
        return proposal["value"]

    @validate("copies_dir")
    def _valid_copies_dir(self, proposal: Any) -> Any:
        if proposal["value"] and not os.path.isabs(proposal["value"]):
            raise TraitError(f"KernelPool.copies_dir = {proposal['value']!r} must be an absolute path, or empty")
        return proposal["value"]

    @validate("metrics_file")
    def _valid_metrics_file(self, proposal: Any) -> Any:
        path = find_path(proposal["value"])
        if path and not (os.path.isabs(path) and path.endswith(SUFFIX)):
            raise TraitError(
                f"KernelPool.metrics_file = {path!r} must be an absolute path that ends in {SUFFIX}, or empty"
            )
        return proposal["value"]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.trait_names(config=True):
            getattr(self, name)  # a wrong value stops the server here, not at the first claim
        self.pools: dict[str, RecipePool] = {}
        self.supervision = Supervision(self.log)
        self.sandboxing = Sandboxing(
            self.supervision, self.log, root_dir=getattr(self.parent, "root_dir", ""), copies_dir=self.copies_dir
        )
        self.admission = Admission(self.max_kernels, self.exhausted, self.wait_timeout, lambda: 0)
        self.overrides: dict[str, Settings] = {}
        self.paused = False
        self.stopped = False
        self.last_start = time.monotonic() - 60
        self.wake = asyncio.Event()
        self._starting: dict[str, float] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    # -- policy -------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The traits that decide, for `decisions.plan`."""
        return Policy(
            max_warm_age=self.max_warm_age,
            max_warm_memory=int(self.max_warm_memory),
            recipe_idle=self.recipe_idle,
            parallel_starts=self.parallel_starts,
            reserve_memory=self.reserve_memory,
            busy_cores=self.busy_cores,
        )

    @property
    def active(self) -> bool:
        """Whether claims are served: switched on, not stopped, on a platform that can."""
        return self.enabled and not self.stopped and sys.platform == "linux"

    def settings_for(self, kernel_name: str) -> Settings:
        """What the configuration, or a later change through REST, says about *kernel_name*."""
        if kernel_name in self.overrides:
            return self.overrides[kernel_name]
        return read_settings(kernel_name, self.recipes.get(kernel_name, {}), self._general)

    @property
    def _general(self) -> Settings:
        """The traits that hold for every recipe that says nothing else."""
        return Settings(self.warm, self.max_warm, tuple(self.preload), self.init_code, load_timeout=self.load_timeout)

    def all_settings(self) -> list[Settings]:
        """The settings of every kernelspec of which something is said."""
        return [self.settings_for(name) for name in {*self.recipes, *self.overrides}]

    def is_sandboxed(self, kernel_name: str) -> bool:
        """Whether kernels of *kernel_name* are to be confined: then none may start the stock way."""
        return self.settings_for(kernel_name).sandbox.asked_for

    def change_settings(self, kernel_name: str, changes: dict[str, Any]) -> Settings:
        """Change the settings of *kernel_name* at run time; raises `NotValid` and changes nothing if wrong."""
        present = self.settings_for(kernel_name)
        merged: dict[str, Any] = {
            "warm": present.warm, "max": present.max, "preload": list(present.preload),
            "init_code": present.init_code, "launcher": present.launcher, "limits": dict(present.limits),
            "cull": dict(present.cull),
            "recovery": present.recovery,
        }  # fmt: skip
        if "warm" in changes and "max" not in changes and isinstance(changes["warm"], int):
            merged["max"] = max(merged["max"], changes["warm"])
        settings = read_settings(kernel_name, {**merged, **changes}, self._general)
        settings = replace(settings, sandbox=present.sandbox)  # the configuration's alone
        self.overrides[kernel_name] = settings
        self.wake.set()
        return settings

    # -- recipes ------------------------------------------------------------------------------------

    def recipe_pool(self, request: Request, *, pinned: bool = False) -> RecipePool | None:
        """The pool of the recipe that *request* needs, made if need be; None if it is not pooled."""
        settings = self.settings_for(request.kernel_name)
        if settings.launcher == "off" or settings.max == 0:
            return None
        recipe = self.recipe_for(request, settings)
        if not recipe.adoptable and settings.launcher != "whole":
            return None
        key = recipe.key
        if key not in self.pools:
            self.pools[key] = RecipePool(
                self._named(recipe), self._launchers_for(recipe), self.supervision, self.log, pinned=pinned
            )
            self.wake.set()
        pool = self.pools[key]
        if pinned and not pool.pinned:
            pool.pinned = True
            if all(other.recipe.name != recipe.name for other in self.pools.values()):
                pool.recipe = self._named(recipe)
        if pool.recipe.settings != settings:  # only numbers: all else is part of the key
            pool.recipe = self._named(recipe, pool.recipe.name)
        return pool

    def recipe_for(self, request: Request, settings: Settings | None = None) -> Recipe:
        """The recipe of *request*, whether kernels of it are pooled or not."""
        return build_recipe(
            kernel_name=request.kernel_name,
            spec=request.spec,
            env=request.environment,
            settings=settings or self.settings_for(request.kernel_name),
            cwd=request.cwd,
            transport=request.transport,
            confine=self.sandboxing.confine,
        )

    def find(self, name: str) -> RecipePool:
        """The pool of the recipe called *name*; raises `NotFound`."""
        for pool in self.pools.values():
            if pool.recipe.name == name:
                return pool
        raise NotFound(f"there is no recipe {name!r}", recipe=name)

    async def remove(self, name: str) -> None:
        """Drain and forget the recipe *name*; raises `NotFound`. A later request makes it anew."""
        pool = self.find(name)
        self.pools.pop(pool.recipe.key, None)
        self.pools = {key: other for key, other in self.pools.items() if other is not pool}
        self.overrides.pop(pool.recipe.kernel_name, None)
        await pool.close()

    def add(self, request: Request, changes: dict[str, Any]) -> RecipePool:
        """Make the recipe for *request* with settings changed by *changes*; raises `WrongState` if it exists."""
        if any(pool.recipe.name == request.kernel_name for pool in self.pools.values()):
            raise WrongState(f"the recipe {request.kernel_name!r} exists already", recipe=request.kernel_name)
        self.change_settings(request.kernel_name, changes)
        pool = self.recipe_pool(request, pinned=True)
        if pool is None:
            self.overrides.pop(request.kernel_name, None)
            raise NotValid(
                f"kernels of {request.kernel_name!r} can't be pooled with these settings (another language "
                'needs "launcher": "whole"; "max" must be above 0)'
            )
        return pool

    def _named(self, recipe: Recipe, name: str | None = None) -> Recipe:
        taken = {pool.recipe.name for pool in self.pools.values()}
        if name is None:
            name = recipe.kernel_name if recipe.kernel_name not in taken else f"{recipe.kernel_name}-{recipe.key}"
        return replace(recipe, name=name, environment=recipe.environment)

    def _launchers_for(self, recipe: Recipe) -> list[type[Launcher]]:
        wanted = recipe.settings.launcher
        if wanted == "auto":
            return [launcher for launcher in self.launchers if launcher.way != "whole"]
        return [launcher for launcher in self.launchers if launcher.way == wanted]

    # -- claims -------------------------------------------------------------------------------------

    def poolable(self, request: Request) -> RecipePool | None:
        """The recipe pool that could serve *request* by giving a warm kernel the identity of its owner."""
        if not self.active:
            return None
        pool = self.recipe_pool(request)
        return pool if pool is not None and pool.recipe.adoptable else None

    def begin_claim(self, pool: RecipePool, request: Request, identity: Identity) -> Process | None:
        """Tell a warm kernel at once who it is, if there is one; `claim` is then awaited with it.

        Called from `PoolProvisioner.pre_launch`: the kernel adopts while the server writes the connection file.
        """
        if not pool.warm or pool.stale:
            return None
        process = pool.take()
        return process if process is not None and self._offer(process, request, identity) else None

    async def claim(
        self, pool: RecipePool, request: Request, identity: Identity, begun: Process | None = None
    ) -> Process | None:
        """Hand over a kernel of *pool* that has taken *identity*, or None: then start it cold.

        Called from `PoolProvisioner.launch_kernel`, with what `begin_claim` gave. Never raises for a failure of
        ours: it is counted, noted in the recipe's `last_error`, logged once, and answered None. If cancelled, a
        kernel that was not told its identity stays warm; one that was is ended, and replaced.
        """
        began = time.monotonic()
        if begun is None and pool.stale:
            self._cold(pool, request, "what its recipe is made from has changed")
            return None
        why = ""
        for _ in range(CLAIM_ATTEMPTS):
            outcome = "hit"
            process, begun = begun, None
            if process is None:
                process = pool.take()
                if process is None:
                    if not pool.worth_waiting:
                        break
                    outcome = "forked"
                    self.wake.set()
                    try:
                        process = await pool.wait(self.claim_timeout)
                    except (LaunchFailed, SupervisorGone) as error:
                        why = str(error)
                        break
                if not self._offer(process, request, identity):
                    continue
            failure = await self._adopts(process, request)
            if failure is not None:
                why = str(failure)
                if failure.facts.get("reason") == "timeout":
                    pool.suspect = True  # others may be stuck likewise, and who asks has waited enough
                    break
                continue
            seconds = time.monotonic() - began
            pool.hits += 1
            pool.waits.append(seconds)
            metrics.CLAIMS.labels(recipe=pool.recipe.name, outcome=outcome).inc()
            metrics.CLAIM_WAIT.observe(seconds)
            self.wake.set()
            return process
        self._cold(pool, request, why or pool.why_cold)
        return None

    async def claim_whole(self, request: Request) -> Process | None:
        """A warm kernel with a connection of its own, for a request that can take over that; else None."""
        if not self.active:
            return None
        pool = self.recipe_pool(request)
        if pool is None or pool.recipe.adoptable:
            return None
        stale = pool.stale
        process = pool.take() if not stale else None
        if process is None:
            self._cold(pool, request, "what its recipe is made from has changed" if stale else pool.why_cold)
            return None
        process.record.kernel_id = request.kernel_id
        process.record.move(State.ACTIVE, why="claimed", now=time.time())
        pool.hits += 1
        metrics.CLAIMS.labels(recipe=pool.recipe.name, outcome="hit").inc()
        self.wake.set()
        return process

    async def hand_over(self, process: Process, request: Request, identity: Identity) -> None:
        """Give a fork of a live kernel, which keeps its surroundings, the identity of its owner.

        Raises `LaunchFailed` when it did not take it; it has ended then.
        """
        if not self._offer(process, request, identity, keep=True) or await self._adopts(process, request) is not None:
            raise LaunchFailed("the fork ended before it became a kernel", reason="gone")

    async def start_confined(self, recipe: Recipe, request: Request, identity: Identity, *, tried: bool) -> Process:
        """A kernel of *recipe* for *request*, in its sandbox, where the pool has none to give: instead of a cold start.

        Raises `NotEnforceable`, and `LaunchFailed`: nothing is started outside the sandbox instead.
        """
        process = await self.sandboxing.start(recipe, tried=tried)
        if not self._offer(process, request, identity):
            raise LaunchFailed("the kernel ended before it had its identity", reason="gone")
        failure = await self._adopts(process, request)
        if failure is not None:
            raise failure
        return process

    def _offer(self, process: Process, request: Request, identity: Identity, *, keep: bool = False) -> bool:
        """Make *process* the owner's and tell it so; false if it ended before."""
        if process.record.state is not State.WARM:
            return False  # it ended on its way from the launch to here
        process.record.kernel_id = request.kernel_id
        process.record.move(State.ACTIVE, why="claimed", now=time.time())
        order = {
            "info": identity.info,
            "connection_file": identity.connection_file,
            "command": identity.command,
            "arguments": identity.arguments,
            "cwd": request.cwd,
            "env": self._environment(request),
            "keep": keep,
        }
        try:
            process.offer(order, identity.listeners)
        except LaunchFailed as error:
            self._not_adopted(process, request, error)
            return False
        return True

    def _environment(self, request: Request) -> dict[str, str]:
        """What *request*'s kernel gets of the environment: in a sandbox not all of it."""
        confinement = self.recipe_for(request).confinement if self.is_sandboxed(request.kernel_name) else None
        return dict(request.environment) if confinement is None else confinement.environment(request.environment)

    async def _adopts(self, process: Process, request: Request) -> LaunchFailed | None:
        """None once *process* took what it was offered; else why it did not: it has ended then."""
        try:
            await process.adopted()
        except LaunchFailed as error:
            self._not_adopted(process, request, error)
            return error
        except BaseException:
            process.discard("the claim was cancelled")
            raise
        return None

    def _not_adopted(self, process: Process, request: Request, error: LaunchFailed) -> None:
        self.log.warning("Kernel %s: a warm kernel could not be adopted: %s", request.kernel_id, error)
        process.discard("not adopted")

    def _cold(self, pool: RecipePool, request: Request, why: str) -> None:
        self.log.info("Kernel %s starts cold: %s", request.kernel_id, why)
        pool.misses += 1
        metrics.CLAIMS.labels(recipe=pool.recipe.name, outcome="cold").inc()
        self.wake.set()

    # -- starts and ends of users' kernels ----------------------------------------------------------

    def user_start_began(self, kernel_id: str) -> None:
        """A user's kernel is being started: nothing is made ahead beside it."""
        self._starting[kernel_id] = time.monotonic()

    def user_start_ended(self, kernel_id: str) -> None:
        """The user's kernel is ready, or failed: refilling may begin."""
        if self._starting.pop(kernel_id, None) is not None:
            self.last_start = time.monotonic()
            self.wake.set()

    @property
    def users_starting(self) -> int:
        """Starts of users' kernels that are not ready, for 10 s at most: a kernel without a client says
        nothing once it is up."""
        horizon = time.monotonic() - 10
        self._starting = {key: at for key, at in self._starting.items() if at > horizon}
        return len(self._starting)

    def retire(self, process: Process, timeout: float) -> None:
        """See an owned process off in the background: it ends by itself, else SIGTERM, else SIGKILL."""
        task = asyncio.create_task(_see_off(process, timeout), name=f"retire-{process.pid}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def warmed(self, timeout: float = 30.0) -> None:
        """Wait until each recipe that can has as many warm kernels as its floor; raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            # For tests and benchmarks: nothing fires an event at it.
            while not all(  # noqa: ASYNC110
                len(pool.warm) >= pool.recipe.settings.warm or pool.stage is Stage.FAILED
                for pool in self.pools.values()
            ):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End everything that has no owner; kernels that have one live on."""
        self.stopped = True
        for pool in list(self.pools.values()):
            await pool.close()
        self.pools.clear()


async def _see_off(process: Process, timeout: float) -> None:
    for step in (None, process.terminate, process.kill):
        if step is not None:
            step()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(process.exited)
                return
        except TimeoutError:
            continue
