"""What would make a fork of this process wrong, and what has to be put away before one. Standard library only.

- CUDA does not survive a fork: a child's first call fails (CUDA's driver API, `CUDA_ERROR_NOT_INITIALIZED`).
- A debugger that attached replaced `os.fork` and runs threads that a child would wait for (pydevd,
  `_pydev_bundle/pydev_monkey.py`).
- OpenMP keeps its threads between parallel regions and a child waits for them for ever, unless they are
  given up before: `omp_pause_resource_all(omp_pause_hard)` of OpenMP 5.0.
"""

from __future__ import annotations

import contextlib
import os
import posix
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CUDA_ERROR_NOT_INITIALIZED = 3
OMP_PAUSE_HARD = 2
OPENMP = ("libgomp", "libomp", "libiomp")


@dataclass
class Refusal:
    """Why a kernel is not forked; *code* for programs, *reason* and *hint* for people."""

    code: str
    reason: str
    hint: str


def mapped_libraries() -> list[str]:
    """The paths of what is mapped into this process (/proc/self/maps), each once."""
    with open("/proc/self/maps", "rb") as file:
        lines = file.read().split(b"\n")
    fields = (line.split(None, 5) for line in lines)
    return [os.fsdecode(path) for path in {field[5] for field in fields if len(field) == 6} if path[:1] == b"/"]


def why_not(libraries: list[str], debugger: Any = None) -> Refusal | None:
    """What speaks against forking this process now, or None. *debugger* is the kernel's."""
    if os.fork is not posix.fork or getattr(debugger, "debugpy_initialized", False):
        return Refusal(
            "debugger",
            "A debugger has attached to this kernel; it has replaced os.fork and runs threads of its own.",
            "Restart the kernel without the debugger, then fork it.",
        )
    if cuda_is_initialised(libraries):
        return Refusal(
            "cuda",
            "CUDA is initialised in this kernel, and does not survive a fork.",
            "Fork before the first use of the GPU, or keep GPU work in a process of its own.",
        )
    return None


def cuda_is_initialised(libraries: list[str], load: Callable[[str], Any] | None = None) -> bool:
    """Whether `cuInit` was called in this process; a driver that is merely loaded does no harm."""
    for path in libraries:
        if os.path.basename(path).startswith("libcuda.so"):
            import ctypes

            driver = (load or _loaded)(path)
            devices = ctypes.c_int()
            return bool(driver.cuDeviceGetCount(ctypes.byref(devices)) != CUDA_ERROR_NOT_INITIALIZED)
    return False


def put_openmp_threads_away(libraries: list[str]) -> list[str]:
    """End the idle threads of every OpenMP runtime; they start again by themselves. Returns those that can't."""
    stubborn = []
    for path in libraries:
        name = os.path.basename(path)
        if not name.startswith(OPENMP):
            continue
        paused = False
        with contextlib.suppress(OSError, AttributeError):
            paused = _loaded(path).omp_pause_resource_all(OMP_PAUSE_HARD) == 0
        if not paused:
            stubborn.append(name)
    return stubborn


def _loaded(path: str) -> Any:
    """A handle on a library that is loaded already; loads nothing."""
    import ctypes

    return ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
