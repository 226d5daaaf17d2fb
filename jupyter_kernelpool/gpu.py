"""What processes have on GPUs, as NVIDIA's library (`nvidia-ml-py`, an optional dependency) tells it.

Without the library, a driver or a GPU there is nothing to tell, which is no error. In a container with process ids of
its own, NVML gives the host's, and nothing is found either.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("jupyter_kernelpool")


@dataclass(frozen=True)
class GpuMemory:
    """The bytes that some process, or several, have on one GPU; *total* is how many it has."""

    index: int
    name: str
    memory: int
    total: int


class Gpus:
    """The machine's GPUs. The library is loaded at the first look, and not tried again when that fails."""

    def __init__(self) -> None:
        self._looked = False
        self._nvml: Any = None
        self._first = threading.Lock()  # NVML itself may be called from several threads

    def read(self) -> dict[int, list[GpuMemory]]:
        """What each process has, by pid. Blocks for a millisecond or more for each GPU: call it in a thread."""
        with self._first:
            if not self._looked:
                self._nvml, self._looked = load_nvml(), True
        if self._nvml is None:
            return {}
        found: dict[int, list[GpuMemory]] = {}
        try:
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            log.debug("The GPUs can't be counted: %s", error)
            return {}
        for index in range(count):
            for pid, share in self._read_device(index).items():
                found.setdefault(pid, []).append(share)
        return found

    def _read_device(self, index: int) -> dict[int, GpuMemory]:
        nvml = self._nvml
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            name, total = _text(nvml.nvmlDeviceGetName(device)), int(nvml.nvmlDeviceGetMemoryInfo(device).total)
        except nvml.NVMLError as error:
            log.debug("GPU %s can't be read: %s", index, error)
            return {}
        bytes_of: dict[int, int] = {}
        for processes in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                running = processes(device)
            except nvml.NVMLError as error:
                log.debug("GPU %s does not tell its processes: %s", index, error)
                continue
            for one in running:  # one that computes and draws is in both lists, with the same figure
                bytes_of[one.pid] = max(bytes_of.get(one.pid, 0), one.usedGpuMemory or 0)  # None: not told
        return {pid: GpuMemory(index, name, used, total) for pid, used in bytes_of.items()}


def load_nvml() -> Any:
    """The module `pynvml`, begun; None where it, the driver or its library is not there."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.debug("No GPU is looked at: %s", error)
        return None
    return nvml


def together(shares: Iterable[GpuMemory]) -> tuple[GpuMemory, ...]:
    """*shares* of several processes, added up for each GPU."""
    found: dict[int, GpuMemory] = {}
    for one in shares:
        before = found[one.index].memory if one.index in found else 0
        found[one.index] = GpuMemory(one.index, one.name, before + one.memory, one.total)
    return tuple(found[index] for index in sorted(found))


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


GPUS = Gpus()
