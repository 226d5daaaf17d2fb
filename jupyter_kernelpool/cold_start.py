"""A kernel that stock launches, in our books: what is added to its command, its record, and that the supervisor ends it
with the server.
"""

from __future__ import annotations

import os
import time
from typing import Any

from jupyter_kernelpool import metrics
from jupyter_kernelpool.lifecycle import Record, State
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.recipe_pool import RecipePool


class ColdStart:
    """One process of the kernel *kernel_id*, from before its launch to its end."""

    def __init__(self, pool: KernelPool, kernel_name: str, kernel_id: str) -> None:
        self.record = Record(recipe=kernel_name, way="cold", born=time.time(), kernel_id=kernel_id)
        self._pool = pool
        self._kernel_name = kernel_name
        self._pid = 0
        metrics.record_born(self.record)

    async def prepare(
        self, cmd: list[str], kwargs: dict[str, Any], recipe_pool: RecipePool | None, connection_file: str
    ) -> tuple[list[str], dict[str, Any]]:
        """Command and arguments for stock's launch, inside the sandbox if there is to be one.

        Raises `NotEnforceable`.
        """
        cmd = [*cmd, *_init_code_arguments(recipe_pool)]
        if not self._pool.is_sandboxed(self._kernel_name):
            return cmd, kwargs
        sandboxing = self._pool.sandboxing
        confinement = sandboxing.confine(self._pool.settings_for(self._kernel_name).sandbox, False)
        assert confinement is not None
        wrapped, env = await sandboxing.wrap(cmd, kwargs.get("env") or os.environ, confinement, connection_file)
        return wrapped, {**kwargs, "env": env}

    def began(self, pid: int) -> None:
        """Stock has launched it."""
        self.record.pid = self._pid = pid
        self.record.move(State.ACTIVE, why="started cold", now=time.time())
        self._pool.supervision.track(pid)

    def failed(self, error: BaseException) -> None:
        """Stock could not launch it."""
        self.record.end(why=f"not started: {error}", now=time.time())

    def ended(self, code: int | None) -> None:
        """It has ended, with that exit code if it is known; no-op if that was said before."""
        if self._pid:
            self._pool.supervision.untrack(self._pid)
            self._pid = 0
        self.record.end(why=f"exit code {code}" if code is not None else "ended", now=time.time())


def _init_code_arguments(recipe_pool: RecipePool | None) -> list[str]:
    """What makes a cold kernel run the recipe's init code too, if that is known to end well."""
    if recipe_pool is None or not recipe_pool.verified or not recipe_pool.recipe.settings.init_code:
        return []
    # Two, because traitlets would read a single one that looks like a list as a list.
    return [f"--IPKernelApp.exec_lines={line}" for line in ("None", recipe_pool.recipe.settings.init_code)]
