"""The kernel's side of forking: what goes on in the fork, when it happens, and what the parent notices."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from .conftest import eventually
from .kernelside_driver import Host, Kernel, Process, children, descriptors, read_json

pytestmark = pytest.mark.integration

LATE_IOPUB = """
from ipykernel.iostream import IOPubThread as _Thread
def _late(self, _stock=_Thread._setup_event_pipe):
    _stock(self)
    self._event_puller.on_recv(lambda parts: self.io_loop.call_later(2, self._handle_event, parts))
_Thread._setup_event_pipe = _late
"""


def test_fork_goes_on_with_the_state_of_the_moment_and_parent_is_untouched(kp_kernel: Kernel) -> None:
    kp_kernel.run("x = [10]\ndef double(): return 2 * x[0]\ng = (n for n in range(9)); next(g)")
    fork = kp_kernel.fork()
    assert fork.run("x[0] += 1; print(double(), next(g))") == "22 1"
    assert kp_kernel.run("print(double(), next(g))") == "20 1"
    assert fork.pid != kp_kernel.pid


def test_execution_count_and_input_list_continue(kp_kernel: Kernel) -> None:
    kp_kernel.run("'first'")
    fork = kp_kernel.fork()
    assert fork.run("print(Out[1], len(In))") == "first 3"
    reply = fork.client.execute("None", reply=True, timeout=10)
    assert reply["content"]["execution_count"] == 3


def test_parked_process_is_forked_again_and_again_each_time_from_the_same_state(kp_kernel: Kernel) -> None:
    kp_kernel.run("x = 1")
    parked = kp_kernel.park()
    kp_kernel.run("x = 2")
    for value in ("10", "20"):
        process = parked.fork()
        process.born()
        kernel = process.adopt(keep=True)
        assert kernel.run("print(x)") == "1"
        kernel.run(f"x = {value}")
    assert kp_kernel.run("print(x)") == "2"
    parked.send({"op": "ping"})
    parked.expect("pong")


def test_parked_process_has_one_thread_and_nothing_of_the_machinery(kp_kernel: Kernel) -> None:
    kp_kernel.run("import tempfile; mine = tempfile.TemporaryFile()")
    parked = kp_kernel.park()
    assert parked.facts["event"] == "ready"
    assert os.listdir(f"/proc/{parked.pid}/task") == [str(parked.pid)]  # noqa: PTH208
    held = sorted(descriptors(parked.pid).values())
    # Standard streams, the lifeline twice, its own socket, the user's file.
    assert len(held) == 7, held
    assert not [one for one in held if one.startswith("anon_inode")]
    assert len([one for one in held if one.startswith("socket")]) == 1


def test_parked_process_ends_when_the_server_lets_go(kp_kernel: Kernel) -> None:
    parked = kp_kernel.park()
    parked.sock.close()
    assert kp_kernel.host.exit_code(parked.pid) == 0


def test_new_process_is_the_supervisors_and_leaves_no_zombie(kp_kernel: Kernel) -> None:
    host = kp_kernel.host
    fork = kp_kernel.park(become=True)
    parked = kp_kernel.park()
    for process in (fork, parked):
        # It may tell that it is born before the process between the two, which forked it, has ended.
        eventually(lambda pid=process.pid: psutil.Process(pid).ppid() == host.supervisor_pid, "it is the supervisor's")
        assert os.getsid(process.pid) == process.pid
    kernel = fork.adopt(keep=True)
    kernel.run("None")
    kp_kernel.run("None")
    assert children(kp_kernel.pid) == []
    assert children(kernel.pid) == []


def test_exit_code_of_a_fork_is_reported(kp_kernel: Kernel) -> None:
    process = kp_kernel.park(become=True)
    fork = process.adopt(keep=True)
    fork.client.execute("import os; os._exit(3)")
    assert kp_kernel.host.exit_code(fork.pid) == 3
    assert kp_kernel.run("print('alive')") == "alive"


def test_generations_hold_no_more_descriptors_each(kp_kernel: Kernel) -> None:
    kp_kernel.run("x = 0")
    held = []
    kernel = kp_kernel
    for _ in range(4):
        kernel = kernel.fork()
        kernel.run("x += 1")
        parked = kernel.park()
        held.append(len(descriptors(parked.pid)))
        process = parked.fork()
        process.born()
        kernel = process.adopt(keep=True)
    assert kernel.run("print(x)") == "4"
    assert len(set(held)) == 1, held


def test_stack_is_as_deep_in_a_late_generation_as_in_the_first(kp_kernel: Kernel) -> None:
    depth = "import inspect; print(len(inspect.stack()))"
    first = kp_kernel.fork()
    before = first.run(depth)
    assert first.fork().fork().run(depth) == before


def test_fork_can_be_shut_down_and_its_parent_lives_on(kp_kernel: Kernel) -> None:
    fork = kp_kernel.fork()
    assert fork.shutdown() == 0
    fork.process.expect("closed")
    assert kp_kernel.run("print(1)") == "1"
    assert kp_kernel.shutdown() == 0


def test_fork_takes_over_the_identity_of_a_kernel_that_ended(kp_kernel: Kernel) -> None:
    """As at a restore: the same key; what was bound by the parent is free for another."""
    parked = kp_kernel.park()
    ports = {kp_kernel.info[f"{name}_port"] for name in ("shell", "iopub", "stdin", "control", "hb")}
    listening = {c.laddr.port for c in psutil.Process(parked.pid).net_connections() if c.status == "LISTEN"}
    assert not listening & ports
    kp_kernel.shutdown()
    for connection in psutil.net_connections():
        assert connection.status != "LISTEN" or connection.laddr.port not in ports


def test_fork_happens_before_the_cells_that_are_queued(kp_kernel: Kernel, tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    kp_kernel.run("x = 0; import os, pathlib, time")
    kp_kernel.client.execute(
        f"pathlib.Path({str(begun)!r}).touch(); x = 1\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    )
    kp_kernel.client.execute("x = 2")
    _until(begun.exists)
    _, process = kp_kernel.order_park(become=True)
    gate.touch()
    kp_kernel.process.expect("parked")
    process.born()
    assert process.adopt(keep=True).run("print(x)") == "1"
    assert kp_kernel.run("print(x)") == "2"


def test_running_async_cell_is_not_disturbed(kp_kernel: Kernel, tmp_path: Path) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    kp_kernel.run("import asyncio, os, pathlib")
    kp_kernel.client.execute(
        f"pathlib.Path({str(begun)!r}).touch()\n"
        f"while not os.path.exists({str(gate)!r}): await asyncio.sleep(0.01)\nx = 'whole'"
    )
    kp_kernel.client.execute("x = 'next'")
    _until(begun.exists)
    _, process = kp_kernel.order_park(become=True)
    with pytest.raises(AssertionError, match="no message"):
        kp_kernel.process.receive(timeout=0.3)
    gate.touch()
    kp_kernel.process.expect("parked")
    process.born()
    assert process.adopt(keep=True).run("print(x)") == "whole"


def test_each_cell_is_kept_where_undo_is_on(kp_kernel: Kernel) -> None:
    kp_kernel.run("x = 0")
    kp_kernel.process.send({"op": "keep", "each_cell": True, "now": True})
    kept = [kp_kernel.kept()]
    kp_kernel.client.kernel_info(reply=True, timeout=10)  # no cell
    kp_kernel.run("x += 100", store_history=False)  # nor is what a front end runs unseen
    for _ in range(3):  # queued: the second waits at the door until the first is kept
        kp_kernel.client.execute("x += 1")
    kp_kernel.run("1 / 0", ok=False)
    kept += [kp_kernel.kept() for _ in range(4)]
    for process, value in zip(kept, (0, 101, 102, 103, 103), strict=True):
        forked = process.fork()
        forked.born()
        assert forked.adopt(keep=True).run("print(x)") == str(value)
    kp_kernel.process.send({"op": "keep", "each_cell": False})
    kp_kernel.run("x = 'no more'")
    kp_kernel.process.send({"op": "ping", "id": 7})
    assert kp_kernel.process.receive() == {"event": "pong", "id": 7}


def test_ping_is_answered_between_messages_and_after_what_was_kept(kp_kernel: Kernel) -> None:
    kp_kernel.process.send({"op": "keep", "each_cell": True})
    for wait in ("time.sleep(0.5)", "await asyncio.sleep(0.5)"):
        kp_kernel.client.execute(f"import asyncio, time; {wait}")
        time.sleep(0.2)
        kp_kernel.process.send({"op": "ping", "id": 8})
        with pytest.raises(AssertionError, match="no message"):
            kp_kernel.process.receive(timeout=0.1)
        kp_kernel.kept()
        assert kp_kernel.process.receive()["event"] == "pong"


def test_order_can_be_withdrawn(kp_kernel: Kernel) -> None:
    kp_kernel.client.execute("import time; time.sleep(0.5)")
    time.sleep(0.2)
    number, process = kp_kernel.order_park()
    kp_kernel.process.send({"op": "cancel_park", "id": number})
    answer = kp_kernel.process.expect("park_failed")
    assert (answer["id"], answer["code"]) == (number, "cancelled")
    assert process.gone()
    assert kp_kernel.run("print(1)") == "1"


def test_orders_that_never_came_due_are_cancelled_at_shutdown(kp_kernel: Kernel) -> None:
    kp_kernel.client.execute("import time; time.sleep(0.5)")
    time.sleep(0.2)
    number, _ = kp_kernel.order_park()
    kp_kernel.client.shutdown()
    answer = kp_kernel.process.expect("park_failed")
    assert (answer["id"], answer["code"]) == (number, "cancelled")


def test_fork_keeps_its_surroundings_and_takes_only_the_name(kp_kernel: Kernel, tmp_path: Path) -> None:
    kp_kernel.run(f"import os, sys; os.chdir({str(tmp_path)!r}); os.environ['MINE'] = '1'; sys.path.append('/mine')")
    process = kp_kernel.park(become=True)
    fork = process.adopt(keep=True, env={"JPY_SESSION_NAME": "copy.ipynb", "MINE": "2"}, cwd="/")
    told = read_json(
        fork.run(
            "import json; print(json.dumps([os.getcwd(), os.environ['MINE'], os.environ['JPY_SESSION_NAME'],"
            " __session__, '/mine' in sys.path]))"
        )
    )
    assert told == [str(tmp_path), "1", "copy.ipynb", "copy.ipynb", True]


def test_startup_files_and_extensions_do_not_run_again(kp_host: Host) -> None:
    startup = kp_host.folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "count.py").write_text("runs = globals().get('runs', 0) + 1\n")
    try:
        process = kp_host.start("warm")
        kernel = process.adopt()
        assert kernel.run("print(runs)") == "1"
        assert kernel.fork().run("print(runs)") == "1"
    finally:
        (startup / "count.py").unlink()


def test_spawned_kernel_can_be_forked_too(kp_host: Host) -> None:
    kernel = kp_host.start("warm", preload=["decimal"]).adopt()
    kernel.run("x = 5")
    fork = kernel.fork()
    assert fork.run("print(x)") == "5"
    assert fork.fork().run("print(x)") == "5"


def test_foreign_kernel_class_says_why_it_is_not_forked(kp_host: Host, tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(
        "from ipykernel.ipkernel import IPythonKernel\nclass ForeignKernel(IPythonKernel): pass\n"
    )
    kp_host.environment["PYTHONPATH"] = str(tmp_path)
    try:
        process = kp_host.start("warm", arguments=["--IPKernelApp.kernel_class=foreign.ForeignKernel"])
    finally:
        del kp_host.environment["PYTHONPATH"]
    assert "ForeignKernel" in process.facts["forkable"]
    kernel = process.adopt()
    _, _process = kernel.order_park()
    assert kernel.process.expect("park_failed")["code"] == "unsupported"


def test_warm_kernels_say_that_they_are_forkable(kp_template: Process) -> None:
    process = kp_template.fork()
    assert process.born()["forkable"] is None
    fork = process.adopt().park(become=True)
    assert fork.facts["forkable"] is None
    assert fork.facts["kernel_info"]["implementation"] == "ipython"


def test_kernel_publishes_nothing_that_is_signed_with_another_key(kp_host: Host) -> None:
    """Its own `starting`, of before it had a key, came out where its thread was late."""
    process = kp_host.start(init_code=LATE_IOPUB).fork(ahead=False)
    process.born()
    assert process.adopt().run("print(6 * 7)") == "42"  # its client raises for a wrong signature


def _until(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)
