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
from typing import Any

CUDA_ERROR_NOT_INITIALIZED = 3
OMP_PAUSE_HARD = 2
OPENMP = ("libgomp", "libomp", "libiomp")


class Refused(Exception):
    """Why a kernel is not forked; *code* for programs, *reason* and *hint* for people."""

    def __init__(self, code: str, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.hint = hint
        self.facts: dict[str, Any] = {}


class Libraries:
    """The shared libraries of this process; read anew (2 ms and more) only when one was loaded since."""

    def __init__(self) -> None:
        self._loads = -1
        self._paths: list[str] = []

    def paths(self) -> list[str]:
        """Their paths, each once (/proc/self/maps)."""
        loads = _loads_so_far()
        if loads != self._loads or loads < 0:
            with open("/proc/self/maps", "rb") as file:
                lines = file.read().split(b"\n")
            found = {field[5] for field in (line.split(None, 5) for line in lines) if len(field) == 6}
            self._paths = [os.fsdecode(path) for path in found if b".so" in path]
            self._loads = loads
        return self._paths


def _loads_so_far() -> int:
    """How many libraries were ever loaded into this process (dl_iterate_phdr(3), `dlpi_adds`), or -1."""
    import ctypes

    class Facts(ctypes.Structure):
        _fields_ = (
            ("address", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("headers", ctypes.c_void_p),
            ("count", ctypes.c_uint16),
            ("adds", ctypes.c_ulonglong),
        )

    adds = [-1]

    def first(facts: Any, _size: int, _data: Any) -> int:
        adds[0] = facts.contents.adds
        return 1  # no more of them

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Facts), ctypes.c_size_t, ctypes.c_void_p)(first)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).dl_iterate_phdr(callback, None)
    return adds[0]


def refuse_if_wrong(libraries: list[str], debugger: Any = None) -> None:
    """Raise `Refused` if a fork of this process would be wrong now. *debugger* is the kernel's."""
    if os.fork is not posix.fork or getattr(debugger, "debugpy_initialized", False):
        raise Refused(
            "debugger",
            "A debugger has attached to this kernel; it has replaced os.fork and runs threads of its own.",
            "Restart the kernel without the debugger, then fork it.",
        )
    if cuda_is_initialised(libraries):
        raise Refused(
            "cuda",
            "CUDA is initialised in this kernel, and does not survive a fork.",
            "Fork before the first use of the GPU, or keep GPU work in a process of its own.",
        )


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
