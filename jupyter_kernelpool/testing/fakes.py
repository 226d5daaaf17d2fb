"""Fakes to test a pool with, or a guard.

Those of a launcher have no real processes: pids are numbers, and a `Script` says what each step does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec

from jupyter_kernelpool.adoption import Adoption, Request
from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.limits.base import Enforcer, Reading, Subject
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import Recipe, Settings, build_recipe
from jupyter_kernelpool.supervision import Supervision
from jupyter_kernelpool.testing.enforcers import is_alive

BEYOND_PIDS = 1 << 22  # Linux gives no pid as high as this: a signal sent there by mistake meets nobody

log = logging.getLogger("jupyter_kernelpool.testing")


# -- a launcher, its processes and their supervisor -------------------------------------------------


class Outcome(Enum):
    """What a step of a `Script` does. An exception instead of one of these is raised."""

    SUCCEED = "succeed"
    HANG = "hang"
    DIE = "die"


Step = Outcome | Exception


@dataclass
class Script:
    """What happens to fake launchers and processes: one entry a call, `SUCCEED` when there is none left.

    `HANG` waits for `release`. *launchers* and *processes* are all that were made, oldest first.
    """

    prepares: deque[Step] = field(default_factory=deque)
    launches: deque[Step] = field(default_factory=deque)
    adoptions: deque[Step] = field(default_factory=deque)
    watched: list[str] = field(default_factory=list)
    launchers: list[FakeLauncher] = field(default_factory=list)
    processes: list[FakeProcess] = field(default_factory=list)
    _hanging: list[asyncio.Future[Step]] = field(default_factory=list)

    @property
    def hanging(self) -> int:
        """How many steps hang at the moment."""
        self._hanging = [gate for gate in self._hanging if not gate.done()]
        return len(self._hanging)

    def release(self, step: Step = Outcome.SUCCEED) -> None:
        """Let what hangs longest go on, with *step*."""
        assert self.hanging, "nothing hangs"
        self._hanging[0].set_result(step)

    async def play(self, steps: deque[Step]) -> Outcome:
        """Do the next of *steps*."""
        step = steps.popleft() if steps else Outcome.SUCCEED
        if step is Outcome.HANG:
            gate: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
            self._hanging.append(gate)
            step = await gate
        if isinstance(step, Exception):
            raise step
        return step


class FakeSupervision(Supervision):
    """Supervision without a supervisor: it notes what it is told."""

    def __init__(self) -> None:
        super().__init__(log)
        self.pid = BEYOND_PIDS
        self._pids = itertools.count(BEYOND_PIDS + 1)

    @property
    def alive(self) -> bool:
        return True

    async def start(self) -> None:
        """There is nothing to start."""

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: dict[str, str],
        cwd: str,
        settings: dict[str, Any] | None,
        fds: Sequence[int] = (),
    ) -> int:
        """A pid that is nobody's."""
        return next(self._pids)

    async def close(self) -> None:
        """There is nothing to close."""


class FakeProcess(Process):
    """A process that is none: `die` ends it, signals are noted, SIGTERM and SIGKILL end it a moment later."""

    def __init__(self, launcher: FakeLauncher) -> None:
        super().__init__(launcher.new_record(), launcher.supervision, None)
        self.script = launcher.script
        self.answers = True
        self.ahead = True
        self.signals: list[int] = []
        self.order: dict[str, Any] | None = None

    def offer(self, order: dict[str, Any], listeners: Sequence[int]) -> None:
        """Note *order*."""
        self.order = order

    async def adopted(self, *, replaceable: bool = False) -> None:
        """Do the next of the script's *adoptions*."""
        if await self.script.play(self.script.adoptions) is Outcome.DIE:
            self.die()
        if not self.alive:
            raise LaunchFailed(f"kernel process {self.pid} is gone")
        self.serving.set_result(None)

    async def check(self, timeout: float = 0) -> bool:
        """Whether it lives and *answers*."""
        return self.alive and self.answers

    def die(self, code: int = 1) -> None:
        """End now, as far as the supervisor knows; again changes nothing."""
        if self.alive:
            self._ended(code)

    def send_signal(self, signum: int) -> None:
        if self.alive:
            self.signals.append(signum)
            if signum in (signal.SIGTERM, signal.SIGKILL):
                asyncio.get_running_loop().call_soon(self.die, -signum)


class FakeLauncher(Launcher):
    """Launches `FakeProcess`es as its *script* says; `FakeLauncher.of(script)` makes the class to configure."""

    way: ClassVar[str] = "fake"
    script: ClassVar[Script]
    is_quick: ClassVar[bool] = True

    @classmethod
    def of(cls, script: Script, *, way: str = "fake", quick: bool = True) -> type[FakeLauncher]:
        """A launcher class that plays *script*."""
        return type("ScriptedLauncher", (cls,), {"script": script, "way": way, "is_quick": quick})

    def __init__(self, recipe: Recipe, supervision: Supervision, log: logging.Logger) -> None:
        super().__init__(recipe, supervision, log)
        self.prepared = False
        self.closed = False
        self._pid = 0
        self.script.launchers.append(self)

    @property
    def quick(self) -> bool:
        return self.is_quick and self.prepared and not self.closed

    @property
    def pid(self) -> int:
        return self._pid

    def watched(self) -> list[str]:
        return self.script.watched

    async def prepare(self) -> None:
        await self.script.play(self.script.prepares)
        self.prepared = True
        self._pid = await self.supervision.spawn([], env={}, cwd="/", settings=None)

    async def launch(self, *, ahead: bool = True) -> Process:
        process = FakeProcess(self)
        process.ahead = ahead
        self.script.processes.append(process)
        try:
            outcome = await self.script.play(self.script.launches)
            pid = await self.supervision.spawn([], env={}, cwd="/", settings=None)
        except BaseException:
            process.discard("not launched")
            process.die(-signal.SIGKILL)
            raise
        process.own(pid)
        process.record.move(State.WARM, why="ready", now=time.time())
        if outcome is Outcome.DIE:
            process.die()
        return process

    async def close(self) -> None:
        self.closed = True
        self._pid = 0


def python_spec(argv: Sequence[str] = (), **content: Any) -> KernelSpec:
    """A kernelspec as ipykernel installs it; *argv* and *content* replace parts."""
    command = list(argv) or ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return KernelSpec(argv=command, display_name="Python 3", language="python", **content)


def fake_recipe(
    *,
    warm: int = 2,
    most: int = 8,
    env: Mapping[str, str] | None = None,
    spec: KernelSpec | None = None,
    cwd: str = "/",
    **settings: Any,
) -> Recipe:
    """The recipe of a Python kernel, made as the pool makes it; *settings* are more of `Settings`."""
    return build_recipe(
        kernel_name="python3",
        spec=spec or python_spec(),
        env=dict(os.environ) if env is None else env,
        settings=Settings(warm, most, **settings),
        cwd=cwd,
        transport="tcp",
    )


def fake_request(kernel_id: str = "an-id", *, env: Mapping[str, str] | None = None, **changes: Any) -> Request:
    """A start of a Python kernel; *changes* replace fields of `Request`."""
    given: dict[str, Any] = {"kernel_name": "python3", "spec": python_spec(), "cwd": "/", "transport": "tcp"}
    environment = dict(os.environ) if env is None else env
    return Request(kernel_id=kernel_id, environment=environment, **{**given, **changes})


def fake_adoption() -> Adoption:
    """An adoption without listeners: for fake processes only."""
    return Adoption(info={"key": "a-key"}, connection_file="/nowhere.json", listeners=[], command=[], arguments=[])


# -- an enforcer ------------------------------------------------------------------------------------


class FakeEnforcer(Enforcer):
    """Holds nothing: it notes what it is told, and reads what it is told to read.

    *held* is what each kernel is held to; *used*, *causes* and *counts* are for `read` and `why_ended` to tell, by
    kernel id. *missing* is what `prepare` says.
    """

    name = "fake"
    holds = frozenset({"memory", "cpu", "processes", "open_files"})
    missing: ClassVar[dict[str, str]] = {}

    def __init__(self, headroom: float = 0.1) -> None:
        super().__init__(headroom)
        self.held: dict[str, tuple[int, Allowance]] = {}
        self.used: dict[str, Reading] = {}
        self.causes: dict[str, tuple[str, float]] = {}
        self.apart: list[int] = []
        self.ended: list[str] = []
        self.total = Allowance()
        self.closed = False

    def prepare(self) -> dict[str, str]:
        return dict(self.missing)

    def hold_together(self, total: Allowance, limits: frozenset[str]) -> None:
        self.total = total

    def hold(self, subject: Subject, allowance: Allowance, limits: frozenset[str]) -> None:
        self.held[subject.kernel_id] = (subject.pid, allowance)

    def read(self, subjects: Iterable[Subject], others: frozenset[int]) -> dict[str, Reading]:
        return {
            subject.kernel_id: self.used.get(subject.kernel_id, Reading(dict.fromkeys(self.holds, 0.0)))
            for subject in subjects
            if self.held.get(subject.kernel_id, (0,))[0] == subject.pid and is_alive(subject.pid)
        }

    def why_ended(self, subject: Subject) -> tuple[str, float] | None:
        return self.causes.get(subject.kernel_id)

    def end(self, subject: Subject) -> bool:
        self.ended.append(subject.kernel_id)
        return False

    def set_apart(self, pid: int) -> None:
        self.apart.append(pid)

    def let_go(self, kernel_id: str) -> None:
        self.held.pop(kernel_id, None)

    def close(self) -> None:
        self.held.clear()
        self.closed = True
