"""A restart is a fresh kernel under the same id, ports and key; clients carry on."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .browsers import browser
from .conftest import Server, eventually
from .test_environments import install_spec
from .test_transports import reconnected

# A kernel that knows nothing of `kernel_info_request` on its control channel, as IRkernel.
ON_SHELL_ONLY = """
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
class Kernel(IPythonKernel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        del self.control_handlers["kernel_info_request"]
IPKernelApp.launch_instance(kernel_class=Kernel)
"""

pytestmark = pytest.mark.integration


def restart(server: Server, kernel: str) -> None:
    status, model = server.call(f"/api/kernels/{kernel}/restart", "POST")
    assert status == 200, model
    assert model["id"] == kernel


def test_restart_is_a_pool_hit_that_keeps_identity_and_clients(kp_server: Server) -> None:
    kp_server.wait_warm()
    (kp_server.root / "folder").mkdir(exist_ok=True)
    session = kp_server.start_session("folder/restarted.ipynb")
    kernel = session["kernel"]["id"]
    client = kp_server.client(kernel)
    before = json.loads(kp_server.connection_file(kernel).read_text())
    pid = kp_server.run(client, "x = 1; import os; print(os.getpid())")
    kp_server.wait_warm()
    hits = kp_server.hit()
    restart(kp_server, kernel)
    assert kp_server.hit() == hits + 1
    assert json.loads(kp_server.connection_file(kernel).read_text()) == before
    # The same client object, never told of anything:
    reconnected(client)
    assert kp_server.run(client, "print('x' in globals())") == "False"
    assert kp_server.run(client, "import os; print(os.getpid())") != pid
    assert kp_server.run(client, "print(os.getcwd())") == str(kp_server.root / "folder")
    assert kp_server.run(client, "print(__session__)").endswith("folder/restarted.ipynb")


def test_rename_arrives_at_the_next_restart(kp_server: Server) -> None:
    kp_server.wait_warm()
    session = kp_server.start_session("before.ipynb")
    kernel = session["kernel"]["id"]
    status, _ = kp_server.call(
        f"/api/sessions/{session['id']}", "PATCH", {"path": "after.ipynb", "name": "after.ipynb", "type": "notebook"}
    )
    assert status == 200
    restart(kp_server, kernel)
    assert kp_server.run(kernel, "import os; print(os.environ['JPY_SESSION_NAME'])").endswith("after.ipynb")


def test_killed_kernel_comes_back_at_once_for_the_same_client(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    client = kp_server.client(kernel)
    pid = int(kp_server.run(client, "import os; print(os.getpid())"))
    kp_server.wait_warm()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: kp_server.call(f"/kernelpool/v1/kernels/{kernel}")[1].get("pid") not in (pid, 0), "restarted")
    reconnected(client)
    assert int(kp_server.run(client, "import os; print(os.getpid())")) != pid


def test_busy_kernel_is_restarted(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    client = kp_server.client(kernel)
    client.execute("while True: pass")
    restart(kp_server, kernel)
    reconnected(client)
    assert kp_server.run(client, "print(1)") == "1"


def test_what_a_kernel_registered_for_its_exit_is_run(kp_start: Callable[..., Server]) -> None:
    """A restart shortens no kernel's end: exit handlers run, files are flushed."""
    # As on stock, SIGTERM comes after half of this time: with the usual 5 s, a busy machine would be too slow.
    server = kp_start("--KernelManager.shutdown_wait_time=60")
    server.wait_warm()
    kernel = server.start_kernel()
    target, unflushed = server.root / "atexit.txt", server.root / "unflushed.txt"
    server.run(
        kernel,
        f"import atexit; atexit.register(lambda: open({str(target)!r}, 'w').write('done'))\n"
        f"f = open({str(unflushed)!r}, 'w'); f.write('buffered')",
    )
    restart(server, kernel)
    eventually(lambda: target.exists() and target.read_text() == "done", "the exit handler ran")
    eventually(lambda: unflushed.read_text() == "buffered", "the open file was flushed")


def test_a_kernel_never_returns_to_the_pool(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    pid = int(kp_server.run(kernel, "import os; print(os.getpid())"))
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the process ended")
    assert not kp_server.connection_file(kernel).exists()


@pytest.mark.parametrize("program", [["-m", "ipykernel_launcher"], ["-c", ON_SHELL_ONLY]], ids=["both", "shell only"])
def test_what_is_run_right_after_a_cold_restart_has_its_output(
    kp_start: Callable[..., Server], program: list[str]
) -> None:
    """The client's sockets reconnect one by one: with stock, what ran before its iopub did is not heard."""
    server = kp_start("--KernelPool.recipes={'mine': {'launcher': 'off'}}")
    install_spec(server.folder, "mine", [sys.executable, *program, "-f", "{connection_file}"])
    kernel = server.start_kernel(name="mine")
    with browser(server, kernel) as tab:
        assert tab.execute("print('asked')") == "asked"
        tab.aside.clear()  # what jupyter_server asks where a websocket opens
        for number in range(5):
            assert tab.execute(f"print({number})") == str(number)
            restart(server, kernel)
        pid = int(tab.execute("import os; print(os.getpid())"))
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: server.call(f"/kernelpool/v1/kernels/{kernel}")[1].get("pid") not in (pid, 0), "restarted")
        assert int(tab.execute("import os; print(os.getpid())")) != pid
        sessions = {message["parent_header"].get("session") for message in tab.aside}
        assert tab.session not in sessions, "what was asked in its name, to know that it hears, is not its business"
