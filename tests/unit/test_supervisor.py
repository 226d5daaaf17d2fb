"""The process that owns every process of ours, run for real: exits are reported, and nothing outlives it."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import jupyter_kernelpool
from jupyter_kernelpool.kernelside import wire
from jupyter_kernelpool.supervisor import Supervisor

FOLDER = str(Path(jupyter_kernelpool.__file__).parent.parent)
PYTHON = [sys.executable, "-I", "-S", "-c"]
TIMEOUT = 20.0


class Gone:
    """Tells when a process, whoever's child, is gone: no sleeping, and no confusion of pids."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def __call__(self, timeout: float = TIMEOUT) -> bool:
        ready, _, _ = select.select([self._fd], [], [], timeout)
        return bool(ready)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        os.close(self._fd)


class Server:
    """The server's part, played by the test: a supervisor, and orders to it."""

    def __init__(self) -> None:
        self.sock, its = socket.socketpair()
        self.sock.settimeout(TIMEOUT)
        with its:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "jupyter_kernelpool.supervisor", str(its.fileno())],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": FOLDER},
            )
        self.events: list[dict] = []
        self.gone: list[Gone] = []
        self.sockets: list[socket.socket] = []
        self.numbers = iter(range(1, 1000))
        assert self.event("ready")["pid"] == self.process.pid

    def event(self, kind: str, **facts) -> dict:
        """The next event of that kind, with those facts; others are kept."""
        while True:
            for place, event in enumerate(self.events):
                if event["event"] == kind and facts.items() <= event.items():
                    return self.events.pop(place)
            received = wire.receive(self.sock)
            assert received is not None, "the supervisor is gone"
            self.events.append(received[0])

    def order(self, op: str, fds=(), **order) -> dict:
        number = next(self.numbers)
        wire.send(self.sock, {"op": op, "id": number, **order}, list(fds))
        return self.event("done", id=number)

    def spawn(self, *argv: str, **order) -> int:
        given = {"argv": list(argv), "env": dict(os.environ), "cwd": "/", "settings": None}
        return self.order("spawn", **{**given, **order})["pid"]

    def python(self, code: str, **settings) -> tuple[int, socket.socket]:
        """A Python child that runs *code*, in which `orders` is a socket to the test, which is returned too."""
        ours, its = socket.socketpair()
        ours.settimeout(TIMEOUT)
        self.sockets.append(ours)
        prelude = """
            import json, os, signal, socket, sys, time
            settings = json.loads(sys.argv[-1])
            orders = socket.socket(fileno=settings["orders"])
        """
        whole = textwrap.dedent(prelude) + textwrap.dedent(code)
        with its:
            pid = self.order(
                "spawn",
                fds=[its.fileno()],
                argv=[*PYTHON, whole],
                env={},
                cwd="/",
                settings=settings,
            )["pid"]
        return pid, ours

    def watching(self, pid: int) -> Gone:
        self.gone.append(Gone(pid))
        return self.gone[-1]

    def close(self) -> None:
        self.sock.close()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()
            for gone in self.gone:
                gone.close()
            for sock in self.sockets:
                sock.close()


@pytest.fixture
def kp_server():
    server = Server()
    yield server
    server.close()


# -- exits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, code",
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -KILL $$", -9), ("kill -SEGV $$", -11)],
)
def test_exit_codes_and_signals_are_reported(kp_server, command, code):
    pid = kp_server.spawn("sh", "-c", command)
    assert kp_server.event("exit", pid=pid)["code"] == code


def test_exit_is_reported_once_though_it_is_watched_too(kp_server):
    pid = kp_server.spawn("sleep", "1000")
    kp_server.order("watch", pid=pid)
    os.kill(pid, signal.SIGKILL)
    assert kp_server.event("exit", pid=pid)["code"] == -9
    kp_server.order("nonsense")  # whatever else was reported has arrived with its answer
    assert kp_server.events == []


def test_many_that_end_at_once_are_all_reported(kp_server):
    pids = [kp_server.spawn("sleep", "1000") for _ in range(20)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        assert kp_server.event("exit", pid=pid)["code"] == -9


def test_process_is_started_as_asked(kp_server, tmp_path):
    pid, orders = kp_server.python(
        """
        orders.send(json.dumps({
            "cwd": os.getcwd(), "env": dict(os.environ), "session": os.getsid(0), "settings": settings,
            "stdin": os.readlink("/proc/self/fd/0"),
            "signals": [
                signal.getsignal(signal.SIGINT) is signal.default_int_handler,
                signal.getsignal(signal.SIGHUP) is signal.SIG_DFL,
                signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
            ],
            "fds": sorted(map(int, os.listdir("/proc/self/fd"))),
        }).encode())
        """,
        mode="warm",
    )
    told = json.loads(orders.recv(65536))
    assert told["cwd"] == "/"
    assert told["env"].keys() <= {"LC_CTYPE"}
    assert told["session"] == pid
    assert told["stdin"] == os.devnull
    assert told["signals"] == [True, True, True], "an ignored signal would stay ignored in the kernel"
    assert told["settings"]["mode"] == "warm"
    extra = {fd for fd in told["fds"] if fd > 2}
    listing = 1  # the folder's own descriptor, while it is listed
    assert {told["settings"]["orders"], told["settings"]["lifeline"]} <= extra
    assert len(extra) == 2 + listing


FORK_TWICE = """
    if os.fork() == 0:
        middle = os.getpid()
        if os.fork() == 0:
            os.setsid()
            while os.getppid() == middle:  # until it is an orphan
                time.sleep(0.001)
            orders.send(str(os.getpid()).encode())
            orders.recv(1)
            os._exit(7)
        os._exit(0)
    os.wait()
    orders.recv(1)
"""


def test_orphan_becomes_its_child_and_its_exit_is_reported(kp_server):
    parent, orders = kp_server.python(FORK_TWICE)
    orphan = int(orders.recv(100))
    kp_server.order("watch", pid=orphan)
    stat = Path(f"/proc/{orphan}/stat").read_text()
    assert int(stat.rpartition(")")[2].split()[1]) == kp_server.process.pid
    orders.shutdown(socket.SHUT_WR)
    assert kp_server.event("exit", pid=orphan)["code"] == 7
    assert kp_server.event("exit", pid=parent)["code"] == 0


def test_exit_before_the_watch_is_reported_with_its_code(kp_server):
    parent, orders = kp_server.python(FORK_TWICE)
    orphan = int(orders.recv(100))
    gone = kp_server.watching(orphan)
    orders.shutdown(socket.SHUT_WR)
    assert gone()
    kp_server.event("exit", pid=parent)
    kp_server.order("watch", pid=orphan)
    assert kp_server.event("exit", pid=orphan)["code"] == 7


def test_watch_of_a_process_that_never_was_is_answered(kp_server):
    kp_server.order("watch", pid=1 << 22)
    assert kp_server.event("exit", pid=1 << 22)["code"] == -9


def test_live_child_is_not_mistaken_for_a_dead_one_of_the_same_pid():
    ours, its = socket.socketpair()
    child = subprocess.Popen(["sleep", "1000"])
    with ours, its:
        supervisor = Supervisor(its)
        supervisor.unclaimed_exits[child.pid] = 3  # somebody's daemon had that pid before
        supervisor.watch(child.pid)
        assert child.pid in supervisor.owned
        assert child.pid not in supervisor.unclaimed_exits
        child.kill()
        child.wait()
        for fd in (supervisor.lifeline, supervisor._lifeline_held):
            os.close(fd)


# -- orders that go wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order, said",
    [
        ({"argv": ["/no/such/program"]}, "FileNotFoundError"),
        ({"argv": ["true"], "cwd": "/no/such/folder"}, "FileNotFoundError"),
        ({"argv": ["/etc/passwd"]}, "PermissionError"),
        ({"argv": ["true", "a\0b"]}, "ValueError"),
        ({"argv": ["true"], "env": {"A": 1}}, "TypeError"),
        ({"argv": ["true"], "settings": {}}, "IndexError"),
        ({"argv": []}, "Error"),
    ],
    ids=str,
)
def test_spawn_that_fails_is_answered_and_the_supervisor_lives_on(kp_server, order, said):
    given = {"argv": [], "env": dict(os.environ), "cwd": "/", "settings": None}
    assert said in kp_server.order("spawn", **{**given, **order})["error"]
    assert kp_server.spawn("true") > 0


def test_unknown_order_is_answered(kp_server):
    assert "'dance'" in kp_server.order("dance")["error"]


# -- the end ----------------------------------------------------------------------------------------

PARENT_OF_TWO = """
    if os.fork() == 0:
        time.sleep(1000)
    orders.send(b"ready")
    time.sleep(1000)
"""


def end_by_end_of_file(server: Server) -> None:
    server.sock.shutdown(socket.SHUT_RDWR)


def end_by_sigterm(server: Server) -> None:
    server.process.terminate()


@pytest.mark.parametrize("end", [end_by_end_of_file, end_by_sigterm])
def test_sessions_are_killed_and_guarded_files_removed_when(kp_server, end, tmp_path):
    guarded, released, other = (tmp_path / name for name in ("guarded.json", "released.json", "other.json"))
    for file in (guarded, released, other):
        file.write_text("{}")
    folder = tmp_path / "folder"
    (folder / "closed").mkdir(parents=True)
    (folder / "closed" / "file").touch()
    (folder / "link").symlink_to(other)
    (folder / "closed").chmod(0o500)
    kp_server.order("guard", paths=[str(guarded), str(released), str(folder), str(tmp_path / "never-made.json")])
    kp_server.order("release", paths=[str(released)])
    pid, orders = kp_server.python(PARENT_OF_TWO)
    assert orders.recv(5) == b"ready"
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert len(children) == 1
    gone = [kp_server.watching(int(each)) for each in (pid, *children)]
    tracked = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    untracked = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    for process in (tracked, untracked):
        kp_server.order("track", pid=process.pid)
    kp_server.order("untrack", pid=untracked.pid)
    try:
        end(kp_server)
        assert kp_server.process.wait(TIMEOUT) == 0
        assert all(each() for each in gone)
        assert tracked.wait(TIMEOUT) == -9
        assert untracked.poll() is None
    finally:
        for process in (tracked, untracked):
            process.kill()
            process.wait()
    assert not guarded.exists()
    assert not folder.exists()
    assert released.exists()
    assert other.exists()


def test_daemon_of_a_user_is_spared(kp_server):
    """It made a session of its own to outlive the kernel; stock spares it too."""
    _, orders = kp_server.python(FORK_TWICE)
    daemon = kp_server.watching(int(orders.recv(100)))
    kp_server.sock.shutdown(socket.SHUT_RDWR)
    assert kp_server.process.wait(TIMEOUT) == 0
    assert not daemon(0)


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_interrupt_of_the_terminal_ends_nothing(kp_server, ignored):
    kp_server.process.send_signal(ignored)
    assert kp_server.spawn("true") > 0


def test_server_that_dies_in_the_middle_of_a_message_is_cleared_away_after(kp_server):
    pid = kp_server.spawn("sleep", "1000")
    gone = kp_server.watching(pid)
    kp_server.sock.sendall(wire.encode({"op": "watch"})[:-3])
    kp_server.sock.shutdown(socket.SHUT_RDWR)
    assert kp_server.process.wait(TIMEOUT) == 0
    assert gone()


# -- the lifeline -----------------------------------------------------------------------------------

HOLD = f"""
    sys.path.insert(0, {FOLDER + "/jupyter_kernelpool/kernelside"!r})
    import lifeline
    lifeline.hold(settings["lifeline"])
    orders.send(b"held")
"""
BUSY = {
    "waiting": "time.sleep(1000)",
    "in C, with the GIL held": "import ctypes; ctypes.PyDLL(None).sleep(1000)",
    "in a regular expression": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "with signals ignored": """
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        time.sleep(1000)
    """,
    "with signals blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1000)",
}


@pytest.mark.parametrize("busy", BUSY)
def test_process_dies_with_a_supervisor_that_is_killed_while_it_is(kp_server, busy):
    pid, orders = kp_server.python(textwrap.dedent(HOLD) + textwrap.dedent(BUSY[busy]))
    gone = kp_server.watching(pid)
    assert orders.recv(4) == b"held"
    wait_until_busy(pid)
    assert not gone(0)
    kp_server.process.kill()
    assert gone(5)


def wait_until_busy(pid: int) -> None:
    """Until the process, which has said that it holds the lifeline, sleeps or computes."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if state[0] == "S" or int(state[11]) > 20:
            return
        time.sleep(0.005)
    raise AssertionError("it does not get busy")


def test_fork_dies_with_the_supervisor_too(kp_server):
    """Forked twice and told nothing: it holds on to the pipe that its template inherited."""
    pid, orders = kp_server.python(
        textwrap.dedent(HOLD)
        + textwrap.dedent(
            """
            if os.fork() == 0:
                if os.fork() == 0:
                    os.setsid()
                    lifeline.hold(settings["lifeline"])
                    orders.send(str(os.getpid()).encode())
                    time.sleep(1000)
                os._exit(0)
            os.wait()
            orders.recv(1)
            """
        )
    )
    assert orders.recv(4) == b"held"
    fork = kp_server.watching(int(orders.recv(100)))
    os.kill(pid, signal.SIGKILL)
    kp_server.event("exit", pid=pid)
    assert not fork(0), "a fork does not die with its template"
    kp_server.process.kill()
    assert fork(5)


def test_process_that_comes_too_late_ends_at_once(kp_server):
    """The supervisor went between the start of the process and its taking hold."""
    pid, orders = kp_server.python("orders.send(b'up')\norders.recv(2)\n" + textwrap.dedent(HOLD) + "time.sleep(1000)")
    gone = kp_server.watching(pid)
    assert orders.recv(2) == b"up"
    kp_server.process.kill()
    kp_server.process.wait()
    orders.send(b"go")
    assert gone(5)
    assert orders.recv(4) == b""


def test_process_that_is_tracked_twice_takes_one_descriptor_and_none_when_it_is_let_go(kp_server):
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    open_files = psutil.Process(kp_server.process.pid).num_fds
    kp_server.order("untrack", pid=process.pid)  # it has answered: it is through with its own start
    before = open_files()
    try:
        for _ in range(2):
            kp_server.order("track", pid=process.pid)
            assert open_files() == before + 1
        kp_server.order("untrack", pid=process.pid)
        assert open_files() == before
    finally:
        process.kill()
        process.wait()
