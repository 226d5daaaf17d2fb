"""What speaks against a fork, told from the libraries of the process."""

from __future__ import annotations

import _ctypes
import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_kernelpool.kernelside import hazards

CUDA = "/usr/lib/libcuda.so.1"


def driver(answer: int) -> Any:
    return lambda _path: SimpleNamespace(cuDeviceGetCount=lambda _count: answer)


@pytest.mark.parametrize(
    "libraries, answer, initialised",
    [
        ([], 0, False),
        (["/usr/lib/libcudart.so.12"], 0, False),
        ([CUDA], hazards.CUDA_ERROR_NOT_INITIALIZED, False),
        ([CUDA], 0, True),
        ([CUDA], 100, True),  # no device: initialised all the same
        (["/opt/libcuda.so.550.54"], 0, True),
    ],
)
def test_cuda_counts_once_it_is_initialised(libraries: list[str], answer: int, initialised: bool) -> None:
    assert hazards.cuda_is_initialised(libraries, driver(answer)) is initialised


def test_nothing_speaks_against_a_plain_process() -> None:
    hazards.refuse_if_wrong([])


def test_replaced_fork_is_a_debuggers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: 0)
    with pytest.raises(hazards.Refused) as refused:
        hazards.refuse_if_wrong([])
    assert refused.value.code == "debugger"


def test_debugger_that_began_is_a_reason() -> None:
    with pytest.raises(hazards.Refused) as refused:
        hazards.refuse_if_wrong([], SimpleNamespace(debugpy_initialized=True))
    assert refused.value.code == "debugger"


def test_library_that_is_loaded_later_is_noticed(tmp_path: Path) -> None:
    libraries = hazards.Libraries()
    before = libraries.paths()
    assert libraries.paths() is before
    copied = tmp_path / "libcopied.so"
    copied.write_bytes(Path(_ctypes.__file__).read_bytes())
    ctypes.CDLL(str(copied))
    assert str(copied) in libraries.paths()


def test_library_without_pause_is_reported() -> None:
    assert hazards.put_openmp_threads_away(["/nowhere/libgomp.so.1", "/usr/lib/libm.so.6"]) == ["libgomp.so.1"]
