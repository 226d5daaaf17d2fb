"""Kernels in a sandbox: from the pool, forked, restarted, cold: none is outside it, and all of them work."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client import BlockingKernelClient

from .browsers import browser
from .conftest import PATIENCE, Server, eventually, gone
from .limited import ENFORCERS, hearing, run
from .traces import nothing_left, traces, write_spec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

TRY = """
def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"
"""
CONNECT = TRY + "import socket; print(tried(lambda: socket.create_connection(('127.0.0.1', {port}), 5)))"
SECRETS = {"JUPYTER_TOKEN": "of the test", "JPY_API_TOKEN": "another", "JUPYTERHUB_API_TOKEN": "and one more"}


def recipes(**settings: dict[str, Any]) -> str:
    return f"--KernelPool.recipes={settings}"


def claim(server: Server, name: str = "python3") -> str:
    """A kernel that was warm."""
    server.wait_warm(1, name)
    hits = server.recipe(name)["hits"]
    kernel = server.start_kernel(name=name)
    assert server.recipe(name)["hits"] == hits + 1
    return kernel


def pid_of(server: Server, kernel: str) -> int:
    return int(server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"])


def interrupted(server: Server, kernel: str, client: BlockingKernelClient) -> bool:
    """Whether a cell that sleeps ends when the kernel is interrupted."""
    sleeping = client.execute("import time; print('begun', flush=True); time.sleep(1000)", stop_on_error=False)
    while client.get_iopub_msg(timeout=PATIENCE)["msg_type"] != "stream":
        pass
    assert server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    while (reply := client.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != sleeping:
        pass
    return bool(reply["content"].get("ename") == "KeyboardInterrupt")


def namespace(kind: str, pid: int | None = None) -> str:
    return str(Path(f"/proc/{pid or 'self'}/ns/{kind}").readlink())


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """A port of the machine's loopback interface that accepts whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def outcomes(server: Server, kernel: str | BlockingKernelClient, *paths: Path) -> list[str]:
    """What comes of writing a new file in each of *paths*."""
    code = TRY + f"print([tried(lambda: open(path + '/new', 'w')) for path in {[str(path) for path in paths]}])"
    return list(json.loads(server.run(kernel, code).replace("'", '"')))


@pytest.fixture(scope="module")
def preset(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose kernels all have the sandbox preset."""
    folder = tmp_path_factory.mktemp("preset")
    server = kp_servers(folder, recipes(python3={"warm": 1, "sandbox": True}), **SECRETS)
    yield server
    server.stop()


# -- the preset -------------------------------------------------------------------------------------


def test_sandboxed_kernel_is_a_hit_and_reaches_nobody(preset: Server) -> None:
    kernel = preset.client(claim(preset))
    with listener() as port:
        socket.create_connection(("127.0.0.1", port)).close()
        assert preset.run(kernel, CONNECT.format(port=port)) in ("ConnectionRefusedError", "OSError")
    assert preset.run(kernel, CONNECT.format(port=preset.port)) in ("ConnectionRefusedError", "OSError")
    reach = TRY + "import socket; print(tried(lambda: socket.create_connection(('192.0.2.1', 80), 5)))"
    assert preset.run(kernel, reach) == "OSError"
    assert preset.run(kernel, "print(sum(range(10)))") == "45"


def test_its_template_is_inside_and_so_is_what_it_starts(preset: Server) -> None:
    kernel = claim(preset)
    for kind in ("net", "mnt", "user"):
        inside = namespace(kind, pid_of(preset, kernel))
        assert inside != namespace(kind)
        assert inside == namespace(kind, preset.template())
        assert (
            preset.run(kernel, f"import subprocess; print(subprocess.getoutput('readlink /proc/self/ns/{kind}'))")
            == inside
        )


def test_kernel_talks_to_itself_over_loopback(preset: Server) -> None:
    code = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
print("heard")
"""
    assert preset.run(claim(preset), code) == "heard"


def test_debugger_works_without_a_network(preset: Server) -> None:
    client = preset.client(claim(preset))

    def ask(command: str, **arguments: Any) -> dict[str, Any]:
        request = {"seq": 1, "type": "request", "command": command, "arguments": arguments}
        client.control_channel.send(client.session.msg("debug_request", request))
        content = client.control_channel.get_msg(timeout=PATIENCE)["content"]
        assert content["success"], content
        return dict(content.get("body") or {})

    ask("initialize", clientID="test", adapterID="")
    request = {"seq": 2, "type": "request", "command": "attach", "arguments": {}}
    client.control_channel.send(client.session.msg("debug_request", request))
    assert client.control_channel.get_msg(timeout=PATIENCE)["content"]["success"]
    assert "sourcePath" in ask("dumpCell", code="x = 1")
    ask("disconnect", restart=False, terminateDebuggee=True)
    assert preset.run(client, "print(1)") == "1"


def test_writing_is_for_the_notebooks_folder_and_temporary_files(preset: Server) -> None:
    kernel = preset.client(claim(preset))
    inside, outside = preset.root / "inside", preset.folder / "outside"
    inside.mkdir(exist_ok=True)
    outside.mkdir(exist_ok=True)
    (outside / "old").write_text("as it was")
    home = Path.home()
    assert outcomes(preset, kernel, inside, outside, home, Path("/tmp")) == ["done", *["PermissionError"] * 3]
    assert preset.run(kernel, f"print(open({str(outside / 'old')!r}).read())") == "as it was"
    changes = f"""{TRY}
import os, shutil, subprocess
old, elsewhere = {str(outside / "old")!r}, {str(inside / "new")!r}
print(tried(lambda: open(old, "a")), tried(lambda: os.truncate(old, 0)), tried(lambda: os.unlink(old)),
      tried(lambda: os.rename(old, old + "er")), tried(lambda: os.mkdir(old + "er")),
      tried(lambda: os.symlink("/", old + "er")),
      subprocess.run(["sh", "-c", "echo x > " + old], stderr=subprocess.DEVNULL).returncode != 0)
"""
    assert preset.run(kernel, changes) == " ".join([*["PermissionError"] * 6, "True"])
    assert (outside / "old").read_text() == "as it was"
    assert preset.run(kernel, "import tempfile; print(tempfile.NamedTemporaryFile('w').write('x'))") == "1"


def test_a_file_that_is_missing_is_made_nowhere_else(preset: Server) -> None:
    kernel = preset.client(claim(preset))
    assert preset.run(kernel, "open('here.txt', 'w').write('x')") == "1"
    assert (preset.root / "here.txt").read_text() == "x"


def test_ipython_starts_and_keeps_its_history_in_memory(preset: Server) -> None:
    kernel = preset.client(claim(preset))
    preset.run(kernel, "remembered = 1")
    assert preset.run(kernel, "print(get_ipython().history_manager.hist_file)") == ":memory:"
    assert "remembered = 1" in preset.run(kernel, "%history")
    assert "history" not in preset.log.lower()


def test_kernel_has_none_of_what_opens_the_server(preset: Server) -> None:
    assert preset.process is not None
    kernel = preset.client(claim(preset))
    known = preset.runtime / f"jpserver-{preset.process.pid}.json"
    assert json.loads(known.read_text())["token"], "the file that is hidden has the token"
    read = TRY + "print(tried(lambda: open({path!r}).read()))"
    assert preset.run(kernel, read.format(path=str(known))) == "FileNotFoundError"
    assert preset.run(kernel, read.format(path=f"/proc/{preset.process.pid}/environ")) == "PermissionError"
    through = f"/proc/{preset.process.pid}/root{known}"
    assert preset.run(kernel, read.format(path=through)) == "PermissionError"
    names = preset.run(kernel, "import os; print(sorted(os.environ))")
    assert not [name for name in SECRETS if name in names]
    first = preset.run(kernel, "print(open('/proc/self/environ').read())")
    assert not [value for value in SECRETS.values() if value in first], "nor in what its process began with"
    undo = "import subprocess; print(subprocess.run(['umount', {path!r}], capture_output=True).returncode != 0)"
    assert preset.run(kernel, undo.format(path=str(preset.runtime))) == "True"


def test_kernel_can_read_its_own_connection_file(preset: Server) -> None:
    kernel = claim(preset)
    ports = json.loads(preset.connection_file(kernel).read_text())
    printed = preset.run(kernel, "%connect_info")
    assert f'"shell_port": {ports["shell_port"]}' in printed


def test_interrupt_restart_fork_and_restore_stay_inside(preset: Server) -> None:
    kernel = claim(preset)
    inside = namespace("net", pid_of(preset, kernel))
    client = preset.client(kernel)
    assert interrupted(preset, kernel, client)
    assert preset.run(client, "kept = 'kept'; print(kept)") == "kept"
    status, checkpoint = preset.call(f"/kernelpool/v1/kernels/{kernel}/checkpoints", "POST", {})
    assert status == 201, checkpoint
    status, forks = preset.call(f"/kernelpool/v1/kernels/{kernel}/fork", "POST", {})
    assert status == 201, forks
    fork = forks["kernels"][0]["id"]
    assert namespace("net", pid_of(preset, fork)) == inside
    assert preset.run(fork, "print(kept)") == "kept"
    assert outcomes(preset, fork, preset.folder) == ["PermissionError"]
    status, restored = preset.call(f"/kernelpool/v1/kernels/{kernel}/restore", "POST", {"checkpoint": checkpoint["id"]})
    assert status == 200, restored
    assert namespace("net", pid_of(preset, kernel)) == inside
    assert preset.run(kernel, "print(kept)") == "kept"
    preset.wait_warm(1)
    assert preset.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    assert namespace("net", pid_of(preset, kernel)) == namespace("net", preset.template())
    assert outcomes(preset, kernel, preset.folder) == ["PermissionError"]


# -- each part by itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_without_a_network_but_with_all_files(kp_start: Callable[..., Server], transport: str) -> None:
    with tempfile.TemporaryDirectory(prefix="kp", dir="/tmp") as short:  # a socket's path has 107 characters at most
        server = kp_start(
            recipes(python3={"warm": 1, "network": "none"}),
            f"--PooledKernelManager.transport={transport}",
            JUPYTER_RUNTIME_DIR=short,
        )
        kernel = claim(server)
        assert json.loads(server.connection_file(kernel).read_text())["transport"] == transport
        with listener() as port:
            assert server.run(kernel, CONNECT.format(port=port)) in ("ConnectionRefusedError", "OSError")
        assert outcomes(server, kernel, server.folder) == ["done"]
        assert namespace("mnt", pid_of(server, kernel)) == namespace("mnt")
        server.stop()


def test_writable_needs_no_namespace(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    server = kp_start(recipes(python3={"warm": 1, "writable": [str(allowed)]}))
    kernel = claim(server)
    assert outcomes(server, kernel, allowed, server.root, tmp_path) == ["done", "PermissionError", "PermissionError"]
    with listener() as port:
        assert server.run(kernel, CONNECT.format(port=port)) == "done"
    assert namespace("user", pid_of(server, kernel)) == namespace("user")


@pytest.mark.parametrize(
    "settings, way",
    [
        ({"launcher": "off"}, "spawn"),
        ({"max": 0, "warm": 0}, "spawn"),
        ({"launcher": "whole", "max": 0, "warm": 0}, "cold"),
    ],
)
def test_start_without_the_pool_is_in_the_sandbox_too(
    kp_start: Callable[..., Server], settings: dict[str, Any], way: str
) -> None:
    server = kp_start(recipes(aside={"writable": [], **settings}), "--KernelPool.warm=0")
    write_spec(server.folder / "data", "aside")
    kernel = server.start_kernel(name="aside")
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == way
    client = server.client(kernel)
    assert outcomes(server, client, server.root, server.folder) == ["PermissionError"] * 2
    assert interrupted(server, kernel, client)
    assert server.run(client, "print(2)") == "2"
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    assert outcomes(server, kernel, server.root) == ["PermissionError"]


def test_start_beside_a_loading_template_is_in_the_sandbox_too(kp_start: Callable[..., Server]) -> None:
    slow = {"warm": 1, "writable": [], "init_code": "import time; time.sleep(1)"}
    server = kp_start(recipes(python3={**slow, "preload": ["nothing_of_that_name"]}))
    kernel = server.start_kernel()
    assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "spawn"
    assert outcomes(server, kernel, server.root) == ["PermissionError"]


def test_sigkill_of_the_server_leaves_nothing_of_a_sandbox(kp_start: Callable[..., Server]) -> None:
    server = kp_start(recipes(python3={"warm": 1, "sandbox": True}))
    kernel = claim(server)
    temporary = Path(server.run(kernel, "import tempfile; print(tempfile.gettempdir())"))
    assert temporary.is_dir()
    server.wait_warm(1)
    before = traces(server)
    assert len(before.processes) >= 1 + 1 + 1 + 1 + 1, "server, supervisor, template, claimed, warm"
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(before.left)
    eventually(lambda: not temporary.exists(), "its temporary files are gone")


# -- bubblewrap -------------------------------------------------------------------------------------

BWRAP = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--die-with-parent"]


@pytest.fixture(scope="module")
def bwrapped(
    kp_servers: Callable[..., Server], kp_bwrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server whose kernels are started by bwrap, and write to the notebooks' folder only."""
    folder = tmp_path_factory.mktemp("bwrapped")
    prefix = [*BWRAP, "--bind", str(folder / "root"), str(folder / "root"), "--tmpfs", "/var/tmp"]
    server = kp_servers(folder, recipes(python3={"warm": 1, "launch_prefix": prefix}))
    yield server
    server.stop()


@pytest.mark.slow
def test_bwrap_kernel_is_a_hit_and_its_template_is_inside(bwrapped: Server) -> None:
    kernel = claim(bwrapped)
    assert bwrapped.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == "template"
    inside = namespace("mnt", pid_of(bwrapped, kernel))
    assert inside != namespace("mnt")
    assert inside == namespace("mnt", bwrapped.template())
    # Read-only is what bwrap makes a file system: no PermissionError, but EROFS.
    assert outcomes(bwrapped, kernel, bwrapped.root, bwrapped.folder, Path("/tmp")) == ["done", "OSError", "OSError"]


@pytest.mark.slow
def test_bwrap_kernel_is_interrupted_restarted_and_forked(bwrapped: Server) -> None:
    kernel = claim(bwrapped)
    client = bwrapped.client(kernel)
    assert interrupted(bwrapped, kernel, client)
    assert bwrapped.run(client, "kept = 'kept'; print(kept)") == "kept"
    status, forks = bwrapped.call(f"/kernelpool/v1/kernels/{kernel}/fork", "POST", {})
    assert status == 201, forks
    fork = forks["kernels"][0]["id"]
    bwrapped.wait_warm(1)
    assert bwrapped.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    inside = namespace("mnt", bwrapped.template())
    assert namespace("mnt", pid_of(bwrapped, kernel)) == namespace("mnt", pid_of(bwrapped, fork)) == inside
    assert bwrapped.run(fork, "print(kept)") == "kept"
    process = psutil.Process(pid_of(bwrapped, fork))
    assert bwrapped.call(f"/api/kernels/{fork}", "DELETE")[0] == 204
    eventually(lambda: gone([process]), "a kernel that is shut down ends")


@pytest.mark.slow
def test_warm_kernels_of_a_prefix_outlive_their_template(bwrapped: Server) -> None:
    kernel = claim(bwrapped)
    former = bwrapped.template()
    psutil.Process(former).kill()
    eventually(lambda: (bwrapped.recipe()["template"] or {}).get("pid", former) != former, "another template is loaded")
    assert bwrapped.run(kernel, "print(1)") == "1"


@pytest.mark.slow
def test_sigkill_of_the_server_leaves_nothing_of_bwrap(kp_start: Callable[..., Server], kp_bwrap: str) -> None:
    server = kp_start(recipes(python3={"warm": 1, "launch_prefix": [*BWRAP, "--bind", "/tmp", "/tmp"]}))
    claim(server)
    server.wait_warm(1)
    before = traces(server)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    nothing_left(before.left)


@pytest.mark.slow
@pytest.mark.parametrize("enforcer", list(ENFORCERS))
@pytest.mark.parametrize("pids", [[], ["--unshare-pid"]], ids=["shared pids", "own pids"])
def test_bwrap_kernel_is_held_to_its_memory_and_ends_with_the_reason(
    kp_start: Callable[..., Server], kp_bwrap: str, enforcer: str, pids: list[str]
) -> None:
    """With process ids of its own it is handed over whole, behind bwrap's own process."""
    recipe = {"warm": 1, "launch_prefix": [*BWRAP, "--bind", "/tmp", "/tmp", *pids]}
    server = kp_start(
        recipes(python3={**recipe, **({"launcher": "whole"} if pids else {})}),
        *ENFORCERS[enforcer],
        "--KernelLimits.memory=400M",
    )
    kernel, neighbour = claim(server), claim(server)
    assert server.call("/kernelpool/v1/pool")[1]["capabilities"]["limits"]["memory"]["by"] == enforcer
    pid = pid_of(server, kernel)
    with hearing(server) as heard, browser(server, kernel) as page:
        assert page.execute("import os; x = b'x' * (200 << 20); len(x) >> 20") == "200", "what it may have, it has"
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        assert namespace("mnt", tree[-1].pid) != namespace("mnt")
        cell = run(page, "y = b'x' * (1 << 30)\nimport time; time.sleep(60)")
        assert (cell.reply["ename"], cell.error) == ("KernelKilled", "KernelKilled")
        assert "400 MB allowed" in cell.reply["evalue"]
        eventually(lambda: heard.of(kernel, "dead"), "it is told that it is dead")
    assert [event["outcome"] for event in heard.of(kernel, "breached")][-1] == "killed"
    model = server.call(f"/kernelpool/v1/kernels/{kernel}")[1]
    assert (model["breach"]["limit"], model["breach"]["allowed"]) == ("memory", 400 << 20)
    assert "memory limit" in model["reason"]
    eventually(lambda: gone(tree), "nothing of the sandbox is left")
    assert server.run(neighbour, "print(1)") == "1"
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    with browser(server, kernel) as page:
        assert page.execute("1 + 1") == "2"
        inside = page.execute("os = __import__('os'); print(os.readlink('/proc/self/ns/mnt'))")
        assert inside != namespace("mnt")


@pytest.mark.slow
def test_the_preset_holds_inside_bwrap(kp_start: Callable[..., Server], kp_bwrap: str) -> None:
    prefix = ["bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev"]
    server = kp_start(recipes(python3={"warm": 1, "sandbox": True, "launch_prefix": prefix}))
    kernel = server.client(claim(server))
    assert outcomes(server, kernel, server.root, server.folder) == ["done", "PermissionError"]
    with listener() as port:
        assert server.run(kernel, CONNECT.format(port=port)) in ("ConnectionRefusedError", "OSError")


@pytest.mark.slow
def test_namespace_of_process_ids_is_for_kernels_handed_over_whole(
    kp_start: Callable[..., Server], kp_bwrap: str
) -> None:
    prefix = ["bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent"]
    server = kp_start(
        recipes(
            python3={"warm": 1, "launch_prefix": prefix},
            aside={"warm": 1, "launch_prefix": prefix, "launcher": "whole"},
            colder={"max": 0, "warm": 0, "launch_prefix": prefix, "launcher": "whole"},
        )
    )
    status, refusal = server.call("/api/kernels", "POST", {"name": "python3"})
    assert (status, refusal["code"]) == (501, "not_enforceable")
    assert "--unshare-pid" in refusal["message"]
    assert "--unshare-pid" in eventually(lambda: server.recipe()["last_error"], "the recipe says why")["reason"]
    for name, way in (("aside", "whole"), ("colder", "cold")):
        write_spec(server.folder / "data", name)
        if way == "whole":
            server.wait_warm(1, name)
        kernel = server.start_kernel(name=name)
        assert server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"] == way
        client = server.client(kernel)
        assert int(server.run(client, "import os; print(os.getpid())")) < 10
        assert interrupted(server, kernel, client)
        assert server.run(client, "print(1)") == "1"
    before = traces(server)
    server.stop()
    eventually(lambda: gone(before.processes), "nothing outlives the server")
