"""What is remembered of kernels' usage: cores between looks, peaks, and what Prometheus is told."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from jupyter_client.provisioning import LocalProvisioner

from jupyter_kernelpool import keeper as keeper_module
from jupyter_kernelpool import meter as meter_module
from jupyter_kernelpool import metrics
from jupyter_kernelpool.gpu import GpuMemory
from jupyter_kernelpool.keeper import Keeper, Round
from jupyter_kernelpool.manager import SAMPLE_EVERY
from jupyter_kernelpool.meter import MOMENT, STALE, Meter, find_root
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.usage import Reading, Root


class FakeManager(dict[str, Any]):
    """Kernels by id."""

    def start(self, kernel_id: str, pid: int, **process: Any) -> None:
        provisioner = LocalProvisioner()
        provisioner.pid = pid
        provisioner.process = types.SimpleNamespace(**{"exit_code": None, **process})
        self[kernel_id] = types.SimpleNamespace(provisioner=provisioner)

    def list_kernel_ids(self) -> list[str]:
        return list(self)

    def get_kernel(self, kernel_id: str) -> Any:
        return self[kernel_id]


class Reads:
    """Stands in for `read_usage`: gives what a test put into *next*, and notes what was asked."""

    def __init__(self) -> None:
        self.next: dict[str, Reading] = {}
        self.asked: list[tuple[Mapping[str, Root], Collection[int], Mapping[str, Reading]]] = []

    def __call__(self, roots: Any, others: Any, known: Any) -> dict[str, Reading]:
        self.asked.append((roots, others, known))
        return {key: reading for key, reading in self.next.items() if key in roots}


def reading(at: float, *, private: int = 100, cpu: float = 0.0, started: int = 1, gpu: int = 0) -> Reading:
    return Reading((7, started), at, private, 2 * private, cpu, 3, 40, (GpuMemory(0, "A", gpu, 80),) if gpu else ())


@pytest.fixture
def kp_manager() -> FakeManager:
    manager = FakeManager()
    manager.start("k", 7, inherited=50)
    manager.start("other", 8)
    return manager


@pytest.fixture
def kp_reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    reads = Reads()
    monkeypatch.setattr(meter_module, "read_usage", reads)
    return reads


async def test_all_processes_of_ours_are_others(kp_manager: FakeManager, kp_reads: Reads) -> None:
    await Meter(kp_manager, lambda: [9, 10]).look(["k", "unknown"])
    assert kp_reads.asked == [({"k": Root(7, 50)}, {7, 8, 9, 10}, {})]


async def test_cores_are_those_since_the_last_look(kp_manager: FakeManager, kp_reads: Reads) -> None:
    meter = Meter(kp_manager)
    kp_reads.next = {"k": reading(100, cpu=1)}
    assert (await meter.look(["k"]))["k"].cores is None
    kp_reads.next = {"k": reading(102, cpu=4)}
    assert (await meter.look(["k"]))["k"].cores == 1.5
    kp_reads.next = {"k": reading(102 + MOMENT / 4, cpu=5)}
    assert (await meter.look(["k"]))["k"].cores == 1.5  # too short a time to tell
    kp_reads.next = {"k": reading(102 + STALE * 2, cpu=6)}
    assert (await meter.look(["k"]))["k"].cores is None


async def test_whoever_looks_again_gets_the_cores_since_its_own_last_look(
    kp_manager: FakeManager, kp_reads: Reads
) -> None:
    meter = Meter(kp_manager)
    kp_reads.next = {"k": reading(100, cpu=0)}
    mine = (await meter.look(["k"]))["k"].reading
    kp_reads.next = {"k": reading(109, cpu=0)}
    await meter.look(["k"])
    kp_reads.next = {"k": reading(110, cpu=1)}
    assert (await meter.look(["k"], mine))["k"].cores == 0.1


async def test_the_peak_is_the_present_processes_own(kp_manager: FakeManager, kp_reads: Reads) -> None:
    meter = Meter(kp_manager)
    peaks = []
    for one in (
        reading(1, private=5),
        reading(2, private=9),
        reading(3, private=6),
        reading(4, private=1, started=2),
        reading(5, private=2, started=2),
    ):
        kp_reads.next = {"k": one}
        peaks.append((await meter.look(["k"]))["k"].peak)
    assert peaks == [5, 9, 9, 1, 2]


async def test_a_reading_that_comes_late_takes_nothing_back(kp_manager: FakeManager, kp_reads: Reads) -> None:
    meter = Meter(kp_manager)
    for one in (reading(10, cpu=3, private=5), reading(9, cpu=2, private=8), reading(11, cpu=4, private=5)):
        kp_reads.next = {"k": one}
        usage = (await meter.look(["k"]))["k"]
    assert usage.cores == 1.0


async def test_prometheus_is_told_the_sums(kp_manager: FakeManager, kp_reads: Reads) -> None:
    meter = Meter(kp_manager)
    counted = metrics.KERNELS_CPU._value.get()
    kp_reads.next = {"k": reading(1, cpu=2, gpu=5), "other": reading(1, cpu=3, gpu=6)}
    await meter.sample()
    kp_reads.next = {
        "k": reading(2, cpu=2.5, gpu=5),
        "other": reading(2, cpu=1, gpu=6),
    }  # a child of it was not waited for
    await meter.sample()
    assert metrics.KERNELS_MEMORY._value.get() == 200
    assert (metrics.KERNELS_PROCESSES._value.get(), metrics.KERNELS_FDS._value.get()) == (6, 80)
    assert metrics.KERNELS_GPU_MEMORY._value.get() == 11
    assert metrics.KERNELS_CPU._value.get() == counted + 5.5
    assert kp_reads.asked[1][2].keys() == {"k", "other"}  # what is known of idle ones is used again


async def test_without_kernels_gauges_go_back_and_nothing_is_read(kp_manager: FakeManager, kp_reads: Reads) -> None:
    meter = Meter(kp_manager)
    kp_reads.next = {"k": reading(1)}
    await meter.sample()
    kp_manager.clear()
    assert meter.has_work
    await meter.sample()
    assert metrics.KERNELS_MEMORY._value.get() == 0
    assert not meter.has_work
    assert len(kp_reads.asked) == 1


async def test_a_sample_that_fails_is_logged_and_the_next_one_tried(
    kp_manager: FakeManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(meter_module, "read_usage", fail)
    await Meter(kp_manager).sample()
    assert "too many open files" in caplog.text


@pytest.mark.parametrize(
    "process", [None, types.SimpleNamespace(exit_code=0), types.SimpleNamespace(returncode=-9)], ids=str
)
def test_what_has_ended_has_no_root(process: Any) -> None:
    provisioner = LocalProvisioner()
    provisioner.pid, provisioner.process = 7, process
    assert find_root(provisioner) is None


def test_the_pid_of_a_provisioner_that_is_not_local_means_nothing_here() -> None:
    assert find_root(types.SimpleNamespace(pid=7, process=types.SimpleNamespace(returncode=None))) is None
    assert find_root(None) is None


async def test_the_keeper_samples_at_its_own_pace_and_only_where_there_are_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(keeper_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    sampled: list[float] = []

    class Counting(Meter):
        @property
        def has_work(self) -> bool:
            return clock.now < 1100

        async def sample(self) -> None:
            sampled.append(clock.now)

    keeper = Keeper(KernelPool(enabled=False))
    meter = Counting(FakeManager())
    keeper.rounds.append(Round("sample", SAMPLE_EVERY, meter.sample, lambda: meter.has_work))
    while clock.now < 1200:
        await keeper.turn()
        for each in keeper.rounds:
            if each.task is not None:
                await each.task
        clock.now += 1.0
    assert len(sampled) == pytest.approx(100 / SAMPLE_EVERY, abs=4)
    assert max(sampled) < 1100
