"""Memory on GPUs: what a library that stands in for NVIDIA's tells; and nothing where there is none."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import pytest

from jupyter_kernelpool import usage
from jupyter_kernelpool.gpu import GpuMemory, Gpus, together
from jupyter_kernelpool.usage import Root, read_usage

GIB = 1024**3


class NVMLError(Exception):
    pass


def running(**bytes_of: int | None) -> list[Any]:
    return [types.SimpleNamespace(pid=int(pid[1:]), usedGpuMemory=used) for pid, used in bytes_of.items()]


class FakeNvml(types.ModuleType):
    """`pynvml` with the devices that a test gives it: name, processes that compute, and that draw."""

    NVMLError = NVMLError

    def __init__(self, devices: list[Any]) -> None:
        super().__init__("pynvml")
        self.devices = devices
        self.begun = 0

    def nvmlInit(self) -> None:
        self.begun += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if self.devices[index] is None:
            raise NVMLError("GPU is lost")
        return self.devices[index]

    def nvmlDeviceGetName(self, device: Any) -> Any:
        return device[0]

    def nvmlDeviceGetMemoryInfo(self, device: Any) -> Any:
        return types.SimpleNamespace(total=80 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, device: Any) -> Any:
        return device[1]

    def nvmlDeviceGetGraphicsRunningProcesses(self, device: Any) -> Any:
        if device[2] is None:
            raise NVMLError("Not Supported")
        return device[2]


@pytest.fixture
def kp_nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*devices: Any) -> FakeNvml:
        module = FakeNvml(list(devices))
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


def test_each_process_has_its_bytes_on_each_gpu(kp_nvml: Any) -> None:
    kp_nvml(("A", running(p7=2 * GIB, p8=GIB), []), (b"B", running(p7=3 * GIB), None))
    assert Gpus().read() == {
        7: [GpuMemory(0, "A", 2 * GIB, 80 * GIB), GpuMemory(1, "B", 3 * GIB, 80 * GIB)],
        8: [GpuMemory(0, "A", GIB, 80 * GIB)],
    }


def test_a_process_that_computes_and_draws_counts_once(kp_nvml: Any) -> None:
    kp_nvml(("A", running(p7=GIB), running(p7=GIB, p9=GIB)))
    assert {pid: [one.memory for one in shares] for pid, shares in Gpus().read().items()} == {7: [GIB], 9: [GIB]}


def test_bytes_that_are_not_told_are_none(kp_nvml: Any) -> None:
    kp_nvml(("A", running(p7=None), []))
    assert Gpus().read()[7][0].memory == 0


def test_a_gpu_that_is_lost_does_not_hide_the_others(kp_nvml: Any) -> None:
    kp_nvml(None, ("B", running(p7=GIB), []))
    assert [one.index for one in Gpus().read()[7]] == [1]


def test_the_library_is_begun_once_and_only_when_it_is_needed(kp_nvml: Any) -> None:
    module = kp_nvml(("A", [], []))
    gpus = Gpus()
    assert module.begun == 0
    gpus.read()
    gpus.read()
    assert module.begun == 1


@pytest.mark.parametrize("method", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetComputeRunningProcesses"])
def test_what_the_driver_refuses_is_no_error(kp_nvml: Any, method: str) -> None:
    def refuse(*_: Any) -> None:
        raise NVMLError("Driver Not Loaded")

    module = kp_nvml(("A", running(p7=GIB), []))
    setattr(module, method, refuse)
    assert Gpus().read() == {}


def test_without_the_library_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert Gpus().read() == {}


def test_a_kernel_has_what_its_processes_have(kp_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid()
    kp_nvml(("A", running(**{f"p{pid}": GIB, "p1": GIB}), []))
    monkeypatch.setattr(usage, "GPUS", Gpus())
    assert read_usage({"k": Root(pid)}, set())["k"].gpu == (GpuMemory(0, "A", GIB, 80 * GIB),)


def test_this_machine_tells_what_it_has_without_an_error() -> None:
    assert isinstance(Gpus().read(), dict)


def test_shares_on_one_gpu_are_added_up() -> None:
    shares = [GpuMemory(1, "B", 5, 80), GpuMemory(0, "A", 1, 80), GpuMemory(1, "B", 7, 80)]
    assert together(shares) == (GpuMemory(0, "A", 1, 80), GpuMemory(1, "B", 12, 80))
