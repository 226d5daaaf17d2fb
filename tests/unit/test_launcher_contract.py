"""The fake launcher keeps the contract that real ones are held to."""

import asyncio

import pytest

from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.testing import (
    FakeLauncher,
    FakeSupervision,
    LauncherBench,
    Outcome,
    Script,
    fake_recipe,
    launcher_contract,
    log,
)


def fake_bench(script: Script) -> LauncherBench:
    launcher_class = FakeLauncher.of(script)
    supervision = FakeSupervision()

    def left() -> set[int]:
        behind = {launcher.pid for launcher in script.launchers if launcher.pid}
        return behind | {process.pid for process in script.processes if process.alive}

    async def hand_over(process: Process) -> bool:
        process.offer({}, [])
        await process.adopted()
        return True

    return LauncherBench(lambda: launcher_class(fake_recipe(), supervision, log), left, hand_over)


@pytest.mark.parametrize("check", launcher_contract, ids=lambda check: check.__name__)
async def test_fake_launcher_keeps_the_contract(check):
    await check(fake_bench(Script()))


@pytest.mark.parametrize("check", launcher_contract, ids=lambda check: check.__name__)
async def test_contract_finds_a_launcher_that_does_nothing_right(check):
    class Careless(FakeLauncher):
        script = Script()

        async def launch(self, **how):
            process = await super().launch(**how)
            process.answers = False
            process.record.way = "elsewhere"
            process.pid = self.pid
            process.send_signal = lambda signum: None
            return process

        async def prepare(self):
            await asyncio.shield(super().prepare())

        async def close(self):
            pass

    bench = fake_bench(Careless.script)
    bench.make = lambda: Careless(fake_recipe(), FakeSupervision(), log)
    Careless.script.adoptions.append(Outcome.DIE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jupyter_kernelpool.testing.launchers.PATIENCE", 0.05)
        with pytest.raises((AssertionError, TimeoutError, LaunchFailed)):
            await check(bench)
