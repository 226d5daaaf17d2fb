"""Kernels of other environments, other versions, other languages, and where forking is switched off."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from .browsers import browser
from .conftest import Server, eventually
from .test_identity import PROBE
from .test_output_limit import run as output_of
from .test_transports import reconnected

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

SPAWN_ONLY = "--KernelPool.launchers=jupyter_kernelpool.launchers.spawn.SpawnLauncher"
INSTALL_TIMEOUT = 240


def install_spec(folder: Path, name: str, argv: list[str], language: str = "python", **more: Any) -> None:
    place = folder / "data" / "kernels" / name
    place.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": language, "metadata": {}, **more}
    (place / "kernel.json").write_text(json.dumps(spec))


def make_environment(folder: Path, *requirements: str) -> str:
    """A virtual environment with *requirements* from the registry; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *requirements],
        check=True, timeout=INSTALL_TIMEOUT,
    )  # fmt: skip
    return python


def ipykernel_argv(python: str) -> list[str]:
    return [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def way(server: Server, kernel: str) -> str:
    return str(server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"])


def restart(server: Server, kernel: str) -> None:
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200


# -- versions of ipykernel --------------------------------------------------------------------------


@pytest.mark.parametrize("version, sends_in_pieces", [("6.29.5", True), ("6.9.2", False)])
def test_cold_kernel_with_a_limit_on_output_starts_whatever_its_version(
    kp_servers: Callable[..., Server], tmp_path: Path, version: str, sends_in_pieces: bool
) -> None:
    python = make_environment(tmp_path / "env", f"ipykernel=={version}")
    install_spec(tmp_path / "server", "other", ipykernel_argv(python))
    off = "--KernelPool.recipes={'other': {'launcher': 'off'}}"
    server = kp_servers(tmp_path / "server", off, "--KernelPool.warm=0", "--KernelLimits.output=1G")
    kernel = server.start_kernel(name="other")
    assert way(server, kernel) == "cold"
    assert server.run(kernel, "import ipykernel; print(ipykernel.__version__)") == version
    with browser(server, kernel) as tab:
        _, published = output_of(tab, "print('x' * (5 << 20), end='')")
    pieces = [one["content"]["text"] for one in published if one["header"]["msg_type"] == "stream"]
    assert len("".join(pieces)) == 5 << 20
    assert len(pieces) == (5 if sends_in_pieces else 1)
    why = f"What this kernel prints is not sent in pieces: ipykernel {version} is not between"
    assert (why in server.log) != sends_in_pieces
    server.stop()


def test_oldest_ipykernel_that_is_supported_is_pooled(kp_servers: Callable[..., Server], tmp_path: Path) -> None:
    """An environment of its own with ipykernel 6.29: forked from a template, restarted, interrupted."""
    python = make_environment(tmp_path / "env", "ipykernel==6.29.5")
    folder = tmp_path / "server"
    install_spec(folder, "other", ipykernel_argv(python))
    server = kp_servers(folder, "--KernelPool.recipes={'other': {'warm': 1}}")
    server.wait_warm(1, "other")
    session = server.start_session("sub.ipynb", name="other")
    kernel = session["kernel"]["id"]
    assert (way(server, kernel), server.recipe("other")["hits"]) == ("template", 1)
    client = server.client(kernel)
    assert server.run(client, "import ipykernel, sys; print(ipykernel.__version__, sys.executable)") == (
        f"6.29.5 {python}"
    )
    assert server.run(client, "print(__session__)").endswith("sub.ipynb")
    assert server.run(client, "%history -g -l 2").startswith("2: print(__session__)")
    client.execute("import time; time.sleep(100)")
    eventually(lambda: server.call(f"/api/kernels/{kernel}")[1]["execution_state"] == "busy", "it runs")
    assert server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    assert client.get_shell_msg(timeout=10)["content"]["ename"] == "KeyboardInterrupt"
    server.wait_warm(1, "other")
    hits = server.recipe("other")["hits"]
    restart(server, kernel)
    assert server.recipe("other")["hits"] == hits + 1
    reconnected(client)
    assert server.run(client, "print('time' in globals())") == "False"
    assert server.recipe("other")["last_error"] is None
    assert "SIGSEGV" not in server.log
    server.stop()


def test_ipykernel_that_is_too_old_starts_cold_and_says_why(kp_servers: Callable[..., Server], tmp_path: Path) -> None:
    python = make_environment(tmp_path / "env", "ipykernel==6.20.2", "ipython<9", "jupyter_client<9")
    folder = tmp_path / "server"
    install_spec(folder, "old", ipykernel_argv(python))
    server = kp_servers(folder, "--KernelPool.recipes={'old': {'warm': 1}}")
    error = eventually(lambda: server.recipe("old").get("last_error"), "the reason is in /pool")
    assert "ipykernel 6.20.2 is not between 6.29 and 7.x" in error["reason"]
    kernel = server.start_kernel(name="old")
    assert way(server, kernel) == "cold"
    assert server.run(kernel, "import ipykernel; print(ipykernel.__version__)") == "6.20.2"
    restart(server, kernel)
    assert server.run(server.client(kernel), "print('ipykernel' in globals())") == "False"
    assert server.recipe("old")["warm"] == 0
    server.wait_warm()  # the server's own kernels are none the worse
    server.stop()


def test_environment_without_ipykernel_answers_as_stock(kp_servers: Callable[..., Server], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    folder = tmp_path / "server"
    install_spec(folder, "bare", ipykernel_argv(str(tmp_path / "env" / "bin" / "python")))
    server = kp_servers(folder, "--KernelPool.recipes={'bare': {'warm': 1}}")
    error = eventually(lambda: server.recipe("bare").get("last_error"), "the reason is in /pool")
    assert "ipykernel" in error["reason"]
    status, _ = server.call("/api/kernels", "POST", {"name": "bare"})
    assert status == 201, "stock learns only later that it died"
    server.stop()


# -- without forking --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spawning(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = kp_servers(tmp_path_factory.mktemp("spawning"), SPAWN_ONLY)
    yield server
    server.stop()


def test_spawned_kernel_answers_the_probe_as_a_cold_one(
    kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory
) -> None:
    answers = []
    for options in ((SPAWN_ONLY,), ("--KernelPool.enabled=False",)):
        folder = tmp_path_factory.mktemp("same")
        server = kp_servers(folder, *options, MARK="same")
        if options == (SPAWN_ONLY,):
            server.wait_warm()
        (server.root / "sub").mkdir()
        session = server.start_session("sub/one.ipynb")
        text = server.run(session["kernel"]["id"], PROBE)
        if options == (SPAWN_ONLY,):
            assert server.hit() == 1
            assert way(server, session["kernel"]["id"]) == "spawn"
        answers.append(json.loads(text.replace(str(folder), "FOLDER")))
        server.stop()
    spawned, cold = answers
    for name in ("env", *cold):
        assert spawned[name] == cold[name], name


def test_spawned_ahead_without_a_template(spawning: Server) -> None:
    spawning.wait_warm()
    assert spawning.recipe()["template"] is None
    parents = {process.ppid() for process in spawning.ours()[1:]}
    assert parents == {spawning.supervisor().pid}


def test_spawned_kernel_has_the_sessions_cwd_and_name(spawning: Server) -> None:
    spawning.wait_warm()
    hits = spawning.hit()
    (spawning.root / "folder").mkdir(exist_ok=True)
    kernel = spawning.start_session("folder/nb.ipynb")["kernel"]["id"]
    client = spawning.client(kernel)
    assert spawning.hit() == hits + 1
    assert way(spawning, kernel) == "spawn"
    assert spawning.run(client, "import os; print(os.getcwd())") == str(spawning.root / "folder")
    assert spawning.run(client, "print(os.environ['JPY_SESSION_NAME'])").endswith("folder/nb.ipynb")
    assert spawning.run(client, "print(__session__)").endswith("folder/nb.ipynb")


def test_spawned_kernel_restarts_as_a_hit(spawning: Server) -> None:
    spawning.wait_warm()
    kernel = spawning.start_session("again.ipynb")["kernel"]["id"]
    client = spawning.client(kernel)
    before = json.loads(spawning.connection_file(kernel).read_text())
    pid = spawning.run(client, "x = 1; import os; print(os.getpid())")
    spawning.wait_warm()
    hits = spawning.hit()
    restart(spawning, kernel)
    assert spawning.hit() == hits + 1
    assert json.loads(spawning.connection_file(kernel).read_text()) == before
    reconnected(client)
    assert spawning.run(client, "print('x' in globals())") == "False"
    assert spawning.run(client, "import os; print(os.getpid())") != pid
    assert spawning.run(client, "print(__session__)").endswith("again.ipynb")


def test_spawned_kernel_ends_with_its_delete(spawning: Server) -> None:
    spawning.wait_warm()
    kernel = spawning.start_kernel()
    pid = int(spawning.run(kernel, "import os; print(os.getpid())"))
    assert spawning.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204
    eventually(lambda: not psutil.pid_exists(pid), "the process ended")


# -- other languages --------------------------------------------------------------------------------

TOY = textwrap.dedent('''
    """A kernel that is not IPython: it answers what JPY_SESSION_NAME, its cwd or its pid is, or echoes."""

    import json, os, sys, zmq
    from jupyter_client.session import Session

    with open(sys.argv[1]) as file:
        info = json.load(file)
    session = Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"])
    context = zmq.Context()
    at = (f"{info['transport']}://{info['ip']}:" if info["transport"] == "tcp" else f"ipc://{info['ip']}-")

    def bind(kind, name):
        socket = context.socket(kind)
        socket.linger = 500
        socket.bind(f"{at}{info[name + '_port']}")
        return socket

    shell, control = bind(zmq.ROUTER, "shell"), bind(zmq.ROUTER, "control")
    stdin, iopub, hb = bind(zmq.ROUTER, "stdin"), bind(zmq.PUB, "iopub"), bind(zmq.REP, "hb")
    poller = zmq.Poller()
    for socket in (shell, control, hb):
        poller.register(socket, zmq.POLLIN)
    count = 0
    answers = {
        "session": lambda: os.environ.get("JPY_SESSION_NAME", "none"),
        "cwd": os.getcwd,
        "pid": lambda: str(os.getpid()),
        "count": lambda: str(count),
    }

    def handle(socket):
        global count
        identities, parts = session.feed_identities(socket.recv_multipart())
        request = session.deserialize(parts)
        kind = request["header"]["msg_type"]

        def publish(name, content):
            session.send(iopub, name, content, parent=request, ident=name.encode())

        publish("status", {"execution_state": "busy"})
        content = {"status": "ok"}
        if kind == "kernel_info_request":
            content |= {
                "protocol_version": "5.3", "implementation": "toy", "implementation_version": "1", "banner": "toy",
                "language_info": {"name": "toy", "version": "1", "mimetype": "text/plain", "file_extension": ".toy"},
            }
        elif kind == "execute_request":
            count += 1
            code = request["content"]["code"]
            publish("stream", {"name": "stdout", "text": answers.get(code, lambda: code)()})
            content |= {"execution_count": count, "user_expressions": {}, "payload": []}
        elif kind == "shutdown_request":
            content["restart"] = request["content"]["restart"]
        session.send(socket, kind.replace("request", "reply"), content, parent=request, ident=identities)
        publish("status", {"execution_state": "idle"})
        if kind == "shutdown_request":
            context.destroy(linger=500)
            sys.exit(0)

    while True:
        try:
            for socket, _ in poller.poll():
                if socket is hb:
                    hb.send(hb.recv())
                else:
                    handle(socket)
        except KeyboardInterrupt:
            pass
''').lstrip()


@pytest.fixture
def toy(kp_servers: Callable[..., Server], tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server that has the kernelspec `toy`."""
    servers = []

    def start(*options: str, **metadata: Any) -> Server:
        folder = tmp_path / f"s{len(servers)}"
        argv = [sys.executable, str(folder / "toy.py"), "{connection_file}"]
        install_spec(folder, "toy", argv, "toy", metadata=metadata)
        (folder / "toy.py").write_text(TOY)
        servers.append(kp_servers(folder, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


WHOLE = "--KernelPool.recipes={'toy': {'launcher': 'whole', 'warm': 1}}"


def test_kernel_of_another_language_starts_cold(toy: Callable[..., Server]) -> None:
    server = toy()
    server.wait_warm()
    kernel = server.start_session("one.toy", name="toy")["kernel"]["id"]
    assert way(server, kernel) == "cold"
    client = server.client(kernel)
    assert server.run(client, "hello") == "hello"
    assert server.run(client, "session").endswith("one.toy")
    assert server.recipe("toy") == {}, "no recipe is made of it"
    restart(server, kernel)
    assert server.run(server.client(kernel), "count") == "1"


def test_naming_it_without_whole_leaves_it_cold(toy: Callable[..., Server]) -> None:
    server = toy("--KernelPool.recipes={'toy': {'warm': 1}}")
    server.wait_warm()
    assert way(server, server.start_session("one.toy", name="toy")["kernel"]["id"]) == "cold"


def test_kernel_of_another_language_is_handed_over_whole(toy: Callable[..., Server]) -> None:
    server = toy(WHOLE)
    server.wait_warm(1, "toy")
    warm = {process.pid for process in server.ours()}
    session = server.start_session("one.toy", name="toy")
    kernel = session["kernel"]["id"]
    assert server.recipe("toy")["hits"] == 1
    assert way(server, kernel) == "whole"
    info = json.loads(server.connection_file(kernel).read_text())
    assert info["jupyter_session"].endswith("one.toy")
    assert server.connection_file(kernel).stat().st_mode & 0o777 == 0o600
    client = server.client(kernel)
    assert server.run(client, "hello") == "hello"
    assert int(server.run(client, "pid")) in warm, "a process that ran before it was asked for"
    assert server.run(client, "cwd") == str(server.root)
    # Documented (docs/users/configuration.md): the environment of a kernel that runs can't be changed from
    # outside; only a session's name is missing.
    assert server.run(client, "session") == "none"
    assert server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    assert server.run(client, "still here") == "still here"
    assert server.call(f"/api/sessions/{session['id']}", "DELETE")[0] == 204
    assert not server.connection_file(kernel).exists()


def test_restart_of_a_whole_kernel_is_cold_on_the_same_ports(toy: Callable[..., Server]) -> None:
    server = toy(WHOLE)
    server.wait_warm(1, "toy")
    kernel = server.start_session("one.toy", name="toy")["kernel"]["id"]
    client = server.client(kernel)
    pid = server.run(client, "pid")
    before = json.loads(server.connection_file(kernel).read_text())
    restart(server, kernel)
    assert json.loads(server.connection_file(kernel).read_text()) == before
    assert way(server, kernel) == "cold"
    again = server.client(kernel)
    assert server.run(again, "pid") != pid
    assert server.run(again, "session").endswith("one.toy"), "a cold start has the name"
    eventually(lambda: not psutil.pid_exists(int(pid)), "its predecessor is gone")


def test_whole_kernel_in_another_folder_is_not_a_hit(toy: Callable[..., Server]) -> None:
    """It can't be moved, so its cwd is part of the recipe."""
    server = toy(WHOLE)
    server.wait_warm(1, "toy")
    (server.root / "sub").mkdir()
    kernel = server.start_session("sub/one.toy", name="toy")["kernel"]["id"]
    assert way(server, kernel) == "cold"
    assert server.run(kernel, "cwd") == str(server.root / "sub")


@pytest.mark.parametrize("launcher, reason", [("auto", "not_pooled"), ("whole", "unforkable")])
def test_kernel_of_another_language_is_not_forked_and_lives_on(
    toy: Callable[..., Server], launcher: str, reason: str
) -> None:
    server = toy(*([WHOLE] if launcher == "whole" else []))
    server.wait_warm(1, "toy" if launcher == "whole" else "python3")
    kernel = server.start_session("one.toy", name="toy")["kernel"]["id"]
    told = server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["capabilities"]["fork"]
    assert told["available"] is False
    for path in ("fork", "checkpoints"):
        status, refused = server.call(f"/kernelpool/v1/kernels/{kernel}/{path}", "POST")
        assert (status, refused["code"], refused["reason"]) == (501, "cannot_fork", reason)
        assert refused["message"] == told["why"]
    assert server.run(kernel, "hello") == "hello"


@pytest.mark.parametrize(
    "option, metadata",
    [
        ("--PooledKernelManager.ip=0.0.0.0", {}),
        ("--AsyncMappingKernelManager.transport_encryption=auto", {"supported_encryption": "curve"}),
    ],
    ids=["address", "encryption"],
)
def test_whole_kernel_with_another_connection_is_not_a_hit(
    toy: Callable[..., Server], option: str, metadata: dict[str, Any]
) -> None:
    """Warm ones listen on localhost in the clear: who is to get something else gets it, cold."""
    server = toy(WHOLE, option, **metadata)
    server.wait_warm(1, "toy")
    kernel = server.start_session("one.toy", name="toy")["kernel"]["id"]
    assert way(server, kernel) == "cold"
    info = json.loads(server.connection_file(kernel).read_text())
    if metadata:
        assert "curve_publickey" in info  # the toy can't read that: declaring it was its kernelspec's mistake
    else:
        assert info["ip"] == "0.0.0.0"
        assert server.run(kernel, "hello") == "hello"


def test_warm_kernel_that_is_not_idle_is_ended_and_reported(toy: Callable[..., Server]) -> None:
    server = toy(WHOLE)
    server.wait_warm(1, "toy")
    (warm,) = [process for process in server.ours() if "toy.py" in " ".join(process.cmdline())]
    (Path(warm.cmdline()[1])).write_text(
        "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()\n" + TOY
    )
    warm.kill()
    error = eventually(lambda: server.recipe("toy").get("last_error"), "it is reported", timeout=60)
    assert "computes though nobody asked" in error["reason"]
    assert server.log.count("computes though nobody asked") == 1
    assert server.run(server.start_kernel(), "print(6 * 7)") == "42", "other recipes do not mind"
