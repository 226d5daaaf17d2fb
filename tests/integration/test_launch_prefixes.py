"""Kernels behind the programs that docs/operators/security.md has a `launch_prefix` for.

CI has gVisor. nsjail is tried by hand: `KP_PREFIXES="nsjail nsjail-whole" ./dev test --all <this file>`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from .browsers import browser
from .conftest import Server, eventually, gone
from .limited import ENFORCERS, hearing, run
from .test_sandbox import claim, interrupted, outcomes, pid_of, recipes
from .traces import nothing_left, traces, write_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(180)]

DOCS = Path(__file__).parents[2] / "docs" / "operators" / "security.md"


@dataclass(frozen=True)
class Way:
    """A program in front of kernels. *kept*: what they write to the notebooks' folder is there without them, too."""

    program: str
    prefix: list[str]  # with the notebooks in NOTEBOOKS
    launcher: str = "auto"
    interrupt_mode: str = "signal"
    outside: str = "OSError"  # what comes of writing elsewhere
    kept: bool = True


NOTEBOOKS = "/srv/notebooks"
JAIL = (
    "--disable_clone_newnet --keep_env --disable_rlimits --nice_level 0 --time_limit 0 --chroot / --bindmount /dev "
    f'--bindmount {NOTEBOOKS} --tmpfsmount /var/tmp --cwd "$PWD" -- "$@"'
)
PASSED = 'for fd in $(ls /proc/$$/fd); do passed="$passed --pass_fd $fd"; done'
WAYS = {
    # All that is written goes to a layer in memory, and is gone with the kernel.
    "runsc": Way(
        "runsc", ["runsc", "--rootless", "--network=host", "do", "--"], launcher="whole", outside="done", kept=False
    ),
    "nsjail": Way(
        "nsjail",
        [
            "sh",
            "-c",
            f"{PASSED}; exec nsjail -Mo -Q $passed --disable_clone_newpid --disable_proc --bindmount /proc {JAIL}",
            "nsjail",
        ],
    ),
    # It ends when it is sent SIGINT, even where that was ignored before.
    "nsjail-whole": Way(
        "nsjail", ["sh", "-c", f"exec nsjail -Mo -Q {JAIL}", "nsjail"], launcher="whole", interrupt_mode="message"
    ),
}


@pytest.fixture(scope="module", params=os.environ.get("KP_PREFIXES", "runsc").split())
def kp_way(request: pytest.FixtureRequest) -> Way:
    """A program without which a test fails: CI has the one that is tried unless told otherwise."""
    way = WAYS[request.param]
    assert shutil.which(way.program) is not None, f"{way.program} is not on PATH (runsc is a package of Debian's)"
    return way


@pytest.fixture
def start(kp_start: Callable[..., Server], kp_way: Way, tmp_path: Path) -> Callable[..., Server]:
    """Starts a server whose kernels named `aside` are behind the program."""

    def begin(*options: str) -> Server:
        prefix = [part.replace(NOTEBOOKS, str(tmp_path / "server0" / "root")) for part in kp_way.prefix]
        settings: dict[str, Any] = {"warm": 1, "launch_prefix": prefix, "launcher": kp_way.launcher}
        # runsc leaves a folder there for each kernel that was killed.
        server = kp_start(recipes(aside=settings), "--KernelPool.warm=0", *options, TMPDIR=str(tmp_path))
        write_spec(server.folder / "data", "aside", interrupt_mode=kp_way.interrupt_mode)
        return server

    return begin


@pytest.mark.parametrize("name", WAYS)
def test_docs_have_the_prefix_that_is_tried(name: str) -> None:
    assert f"`{json.dumps(WAYS[name].prefix)}`" in DOCS.read_text()


def test_kernel_behind_it_works_and_sigkill_of_the_server_leaves_nothing(
    start: Callable[..., Server], kp_way: Way
) -> None:
    server = start()
    kernel = claim(server, "aside")
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == kp_way.launcher.replace("auto", "template")
    client = server.client(kernel)
    known_as = 1 if kp_way.launcher == "whole" else pid_of(server, kernel)
    assert server.run(client, "import os; print(os.getpid(), os.getcwd())") == f"{known_as} {server.root}"
    assert outcomes(server, client, server.root, server.folder) == ["done", kp_way.outside]
    assert [(folder / "new").exists() for folder in (server.root, server.folder)] == [kp_way.kept, False]
    assert interrupted(server, kernel, client)
    assert server.run(client, "print(1)") == "1"
    process = psutil.Process(pid_of(server, kernel))
    tree = [process, *process.children(recursive=True)]
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    eventually(lambda: gone(tree), "nothing is left of what was replaced")
    assert server.run(kernel, "print(2)") == "2"
    assert server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    claim(server, "aside")
    server.wait_warm(1, "aside")
    before = traces(server)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(before.left)


def test_memory_that_a_watchdog_would_not_see_is_refused(start: Callable[..., Server], kp_way: Way) -> None:
    server = start(*ENFORCERS["watchdog"], "--KernelLimits.memory=500M")
    status, answer = server.call("/api/kernels", "POST", {"name": "aside"})
    if kp_way.program == "runsc":
        assert (status, answer["code"]) == (501, "not_enforceable")
        assert "runsc keeps theirs apart from their processes" in answer["message"]
    else:
        assert status == 201


def test_kernel_behind_it_is_held_to_its_memory_by_a_cgroup(start: Callable[..., Server]) -> None:
    # No restart by itself: a process inside may be ended before runsc is, which is then told as a death.
    server = start(*ENFORCERS["cgroup"], "--KernelLimits.memory=500M", "--KernelManager.autorestart=False")
    kernel, neighbour = claim(server, "aside"), claim(server, "aside")
    assert server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]["memory"]["by"] == "cgroup"
    with hearing(server) as heard, browser(server, kernel) as page:
        assert page.execute("x = b'x' * (200 << 20); len(x) >> 20") == "200", "what it may have, it has"
        process = psutil.Process(pid_of(server, kernel))
        tree = [process, *process.children(recursive=True)]
        cell = run(page, "y = b'x' * (1 << 30)\nimport time; time.sleep(60)")
        assert cell.error in ("KernelKilled", "KernelDied")
        assert "500 MB allowed" in cell.stderr
        eventually(lambda: heard.of(kernel, "breached"), "it is told why")
    model = server.call(f"/kernelpool/v1/kernels/{kernel}")[1]
    assert (model["breach"]["limit"], model["breach"]["allowed"]) == ("memory", 500 << 20)
    eventually(lambda: gone(tree), "nothing of the sandbox is left")
    assert server.run(neighbour, "print(1)") == "1"
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    with browser(server, kernel) as page:
        assert page.execute("1 + 1") == "2"
