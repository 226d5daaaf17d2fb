"""Launching inside a sandbox: what stands before a kernel's command, and the proof that it works here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_kernelpool.errors import NotEnforceable, Unfit
from jupyter_kernelpool.recipes import Recipe, resolve_interpreter
from jupyter_kernelpool.sandbox import Confinement

CONFINE_SCRIPT = Path(__file__).parent.parent / "kernelside" / "confine.py"
NOT_ENFORCEABLE = "not_enforceable"
PROOF_TIMEOUT = 20.0


def is_prefixed(recipe: Recipe) -> bool:
    """Whether another program stands between the supervisor and the kernel."""
    return recipe.confinement is not None and bool(recipe.confinement.prefix)


async def prove(recipe: Recipe) -> None:
    """Make the recipe's sandbox once, around nothing; raises `Unfit` with the reason where that fails."""
    if recipe.confinement is None:
        return
    interpreter = resolve_interpreter(recipe.command.interpreter) if recipe.adoptable and recipe.command else ""
    try:
        await prove_confinement(recipe.confinement, recipe.environment, interpreter or sys.executable)
    except NotEnforceable as error:
        raise Unfit(str(error), reason=str(error), traceback="", kind=NOT_ENFORCEABLE) from error


async def prove_confinement(confinement: Confinement, env: Mapping[str, str], interpreter: str) -> None:
    """The same, for what runs in *env*; raises `NotEnforceable`."""
    if confinement.lacks is not None:
        raise NotEnforceable(confinement.lacks)
    command = [*confinement.prefix, *_script(interpreter, confinement.order)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise NotEnforceable(f"the sandbox can't be made: {command[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(PROOF_TIMEOUT):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise NotEnforceable(f"the sandbox could not be made within {PROOF_TIMEOUT:g} s: {command[0]} hangs") from error
    finally:
        if process.returncode is None:
            kill_prefix(process.pid)
            await process.wait()
    if process.returncode:
        last = (
            said.decode(errors="replace").strip().rpartition("\n")[2] or f"{command[0]} ended with {process.returncode}"
        )
        raise NotEnforceable(f"the sandbox can't be made: {last}")


def confined_command(cmd: list[str], confinement: Confinement | None, connection_file: str) -> list[str]:
    """*cmd*, the kernel's own command, inside the sandbox; it can read *connection_file* there.

    What stands between ignores SIGINT, which is sent to them all: bwrap, for one, would end.
    """
    if confinement is None:
        return cmd
    inside = _script(sys.executable, {**confinement.order, "shown": [connection_file]})
    if not confinement.prefix:
        return [*inside, *cmd]
    return [*_script(sys.executable, {"deaf": True}), *confinement.prefix, *inside, *cmd]


def kill_prefix(pid: int) -> None:
    """End the session of *pid*, which was started before anything in it was known by name."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _script(interpreter: str, order: Mapping[str, Any]) -> list[str]:
    return [interpreter, "-I", "-S", str(CONFINE_SCRIPT), json.dumps(order)]
