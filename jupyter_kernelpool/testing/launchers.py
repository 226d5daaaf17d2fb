"""For those who write a launcher: fakes to test a pool with, and the contract that every launcher keeps.

The fakes have no real processes: pids are numbers, and a `Script` says what each step does. The contract
is `launcher_contract`, a tuple of async checks; run each on a `LauncherBench` of your own::

    @pytest.mark.parametrize("check", launcher_contract, ids=lambda check: check.__name__)
    async def test_launcher_keeps_the_contract(check):
        async with my_bench() as bench:
            await check(bench)
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec

from jupyter_kernelpool.adoption import Adoption, Request
from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.lifecycle import Record, State
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import Recipe, Settings, build_recipe
from jupyter_kernelpool.supervision import Supervision

BEYOND_PIDS = 1 << 22  # Linux gives no pid as high as this: a signal sent there by mistake meets nobody
PATIENCE = 20.0

log = logging.getLogger("jupyter_kernelpool.testing")


# -- fakes ------------------------------------------------------------------------------------------


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


def fake_identity() -> Adoption:
    """An identity without listeners: for fake processes only."""
    return Adoption(info={"key": "a-key"}, connection_file="/nowhere.json", listeners=[], command=[], arguments=[])


# -- the contract of launchers ----------------------------------------------------------------------


@dataclass
class LauncherBench:
    """What the checks need to know of a launcher under test.

    *make* makes a new launcher for a recipe that it is fit for; *left* says which processes of the
    launchers made so far are alive (their pids); *hand_over* makes a user's kernel of a warm process, asks
    it something as a client would, and says whether it answered.
    """

    make: Callable[[], Launcher]
    left: Callable[[], set[int]]
    hand_over: Callable[[Process], Awaitable[bool]]

    async def prepared(self) -> Launcher:
        launcher = self.make()
        await launcher.prepare()
        return launcher

    async def nothing_left(self) -> None:
        """Wait until no process is left; raises `AssertionError` after a while, with their pids."""
        deadline = time.monotonic() + PATIENCE
        while left := self.left():
            assert time.monotonic() < deadline, f"processes {sorted(left)} are left"
            await asyncio.sleep(0.02)


async def launched_process_is_warm_and_named(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    process = await launcher.launch()
    assert process.alive
    assert process.record.state is State.WARM
    assert process.record.way == launcher.way
    assert process.record.recipe == launcher.recipe.name
    assert process.pid == process.record.pid > 0
    assert process.pid in bench.left()
    await _tidy(bench, launcher, process)


async def warm_process_answers_checks(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    process = await launcher.launch()
    assert await process.check()
    assert await process.check()
    await _tidy(bench, launcher, process)


async def launches_at_the_same_time_are_processes_of_their_own(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    processes = await asyncio.gather(*(launcher.launch() for _ in range(3)))
    assert len({process.pid for process in processes}) == 3
    assert len({process.record.id for process in processes}) == 3
    await _tidy(bench, launcher, *processes)


async def handed_over_process_serves_its_user(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    process = await launcher.launch()
    process.record.move(State.ACTIVE, why="claimed", now=time.time())
    assert await bench.hand_over(process)
    async with asyncio.timeout(PATIENCE):
        await asyncio.shield(process.serving)
    assert process.alive
    await _tidy(bench, launcher, process)


async def end_of_a_process_is_reported(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    process = await launcher.launch()
    process.kill()
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.shield(process.exited) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL
    assert not process.alive
    assert not await process.check()
    assert process.record.state is State.DEAD
    await _tidy(bench, launcher)


async def discarded_process_ends(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    process = await launcher.launch()
    process.discard("no longer needed")
    assert State.STOPPING in [move.to for move in process.record.story]
    async with asyncio.timeout(PATIENCE):
        await asyncio.shield(process.exited)
    assert process.record.state is State.DEAD
    process.discard("again")
    await _tidy(bench, launcher)


async def cancelled_launch_leaves_nothing(bench: LauncherBench) -> None:
    """Cancelled at once, after some turns of the event loop, and after some of its time."""
    launcher = await bench.prepared()
    records: list[Record] = []
    new_record = launcher.new_record

    def noted() -> Record:
        records.append(new_record())
        return records[-1]

    launcher.new_record = noted  # type: ignore[method-assign]
    began = time.monotonic()
    await _tidy(bench, None, await launcher.launch())
    usual = time.monotonic() - began
    behind = {launcher.pid} - {0}
    for turns in (0, 1, 2, 3):
        task = asyncio.create_task(launcher.launch())
        for _ in range(turns):
            await asyncio.sleep(0)
        await _cancel(task)
    for share in (0.1, 0.3, 0.6, 0.9):
        task = asyncio.create_task(launcher.launch())
        await asyncio.wait([task], timeout=usual * share)
        await _cancel(task)
    deadline = time.monotonic() + PATIENCE
    while bench.left() - behind or any(record.state is not State.DEAD for record in records):
        assert time.monotonic() < deadline, (
            f"cancelled launches left processes {bench.left() - behind} and records "
            f"{[record for record in records if record.state is not State.DEAD]}"
        )
        await asyncio.sleep(0.02)
    process = await launcher.launch()  # and it still works
    await _tidy(bench, launcher, process)


async def cancelled_preparation_leaves_nothing(bench: LauncherBench) -> None:
    for turns in (0, 1, 2, 3, 10):
        launcher = bench.make()
        task = asyncio.create_task(launcher.prepare())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await launcher.close()
    await bench.nothing_left()


async def closed_launcher_leaves_its_processes_alive(bench: LauncherBench) -> None:
    launcher = await bench.prepared()
    process = await launcher.launch()
    behind = launcher.pid
    await launcher.close()
    await launcher.close()
    assert launcher.pid == 0
    assert await process.check()
    deadline = time.monotonic() + PATIENCE
    while behind in bench.left():
        assert time.monotonic() < deadline, "what stood behind the launches is still there"
        await asyncio.sleep(0.02)
    assert process.alive
    await _tidy(bench, launcher, process)


async def _cancel(task: asyncio.Task[Process]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        task.result().discard("launched before it could be cancelled")


async def _tidy(bench: LauncherBench, launcher: Launcher | None, *processes: Process) -> None:
    for process in processes:
        process.discard("the check is over")
    for process in processes:
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(process.exited)
    if launcher is not None:
        await launcher.close()
        await bench.nothing_left()


launcher_contract: tuple[Callable[[LauncherBench], Awaitable[None]], ...] = (
    launched_process_is_warm_and_named,
    warm_process_answers_checks,
    launches_at_the_same_time_are_processes_of_their_own,
    handed_over_process_serves_its_user,
    end_of_a_process_is_reported,
    discarded_process_ends,
    cancelled_launch_leaves_nothing,
    cancelled_preparation_leaves_nothing,
    closed_launcher_leaves_its_processes_alive,
)
