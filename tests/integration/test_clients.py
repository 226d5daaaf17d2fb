"""Programs that people use, on a server with the extension: JupyterLab's way, nbclient, papermill, console, voila."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager, KernelManager
from traitlets.config import Config

from .browsers import Browser, browser, execution, unpack
from .conftest import TOKEN, Server, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

PROGRAM_TIMEOUT = 120


# -- JupyterLab -------------------------------------------------------------------------------------


def test_a_notebook_in_jupyterlab(kp_server: Server) -> None:
    """The requests of a tab in their order, from opening the notebook to closing it."""
    kp_server.wait_warm()
    hits = kp_server.hit()
    session = kp_server.start_session("Untitled.ipynb")
    kernel = session["kernel"]["id"]
    assert kp_server.hit() == hits + 1
    with browser(kp_server, kernel) as tab:
        info = tab.ask("kernel_info_request", {})
        assert (info["status"], info["language_info"]["name"]) == ("ok", "python")
        assert tab.ask("comm_info_request", {"target_name": "jupyter.widget"}) == {"comms": {}, "status": "ok"}
        reply, published = tab.until_idle(tab.send("execute_request", execution("import os\nnumber = 6 * 7\nnumber")))
        assert (reply["status"], reply["execution_count"]) == ("ok", 1)
        kinds = [message["header"]["msg_type"] for message in published]
        assert kinds == ["status", "execute_input", "execute_result", "status"]
        assert "number" in tab.ask("complete_request", {"code": "numb", "cursor_pos": 4})["matches"]
        assert tab.ask("inspect_request", {"code": "number", "cursor_pos": 3, "detail_level": 0})["found"] is True
        assert tab.ask("is_complete_request", {"code": "for"})["status"] == "invalid"
        history = tab.ask("history_request", {"hist_access_type": "tail", "n": 1, "raw": True, "output": False})
        assert history["history"][0][2].startswith("import os")

        interrupt_by_rest(kp_server, kernel, tab)

        pid = tab.execute("print(os.getpid())")
        kp_server.wait_warm()
        hits = kp_server.hit()
        assert kp_server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
        assert kp_server.hit() == hits + 1
        assert tab.ask("kernel_info_request", {})["status"] == "ok", "on the open websocket"
        assert tab.execute("number") == "NameError"
        assert tab.execute("import os; print(os.getpid())") != pid
        with browser(kp_server, kernel) as again:  # JupyterLab connects anew after a restart
            assert again.execute("print(In[1])") == "number"
            path = f"/api/sessions/{session['id']}"
            renamed = {"path": "renamed.ipynb", "name": "renamed.ipynb", "type": "notebook"}
            status, model = kp_server.call(path, "PATCH", renamed)
            assert (status, model["path"], model["kernel"]["id"]) == (200, "renamed.ipynb", kernel)
            assert again.execute("print(1)") == "1"
    assert kp_server.call(path, "DELETE")[0] == 204
    assert kp_server.call(f"/api/kernels/{kernel}")[0] == 404
    assert session["id"] not in [other["id"] for other in kp_server.call("/api/sessions")[1]]


def interrupt_by_rest(server: Server, kernel: str, tab: Browser) -> None:
    endless = tab.send("execute_request", execution("print('began', flush=True)\nwhile True: pass"))
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    time.sleep(0.3)  # busy is published before the code runs
    assert server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    assert tab.until_idle(endless)[0]["ename"] == "KeyboardInterrupt"


def test_two_tabs_of_one_kernel_hear_the_same(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_session("two.ipynb")["kernel"]["id"]
    with browser(kp_server, kernel) as first, browser(kp_server, kernel) as second:
        assert second.execute("a = 5; print(a)") == "5"
        request = first.send("execute_request", execution("print(a)"))
        while True:
            message = unpack(second.socket.recv(timeout=30))  # type: ignore[arg-type]
            if message["parent_header"].get("msg_id") == request and message["header"]["msg_type"] == "stream":
                break
    assert message["content"]["text"] == "5\n"


def test_what_runs_right_after_a_restart_is_heard(kp_server: Server) -> None:
    """On websockets that stay open; ZeroMQ loses what the successor publishes before it has reconnected."""
    kernel = kp_server.start_session("restarted.ipynb")["kernel"]["id"]
    with browser(kp_server, kernel) as first, browser(kp_server, kernel) as second:
        for count in range(5):
            kp_server.wait_warm(1)
            assert kp_server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
            assert first.execute(f"print({count})") == str(count)
            assert second.execute(f"print({count} + 10)") == str(count + 10)
        for count in range(5):
            kp_server.wait_warm(1)
            pid = int(first.execute("import os; print(os.getpid())"))
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: pid_of(kp_server, kernel) != pid, "its end is noticed")
            assert first.execute(f"print({count})") == str(count)
            assert second.execute(f"print({count} + 10)") == str(count + 10)


def pid_of(server: Server, kernel: str) -> int:
    return int(server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"] or 0)


def test_the_kernel_menu_changes_the_kernel_of_a_session(kp_server: Server) -> None:
    kp_server.wait_warm()
    session = kp_server.start_session("changed.ipynb")
    kp_server.wait_warm()
    hits = kp_server.hit()
    status, model = kp_server.call(f"/api/sessions/{session['id']}", "PATCH", {"kernel": {"name": "python3"}})
    assert status == 200
    assert model["kernel"]["id"] != session["kernel"]["id"]
    assert kp_server.hit() == hits + 1
    with browser(kp_server, model["kernel"]["id"]) as tab:
        assert tab.execute("print(6 * 7)") == "42"
    assert kp_server.call(f"/api/kernels/{session['kernel']['id']}")[0] == 404


# -- nbclient and papermill -------------------------------------------------------------------------


def notebook(*cells: str) -> Any:
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    document.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    return document


def outputs(document: Any) -> str:
    return "".join(out.get("text", "") for cell in document.cells for out in cell.get("outputs", []))


@pytest.fixture
def attached(kp_server: Server) -> Iterator[Callable[..., Any]]:
    """Makes managers for kernels that somebody else, the server, owns; nbclient leaves their clients open."""
    clients: list[Any] = []
    managers: list[Any] = []

    def attach(manager_class: Any, kernel: str) -> Any:
        class Attached(manager_class):  # type: ignore[misc]
            has_kernel = True

            def is_alive(self) -> bool:
                return True

            def client(self, **kwargs: Any) -> Any:
                clients.append(super().client(**kwargs))
                return clients[-1]

        manager = Attached(owns_kernel=False)
        managers.append(manager)
        manager.load_connection_file(str(kp_server.connection_file(kernel)))
        return manager

    yield attach
    for client in clients:
        client.stop_channels()
    for manager in managers:  # left to the garbage collector, a context may wait for its sockets for ever
        manager.context.destroy(linger=0)


@pytest.fixture
def kernel(kp_server: Server) -> Iterator[str]:
    """A kernel of the server's that was warm."""
    kp_server.wait_warm()
    hits = kp_server.hit()
    kernel = kp_server.start_kernel()
    assert kp_server.hit() == hits + 1
    yield kernel
    assert kp_server.call(f"/api/kernels/{kernel}")[0] == 200, "the client left the server's kernel alone"
    assert kp_server.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204


def test_nbclient_runs_a_notebook_in_a_kernel_of_the_servers(
    kp_server: Server, kernel: str, attached: Callable[..., Any]
) -> None:
    from nbclient import NotebookClient

    pid = kp_server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"]
    document = notebook("import os; x = 1", "print(os.getpid())")
    NotebookClient(document, km=attached(AsyncKernelManager, kernel)).execute()
    assert outputs(document) == f"{pid}\n"
    assert kp_server.run(kernel, "print(x)") == "1"


def test_papermill_runs_a_notebook_in_a_kernel_of_the_servers(
    kp_server: Server, kernel: str, attached: Callable[..., Any], tmp_path: Path
) -> None:
    import papermill

    pid = kp_server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"]
    document = notebook("value = 1", "import os; print(os.getpid(), value)")
    document.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(document, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), {"value": 7}, progress_bar=False,
        km=attached(KernelManager, kernel),
    )  # fmt: skip
    assert outputs(done) == f"{pid} 7\n"


async def test_nbclient_runs_in_a_pool_without_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extension: the manager alone, as hosts of kernels of their own use it."""
    from nbclient import NotebookClient

    from jupyter_kernelpool.manager import PoolingKernelManager

    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    config = Config({"KernelPool": {"busy_cores": 1.0}})  # what else the machine does must not decide
    multi = PoolingKernelManager(config=config, connection_dir=str(tmp_path), root_dir=str(tmp_path))
    try:
        await multi.start_pool()
        await multi.pool.warmed(60)
        kernel_id = await multi.start_kernel(kernel_name="python3")
        (recipe,) = multi.pool.pools.values()
        assert recipe.hits == 1
        document = notebook("1 / 1", "print(6 * 7)")
        client = NotebookClient(document, km=multi.get_kernel(kernel_id))
        await client.async_execute()
        client.kc.stop_channels()
        assert outputs(document) == "42\n"
    finally:
        await multi.shutdown_all(now=True)
        multi.context.destroy(linger=0)


def program(server: Server, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in the folders of the server, as its user would."""
    return subprocess.run(
        [sys.executable, *arguments], env=environment(server), cwd=server.root, capture_output=True, text=True,
        timeout=PROGRAM_TIMEOUT, check=False, **options,
    )  # fmt: skip


def environment(server: Server) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "JPY_"))},
        "JUPYTER_RUNTIME_DIR": str(server.runtime),
        "JUPYTER_CONFIG_DIR": str(server.folder / "config"),
        "JUPYTER_DATA_DIR": str(server.folder / "data"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(server.folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "from nbclient.cli import main; main()", "--output", "out.ipynb", "in.ipynb"],
        ["-m", "papermill", "--no-progress-bar", "in.ipynb", "out.ipynb"],
        ["-m", "nbconvert", "--to", "notebook", "--execute", "--output", "out.ipynb", "in.ipynb"],
    ],
    ids=["jupyter execute", "papermill", "nbconvert"],
)
def test_programs_that_start_kernels_of_their_own_are_left_alone(kp_server: Server, command: list[str]) -> None:
    kp_server.wait_warm()
    nbformat.write(notebook("import os; print(os.getppid())"), kp_server.root / "in.ipynb")
    before = {path.name for path in kp_server.runtime.iterdir()}
    counters = {name: kp_server.recipe()[name] for name in ("hits", "misses")}  # warm ones follow earlier demand
    ended = program(kp_server, *command)
    assert ended.returncode == 0, ended.stderr
    printed = int(outputs(nbformat.read(kp_server.root / "out.ipynb", as_version=4)))
    assert printed not in [process.pid for process in kp_server.ours()]
    assert {name: kp_server.recipe()[name] for name in counters} == counters
    assert {path.name for path in kp_server.runtime.iterdir()} == before
    (kp_server.root / "out.ipynb").unlink()


# -- consoles ---------------------------------------------------------------------------------------


def test_console_attaches_to_a_kernel_of_the_servers(kp_server: Server, kernel: str) -> None:
    """`jupyter console --existing` in a terminal."""
    import pexpect

    kp_server.run(kernel, "word = 'of the server'")
    console = pexpect.spawn(
        sys.executable,
        ["-m", "jupyter_console", "--existing", str(kp_server.connection_file(kernel)), "--simple-prompt"],
        env={**environment(kp_server), "TERM": "dumb"}, cwd=str(kp_server.root), timeout=60, encoding="utf-8",
    )  # fmt: skip
    try:
        console.expect(r"In \[\d+\]: ")
        console.sendline("1 + 1")
        console.expect(r"Out\[\d+\]: 2")
        console.expect(r"In \[\d+\]: ")
        console.sendline("print('a word', word)")
        console.expect("a word of the server")
        console.expect(r"In \[\d+\]: ")
        console.sendline("quit(keep_kernel=True)")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    assert kp_server.run(kernel, "print(word)") == "of the server", "quitting leaves the kernel"


def test_jupyter_run_in_a_kernel_of_the_servers(kp_server: Server, kernel: str) -> None:
    (kp_server.root / "script.py").write_text("print(6 * 7)\n")
    ended = program(
        kp_server, "-m", "jupyter_client.runapp", "--existing", str(kp_server.connection_file(kernel)), "script.py"
    )
    assert (ended.returncode, ended.stdout) == (0, "42\n"), ended.stderr


# -- voila ------------------------------------------------------------------------------------------


def test_voila_renders_from_a_pooled_kernel(kp_start: Callable[..., Server]) -> None:
    """voila as an extension of the server starts its kernels through the server's manager."""
    server = kp_start(extensions=("voila.server_extension",))
    document = notebook("import os; print('rendered in', os.getcwd(), 6 * 7)")
    nbformat.write(document, server.root / "nb.ipynb")
    server.wait_warm()
    hits = server.hit()
    status, page = server.call(f"/voila/render/nb.ipynb?token={urllib.parse.quote(TOKEN)}")
    assert status == 200, server.log
    assert f"rendered in {server.root} 42" in page
    assert server.hit() == hits + 1
    assert "Traceback" not in server.log
