"""Warm Python kernels spawned ahead, one interpreter each: where forking is not possible or not wanted."""

from __future__ import annotations

import contextlib
import os

from jupyter_kernelpool.errors import Unfit
from jupyter_kernelpool.launchers.base import Launcher, socket_pair
from jupyter_kernelpool.launchers.confined import is_prefixed, kill_prefix, prove
from jupyter_kernelpool.launchers.template import kernelside_command, kernelside_settings
from jupyter_kernelpool.process import Process, until_ready
from jupyter_kernelpool.recipes import resolve_interpreter


class SpawnLauncher(Launcher):
    """Spawns kernels that wait, unbound, for their identity."""

    way = "spawn"

    async def prepare(self) -> None:
        if not self.recipe.adoptable:
            reason = "not a Python kernel that ipykernel launches"
            raise Unfit(reason, reason=reason, traceback="")
        await prove(self.recipe)

    def watched(self) -> list[str]:
        command = self.recipe.command
        assert command is not None
        interpreter = resolve_interpreter(command.interpreter)
        return [interpreter, *_site_packages(interpreter)]

    async def launch(self, *, ahead: bool = True) -> Process:
        ours, its = socket_pair()
        process = Process(self.new_record(), self.supervision, ours)
        try:
            with its:
                pid = await self.supervision.spawn(
                    kernelside_command(self.recipe),
                    env=self.recipe.environment,
                    cwd="/",
                    settings=kernelside_settings(self.recipe, "warm"),
                    fds=[its.fileno()],
                )
        except BaseException:
            process.discard("not spawned")
            raise
        if is_prefixed(self.recipe):  # the kernel behind it says itself who it is
            self.supervision.watch(pid, process.prefix_ended)
        else:
            process.own(pid)
        try:
            await until_ready(process, self.recipe.settings.load_timeout)
        finally:
            if is_prefixed(self.recipe) and not process.pid:
                kill_prefix(pid)
        return process

    async def close(self) -> None:
        """Nothing stands behind spawned kernels."""


def _site_packages(interpreter: str) -> list[str]:
    """Where packages are installed for *interpreter*, guessed from its place: site-packages, Debian's dist-packages,
    and the user's own."""
    prefix = os.path.dirname(os.path.dirname(interpreter))
    found = []
    for base in (prefix, os.path.join(prefix, "local"), os.path.expanduser("~/.local")):
        library = os.path.join(base, "lib")
        with contextlib.suppress(OSError):
            for entry in sorted(os.listdir(library)):
                if entry.startswith("python3"):
                    found += [os.path.join(library, entry, name) for name in ("site-packages", "dist-packages")]
    return found
