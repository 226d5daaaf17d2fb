"""What stands behind a kernel of the server's: its process, whoever started it, and what is known of that."""

from __future__ import annotations

from typing import Any

from jupyter_client.restarter import KernelRestarter

from jupyter_kernelpool.process import Process


def find_process(kernel: Any) -> Any:
    """What stands for the process of *kernel*; None if there is none on this machine."""
    return getattr(getattr(kernel, "provisioner", None), "process", None)


def find_pid(kernel: Any) -> int:
    """The pid of *kernel*'s process on this machine, or 0."""
    process = find_process(kernel)
    return int(getattr(process, "pid", 0) or 0) if kernel.owns_kernel else 0


def find_exit_code(kernel: Any) -> int | None:
    """With what *kernel*'s process ended, a signal negative; None if that is not known."""
    process = find_process(kernel)
    if isinstance(process, Process):
        return process.exit_code
    code = process.poll() if process is not None else None
    return int(code) if code is not None else None


def find_record(kernel: Any) -> Any:
    """The record of *kernel*'s process, if we started it."""
    return getattr(getattr(kernel, "provisioner", None), "record", None)


def find_way(kernel: Any) -> str:
    """How *kernel*'s process came to be; empty if we did not start it."""
    record = find_record(kernel)
    return record.way if record is not None else ""


def is_watched(kernel: Any) -> bool:
    """Whether Jupyter restarts *kernel* if its process ends."""
    return getattr(getattr(kernel, "_restarter", None), "_pcallback", None) is not None


def find_restart_limit(kernel: Any) -> int:
    """How many restarts of *kernel* may follow one another, as Jupyter has it; also where Jupyter restarts nothing."""
    restarter = getattr(kernel, "_restarter", None)
    return int(getattr(restarter, "restart_limit", KernelRestarter.class_traits()["restart_limit"].default_value))


def gives_up_next(kernel: Any) -> bool:
    """Whether Jupyter gives the kernel up by itself at this end of its process."""
    return bool(getattr(getattr(kernel, "_restarter", None), "gives_up_next", False))


def poke(kernel: Any) -> None:
    """Have *kernel*'s restarter look now, not at its next turn."""
    restarter: Any = getattr(kernel, "_restarter", None)
    if hasattr(restarter, "poke"):
        restarter.poke()
