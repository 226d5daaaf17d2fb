"""Warm kernels as forks of a template: one parked process per recipe that holds the imports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.errors import LaunchFailed, Unfit
from jupyter_kernelpool.launchers.base import Launcher, socket_pair
from jupyter_kernelpool.launchers.confined import NOT_ENFORCEABLE, is_prefixed, prove
from jupyter_kernelpool.launchers.forks import Forks
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import resolve_interpreter

LAUNCH_SCRIPT = Path(__file__).parent.parent / "kernelside" / "launch.py"


def kernelside_command(recipe: Any) -> list[str]:
    """The command that starts `kernelside` in the recipe's environment and sandbox (the settings follow as JSON)."""
    command = recipe.command
    prefix = recipe.confinement.prefix if recipe.confinement is not None else ()
    return [*prefix, resolve_interpreter(command.interpreter), *command.options, str(LAUNCH_SCRIPT)]


def kernelside_settings(recipe: Any, mode: str) -> dict[str, Any]:
    """Settings for `kernelside/launch.py`; the supervisor adds the descriptors."""
    return {
        "mode": mode,
        "arguments": list(recipe.command.arguments),
        "preload": list(recipe.settings.preload),
        "init_code": recipe.settings.init_code,
        "confine": recipe.confinement.order if recipe.confinement is not None else None,
    }


class TemplateLauncher(Launcher):
    """Forks kernels from a template, which it starts with `prepare` and holds by a private socket pair.

    The socket has no name in the file system: only the server and the template ever hold an end of it.
    """

    way = "template"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._pid = 0
        self._prefix = 0  # the process of a launch_prefix, until the template behind it has said who it is
        self._loaded = False
        self._channel: Channel | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._forks = Forks("the template")
        self._watched: list[str] = []
        self.seconds_to_load = 0.0

    @staticmethod
    def why_not(recipe: Any) -> str | None:
        """Why this platform or recipe can't be forked, or None."""
        if sys.platform != "linux":
            return f"forking is done on Linux only (this is {sys.platform})"
        if not recipe.adoptable:
            return "not a Python kernel that ipykernel launches"
        return None

    @property
    def quick(self) -> bool:
        return self._loaded and self._channel is not None and not self._channel.closed

    @property
    def alive(self) -> bool:
        return self.quick

    @property
    def pid(self) -> int:
        return self._pid if self.quick else 0

    def watched(self) -> list[str]:
        return self._watched

    async def prepare(self) -> None:
        reason = self.why_not(self.recipe)
        if reason is not None:
            raise Unfit(reason, reason=reason, traceback="")
        await self.close()
        await prove(self.recipe)
        ours, its = socket_pair()
        ready = self._ready = asyncio.get_running_loop().create_future()
        self._channel = Channel(ours, self._heard, self._lost)
        try:
            with its:
                spawned = await self.supervision.spawn(
                    kernelside_command(self.recipe),
                    env=self.recipe.environment,
                    cwd="/",
                    settings=kernelside_settings(self.recipe, "template"),
                    fds=[its.fileno()],
                )
            self._pid = spawned
            self._prefix = spawned if is_prefixed(self.recipe) else 0
            self.supervision.watch(spawned, lambda code: self._ended(spawned, code))
            try:
                async with asyncio.timeout(self.recipe.settings.load_timeout):
                    message = await ready
            except TimeoutError as error:
                text = (
                    "the template was not ready within KernelPool.load_timeout = "
                    f"{self.recipe.settings.load_timeout:g} s: a preload or the init code hangs"
                )
                raise Unfit(text, reason=text, traceback="", kind="init_code") from error
        except BaseException:
            await self.close()
            raise
        self._loaded = True
        self._watched = message["watch"]
        self.seconds_to_load = message["seconds"]

    async def launch(self, *, ahead: bool = True) -> Process:
        if self._channel is None or self._channel.closed:
            raise LaunchFailed("the template is gone")
        ours, its = socket_pair()
        process = Process(self.new_record(), self.supervision, ours)
        await self._forks.order(self._channel, process, its, timeout=self.recipe.settings.load_timeout, ahead=ahead)
        return process

    async def close(self) -> None:
        pid, self._pid, self._loaded = self._pid, 0, False
        end = os.killpg if pid == self._prefix else os.kill  # behind a prefix it may not have said yet who it is
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    end(pid, signal.SIGKILL)

    def _heard(self, message: dict[str, Any]) -> None:
        match message["event"]:
            case "here":  # behind a prefix, whose process ends now
                self._pid = pid = message["pid"]
                self.supervision.watch(pid, lambda code: self._ended(pid, code))
            case "ready":
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message)
            case "unfit":
                if self._ready is not None and not self._ready.done():
                    reason = message["reason"]
                    self._ready.set_exception(Unfit(reason, **_facts(message)))
            case "fork_failed":
                self._forks.failed(message)

    def _ended(self, pid: int, code: int) -> None:
        if pid != self._pid or (pid == self._prefix and code == 0):
            return  # a prefix ends so once the template behind it has told who it is, and that is on its way
        self._pid = 0  # not ours to signal any longer
        self._lost()
        if self._ready is None or self._ready.done():
            return
        if code == -signal.SIGKILL:  # by the system, an operator, or the lifeline: no fault of the recipe's
            self._ready.set_exception(LaunchFailed("the template was killed while it was loading"))
        elif pid == self._prefix:
            text = f"the launch_prefix ended with status {code}: see the server's log"
            self._ready.set_exception(Unfit(text, reason=text, traceback="", kind=NOT_ENFORCEABLE))
        else:
            text = "the template ended while it was loading: a preload or the init code ends the process"
            self._ready.set_exception(Unfit(text, reason=text, traceback="", kind="init_code"))

    def _lost(self) -> None:
        """The channel ended; why, is known once the exit code is (`_ended`)."""
        if self._channel is not None:
            self._channel.close()


def _facts(message: dict[str, Any]) -> dict[str, Any]:
    """What `unfit` says, as facts of the error."""
    return {name: message.get(name, "") for name in ("reason", "traceback", "kind")}
