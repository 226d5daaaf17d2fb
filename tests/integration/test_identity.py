"""Nobody can tell a claimed kernel from a cold one except by the clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server, eventually

pytestmark = pytest.mark.integration

# Everything a kernel can say about itself that must not depend on how it came to be.
PROBE = """
import json, os, signal, sys, threading
ip = get_ipython()
def shape(name):
    return str(getattr(signal.getsignal(name), "__name__", signal.getsignal(name)))
print(json.dumps({
    "argv": [sys.argv[0].rsplit("/", 1)[-1], *sys.argv[1:2], sys.argv[-1].rsplit("/", 1)[-1][:7]],
    "orig_argv": [sys.orig_argv[0], *sys.orig_argv[1:4], sys.orig_argv[4][:20]],
    "cwd": os.getcwd(),
    "env": {k: v for k, v in sorted(os.environ.items()) if k not in ("JPY_PARENT_PID",)},
    "path": sys.path,
    "names": sorted(n for n in globals() if n not in ("ip", "shape", "json", "os", "signal", "sys", "threading")),
    "who": ip.run_line_magic("who_ls", ""),
    "in": [len(In), In[0]], "out": Out, "dh": [str(d) for d in _dh],
    "count": ip.execution_count,
    "session_name": globals().get("__session__"),
    "flags": [int(f) for f in sys.flags][:11],
    "main": sys.modules["__main__"].__name__,
    "argv0_main": hasattr(sys.modules["__main__"], "__file__"),
    "kernel": [type(ip).__name__, type(ip.kernel).__name__, type(ip.kernel.parent).__mro__[-3].__name__ != ""],
    "session_leader": os.getsid(0) == os.getpid() == os.getpgid(0),
    "sigint": shape(signal.SIGINT), "sigterm": shape(signal.SIGTERM), "sigpipe": shape(signal.SIGPIPE),
    "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "umask": (lambda old: (os.umask(old), old)[1])(os.umask(0o22)),
    "stdin": os.read(0, 10).decode(),
    "starting_dir": ip.starting_dir,
    "history": ip.history_manager.enabled,
    "extensions": sorted(ip.extension_manager.loaded),
    "last": [str(ip.last_execution_succeeded), str(ip.last_execution_result)],
    "user_hidden": sorted(ip.user_ns_hidden)[:40],
    # Stock's parent poller (an unnamed thread) has no counterpart: the supervisor's lifeline does its work.
    "threads": sorted(t.name for t in threading.enumerate() if not t.name.startswith("Thread-")),
}))
"""


WAYS: dict[str, tuple[str, ...]] = {
    "claimed": (),
    "stock": ("--KernelPool.enabled=False",),
    "cold, in pieces": ("--KernelLimits.output=1M", "--KernelPool.recipes={'python3': {'launcher': 'off'}}"),
}


@pytest.fixture(scope="module")
def answers(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a claimed kernel and cold ones answer to the probe, in equal surroundings."""
    answers = {}
    for way, options in WAYS.items():
        folder = tmp_path_factory.mktemp("same")
        server = kp_servers(folder, *options, MARK="same")
        if not options:
            server.wait_warm()
        (server.root / "sub").mkdir()
        session = server.start_session("sub/one.ipynb")
        text = server.run(session["kernel"]["id"], PROBE)
        if not options:
            assert server.hit() == 1, "the claimed side must be a pool hit"
        answers[way] = json.loads(text.replace(str(folder), "FOLDER"))
        server.stop()
    return answers


@pytest.mark.parametrize("way", ["claimed", "cold, in pieces"])
def test_kernel_answers_the_probe_as_one_of_stocks(answers: dict[str, Any], way: str) -> None:
    for name in ("env", *answers["stock"]):
        assert answers[way][name] == answers["stock"][name], name


def test_environment_is_what_the_session_asked_for(kp_server: Server) -> None:
    kp_server.wait_warm()
    before = kp_server.hit()
    session = kp_server.start_session("dir.ipynb")
    kernel = session["kernel"]["id"]
    client = kp_server.client(kernel)
    assert kp_server.run(client, "import os; print(os.environ['JPY_SESSION_NAME'])").endswith("dir.ipynb")
    assert kp_server.run(client, "print(__session__)").endswith("dir.ipynb")
    assert kp_server.hit() == before + 1
    content = json.loads(kp_server.connection_file(kernel).read_text())
    assert content["jupyter_session"].endswith("dir.ipynb")
    assert kp_server.connection_file(kernel).stat().st_mode & 0o777 == 0o600


def test_each_kernel_has_a_key_and_ports_of_its_own(kp_server: Server) -> None:
    kp_server.wait_warm()
    contents = []
    for _ in range(2):
        kernel = kp_server.start_kernel()
        contents.append(json.loads(kp_server.connection_file(kernel).read_text()))
    assert contents[0]["key"] != contents[1]["key"]
    assert not {v for k, v in contents[0].items() if k.endswith("_port")} & {
        v for k, v in contents[1].items() if k.endswith("_port")
    }


def test_random_streams_of_two_kernels_differ(kp_server: Server) -> None:
    code = (
        "import random, uuid, tempfile, os; print(random.random(), uuid.uuid4(), next(tempfile._get_candidate_names()))"
    )
    kp_server.wait_warm()
    first, second = (kp_server.run(kp_server.start_kernel(), code) for _ in range(2))
    assert all(a != b for a, b in zip(first.split(), second.split(), strict=True))


def test_history_session_follows_the_kernels_that_ran(kp_server: Server) -> None:
    number = "print(get_ipython().history_manager.session_number)"
    kp_server.wait_warm()
    first = int(kp_server.run(kp_server.start_kernel(), number))
    kp_server.wait_warm()
    second = int(kp_server.run(kp_server.start_kernel(), number))
    assert second == first + 1


def test_cells_that_ran_at_once_are_in_the_history(kp_server: Server) -> None:
    kp_server.wait_warm()
    client = kp_server.client(kp_server.start_kernel())
    kp_server.run(client, "first = 'kept'")
    assert "first = 'kept'" in kp_server.run(client, "%history -g -l 3")


def test_a_chosen_kernel_id_is_honoured_and_taken_once(kp_server: Server) -> None:
    kp_server.wait_warm()
    chosen = "12345678-aaaa-bbbb-cccc-123456789abc"
    body = {"path": "chosen.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3", "id": chosen}}
    status, session = kp_server.call("/api/sessions", "POST", body)
    assert (status, session["kernel"]["id"]) == (201, chosen)
    assert kp_server.run(chosen, "print(6 * 7)") == "42"


def test_the_same_id_twice_is_an_error_also_at_the_same_time(kp_server: Server) -> None:
    kp_server.wait_warm()
    chosen = "12345678-aaaa-bbbb-cccc-00000000000%d"
    body = {"name": "python3", "kernel_id": chosen % 1}
    assert kp_server.call("/api/kernels", "POST", body)[0] == 201
    status, refused = kp_server.call("/api/kernels", "POST", body)
    assert (status, "already" in refused["message"]) == (409, True)
    body = {"name": "python3", "kernel_id": chosen % 2}
    with ThreadPoolExecutor(4) as several:
        answers = list(several.map(lambda _: kp_server.call("/api/kernels", "POST", body)[0], range(4)))
    assert sorted(answers) == [201, 409, 409, 409]
    assert kp_server.run(chosen % 2, "print(6 * 7)") == "42"
    assert kp_server.run(chosen % 1, "print(6 * 7)") == "42"


def test_user_can_delete_what_a_kernel_needs_without_harm(kp_server: Server) -> None:
    """hand-out: code of a pool's in the user's namespace breaks (`del os`)."""
    kp_server.wait_warm()
    client = kp_server.client(kp_server.start_kernel())
    assert kp_server.run(client, "print([n for n in globals() if not n.startswith('_')])") == str(
        ["In", "Out", "get_ipython", "exit", "quit", "open"]
    )


def test_exit_code_and_death_are_noticed(kp_server: Server) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    client = kp_server.client(kernel)
    pid = int(kp_server.run(client, "import os; print(os.getpid())"))
    client.execute("os._exit(3)")
    story = eventually(
        lambda: kp_server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"] != pid, "a new process serves the id"
    )
    assert story


def test_interrupt_reaches_the_kernel_and_its_children(kp_server: Server, tmp_path: Path) -> None:
    kp_server.wait_warm()
    kernel = kp_server.start_kernel()
    client = kp_server.client(kernel)
    started = tmp_path / "started"  # once it is there, the interrupt can't come in the middle of starting the child
    code = f"import subprocess, time; p = subprocess.Popen(['sleep', '100']); open({str(started)!r}, 'w').close()"
    client.execute(f"{code}; time.sleep(100)")
    eventually(started.exists, "the child runs")
    assert _children(kp_server, kernel) == ["sleep"]
    assert kp_server.call(f"/api/kernels/{kernel}/interrupt", "POST")[0] == 204
    reply = client.get_shell_msg(timeout=30)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert kp_server.run(client, "print(p.wait())") == "-2"


def _children(server: Server, kernel: str) -> list[str]:
    import psutil

    pid = server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["pid"]
    return [child.name() for child in psutil.Process(pid).children()]
