"""What follows the end of a process, with a fake server's manager: who is quicker, and how often."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from jupyter_kernelpool import aftermath as aftermath_module
from jupyter_kernelpool.aftermath import Aftermath
from jupyter_kernelpool.chronicle import Chronicle
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.health import Standing, Verdict
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lives import Lives
from jupyter_kernelpool.lookout import KernelAlerts, Lookout
from jupyter_kernelpool.starts import Starts


class Process:
    """A Popen that has ended."""

    pid = 0

    def poll(self):
        return 1


class FakeManager:
    """The server's, with one kernel `k`, whose process started cold."""

    def __init__(self):
        self.restarter = SimpleNamespace(restart_limit=2, gives_up_next=False)
        record = SimpleNamespace(way="cold", state=None)
        self.kernel = SimpleNamespace(
            kernel_name="python3", owns_kernel=True, execution_state="idle", reason="", restarts_for=None,
            provisioner=SimpleNamespace(process=Process(), record=record), _restarter=self.restarter,
        )  # fmt: skip
        self.own = SimpleNamespace(recovery=None, on_unresponsive=None, restore=None)
        self.pool = SimpleNamespace(supervision=SimpleNamespace(pids=frozenset()), settings_for=lambda name: self.own)
        self.checkpoints = []
        self.forking = SimpleNamespace(checkpoints_of=lambda kernel_id: self.checkpoints)
        self.brought_back = 0

    def __contains__(self, kernel_id):
        return kernel_id == "k"

    def get_kernel(self, kernel_id):
        return self.kernel

    async def bring_back(self, kernel_id, *, restore):
        self.brought_back += 1
        return "restored"


class House:
    """An `Aftermath`, and the kernel's life."""

    def __init__(self, **settings):
        self.manager, self.settings = FakeManager(), KernelHealth(**settings)
        events, edge = Events(), Edge()
        self.lives, self.starts = Lives(self.manager), Starts(self.settings.breaker)
        chronicle = Chronicle(events, edge, Lookout(KernelAlerts()))
        self.aftermath = Aftermath(self.manager, self.settings, self.lives, self.starts, edge, chronicle)
        self.life = self.lives.begin("k")

    def starts_anew(self, *, answered=False, seconds=0.0):
        """The kernel has another process, as `Care.has_process` notes it, that answered *seconds* after its start."""
        self.life.replaced()
        self.life.end, self.life.restart_at, self.life.born = None, 0.0, time.monotonic() - 2 * seconds
        self.life.answered_at = self.life.born + seconds if answered else None
        self.life.standing = Standing(verdict=Verdict.HUNG, answered=answered)

    async def silent(self):
        await self.aftermath.end("k", self.manager.kernel, self.life)


@pytest.fixture
def kp_pids(monkeypatch):
    """What is ended; nothing really is."""
    ended = []
    monkeypatch.setattr(aftermath_module, "find_pid", lambda kernel: 1234)
    monkeypatch.setattr(aftermath_module, "end_tree", lambda pid, others: ended.append(pid) or True)
    return ended


async def test_user_who_restarts_a_silent_kernel_while_it_is_ended_is_left_alone(kp_pids, monkeypatch):
    house = House()
    house.starts_anew(answered=True)

    def end_tree(pid, others):
        house.aftermath.restarts("k")
        house.starts_anew()
        return True

    monkeypatch.setattr(aftermath_module, "end_tree", end_tree)
    await house.silent()
    await asyncio.sleep(0.05)
    assert house.manager.brought_back == 0
    assert (house.life.end, house.life.coming_back, house.life.ends) == (None, None, [])


async def test_user_whose_restart_is_under_way_when_the_pause_is_over_is_left_alone(kp_pids):
    house = House(restart_pause=0.05)
    house.life.ends.append(time.monotonic())
    house.starts_anew(answered=True)
    await house.silent()
    assert house.aftermath.is_bringing_back("k")
    house.aftermath.restarts("k")  # its user's restart has begun, and no process has come of it yet
    assert not house.aftermath.is_bringing_back("k")
    await asyncio.sleep(0.3)
    assert house.manager.brought_back == 0
    house.starts_anew()
    house.aftermath.stays_dead("k")
    assert house.life.end == "Its process ended with exit code 1", "the new one's death is noted"
    await house.aftermath.close()


async def test_what_is_brought_back_here_is_no_restart_by_others(kp_pids):
    house = House()
    house.starts_anew(answered=True)
    going_on = asyncio.Event()

    async def bring_back(kernel_id, *, restore):
        house.aftermath.restarts("k")
        assert house.aftermath.is_bringing_back("k")
        going_on.set()
        return "restarted"

    house.manager.bring_back = bring_back
    await house.silent()
    async with asyncio.timeout(5):
        await going_on.wait()
    await asyncio.sleep(0.01)
    assert not house.aftermath.is_bringing_back("k")


async def test_silent_processes_in_a_row_are_starts_that_failed_and_end_at_jupyters_limit(kp_pids):
    house = House(restart_window=1.0, breaker_failures=2, restart_pause=0.0)
    for _ in range(3):
        house.starts_anew()
        house.life.ends = [at - 100 for at in house.life.ends]  # each took long
        await house.silent()
        await asyncio.sleep(0.01)
    assert house.life.stays
    assert (
        "none of its last 3 processes answered for 1 s, and KernelRestarter.restart_limit is 2"
        in house.manager.kernel.reason
    )
    assert house.manager.brought_back == 2
    assert house.starts.breakers["python3"].state(time.monotonic()) == "open"


async def test_processes_that_answer_once_and_then_fall_silent_end_at_jupyters_limit(kp_pids):
    house = House(restart_window=60.0, restart_pause=0.0, breaker_failures=2)
    for _ in range(3):
        house.starts_anew(answered=True, seconds=30.0)
        house.life.ends = [at - 100 for at in house.life.ends]
        await house.silent()
        await asyncio.sleep(0.01)
    assert house.life.stays
    assert "none of its last 3 processes answered for 60 s" in house.manager.kernel.reason
    assert house.starts.breakers.get("python3") is None, "they had started"


async def test_a_process_that_lasts_in_between_begins_the_count_anew(kp_pids):
    house = House(restart_window=1.0)
    for answered in (False, False, True, False, False):
        house.starts_anew(answered=answered, seconds=30.0)
        house.life.ends = [at - 100 for at in house.life.ends]
        await house.silent()
        house.life.coming_back = None
    assert not house.life.stays
    assert house.life.fruitless == 2
    await house.aftermath.close()


@pytest.mark.parametrize("gives_up_next", [False, True])
async def test_deaths_before_an_answer_that_jupyter_does_not_count_are_capped(gives_up_next):
    house = House(restart_window=1.0, restart_pause=0.0)
    for _ in range(3):
        house.starts_anew()
        house.life.ends = [at - 100 for at in house.life.ends]
        house.aftermath.stays_dead("k")
        house.manager.restarter.gives_up_next = gives_up_next
    assert house.life.stays is not gives_up_next, "at its own limit Jupyter forgets it, as it always did"
    assert not house.aftermath.is_bringing_back("k")
    await house.aftermath.close()


@pytest.mark.parametrize("recovery, comes_back", [("never", False), ("on_failure", True), ("always", True)])
async def test_what_was_ended_for_its_silence_comes_back_only_where_its_recovery_says_so(kp_pids, recovery, comes_back):
    house = House()
    house.manager.own.recovery = recovery
    house.starts_anew(answered=True)
    await house.silent()
    await asyncio.sleep(0.01)
    assert (house.manager.brought_back, house.life.stays) == (int(comes_back), not comes_back)


@pytest.mark.parametrize("general, own, restores", [(True, False, False), (False, True, True), (True, None, True)])
async def test_recipe_says_whether_its_kernels_get_their_checkpoint_back(general, own, restores):
    house = House(restore=general)
    house.manager.checkpoints, house.manager.own.restore = ["c"], own
    house.starts_anew(answered=True)
    house.aftermath.stays_dead("k")
    await asyncio.sleep(0.01)
    assert house.manager.brought_back == int(restores), "else Jupyter restarts it"


def recoveries(cause):
    return [
        (REGISTRY.get_sample_value(f"jupyter_kernelpool_recovery_seconds_{part}", {"cause": cause}) or 0.0)
        for part in ("count", "sum")
    ]


async def test_time_of_a_recovery_is_that_from_the_first_end_to_the_answer():
    house = House(restart_pause=0.0)
    count, total = recoveries("died")
    for _ in range(2):
        house.starts_anew()
        house.aftermath.stays_dead("k")
        await asyncio.sleep(0.1)
    house.starts_anew()
    house.life.recovered()
    house.life.recovered()
    assert recoveries("died")[0] == count + 1
    assert recoveries("died")[1] - total > 0.15


async def test_kernel_that_stays_dead_has_no_recovery_when_its_user_restarts_it():
    house = House(recovery="never")
    before = recoveries("died")
    house.starts_anew(answered=True)
    house.aftermath.stays_dead("k")
    house.starts_anew()
    house.life.recovered()
    assert recoveries("died") == before


async def test_restores_in_quick_succession_end_at_jupyters_limit():
    house = House(restore=True, restart_pause=0.0)
    house.manager.checkpoints = ["c"]
    for _ in range(3):
        house.starts_anew(answered=True)
        house.aftermath.stays_dead("k")
        await asyncio.sleep(0.01)
    assert house.life.stays
    assert "ended 3 times within 60 s, and KernelRestarter.restart_limit is 2" in house.manager.kernel.reason
    assert house.manager.brought_back == 2


@pytest.mark.parametrize("limit", [0, 100])
async def test_at_the_end_after_which_jupyter_forgets_a_kernel_no_restart_is_promised(limit):
    house = House(restart_limit=limit, restart_pause=30.0)
    told = SimpleNamespace(give_up=lambda ename, evalue: words.append(evalue))
    words: list[str] = []
    house.aftermath._edge.enter("k", told)
    house.life.ends.append(time.monotonic())
    house.starts_anew(answered=True)
    house.manager.restarter.gives_up_next = True
    assert not house.aftermath.stays_dead("k"), "Jupyter is not to wait"
    house.aftermath.gives_up("k")
    assert words == [
        "Its process ended with exit code 1, again and again; Jupyter gave up restarting it, and forgets it."
    ]
    await house.aftermath.close()


@pytest.mark.parametrize("meanwhile", ["nothing", "a limit", "its user"])
async def test_end_that_is_seen_twice_is_told_once_and_not_where_another_was_quicker(meanwhile):
    """Without automatic restarts: by the process's exit, and by a look at its health."""
    house, asked, going_on = House(), [], asyncio.Event()
    house.manager.kernel.shutting_down, house.manager.kernel.stays_dead_for = False, None

    async def explain_end(kernel_id):
        asked.append(kernel_id)
        await going_on.wait()
        return False

    house.manager.guard = SimpleNamespace(explain_end=explain_end)
    house.starts_anew(answered=True)
    house.aftermath.exited("k")
    house.aftermath.exited("k")
    await asyncio.sleep(0.01)
    if meanwhile == "a limit":
        house.manager.kernel.stays_dead_for = "memory limit"
    elif meanwhile == "its user":
        house.manager.kernel.provisioner.process = Process()
    going_on.set()
    await asyncio.sleep(0.01)
    assert asked == ["k"]
    told = "Its process ended with exit code 1" if meanwhile == "nothing" else None
    assert (house.life.end, house.life.stays) == (told, told is not None)
    house.aftermath.exited("k")
    await asyncio.sleep(0.01)
    assert asked == (["k", "k"] if meanwhile == "its user" else ["k"]), "its next process may end, too"
