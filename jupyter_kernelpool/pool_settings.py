"""The traits of the pool, and what they say about the kernels of each kernelspec; REST changes that at run time."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from traitlets import Bool, CaselessStrEnum, Dict, Float, Integer, List, TraitError, Type, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool.allowance import read_size
from jupyter_kernelpool.decisions import Policy
from jupyter_kernelpool.errors import NotValid
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.launchers.spawn import SpawnLauncher
from jupyter_kernelpool.launchers.template import TemplateLauncher
from jupyter_kernelpool.launchers.whole import WholeLauncher
from jupyter_kernelpool.owners import read_quota
from jupyter_kernelpool.presets import PRESETS
from jupyter_kernelpool.recipes import Settings
from jupyter_kernelpool.settings import read_preload, read_settings
from jupyter_kernelpool.textfile import SUFFIX, find_path


class PoolSettings(LoggingConfigurable):
    """What `KernelPool` is configured with, apart from what it does."""

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
        {setting: value}, "recovery": policy, "on_unresponsive": policy, "restore": bool}}.
        Launchers: "auto" (the default), "template" (forks), "spawn" (Python started ahead), "whole" (any
        language, started ahead with its own connection; the only one for languages other than Python), "off"
        (always cold). Limits are those of KernelLimits, cull those of KernelCuller; recovery,
        on_unresponsive and restore are those of KernelHealth. They hold for these kernels in their place.
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
        help="""Bytes of memory to leave free: below it nothing is made ahead, and warm kernels are given up. Where
        KernelCuller.reserve_memory is more, that counts.""",
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

    @validate("preload")
    def _valid_preload(self, proposal: Any) -> Any:
        try:
            read_preload("KernelPool", proposal["value"])
        except NotValid as error:
            raise TraitError(
                f"{error}; on the command line each has an option of its own: "
                "--KernelPool.preload=numpy --KernelPool.preload=pandas"
            ) from error
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
        self.overrides: dict[str, Settings] = {}

    culling_reserve = 0  # bytes below which users' kernels are ended: those that nobody owns go before them

    @property
    def policy(self) -> Policy:
        """The traits that decide, for `decisions.plan`."""
        return Policy(
            max_warm_age=self.max_warm_age,
            max_warm_memory=int(self.max_warm_memory),
            recipe_idle=self.recipe_idle,
            parallel_starts=self.parallel_starts,
            reserve_memory=max(self.reserve_memory, self.culling_reserve),
            busy_cores=self.busy_cores,
        )

    def settings_for(self, kernel_name: str) -> Settings:
        """What the configuration, or a later change through REST, says about *kernel_name*."""
        if kernel_name in self.overrides:
            return self.overrides[kernel_name]
        return self.configured(kernel_name)

    def configured(self, kernel_name: str) -> Settings:
        """What the configuration says about *kernel_name*, whatever was changed since."""
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
        """Change the settings of *kernel_name* at run time; raises `NotValid` and changes nothing if wrong.

        Of `limits` only those that are named change.
        """
        present = self.settings_for(kernel_name)
        merged: dict[str, Any] = {
            "warm": present.warm, "max": present.max, "preload": list(present.preload),
            "init_code": present.init_code, "launcher": present.launcher, "limits": dict(present.limits),
            "cull": dict(present.cull),
            "recovery": present.recovery, "on_unresponsive": present.on_unresponsive, "restore": present.restore,
        }  # fmt: skip
        if "warm" in changes and "max" not in changes and isinstance(changes["warm"], int):
            merged["max"] = max(merged["max"], changes["warm"])
        if isinstance(changes.get("limits"), dict):
            changes = {**changes, "limits": {**merged["limits"], **changes["limits"]}}
        settings = read_settings(kernel_name, {**merged, **changes}, self._general)
        settings = replace(settings, sandbox=present.sandbox)  # the configuration's alone
        self.overrides[kernel_name] = settings
        self.settings_changed()
        return settings

    def settings_changed(self) -> None:
        """Called when the settings of a kernelspec were changed."""
