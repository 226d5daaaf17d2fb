"""For those who write a launcher: the contract that every one keeps.

It is `launcher_contract`, a tuple of async checks; run each on a `LauncherBench` of your own::

    @pytest.mark.parametrize("check", launcher_contract, ids=lambda check: check.__name__)
    async def test_launcher_keeps_the_contract(check):
        async with my_bench() as bench:
            await check(bench)
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.lifecycle import Record, State
from jupyter_kernelpool.process import Process

PATIENCE = 20.0


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
