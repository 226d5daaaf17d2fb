"""Holds the sandboxes that recipes ask for: knows this machine, and starts what the pool can't give confined too."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace

from jupyter_core.paths import jupyter_runtime_dir

from jupyter_kernelpool.errors import LaunchFailed, NotEnforceable, Unfit
from jupyter_kernelpool.kernelside.confine import landlock_version
from jupyter_kernelpool.launchers.confined import NOT_ENFORCEABLE, confined_command, prove_confinement
from jupyter_kernelpool.launchers.spawn import SpawnLauncher
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import Recipe
from jupyter_kernelpool.sandbox import Confinement, Place, Sandbox, confine
from jupyter_kernelpool.supervision import Supervision


class Sandboxing:
    """The sandboxes of one server's kernels. *root_dir* is the notebooks' folder, *copies_dir* that of copies of it."""

    def __init__(self, supervision: Supervision, log: logging.Logger, *, root_dir: str, copies_dir: str) -> None:
        self._supervision = supervision
        self._log = log
        self._root_dir = os.path.abspath(os.path.expanduser(root_dir or os.getcwd()))
        self._copies_dir = copies_dir
        self._temporary = ""
        self._landlock: int | None = None

    @property
    def landlock(self) -> int:
        """The version of Landlock here, 0 for none."""
        if self._landlock is None:
            self._landlock = landlock_version() if sys.platform == "linux" else 0
        return self._landlock

    def confine(self, sandbox: Sandbox, takes_listeners: bool) -> Confinement | None:
        """What is done for *sandbox* here, or can't be; None if it asks for nothing."""
        if not sandbox.asked_for:
            return None
        programs = {name for name in ("bwrap", *sandbox.launch_prefix[:1]) if shutil.which(name)}
        place = Place(
            root_dir=self._root_dir,
            runtime_dir=jupyter_runtime_dir(),
            temporary=self._temporary_folder(),
            landlock=self.landlock,
            programs=frozenset(programs),
            copies_dir=self._copies_dir,
        )
        return confine(sandbox, place, takes_listeners=takes_listeners)

    async def start(self, recipe: Recipe, *, tried: bool) -> Process:
        """A kernel of *recipe*, started for who waits for it, in its sandbox: what is elsewhere stock's cold start.

        As there, nothing is preloaded, and init code is run only where it was *tried*. Raises `NotEnforceable`,
        `LaunchFailed`.
        """
        plain = replace(recipe.settings, preload=(), init_code=recipe.settings.init_code if tried else "")
        launcher = SpawnLauncher(
            replace(recipe, settings=plain, environment=recipe.environment), self._supervision, self._log
        )
        try:
            await launcher.prepare()
            return await launcher.launch(ahead=False)
        except Unfit as error:
            if error.facts.get("kind") == NOT_ENFORCEABLE:
                raise NotEnforceable(str(error)) from error
            raise LaunchFailed(f"no kernel starts in the sandbox: {error}", reason="unfit") from error

    async def wrap(
        self, cmd: list[str], env: Mapping[str, str], confinement: Confinement, connection_file: str
    ) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of a kernel that is not ours, inside its sandbox.

        Raises `NotEnforceable` where it can't be made.
        """
        confined = confinement.environment(env)
        await prove_confinement(confinement, confined, sys.executable)
        return confined_command(cmd, confinement, connection_file), confined

    def _temporary_folder(self) -> str:
        """A folder for the temporary files of confined kernels, made when first needed; it goes with the server."""
        if not self._temporary:
            self._temporary = tempfile.mkdtemp(prefix="kernelpool-")
            self._supervision.guard([self._temporary])
        return self._temporary
