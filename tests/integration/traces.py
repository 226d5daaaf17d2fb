"""What a server and its pool have in the system at one moment, to see later whether it is gone."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .conftest import Server, gone

# How long the machine may take to clear away what SIGKILL left, seconds.
SOON = 15.0
PYTHON_SPEC: dict[str, Any] = {
    "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "A kernelspec of a test",
    "language": "python",
}


def write_spec(data: Path, name: str, **changes: Any) -> Path:
    """Write the kernelspec *name* into the Jupyter data folder *data*; its kernel.json is replaced in one step."""
    folder = data / "kernels" / name
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "draft"
    draft.write_text(json.dumps({**PYTHON_SPEC, **changes}))
    return draft.replace(folder / "kernel.json")


def remove_spec(data: Path, name: str) -> None:
    shutil.rmtree(data / "kernels" / name)


@dataclass
class Traces:
    """Processes, listening ports and files of a server's."""

    processes: list[psutil.Process]
    ports: set[int]
    runtime: Path

    def left(self) -> list[str]:
        """What of it is still there, in words."""
        later = [process for process in with_runtime(self.runtime) if process not in self.processes]
        found = [f"process {process}" for process in [*self.processes, *later] if not gone([process])]
        found += [f"port {port} listens" for port in sorted(self.ports & listening())]
        return found + [f"file {path}" for path in files(self.runtime)]


def traces(server: Server) -> Traces:
    """All that *server* has now: its own process, every process below it, every port that one of them listens on."""
    assert server.process is not None
    root = psutil.Process(server.process.pid)
    processes = [root, *root.children(recursive=True)]
    ports = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            ports |= {connection.laddr.port for connection in listeners(process)}
    return Traces(processes, ports, server.runtime)


def nothing_left(left: Callable[[], list[str]], timeout: float = SOON) -> None:
    deadline = time.monotonic() + timeout
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == [], found


def supervisor_is_ready(server: Server, former: psutil.Process) -> bool:
    found = server.call("/kernelpool/v1/pool")[1]["capabilities"]["supervisor"]
    return bool(found["alive"]) and found["pid"] != former.pid


def with_runtime(runtime: Path) -> list[psutil.Process]:
    """Every process that began with *runtime* in its environment: a server's, all below it, also as orphans."""
    wanted = f"JUPYTER_RUNTIME_DIR={runtime}".encode()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def listeners(process: psutil.Process) -> list[Any]:
    return [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]


def listening() -> set[int]:
    return {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def files(runtime: Path) -> list[Path]:
    """Connection files and ipc sockets; not jpserver-*.json, which a killed server leaves on stock too."""
    return sorted(path for path in runtime.iterdir() if path.name.startswith("kernel"))


def warm_processes(server: Server) -> list[psutil.Process]:
    """The pool's processes that nobody owns and that are no template. A look at a moving thing: may be stale."""
    rows = server.call("/kernelpool/v1/pool")[1]["recipes"]
    spared = {row["template"]["pid"] for row in rows if row["template"]}
    for kernel in server.call("/api/kernels")[1]:
        spared.add(server.call(f"/kernelpool/v1/kernels/{kernel['id']}")[1].get("pid"))
    try:
        _, *processes = server.ours()
    except ValueError:
        return []
    return [process for process in processes if process.pid not in spared and is_kernelside(process)]


def is_kernelside(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.endswith("kernelside/launch.py") for part in process.cmdline())
    return False


def make_venv(folder: Path) -> Path:
    """A virtual environment that sees this one's packages; returns its python.

    Not by `venv --system-site-packages`, which shows the base interpreter's packages and not those of the
    environment that it is called from.
    """
    import subprocess
    import sysconfig

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    site_packages = site_packages_of(folder)
    (site_packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def site_packages_of(venv: Path) -> Path:
    return next(venv.glob("lib/python3*/site-packages"))
