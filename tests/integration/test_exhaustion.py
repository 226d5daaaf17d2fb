"""The server runs out of what it needs: what can't be done fails at once and says so, what runs goes on, and all is
well again when there is room."""

from __future__ import annotations

import itertools
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .browsers import browser
from .conftest import Server, eventually
from .test_health import QUICK, model, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


@pytest.fixture
def kp_small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, of 256 KiB. Needs root, as in a container."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_in_the_runtime_folder_refuses_starts_and_ends_no_kernel(
    kp_start: Callable[..., Server], kp_small_disk: Path
) -> None:
    server = kp_start(*QUICK, "--ServerApp.iopub_data_rate_limit=1e10", JUPYTER_RUNTIME_DIR=str(kp_small_disk))
    server.wait_warm(2)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        ballast = kp_small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            fill(ballast)
        assert server.call("/api/kernels", "POST", {"name": "python3"})[0] == 500
        assert "No space left" in server.log
        assert tab.execute("print(x)") == "kept"
        assert model(server, kernel)["failure_count"] == 0
        ballast.unlink()
        for _ in range(4):  # had it been taken for the kernelspec's fault, these would be refused
            assert server.run(server.start_kernel(), "print('room')") == "room"
        assert tab.execute("print(x)") == "kept"


def test_server_without_descriptors_blames_no_kernel_and_recovers(kp_start: Callable[..., Server]) -> None:
    server = kp_start(*QUICK, "--KernelHealth.on_unresponsive=restart")
    server.wait_warm(2)
    kernel = server.start_kernel()
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    with browser(server, kernel) as tab:
        tab.execute("x = 'kept'")
        before = until(server, kernel, "responsive")
        soft, hard = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (lowest_free(process.pid), hard))
        try:
            eventually(lambda: f"Kernel {kernel} could not be nudged" in server.log, "it is tried")
            assert tab.execute("print(x)") == "kept", "what is open works"
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert process.is_running()
        after = until(server, kernel, "responsive")
        assert (after["pid"], after["failure_count"]) == (before["pid"], 0)
        eventually(lambda: model(server, kernel)["health"]["checked"] > after["health"]["checked"], "it is asked again")
        assert tab.execute("print(x)") == "kept"
        server.wait_warm(2)
        assert server.run(server.start_kernel(), "print('new')") == "new"


def lowest_free(pid: int) -> int:
    """The lowest number that no descriptor of the process had in the last two seconds: a limit below which it has no
    room, whatever closes meanwhile."""
    found = []
    for _ in range(100):
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        found.append(next(number for number in itertools.count() if number not in taken))
        time.sleep(0.02)
    return min(found)


def fill(path: Path) -> None:
    """Write to *path* for as long as there is space."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
