"""What runs away ends as the limits say, and everybody is told why; on each enforcer, with real kernels."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from .browsers import browser, execution
from .conftest import Server, eventually
from .limited import (
    ENFORCERS,
    MB,
    Heard,
    assert_dead_for,
    cores_of,
    cores_of_each,
    hearing,
    limited,
    model_of,
    pid_of,
    run,
    session_of,
    tree_of,
    undisturbed,
)
from .traces import write_spec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

# None of them leaves what would hurt the machine if the limit did not hold.
ALLOCATES = 'x = b"x" * (2 << 30)'
GROWS = """
import time
kept = []
try:
    while len(kept) < 2048:
        kept.append(b"x" * (1 << 20))
        time.sleep(0.004)
except KeyboardInterrupt:
    size = len(kept)
    kept.clear()
    raise
"""
FORKS = """
import os, time
me = os.getpid()
for _ in range(8):
    os.fork()
if os.getpid() != me:
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
LEAKS = """
files = []
while len(files) < 5000:
    files.append(open("/dev/null"))
"""
SPINS = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
SPINS_IN_PROCESSES = f"""
import subprocess, sys
hogs = [subprocess.Popen([sys.executable, "-c", {SPINS!r}]) for _ in range(3)]
for hog in hogs:
    hog.wait()
"""
SPINS_IN_THREADS = f"""
import threading
hogs = [threading.Thread(target=exec, args=({SPINS!r}, {{}})) for _ in range(3)]
for hog in hogs:
    hog.start()
for hog in hogs:
    hog.join()
"""
EATS = f"import time; {ALLOCATES}; time.sleep(60)"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {EATS!r}])"
ELSEWHERE = """
from jupyter_client.provisioning import LocalProvisioner

class Far:
    pid = 0  # as if the process were on another machine

    def __init__(self, process):
        self._process = process

    def __getattr__(self, name):
        return getattr(self._process, name)

class Elsewhere(LocalProvisioner):
    async def launch_kernel(self, cmd, **kwargs):
        found = await super().launch_kernel(cmd, **kwargs)
        self.process = Far(self.process)
        return found
"""
POOL = """
import multiprocessing, time
def eat(number):
    x = b"x" * (400 << 20)
    time.sleep(60)
with multiprocessing.get_context("fork").Pool(4) as pool:
    pool.map_async(eat, range(4)).get(timeout=40)  # map would wait for ever for a worker that is gone
"""


@pytest.fixture(scope="module", params=list(ENFORCERS))
def kp_limiting(
    request: pytest.FixtureRequest, kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server on which each test limits its own kernels."""
    server = kp_servers(tmp_path_factory.mktemp("server"), *ENFORCERS[request.param], "--KernelLimits.grace=1.5")
    server.wait_warm()
    _, pool = server.call("/kernelpool/v1/pool")
    assert pool["capabilities"]["limits"]["memory"]["by"] == request.param
    yield server
    server.stop()


@pytest.fixture(params=list(ENFORCERS))
def kp_start_limiting(request: pytest.FixtureRequest, kp_start: Callable[..., Server]) -> Callable[..., Server]:
    """Starts a server with the enforcer and further options."""
    return lambda *options: kp_start(*ENFORCERS[request.param], *options)


def assert_restarts(server: Server, kernel: str) -> None:
    """Its user's own restart gives a working kernel without a word of what was."""
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    with browser(server, kernel) as page:
        assert page.execute("1+1") == "2"
    assert not model_of(server, kernel)["reason"]
    eventually(lambda: model_of(server, kernel)["execution_state"] == "idle", "it is idle")


# -- memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [ALLOCATES, CHILD, POOL], ids=["kernel", "child", "pool"])
def test_two_gigabytes_under_600_mb_end_the_kernel_and_its_children_with_the_reason(
    kp_limiting: Server, code: str
) -> None:
    kernel = limited(kp_limiting, memory="600M")
    pid = pid_of(kp_limiting, kernel)
    with undisturbed(kp_limiting), hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        cell = run(page, code)
        assert "600 MB allowed" in cell.stderr
        # It was looked at just above the limit, and stopped when it was asked; or a child alone was ended.
        if cell.error in ("KeyboardInterrupt", "TimeoutError") or cell.reply["status"] == "ok":
            assert_stopped(kp_limiting, kernel, pid, heard)
            return
        assert (cell.reply["status"], cell.reply["ename"], cell.error) == ("error", "KernelKilled", "KernelKilled")
        assert "memory limit" in cell.reply["evalue"]
        model = assert_dead_for(kp_limiting, kernel, "memory", pid)
        assert model["breach"]["allowed"] == 600 * MB
        assert model["breach"]["seen"] < 2600 * MB
        eventually(lambda: heard.of(kernel, "dead"), "it is told that the kernel is dead")
    assert heard.of(kernel, "breached")[-1]["outcome"] == "killed"
    assert heard.of(kernel, "breached")[-1]["reason"] == model["reason"] == cell.reply["evalue"]
    assert {event["limit"] for event in heard.of(kernel, "breached")} == {"memory"}
    assert_restarts(kp_limiting, kernel)


def assert_stopped(server: Server, kernel: str, pid: int, heard: Heard) -> None:
    """It uses little again, without any of what it began, and is left alone; what was done is told everywhere."""
    time.sleep(3)
    breach = model_of(server, kernel)["breach"]
    assert breach["outcome"] in ("interrupted", "child_killed")
    assert (breach["limit"], breach["allowed"], breach["state_lost"]) == ("memory", 600 * MB, False)
    assert (pid_of(server, kernel), model_of(server, kernel)["execution_state"]) == (pid, "idle")
    assert session_of(pid) == [pid]
    assert not heard.of(kernel, "dead")
    for event in heard.of(kernel, "breached"):
        assert event["outcome"] in ("interrupted", "child_killed")
        assert re.fullmatch(r"memory limit: \S+ [MG]B used, 600 MB allowed", event["reason"]), event
    assert heard.of(kernel, "breached")[-1]["outcome"] == breach["outcome"]


def test_what_a_dead_kernel_is_asked_is_answered_and_not_run_after_its_restart(
    kp_limiting: Server, tmp_path: Path
) -> None:
    kernel, mark = limited(kp_limiting, memory="400M"), tmp_path / "mark"
    with browser(kp_limiting, kernel) as page:
        assert run(page, ALLOCATES).reply["ename"] == "KernelKilled"
        eventually(lambda: model_of(kp_limiting, kernel)["execution_state"] == "dead", "it stays dead")
        reply, published = page.until_idle(page.send("execute_request", execution(f"open({str(mark)!r}, 'w')")))
        assert reply["status"] == "aborted"
        told = "".join(message["content"].get("text", "") for message in published)
        assert f"Not run. The kernel {kernel} is dead (memory limit: " in told
        assert "Restart it." in told
        assert kp_limiting.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert page.execute("1+1") == "2", "on the same websocket"
    assert not mark.exists()


def test_websocket_to_a_dead_kernel_opens_and_tells_why_and_serves_after_the_restart(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, memory="400M")
    with browser(kp_limiting, kernel) as page:
        assert run(page, ALLOCATES).reply["ename"] == "KernelKilled"
    eventually(lambda: model_of(kp_limiting, kernel)["execution_state"] == "dead", "it stays dead")
    with browser(kp_limiting, kernel) as page, browser(kp_limiting, kernel) as another:
        cell = run(page, "1+1")
        assert cell.reply["status"] == "aborted"
        assert "memory limit" in cell.stderr
        assert kp_limiting.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert (page.execute("1+1"), another.execute("2+2")) == ("2", "4")


def test_single_cell_may_ask_for_less_memory_and_the_next_one_has_it_all(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, processes=500)
    pid = pid_of(kp_limiting, kernel)
    keeps = "import time\nkept = b'x' * (450 << 20)\ntime.sleep(1.5)\ndel kept"
    with browser(kp_limiting, kernel) as page:
        page.metadata = {"kernelpool": {"limits": {"memory": "300M"}}}
        cell = run(page, GROWS)
        assert cell.error == "KeyboardInterrupt"
        assert "300 MB allowed" in cell.stderr
        page.metadata = {}
        cell = run(page, keeps)
        assert (cell.reply["status"], cell.stderr) == ("ok", "")
        assert model_of(kp_limiting, kernel)["limits"]["memory"] is None
        assert pid_of(kp_limiting, kernel) == pid
        page.metadata = {"kernelpool": {"limits": {"memory": "300M"}}}
        cell = run(page, EATS)
        assert "300 MB allowed" in cell.stderr
        assert cell.reply["ename"] in ("KernelKilled", "KeyboardInterrupt")


def test_kernel_that_grows_is_warned_once_and_interrupted_and_lives_on(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, memory="600M")
    pid = pid_of(kp_limiting, kernel)
    with undisturbed(kp_limiting), hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        assert page.execute("before = 7") == ""
        cell = run(page, GROWS)
        assert cell.error == "KeyboardInterrupt"
        assert cell.stderr.count("of 600 MB used") == 1
        assert "Interrupted" in cell.stderr
        time.sleep(2)  # longer than it has time to use less
        assert page.execute("before, 560 < size < 700") == "(7, True)"
        assert pid_of(kp_limiting, kernel) == pid
        assert model_of(kp_limiting, kernel)["breach"]["outcome"] == "interrupted"
        # It is calm: the next crossing is another one.
        assert run(page, GROWS).error == "KeyboardInterrupt"
        eventually(lambda: len(heard.of(kernel, "breached")) == 2, "both are told")
    assert len(heard.of(kernel, "warned")) == 2
    assert not heard.of(kernel, "dead")


def test_memory_that_is_kept_after_the_interrupt_ends_the_kernel(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, memory="600M")
    pid = pid_of(kp_limiting, kernel)
    with browser(kp_limiting, kernel) as page:
        cell = run(page, GROWS.replace("    kept.clear()\n", ""))
        assert cell.error == "KeyboardInterrupt"
        eventually(lambda: model_of(kp_limiting, kernel)["execution_state"] == "dead", "it is ended")
    assert_dead_for(kp_limiting, kernel, "memory", pid)


def test_memory_that_a_kernel_shares_with_its_template_is_not_its_own(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting("--KernelLimits.memory=150M", "--KernelPool.init_code=x = b'x' * (400 << 20)")
    server.wait_warm()
    hits = server.hit()
    kernel = server.start_kernel()
    assert server.hit() == hits + 1
    with browser(server, kernel) as page:
        assert page.execute("len(x) >> 20") == "400"
        time.sleep(2)
        assert page.execute("len(x) >> 20") == "400"
    assert model_of(server, kernel)["breach"] is None


def test_memory_that_a_fork_shares_with_its_parent_is_not_its_own_but_what_it_takes_is(
    kp_start_limiting: Callable[..., Server],
) -> None:
    server = kp_start_limiting("--KernelLimits.memory=500M")
    server.wait_warm()
    parent = server.start_kernel()
    with browser(server, parent) as page:
        assert run(page, "x = b'x' * (400 << 20)").reply["status"] == "ok", "though it may be warned, being at 80 %"
    status, forked = server.call(f"/kernelpool/v1/kernels/{parent}/fork", "POST", {})
    assert status == 201, forked
    fork = forked["kernels"][0]["id"]
    assert model_of(server, fork)["limits"]["memory"] == 500 * MB
    pid = pid_of(server, fork)
    with hearing(server) as heard, browser(server, fork) as page:
        cell = run(page, "y = b'y' * (200 << 20)\nimport time; time.sleep(2)")
        assert (cell.reply["status"], cell.stderr) == ("ok", ""), "600 MB with what it shares"
        assert page.execute("(len(x) + len(y)) >> 20") == "600"
        assert not heard.of(fork, "warned")
        cell = run(page, "z = b'z' * (500 << 20)\ntime.sleep(60)")  # 200 MB more than is allowed
        assert cell.reply["ename"] == "KernelKilled"
        assert "500 MB allowed" in cell.stderr
        breach = assert_dead_for(server, fork, "memory", pid)["breach"]
        assert (breach["allowed"], breach["seen"] < 750 * MB) == (500 * MB, True), "what it shares is not in it"
    assert not heard.of(parent, "breached")
    assert model_of(server, parent)["breach"] is None
    assert server.run(parent, "print(len(x) >> 20)") == "400"


# -- processes and files ----------------------------------------------------------------------------


def test_fork_bomb_ends_with_all_its_processes(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, processes=100)
    pid = pid_of(kp_limiting, kernel)
    with undisturbed(kp_limiting), hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        cell = run(page, FORKS)
        said = cell.stderr
        assert re.search(r"processes limit: \d+ used, 100 allowed\. ", said), (
            "in the cell, though that may fail at once"
        )
        time.sleep(2)  # longer than its grace: what is told now is how it ended
        breach = model_of(kp_limiting, kernel)["breach"]
        assert (breach["limit"], breach["allowed"], breach["seen"] > 100) == ("processes", 100, True)
        eventually(lambda: len(session_of(pid)) < 100, "no more than allowed are left")
        if breach["outcome"] == "killed":
            assert (cell.reply["ename"], cell.error) == ("KernelKilled", "KernelKilled")
            assert_dead_for(kp_limiting, kernel, "processes", pid)
            assert_restarts(kp_limiting, kernel)
        else:  # the next process was refused, and what ran was interrupted
            assert (breach["outcome"], breach["state_lost"]) == ("interrupted", False)
            assert "Interrupted; the kernel is ended if that does not help" in said
            # NotAnswered: IPython's traceback can fail where no process is to be had; ipykernel then sends no reply.
            assert cell.reply["ename"] in ("BlockingIOError", "KeyboardInterrupt", "NotAnswered"), cell
            assert page.execute("1+1") == "2"
    told = heard.of(kernel, "breached")
    assert {event["limit"] for event in told} == {"processes"}
    assert told[-1]["outcome"] == breach["outcome"]
    assert all(re.fullmatch(r"processes limit: \d+ used, 100 allowed", event["reason"]) for event in told)
    assert kp_limiting.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: not session_of(pid), "nothing of it is left")


def test_kernel_near_its_processes_is_warned_once_and_goes_on(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, processes=100)
    threads = "import threading\nover = threading.Event()\nwhile threading.active_count() < 88:\n"
    threads += "    threading.Thread(target=over.wait, daemon=True).start()\n"
    with hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        cell = run(page, threads + "import time; time.sleep(3)")
        assert cell.reply["status"] == "ok"
        assert re.fullmatch(r"Processes: [89]\d of 100 used\.\n", cell.stderr), cell
        assert page.execute("over.set(); 1+1") == "2"
    (warned,) = heard.of(kernel, "warned")
    assert (warned["limit"], warned["allowed"], 80 <= warned["seen"] < 100) == ("processes", 100, True)
    assert warned["reason"] == cell.stderr.strip()
    assert not heard.of(kernel, "breached")


def test_leak_of_files_is_an_error_in_its_cell_and_new_clients_can_connect(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, open_files=256)
    pid = pid_of(kp_limiting, kernel)
    with undisturbed(kp_limiting), hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        cell = run(page, LEAKS)
        assert cell.reply["ename"] == "OSError"
        assert "open files limit: " in cell.stderr, cell
        assert "256 allowed; the operating system refuses more." in cell.stderr
        assert page.execute("len(files) < 256") == "True"
        eventually(lambda: heard.of(kernel, "breached"), "it is told")
        with browser(kp_limiting, kernel) as other:
            assert other.execute("len(files) > 100") == "True"
        assert kp_limiting.run(kernel, "1+1") == "2"
        assert page.execute("files.clear(); 1+1") == "2"
    assert pid_of(kp_limiting, kernel) == pid
    assert [event["outcome"] for event in heard.of(kernel, "breached")] == ["refused"]
    assert model_of(kp_limiting, kernel)["breach"]["limit"] == "open_files"


def test_leak_that_is_closed_at_once_is_told_in_its_cell(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, open_files=256)
    closes = LEAKS.replace("\n    files", "\n    try: files").replace(
        ")\n", ")\n    except OSError: files.clear(); raise\n"
    )
    compile(closes, "cell", "exec")
    with hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        for _ in range(2):
            cell = run(page, closes)
            assert cell.reply["ename"] == "OSError"
            assert "open files limit: 256 used, 256 allowed; the operating system refuses more." in cell.stderr, cell
            assert page.execute("len(files)") == "0"
            time.sleep(1)  # a look finds it calm
        eventually(lambda: len(heard.of(kernel, "breached")) == 2, "both are told")


def test_kernel_near_its_open_files_is_warned_before_one_is_refused(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, open_files=256)
    slowly = (
        "import os, time\nfiles = []\nwhile len(os.listdir('/proc/self/fd')) < 220: files.append(open('/dev/null'))\n"
    )
    with hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        cell = run(page, slowly + "time.sleep(3)")
        assert cell.reply["status"] == "ok"
        assert re.fullmatch(r"Open files: 2\d\d of 256 used\.\n", cell.stderr), cell
        leaks = run(page, LEAKS.replace("files = []\n", ""))
        assert (leaks.reply["ename"], "256 allowed" in leaks.stderr) == ("OSError", True)
        eventually(lambda: heard.of(kernel, "breached"), "it is told")
    (warned,) = heard.of(kernel, "warned")
    assert (warned["limit"], warned["allowed"], warned["reason"]) == ("open_files", 256, cell.stderr.strip())
    (breached,) = heard.of(kernel, "breached")
    assert (breached["limit"], breached["outcome"]) == ("open_files", "refused")
    assert re.fullmatch(r"open files limit: \d+ used, 256 allowed", breached["reason"]), breached


# -- processor --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [SPINS, SPINS_IN_PROCESSES, SPINS_IN_THREADS], ids=["loop", "processes", "threads"])
# Low limits: on a machine that does other things, too, a hog may not get more anyway.
def test_hog_averages_no_more_than_its_cores_and_still_obeys(kp_limiting: Server, code: str) -> None:
    kernel = limited(kp_limiting, cpu=0.1)
    pid = pid_of(kp_limiting, kernel)
    with undisturbed(kp_limiting), hearing(kp_limiting) as heard, browser(kp_limiting, kernel) as page:
        request = page.send("execute_request", {"code": code, "silent": False, "allow_stdin": False})
        eventually(lambda: cores_of(pid, 0.5) > 0.05, "it computes")
        assert cores_of(pid, 10) <= 0.1 * 1.5  # loosely: `./dev bench limits` has the figure
        eventually(lambda: heard.of(kernel, "throttled"), "it is told")
        began = time.monotonic()
        page.ask("kernel_info_request", {}, "control")
        assert time.monotonic() - began < 10  # with three threads that compute, and a tenth of a core for all
        assert kp_limiting.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
        reply, _ = page.until_idle(request, 90)
        assert reply["ename"] == "KeyboardInterrupt"
        assert_runs_freely(pid)
    assert len(heard.of(kernel, "throttled")) == 1
    assert heard.of(kernel, "throttled")[0]["allowed"] == 0.1
    assert kp_limiting.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: not session_of(pid), "nothing is left of it")


def assert_runs_freely(pid: int) -> None:
    """For a while no process of the tree is paused; those that still compute are interrupted first."""
    for process in tree_of(pid)[1:]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    eventually(
        lambda: all("stopped" not in [one.status() for one in tree_of(pid)] or time.sleep(0.1) for _ in range(30)),
        "nothing is paused",
    )


def test_looser_limit_frees_a_hog_at_once_and_stopping_the_server_leaves_nothing_paused(
    kp_start_limiting: Callable[..., Server],
) -> None:
    server = kp_start_limiting("--KernelLimits.allow_loosen=True")
    kernel = server.start_kernel()
    pid, path = pid_of(server, kernel), f"/kernelpool/v1/kernels/{kernel}"
    with browser(server, kernel) as page:
        page.send("execute_request", {"code": SPINS, "silent": False, "allow_stdin": False})
        eventually(lambda: cores_of(pid, 0.5) > 0.01, "it computes")
        for _ in range(2):
            assert server.call(path, "PATCH", {"limits": {"cpu": 0.02}})[0] == 200
            eventually(lambda: cores_of(pid, 2) < 0.04, "it is slowed down")
            assert server.call(path, "PATCH", {"limits": {"cpu": None}})[0] == 200
            assert cores_of(pid, 2) > 0.06
        assert server.call(path, "PATCH", {"limits": {"cpu": 0.02}})[0] == 200
        eventually(lambda: cores_of(pid, 2) < 0.04, "it is slowed down again")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 20
    assert not session_of(pid)


# -- what happens at a breach -----------------------------------------------------------------------


def test_on_breach_kill_ends_the_kernel_without_an_interrupt(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting("--KernelLimits.on_breach=kill", "--KernelLimits.memory=300M")
    kernel = server.start_kernel()
    pid = pid_of(server, kernel)
    with hearing(server) as heard, browser(server, kernel) as page:
        cell = run(page, GROWS)
        assert cell.reply["ename"] == "KernelKilled"
        assert "Interrupted" not in cell.stderr
        assert_dead_for(server, kernel, "memory", pid)
    assert [event["outcome"] for event in heard.of(kernel, "breached")] == ["killed"]


def test_on_breach_restart_gives_a_fresh_process_to_the_same_clients(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting("--KernelLimits.on_breach=restart", "--KernelLimits.memory=300M")
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as page:
        assert page.execute("before = 7") == ""
        assert run(page, ALLOCATES).reply["ename"] == "KernelKilled"
        eventually(lambda: (model_of(server, kernel)["breach"] or {}).get("outcome") == "restarted", "it is restarted")
        assert page.execute("before") == "NameError"
        assert page.execute("1+1") == "2"
    assert model_of(server, kernel)["limits"]["memory"] == 300 * MB


def test_on_breach_restore_brings_the_last_checkpoint_back(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting("--KernelLimits.on_breach=restore", "--KernelLimits.memory=300M")
    server.wait_warm()
    kernel = server.start_kernel()
    with browser(server, kernel) as page:
        assert page.execute("before = 7") == ""
        assert server.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})[0] == 201
        assert page.execute("before = 8") == ""
        assert run(page, ALLOCATES).reply["ename"] == "KernelKilled"
        eventually(lambda: (model_of(server, kernel)["breach"] or {}).get("outcome") == "restored", "it is restored")
        assert page.execute("before") == "7"
        # Without a checkpoint that can be had, a fresh one.
        for checkpoint in model_of(server, kernel)["checkpoints"]:
            assert server.call(f"/kernelpool/v1/checkpoints/{checkpoint}", "DELETE")[0] == 204
        assert run(page, ALLOCATES).reply["ename"] == "KernelKilled"
        eventually(lambda: (model_of(server, kernel)["breach"] or {}).get("outcome") == "restarted", "it is restarted")
        assert page.execute("before") == "NameError"


# -- which limits hold ------------------------------------------------------------------------------


def test_limits_of_a_recipe_hold_for_its_kernels(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting(
        "--KernelLimits.memory=4G", '--KernelPool.recipes={"python3": {"limits": {"memory": "300M"}}}'
    )
    kernel = server.start_kernel()
    assert model_of(server, kernel)["limits"]["memory"] == 300 * MB
    with browser(server, kernel) as page:
        assert run(page, ALLOCATES).reply["ename"] == "KernelKilled"


def test_limits_of_a_recipe_change_for_the_kernels_that_run_but_not_where_one_has_its_own(
    kp_start_limiting: Callable[..., Server],
) -> None:
    server = kp_start_limiting('--KernelPool.recipes={"python3": {"limits": {"memory": "700M", "processes": 300}}}')
    server.wait_warm()
    kernel, own = server.start_kernel(), limited(server, memory="600M")
    path = "/kernelpool/v1/pools/python3"
    for looser in ({"memory": "701M"}, {"memory": None}):
        status, refusal = server.call(path, "PATCH", {"limits": looser})
        assert (status, refusal["code"]) == (422, "loosens"), looser
    assert server.call(path, "PATCH", {"limits": {"memory": "300M"}})[0] == 200
    held = model_of(server, kernel)["limits"]
    assert (held["memory"], held["processes"]) == (300 * MB, 300), "what was not named stays"
    assert model_of(server, own)["limits"]["memory"] == 600 * MB
    with browser(server, kernel) as page, browser(server, own) as other:
        assert other.execute("x = b'x' * (400 << 20); len(x) >> 20") == "400"
        assert run(page, "x = b'x' * (500 << 20)\nimport time; time.sleep(60)").reply["ename"] == "KernelKilled"
    assert server.call(path, "PATCH", {"limits": {"memory": "700M"}})[0] == 200, "back to what is configured"
    assert model_of(server, server.start_kernel())["limits"]["memory"] == 700 * MB


def test_limits_are_tightened_and_not_loosened(kp_limiting: Server) -> None:
    kernel = limited(kp_limiting, memory="600M", cpu=1)
    path = f"/kernelpool/v1/kernels/{kernel}"
    for looser in ({"memory": "601M"}, {"memory": None}, {"cpu": 1.5}):
        status, refusal = kp_limiting.call(path, "PATCH", {"limits": looser})
        assert (status, refusal["code"]) == (422, "loosens"), looser
    assert model_of(kp_limiting, kernel)["limits"]["memory"] == 600 * MB
    status, model = kp_limiting.call(path, "PATCH", {"limits": {"memory": "500M", "processes": 200}})
    assert (status, model["limits"]["memory"], model["limits"]["processes"]) == (200, 500 * MB, 200)
    assert kp_limiting.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    assert model_of(kp_limiting, kernel)["limits"]["memory"] == 500 * MB


def test_sum_of_all_kernels_ends_the_one_that_uses_most(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting("--KernelLimits.total_memory=700M", "--KernelLimits.grace=1.5")
    server.wait_warm()
    small, large = server.start_kernel(), server.start_kernel()
    with browser(server, small) as page, browser(server, large) as other:
        assert page.execute("x = b'x' * (200 << 20)") == ""
        assert run(other, "import time\nx = b'x' * (1000 << 20)\ntime.sleep(60)").reply["ename"] == "KernelKilled"
        assert page.execute("len(x) >> 20") == "200"
    breach = model_of(server, large)["breach"]
    assert (breach["group"], breach["allowed"], breach["outcome"]) == ("all kernels", 700 * MB, "killed")
    assert "memory limit of all kernels" in model_of(server, large)["reason"]
    assert model_of(server, small)["breach"] is None


def test_cores_of_all_kernels_are_shared(kp_start_limiting: Callable[..., Server]) -> None:
    server = kp_start_limiting("--KernelLimits.total_cpu=0.1")
    server.wait_warm()
    kernels = [server.start_kernel() for _ in range(2)]
    pids = [pid_of(server, kernel) for kernel in kernels]
    with contextlib.ExitStack() as stack:
        for kernel in kernels:
            page = stack.enter_context(browser(server, kernel))
            page.send("execute_request", {"code": SPINS, "silent": False, "allow_stdin": False})
        eventually(lambda: sum(cores_of_each(pids, 1)) < 0.13, "both are slowed down")
        time.sleep(2)
        both = cores_of_each(pids, 4)
        assert all(0.02 < cores < 0.08 for cores in both), both
        assert server.call(f"/api/kernels/{kernels[1]}/interrupt", "POST")[0] == 204
        eventually(lambda: cores_of(pids[1], 1) < 0.01, "the other one rests")
        time.sleep(1)
        assert 0.06 < cores_of(pids[0], 4) < 0.12


# -- kernels that others start ----------------------------------------------------------------------


def test_kernel_that_another_provisioner_starts_is_held_too(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    metadata = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    write_spec(tmp_path, "mine", metadata=metadata)
    server = kp_start("--KernelLimits.memory=300M", JUPYTER_PATH=str(tmp_path))
    kernel = server.start_kernel(name="mine")
    assert model_of(server, kernel)["recipe"] is None, "the pool has no part in it"
    with browser(server, kernel) as page:
        cell = run(page, EATS)
        assert (cell.reply["ename"], "300 MB allowed" in cell.stderr) == ("KernelKilled", True)
    eventually(lambda: model_of(server, kernel)["execution_state"] == "dead", "it stays dead")
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    with browser(server, kernel) as page:
        assert page.execute("1+1") == "2"
        assert run(page, EATS).reply["ename"] == "KernelKilled", "its next process is held as well"


def test_limited_kernel_without_a_process_here_is_refused(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    """A provisioner of somebody's, which might start it anywhere."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jupyter_client.kernel_provisioners]\nelsewhere = elsewhere:Elsewhere\n")
    write_spec(tmp_path, "far", metadata={"kernel_provisioner": {"provisioner_name": "elsewhere"}})
    places = {"JUPYTER_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    server = kp_start(**places)
    assert server.run(server.start_kernel(name="far"), "print(6 * 7)") == "42", "without limits it starts as with stock"
    server = kp_start("--KernelLimits.memory=300M", **places)
    status, answer = server.call("/api/kernels", "POST", {"name": "far"})
    assert status >= 400
    assert "not on this machine" in answer["message"]
    assert server.call("/api/kernels")[1] == []
