"""Where a run took place: enough to compare runs, nothing that names the machine or its owner."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "jupyter_kernelpool",
    "jupyter_server",
    "jupyter_client",
    "jupyterlab",
    "ipykernel",
    "ipython",
    "pyzmq",
    "tornado",
    "numpy",
    "pandas",
)


def describe_machine() -> dict[str, Any]:
    """Cores, memory in bytes, kernel, Python, versions that matter, and how busy it was."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "load_before": round(os.getloadavg()[0], 2),
    }


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
