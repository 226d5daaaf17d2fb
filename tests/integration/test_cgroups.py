"""Limits held by control groups, with real kernels: each has a group of its own, and the others notice nothing.

They need a machine that lets the server make groups: as root, or in a delegated cgroup (docs/developers/testing.md).
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_kernelpool.limits.places import pids_in, read_mounts, readable

from .browsers import browser
from .conftest import Server, eventually, gone

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MIB = 1 << 20
EAT = "import numpy; numpy.ones(%d << 20, dtype='u1').sum()"
BOMB = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
"""


def kernel_model(server: Server, kernel: str) -> dict[str, Any]:
    status, model = server.call(f"/kernelpool/v1/kernels/{kernel}")
    assert status == 200, model
    return dict(model)


def groups_of(server: Server) -> list[Path]:
    """The folders of the server's groups, all of them, on this machine."""
    assert server.process is not None
    mounts = read_mounts(readable("/proc/self/cgroup"), readable("/proc/self/mountinfo"))
    tops = {*(Path(folder) for folder in mounts.legacy.values()), *([Path(mounts.unified)] if mounts.unified else [])}
    pattern = f"jupyter-kernelpool-{server.process.pid}-*"
    return [found for top in {*tops, *(top.parent for top in tops)} for found in top.glob(pattern)]


def group_name(pid: int) -> str:
    """The group of ours that the process is in; nothing where it is in none."""
    match = re.search(r"/jupyter-kernelpool-\d+-\w+/(.*)", Path(f"/proc/{pid}/cgroup").read_text())
    return match[1] if match else ""


def procs(group: Path) -> list[int]:
    return pids_in(str(group))


def answers(server: Server, kernel: str) -> bool:
    return server.run(kernel, "print(1 + 1)") == "2"


def large_file(server: Server) -> Path:
    """600 MiB, none of which is in memory: who reads it is charged for it."""
    large = server.folder / "large"
    with large.open("wb") as file:
        for _ in range(600):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return large


@pytest.fixture
def kp_limited(kp_start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Starts a server whose kernels are held by control groups: `kp_limited(memory="600M")`."""
    started: list[Server] = []

    def start(**limits: object) -> Server:
        server = kp_start(*(f"--KernelLimits.{name}={value}" for name, value in limits.items()))
        held = server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]
        for limit in ("memory", "cpu", "processes"):
            assert held[limit] == {"enforced": True, "by": "cgroup", "why": None}
        server.wait_warm()
        assert groups_of(server) == [], "nothing is made before a kernel is held"
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
        assert groups_of(server) == []


def test_2_gb_under_600_mb_end_the_kernel_with_the_reason_and_spare_the_others(kp_limited):
    server = kp_limited(memory="600M", on_breach="kill")
    hog, neighbour = server.start_kernel(), server.start_kernel()
    assert answers(server, neighbour)
    with browser(server, hog) as tab:
        request = tab.send("execute_request", {"code": EAT % 2048, "silent": False})
        reply, _ = tab.until_idle(request)
        assert reply["ename"] == "KernelKilled"
        assert "memory limit" in reply["evalue"]
    model = eventually(lambda: kernel_model(server, hog)["breach"] and kernel_model(server, hog), "the reason is told")
    assert model["breach"]["limit"] == "memory"
    assert model["breach"]["outcome"] == "killed"
    assert model["breach"]["allowed"] == 600 * MIB
    assert 600 * MIB <= model["breach"]["seen"] <= 700 * MIB
    assert server.call(f"/api/kernels/{hog}")[1]["execution_state"] == "dead"
    assert answers(server, neighbour)
    assert server.call(f"/api/kernels/{hog}/restart", "POST")[0] == 200
    assert answers(server, hog)


def test_memory_that_grows_slowly_is_interrupted_and_the_kernel_lives(kp_limited):
    server = kp_limited(memory="600M", headroom=0.5)
    kernel = server.start_kernel()
    with browser(server, kernel) as tab:
        code = "import time\nkept = []\nwhile True:\n    kept.append(bytearray(8 << 20)); time.sleep(.02)"
        assert tab.execute(code) == "KeyboardInterrupt"
        assert tab.execute("del kept; print('alive')") == "alive"
    assert kernel_model(server, kernel)["breach"]["outcome"] == "interrupted"


def test_a_child_that_eats_memory_is_ended_and_told_of_and_the_kernel_lives(kp_limited):
    server = kp_limited(memory="400M", headroom=0)
    kernel = server.start_kernel()
    code = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {EAT % 2048!r}]).returncode)"
    assert server.run(kernel, "mark = 5") == ""
    assert server.run(kernel, code) == f"{-signal.SIGKILL}"
    breach = eventually(lambda: kernel_model(server, kernel)["breach"], "it is told")
    assert breach["limit"] == "memory"
    assert breach["outcome"] == "child_killed"
    assert server.run(kernel, "print(mark)") == "5"


def test_half_a_core_is_what_a_busy_loop_gets_and_its_neighbour_stays_quick(kp_limited):
    server = kp_limited(cpu=0.5)
    hog, neighbour = server.start_kernel(), server.start_kernel()
    client = server.client(neighbour)
    pid = int(server.run(hog, "import os; print(os.getpid())"))
    server.client(hog).execute("while True: pass")
    eventually(lambda: psutil.Process(pid).cpu_percent(0.5) > 5, "the loop runs")
    process, began = psutil.Process(pid), time.monotonic()
    before, slowest = sum(process.cpu_times()[:2]), 0.0
    while time.monotonic() - began < 6:
        asked = time.monotonic()
        assert server.run(client, "print(1 + 1)") == "2"
        slowest = max(slowest, time.monotonic() - asked)
        time.sleep(0.1)
    cores = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
    assert 0.05 < cores <= 0.55
    assert slowest < 1.0
    assert kernel_model(server, hog)["breach"] is None


def test_fork_bomb_is_contained_and_ended(kp_limited):
    server = kp_limited(processes=100, grace=1, interval=0.2)
    hog, neighbour = server.start_kernel(), server.start_kernel()
    before = len(psutil.pids())
    client = server.client(hog)
    client.execute(BOMB)
    eventually(lambda: kernel_model(server, hog)["breach"], "it is noticed")
    assert len(psutil.pids()) < before + 150
    assert answers(server, neighbour)
    eventually(lambda: kernel_model(server, hog)["breach"]["outcome"] == "killed", "it is ended")
    assert kernel_model(server, hog)["breach"]["limit"] == "processes"
    name = f"kernel-{hog}"
    for top in groups_of(server):
        eventually(lambda top=top: not procs(top / name), "none of it is left")
    assert server.call(f"/api/kernels/{hog}/restart", "POST")[0] == 200
    assert answers(server, hog)


def test_pool_of_threads_that_is_too_large_is_refused_and_the_kernel_lives(kp_limited):
    server = kp_limited(processes=100, grace=30)
    kernel = server.start_kernel()
    code = "import threading\nfor _ in range(200): threading.Thread(target=threading.Event().wait, args=[3]).start()"
    with browser(server, kernel) as tab:
        assert tab.execute(code) in ("RuntimeError", "KeyboardInterrupt")
        assert tab.execute("print(1 + 1)") == "2"


def test_restart_and_restore_keep_the_group_and_a_fork_has_its_own(kp_limited):
    server = kp_limited(memory="800M")
    kernel = server.start_kernel()
    pid = lambda of: int(server.run(of, "import os; print(os.getpid())"))  # noqa: E731
    name = f"kernel-{kernel}"
    assert group_name(pid(kernel)) == name
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    assert group_name(pid(kernel)) == name
    status, checkpoint = server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})
    assert status == 201, checkpoint
    for top in groups_of(server):
        eventually(lambda top=top: len(procs(top / "apart")) == 1, "the checkpoint has left the kernel's group")
        eventually(lambda top=top: len(procs(top / name)) == 1, "nothing but the kernel is in it")
    status, forked = server.call(f"/kernelpool/v1/kernels/{kernel}/fork", "POST", {})
    assert status == 201, forked
    fork = forked["kernels"][0]["id"]
    assert group_name(pid(fork)) == f"kernel-{fork}"
    status, answer = server.call(f"/kernelpool/v1/kernels/{kernel}/restore", "POST", {"checkpoint": checkpoint["id"]})
    assert status == 200, answer
    assert group_name(pid(kernel)) == name
    for one in (kernel, fork):
        assert server.call(f"/api/kernels/{one}", "DELETE")[0] == 204
    for top in groups_of(server):
        eventually(lambda top=top: not list(top.glob("kernel-*")), "their groups are removed")


def test_checkpoint_outlives_the_end_of_its_kernel(kp_limited):
    server = kp_limited(memory="600M", headroom=0)
    kernel = server.start_kernel()
    server.run(kernel, "mark = 'kept'")
    status, made = server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})
    assert status == 201, made
    server.client(kernel).execute(EAT % 2048)
    eventually(lambda: kernel_model(server, kernel)["breach"], "it is ended")
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "dead", "it is dead")
    status, forked = server.call(f"/kernelpool/v1/checkpoints/{made['id']}/fork", "POST", {})
    assert status == 201, forked
    assert server.run(forked["kernels"][0]["id"], "print(mark)") == "kept"


def test_kernel_without_limits_that_becomes_what_a_limited_one_is_leaves_its_group(kp_limited):
    server = kp_limited()
    kernel = server.start_kernel()
    status, forked = server.call(f"/kernelpool/v1/kernels/{kernel}/fork", "POST", {})
    assert status == 201, forked
    limited = forked["kernels"][0]["id"]
    assert server.call(f"/kernelpool/v1/kernels/{limited}", "PATCH", {"limits": {"memory": "600M"}})[0] == 200
    status, answer = server.call(f"/kernelpool/v1/kernels/{kernel}/restore", "POST", {"kernel": limited})
    assert status == 200, answer
    assert group_name(int(server.run(kernel, "import os; print(os.getpid())"))) == "apart"
    assert server.run(kernel, EAT % 900 + "; print('had')") == "had"


def test_memory_that_a_kernel_had_before_it_was_limited_counts(kp_limited):
    server = kp_limited()
    kernel = server.start_kernel()
    server.run(kernel, "import numpy; kept = numpy.ones(700 << 20, dtype='u1')")
    assert server.call(f"/kernelpool/v1/kernels/{kernel}", "PATCH", {"limits": {"memory": "600M"}})[0] == 200
    breach = eventually(lambda: kernel_model(server, kernel)["breach"], "it is noticed")
    assert (breach["limit"], breach["outcome"]) == ("memory", "killed")
    assert breach["seen"] > 690 * MIB


def test_files_that_are_read_count_for_nothing(kp_limited):
    server = kp_limited(memory="300M")
    kernel = server.start_kernel()
    large = large_file(server)
    code = f"import time\nwith open({str(large)!r}, 'rb') as f:\n    while f.read(1 << 20): pass\ntime.sleep(1.5)"
    assert server.run(kernel, code) == ""
    assert kernel_model(server, kernel)["breach"] is None


def test_files_that_are_read_leave_the_room_in_a_group_as_it_is(kp_limited):
    """What the server asks of the groups that it is in itself; the kernel asks it of its own."""
    server = kp_limited(memory="300M")
    kernel = server.start_kernel()
    large = large_file(server)
    room = "from jupyter_kernelpool.fences import find_mounts, memory_room; print(memory_room(find_mounts()) >> 20)"
    before = int(server.run(kernel, room))
    assert 100 < before < 400
    read = f"with open({str(large)!r}, 'rb') as f:\n    while f.read(1 << 20): pass\n"
    assert int(server.run(kernel, read + room)) > before - 50


def test_all_kernels_together_are_held_to_the_sum(kp_limited):
    server = kp_limited(total_cpu=0.5, total_processes=150, total_memory="4G")
    kernels = [server.start_kernel() for _ in range(2)]
    pids = [int(server.run(kernel, "import os; print(os.getpid())")) for kernel in kernels]
    for kernel in kernels:
        server.client(kernel).execute("while True: pass")
    processes, began = [psutil.Process(pid) for pid in pids], time.monotonic()
    spent = lambda: sum(sum(process.cpu_times()[:2]) for process in processes)  # noqa: E731
    time.sleep(0.5)
    before, began = spent(), time.monotonic()
    time.sleep(4)
    assert 0.05 < (spent() - before) / (time.monotonic() - began) <= 0.55


def test_nothing_is_left_after_the_server_was_killed(kp_limited):
    server = kp_limited(memory="600M")
    kernel = server.start_kernel()
    code = "import subprocess; print(subprocess.Popen(['sleep', '300'], start_new_session=True).pid)"
    daemon = psutil.Process(int(server.run(kernel, code)))
    ours = server.ours()
    assert groups_of(server)
    server.process.kill()
    server.process.wait()
    try:
        eventually(lambda: gone([one for one in ours if one != daemon]), "the processes are gone")
        eventually(lambda: not groups_of(server), "the groups are gone")
        assert daemon.is_running(), "what left the kernel's session is spared, as stock spares it"
        assert group_name(daemon.pid) == ""
    finally:
        daemon.kill()


def test_kernel_that_brings_all_together_over_the_sum_is_ended_for_it_and_no_other(kp_limited):
    server = kp_limited(total_memory="900M")
    hog, neighbour = server.start_kernel(), server.start_kernel()
    server.run(neighbour, "import numpy; kept = numpy.ones(250 << 20, dtype='u1')")
    server.client(hog).execute(EAT % 2048)
    eventually(lambda: (kernel_model(server, hog)["breach"] or {}).get("outcome") == "killed", "it is ended")
    breach = kernel_model(server, hog)["breach"]
    assert (breach["limit"], breach["group"], breach["allowed"]) == ("memory", "all kernels", 900 * MIB)
    assert server.run(neighbour, "print(int(kept.sum()) >> 20)") == "250"


def test_process_that_brings_all_over_the_sum_in_one_go_may_cost_another_kernel_its_life(kp_limited):
    """The operating system ends the largest process, though another kernel has more in all. So says limits.md."""
    server = kp_limited(total_memory="900M", interval=10)  # the guard does not look meanwhile
    hog, neighbour = server.start_kernel(), server.start_kernel()
    server.run(neighbour, "import numpy; kept = numpy.ones(350 << 20, dtype='u1')")
    eater = "import numpy, time; kept = numpy.ones(200 << 20, dtype='u1'); time.sleep(60)"
    code = f"import subprocess, sys\nfor _ in range(4): subprocess.Popen([sys.executable, '-c', {eater!r}])"
    assert server.run(hog, code) == ""
    breach = eventually(lambda: kernel_model(server, neighbour)["breach"], "it is ended")
    assert (breach["limit"], breach["group"], breach["outcome"]) == ("memory", "all kernels", "killed")
    assert "memory limit of all kernels" in server.call(f"/api/kernels/{neighbour}")[1]["reason"], "it is told so"
    assert answers(server, hog)
