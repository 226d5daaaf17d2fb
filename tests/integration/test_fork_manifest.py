"""What a fork says that it shares with its parent, and that it lost."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from .kernelside_driver import Kernel, Process

pytestmark = pytest.mark.integration


# A thread that Python does not know of, with a name of its own (prctl(2), PR_SET_NAME).
NATIVE = """
import _thread, ctypes, time
def wait():
    ctypes.CDLL(None).prctl(15, b'{}')
    begun.append(1)
    time.sleep(60)
begun = []
_thread.start_new_thread(wait, ())
while not begun: time.sleep(0.01)
"""


@pytest.fixture(params=["parked", "become"])
def way(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "become")


def test_plain_kernel_shares_and_loses_nothing(kp_kernel: Kernel, way: bool) -> None:
    kp_kernel.run("import numpy as np; x = np.ones(9).reshape(3, 3) @ np.ones((3, 3))")
    manifest = kp_kernel.park(become=way).facts["manifest"]
    assert manifest == {"shared": [], "lost": [], "warnings": []}


def test_second_generation_says_no_more_than_the_first(kp_kernel: Kernel) -> None:
    manifest = kp_kernel.fork().park().facts["manifest"]
    assert manifest == {"shared": [], "lost": [], "warnings": []}


@pytest.mark.parametrize(
    "code, part, kind, words",
    [
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='mine', daemon=True).start()",
         "lost", "thread", "mine"),
        ("from concurrent.futures import ThreadPoolExecutor as T\ne = T(2, 'pool'); e.submit(int).result()",
         "lost", "executor", "pool"),
        ("import subprocess; p = subprocess.Popen(['sleep', '61'])", "lost", "process", "sleep 61"),
        ("import asyncio; t = asyncio.create_task(asyncio.sleep(60), name='mine')\nawait asyncio.sleep(0)",
         "lost", "task", "mine"),
        ("import multiprocessing as m; p = m.get_context('fork').Pool(1)", "warnings", "pool", "p"),
        ("import multiprocessing as m; p = m.get_context('fork').Pool(1)", "lost", "process", "child process"),
        ("import os; p = os.pipe()", "shared", "pipe", "pipe"),
        ("import mmap; shared = mmap.mmap(-1, 4096)", "shared", "memory", "shared"),
        ("import sqlite3 as s; db, m = s.connect('file.db'), s.connect(':memory:')", "warnings", "database", "db"),
        ("import random; own = random.Random(1)", "warnings", "random", "own"),
        ("import numpy; rng = numpy.random.default_rng()", "warnings", "random", "rng"),
        ("import tempfile; t = tempfile.TemporaryDirectory()", "warnings", "temporary", "t"),
        ("from comm import create_comm; c = create_comm(target_name='t')", "warnings", "comms", "1 comms"),
        (NATIVE.format("rayon-0"), "lost", "native_threads", "1 threads of rayon"),
        (NATIVE.format("tokio-runtime-w"), "lost", "native_threads", "1 threads of tokio"),
        (NATIVE.format("grpc_global_tim"), "lost", "native_threads", "1 threads of grpc"),
        (NATIVE.format("PTThreadPool"), "lost", "native_threads", "1 threads of PTThreadPool"),
    ],
)  # fmt: skip
def test_manifest_names(kp_kernel: Kernel, code: str, part: str, kind: str, words: str, tmp_path: Path) -> None:
    kp_kernel.run(f"import os; os.chdir({str(tmp_path)!r})\n{code}")
    entry = _only(kp_kernel.park().facts["manifest"][part], kind)
    assert entry["what"] == words or (len(words) > 2 and words in entry["what"])
    assert entry["hint"]


def test_manifest_names_the_peer_of_a_socket(kp_kernel: Kernel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        kp_kernel.run(f"import socket; s = socket.create_connection(('127.0.0.1', {port}))")
        entry = _only(kp_kernel.park().facts["manifest"]["shared"], "socket")
    assert entry["what"].endswith(f"to 127.0.0.1:{port}")


def test_manifest_names_subshells(kp_kernel: Kernel) -> None:
    features = kp_kernel.client.kernel_info(reply=True, timeout=10)["content"].get("supported_features", [])
    if "kernel subshells" not in features:  # ipykernel 6
        assert kp_kernel.park().facts["manifest"]["lost"] == []
        return
    kp_kernel.client.control_channel.send(kp_kernel.client.session.msg("create_subshell_request", {}))
    subshell = kp_kernel.client.control_channel.get_msg(timeout=10)["content"]["subshell_id"]
    manifest = kp_kernel.park().facts["manifest"]
    assert subshell in _only(manifest["lost"], "subshell")["what"]
    assert [entry["kind"] for entry in manifest["lost"]] == ["subshell"]


def test_parent_goes_on_with_all_that_the_fork_lost(kp_kernel: Kernel) -> None:
    kp_kernel.run("from concurrent.futures import ThreadPoolExecutor as T\ne = T(1); e.submit(int).result()")
    parked: Process = kp_kernel.park()
    assert _only(parked.facts["manifest"]["lost"], "executor")
    assert kp_kernel.run("print(e.submit(int, '3').result(5))") == "3"


def _only(entries: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [entry for entry in entries if entry["kind"] == kind]
    assert len(found) == 1, entries
    return found[0]
