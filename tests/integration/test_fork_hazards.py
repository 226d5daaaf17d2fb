"""Each thing that a fork could do wrong, to its parent or to itself."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from queue import Empty

import psutil
import pytest

from .kernelside_driver import Host, Kernel, Process

pytestmark = pytest.mark.integration


def test_context_variables_precision_and_print_options_go_on(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import contextvars, decimal, numpy as np\n"
        "v = contextvars.ContextVar('v'); v.set('kept')\n"
        "decimal.getcontext().prec = 5\n"
        "np.seterr(divide='raise'); np.set_printoptions(precision=2)"
    )
    look = (
        "print(v.get(), decimal.Decimal(1) / 3, np.geterr()['divide'], np.array([1.23456]),"
        " get_ipython().kernel.get_parent('shell')['header']['msg_type'])"
    )
    expected = "kept 0.33333 raise [1.23] execute_request"
    direct = kp_kernel.fork()
    assert direct.run(look) == expected
    process = direct.park().fork()
    process.born()
    assert process.adopt(keep=True).run(look) == expected
    assert kp_kernel.run(look) == expected


def test_random_streams_are_the_parents(kp_kernel: Kernel) -> None:
    kp_kernel.run("import random, numpy as np; random.seed(1); np.random.seed(1); g = np.random.default_rng(1)")
    draw = "print(random.random(), np.random.random(), g.random())"
    parked = kp_kernel.park()
    fork = kp_kernel.fork()
    expected = kp_kernel.run(draw)
    assert fork.run(draw) == expected
    process = parked.fork()
    process.born()
    assert process.adopt(keep=True).run(draw) == expected


def test_random_streams_are_fresh_on_request(kp_kernel: Kernel) -> None:
    kp_kernel.run("import random, numpy as np; random.seed(1); np.random.seed(1)")
    draw = "print(random.random(), np.random.random())"
    parked = kp_kernel.park()
    processes = [kp_kernel.park(become=True, reseed=True)]
    for _ in range(2):
        processes.append(parked.fork(reseed=True))
        processes[-1].born()
    drawn = [process.adopt(keep=True).run(draw) for process in processes]
    drawn.append(kp_kernel.run(draw))
    for position in range(2):
        assert len({values.split()[position] for values in drawn}) == len(drawn), drawn


def test_each_has_a_file_position_of_its_own(kp_kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("a\nb\nc\nd\n")
    kp_kernel.run(f"f = open({str(file)!r}, 'rb', buffering=0); f.read(2)")
    fork = kp_kernel.fork()
    assert fork.run("print(f.read(4))") == r"b'b\nc\n'"
    assert kp_kernel.run("print(f.read(4))") == r"b'b\nc\n'"


def test_siblings_from_one_parked_process_share_no_file_position(kp_kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("a\nb\nc\n")
    kp_kernel.run(f"f = open({str(file)!r}, 'rb', buffering=0); f.read(2)")
    parked = kp_kernel.park()
    kp_kernel.run("f.read()")
    for _ in range(2):
        process = parked.fork()
        process.born()
        assert process.adopt(keep=True).run("print(f.read())") == r"b'b\nc\n'"


def test_what_was_written_and_not_flushed_is_written_once(kp_kernel: Kernel, tmp_path: Path) -> None:
    plain, hidden = tmp_path / "plain", tmp_path / "hidden"
    kp_kernel.run(
        f"f = open({str(plain)!r}, 'a'); f.write('once\\n')\n"
        f"box = [open({str(hidden)!r}, 'a')]; box[0].write('once\\n')"
    )
    fork = kp_kernel.fork()
    fork.run("f.flush(); box[0].flush()")
    kp_kernel.run("f.write('parent\\n'); f.flush(); box[0].flush()")
    assert plain.read_text() == "once\nparent\n"
    assert hidden.read_text() == "once\n"


def test_parents_temporary_folder_outlives_the_fork(kp_kernel: Kernel) -> None:
    folder = kp_kernel.run("import tempfile; t = tempfile.TemporaryDirectory(); print(t.name)")
    fork = kp_kernel.fork()
    fork.run("del t; import gc; gc.collect()")
    assert fork.shutdown() == 0
    assert Path(folder).is_dir()
    assert kp_kernel.shutdown() == 0
    assert not Path(folder).exists()


def test_ends_registered_before_the_fork_are_the_parents_and_after_it_the_forks(
    kp_kernel: Kernel, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    note = f"lambda who: open({str(log)!r}, 'a').write(who + ' ')"
    kp_kernel.run(f"import atexit, weakref; note = {note}; atexit.register(note, 'atexit')")
    kp_kernel.run("class A: pass\na = A(); weakref.finalize(a, note, 'finalize')")
    fork = kp_kernel.fork()
    fork.run("atexit.register(note, 'fork-atexit'); b = A(); weakref.finalize(b, note, 'fork-finalize')")
    assert fork.shutdown() == 0
    assert sorted(log.read_text().split()) == ["fork-atexit", "fork-finalize"]
    log.unlink()
    assert kp_kernel.shutdown() == 0
    assert sorted(log.read_text().split()) == ["atexit", "finalize"]


def test_file_that_a_fork_left_open_is_whole_after_its_end(kp_kernel: Kernel, tmp_path: Path) -> None:
    fork = kp_kernel.fork()
    fork.run(f"f = open({str(tmp_path / 'f')!r}, 'w'); f.write('whole')")
    fork.shutdown()
    assert (tmp_path / "f").read_text() == "whole"


def test_end_of_a_fork_kills_no_process_of_its_parents(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import multiprocessing, subprocess, time\n"
        "p = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True); p.start()\n"
        "s = subprocess.Popen(['sleep', '60'])\n"
        "get_ipython().run_cell_magic('bash', '--bg --proc job', 'sleep 60')"
    )
    fork = kp_kernel.fork()
    assert fork.shutdown() == 0
    assert kp_kernel.run("print(p.is_alive(), s.poll(), job.returncode)") == "True None None"


def test_history_of_a_fork_is_a_session_of_its_own(kp_kernel: Kernel) -> None:
    ask = "print(get_ipython().history_manager.session_number)"
    parents = int(kp_kernel.run(ask + " # parent"))
    fork = kp_kernel.fork()
    forks = int(fork.run(ask + " # fork"))
    assert forks != parents
    assert fork.run("%history -l 1").count("fork") == 1
    kp_kernel.run("'again'  # parent")
    assert (fork.shutdown(), kp_kernel.shutdown()) == (0, 0)
    file = kp_kernel.host.folder / "ipython" / "profile_default" / "history.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT session, line, source FROM history WHERE session IN (?, ?)", (parents, forks))
        lines = {(session, line): source for session, line, source in rows}
    assert lines[parents, 1].endswith("# parent")
    assert lines[parents, 2] == "'again'  # parent"
    assert lines[forks, 2].endswith("# fork")
    assert (forks, 1) not in lines


def test_history_that_was_not_open_yet_is_no_trouble(kp_template: Process) -> None:
    process = kp_template.fork(ahead=False)
    process.born()
    kernel = process.adopt()
    kernel.run("'not written yet'")
    fork = kernel.fork()  # within the moment that the history waits before it opens
    ask = "print(get_ipython().history_manager.session_number)"
    forks, parents = (int(one.run(ask)) for one in (fork, kernel))
    assert (fork.shutdown(), kernel.shutdown()) == (0, 0)
    file = kernel.host.folder / "ipython" / "profile_default" / "history.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT session FROM history WHERE source LIKE '%not written%' AND session >= ?",
                                (min(forks, parents),)).fetchall()  # fmt: skip
    assert rows == [(parents,)]


def test_output_of_a_fork_never_reaches_the_parents_clients(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import logging, os, sys, threading\nlogging.basicConfig(stream=sys.stderr, force=True); old = sys.stdout"
    )
    fork = kp_kernel.fork()
    printed = fork.run(
        "logging.warning('logged'); print('printed'); print('to the old', file=old)\n"
        "os.system('echo from a child'); os.write(1, b'raw\\n')\n"
        "t = threading.Thread(target=print, args=('threaded',)); t.start(); t.join()"
    )
    for text in ("logged", "printed", "to the old", "threaded"):
        assert text in printed
    kp_kernel.run("None")  # iopub is in order: what was sent before is here by now
    heard = []
    with contextlib.suppress(Empty):
        while True:
            heard.append(kp_kernel.client.get_iopub_msg(timeout=0.2)["msg_type"])
    assert "stream" not in heard


def test_output_hooks_and_replaced_streams_stay(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import sys\nclass Tee:\n    def __init__(self, inner): self.inner, self.seen = inner, []\n"
        "    def write(self, text): self.seen.append(text); return self.inner.write(text)\n"
        "    def __getattr__(self, name): return getattr(self.inner, name)\nsys.stdout = Tee(sys.stdout)"
    )
    fork = kp_kernel.fork().fork()
    assert fork.run("print('through')") == "through"
    assert "through" in fork.run("print(sys.stdout.seen)")


def test_server_log_gets_what_a_fork_writes_to_its_descriptors(kp_kernel: Kernel) -> None:
    fork = kp_kernel.fork()
    fork.run("import os; os.write(2, b'raw words of a fork\\n')")
    fork.run("None")
    fork.shutdown()
    assert "raw words of a fork" in kp_kernel.host.log


def test_fork_is_interrupted_alone(kp_kernel: Kernel, tmp_path: Path) -> None:
    begun = [tmp_path / "parent", tmp_path / "fork"]
    fork = kp_kernel.fork()
    for kernel, file in zip((kp_kernel, fork), begun, strict=True):
        code = f"import pathlib, time; pathlib.Path({str(file)!r}).touch(); time.sleep(2); done = 1"
        sent = kernel.client.execute(code)
        while not file.exists():
            pass
    os.killpg(fork.pid, signal.SIGINT)
    while (reply := fork.client.get_shell_msg(timeout=10))["parent_header"]["msg_id"] != sent:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert fork.run("print('done' in globals())") == "False"
    assert kp_kernel.run("print(done)") == "1"


def test_fork_asks_its_own_client_for_input(kp_kernel: Kernel) -> None:
    fork = kp_kernel.fork()
    message = fork.client.execute("x = input('name? ')", allow_stdin=True)
    request = fork.client.get_stdin_msg(timeout=10)
    assert request["content"]["prompt"] == "name? "
    fork.client.input("Ada")
    while fork.client.get_shell_msg(timeout=10)["parent_header"]["msg_id"] != message:
        pass
    assert fork.run("print(x)") == "Ada"


def test_fork_completes_inspects_and_tells_history(kp_kernel: Kernel) -> None:
    kp_kernel.run("a_long_name = 1")
    fork = kp_kernel.fork()
    assert "a_long_name" in fork.client.complete("a_lon", reply=True, timeout=10)["content"]["matches"]
    assert fork.client.inspect("a_long_name", reply=True, timeout=10)["content"]["found"]
    fork.run("'asked'")
    history = fork.client.history(hist_access_type="tail", n=1, reply=True, timeout=10)["content"]["history"]
    assert history[-1][2] == "'asked'"


def test_new_threads_run_in_a_fork(kp_kernel: Kernel) -> None:
    fork = kp_kernel.fork()
    fork.run("import threading; e = threading.Event(); threading.Thread(target=e.set).start(); assert e.wait(5)")


def test_attached_debugger_is_a_reason_to_refuse(kp_kernel: Kernel) -> None:
    for number, command in enumerate(("initialize", "attach"), start=1):
        request = {
            "seq": number, "type": "request", "command": command,
            "arguments": {"clientID": "t", "adapterID": "", "linesStartAt1": True, "columnsStartAt1": True},
        }  # fmt: skip
        kp_kernel.client.control_channel.send(kp_kernel.client.session.msg("debug_request", request))
        if command == "initialize":
            assert kp_kernel.client.control_channel.get_msg(timeout=10)["content"]["success"]
    kp_kernel.run("import os, posix, time\nwhile os.fork is posix.fork: time.sleep(0.01)")
    _, process = kp_kernel.order_park()
    answer = kp_kernel.process.expect("park_failed")
    assert answer["code"] == "debugger"
    assert answer["reason"].endswith(".")
    assert process.gone()


def test_initialised_cuda_is_a_reason_to_refuse(kp_kernel: Kernel) -> None:
    kp_kernel.run("import sys; sys.modules['_jupyter_kernelpool.hazards'].cuda_is_initialised = lambda _: True")
    _, process = kp_kernel.order_park()
    answer = kp_kernel.process.expect("park_failed")
    assert (answer["code"], bool(answer["hint"])) == ("cuda", True)
    assert process.gone()
    assert kp_kernel.run("print(1)") == "1"


def test_refused_fork_of_the_operating_system_harms_nothing(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import errno, sys\nfork = sys.modules['_jupyter_kernelpool.fork']\n"
        "def fail(): raise OSError(errno.ENOMEM, 'Cannot allocate memory')\nkept, fork._fork = fork._fork, fail"
    )
    kp_kernel.order_park()
    answer = kp_kernel.process.expect("park_failed")
    assert answer["code"] == "fork_failed"
    assert "Cannot allocate memory" in answer["reason"]
    kp_kernel.run("fork._fork = kept; x = 1")
    assert kp_kernel.fork().run("print(x)") == "1"


def test_failure_before_the_fork_harms_nothing(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import sys\nfiles = sys.modules['_jupyter_kernelpool.files']; kept = files.flush; files.flush = None"
    )
    kp_kernel.order_park()
    answer = kp_kernel.process.expect("park_failed")
    assert (answer["code"], "TypeError" in answer["reason"]) == ("fork_failed", True)
    kp_kernel.run("files.flush = kept; x = 1")
    assert kp_kernel.fork().run("print(x)") == "1"


def test_comms_are_kept_and_speak_to_the_forks_clients(kp_kernel: Kernel) -> None:
    kp_kernel.run("from comm import create_comm; c = create_comm(target_name='t'); heard = []; c.on_msg(heard.append)")
    identifier = kp_kernel.run("print(c.comm_id)")
    fork = kp_kernel.fork()
    comms = fork.client.comm_info(reply=True, timeout=10)["content"]["comms"]
    assert identifier in comms
    fork.client.shell_channel.send(fork.client.session.msg("comm_msg", {"comm_id": identifier, "data": {"n": 1}}))
    assert fork.run("print(heard[0]['content']['data'])") == "{'n': 1}"
    fork.client.execute("c.send({'from': 'fork'})")
    while True:
        message = fork.client.get_iopub_msg(timeout=10)
        if message["msg_type"] == "comm_msg":
            break
    assert message["content"]["data"] == {"from": "fork"}


def test_generator_lambda_memory_database_and_held_lock_cross(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "import sqlite3, threading\nl = threading.RLock(); l.acquire()\nf = lambda: 3\n"
        "m = sqlite3.connect(':memory:'); m.execute('create table t (x)'); m.execute('insert into t values (4)')"
    )
    fork = kp_kernel.fork()
    assert fork.run("l.acquire(); print(f(), m.execute('select x from t').fetchone()[0])") == "3 4"


def test_used_thread_pool_works_on_both_sides_and_new_ones_do(kp_kernel: Kernel) -> None:
    kp_kernel.run("from concurrent.futures import ThreadPoolExecutor as T\ne = T(2); e.submit(int).result()")
    fork = kp_kernel.fork()
    assert fork.run("print(e.submit(int, '9').result(5))") == "9"
    assert fork.run("print(T(1).submit(int, '7').result(5))") == "7"
    assert kp_kernel.run("print(e.submit(int, '6').result(5))") == "6"
    assert fork.fork().run("print(e.submit(int, '5').result(5))") == "5"
    assert fork.run("import asyncio; print(await asyncio.to_thread(int, '8'))") == "8"
    assert fork.shutdown() == 0


def test_user_signal_handler_and_children_of_a_fork_are_its_own(kp_kernel: Kernel) -> None:
    kp_kernel.run("import asyncio, os, signal; hits = []; signal.signal(signal.SIGUSR1, lambda *_: hits.append(1))")
    fork = kp_kernel.fork()
    os.kill(fork.pid, signal.SIGUSR1)
    assert fork.run("print(len(hits))") == "1"
    assert kp_kernel.run("print(len(hits))") == "0"
    assert fork.run("p = await asyncio.create_subprocess_exec('true'); print(await p.wait())") == "0"


def test_forks_die_with_the_supervisor_even_when_their_parent_is_gone(tmp_path: Path, kp_host: Host) -> None:
    host = Host(tmp_path, kp_host.environment)
    kernel = host.start("warm").adopt()
    parked = kernel.park()
    fork = kernel.fork()
    kernel.shutdown()
    fork.run("import time")
    fork.client.execute("time.sleep(60)")
    os.kill(host.supervisor_pid, signal.SIGKILL)
    for pid in (fork.pid, parked.pid):
        assert subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], timeout=10).returncode == 0
    host.close()


BOOSTING = """
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
x = np.linspace(0, 1, 4000).reshape(-1, 2)
def fit():
    return HistGradientBoostingClassifier(max_iter=3).fit(x, x[:, 0] > 0.5).score(x, x[:, 0] > 0.5)
print(fit() > 0.9)
"""


def test_openmp_pools_are_put_away_before_and_work_on_both_sides(kp_kernel: Kernel) -> None:
    """scikit-learn's threads wait for each other for ever in a child that inherits their pool."""
    kp_kernel.run("import os; os.environ['OMP_NUM_THREADS'] = '2'")
    assert kp_kernel.run(BOOSTING) == "True"
    fork = kp_kernel.fork()
    for kernel in (fork, kp_kernel, fork.fork()):
        assert kernel.run("print(fit() > 0.9)") == "True"


def test_a_number_that_was_closed_at_the_last_moment_may_be_the_forks_own(kp_kernel: Kernel) -> None:
    """A client that leaves while its kernel is forked: its connection's number is the next one to be given out."""
    kp_kernel.run(
        "import os, socket, sys, time\n"
        "client = None\n"
        "inheritance = sys.modules['_jupyter_kernelpool.inheritance'].Inheritance\n"
        "stock = inheritance.take_descriptors\n"
        "def connect_and_leave(self, ours):\n"
        "    keep = [os.open('/dev/null', os.O_RDONLY) for _ in range(40)]  # no lower number is free\n"
        "    client = socket.create_connection(('127.0.0.1', self.app.shell_port))\n"
        "    time.sleep(0.3)\n"
        "    found = stock(self, ours)\n"
        "    client.close()\n"
        "    time.sleep(0.3)\n"
        "    return found\n"
        "inheritance.take_descriptors = connect_and_leave"
    )
    parked = kp_kernel.park()
    forked = parked.fork()
    forked.born()
    assert forked.adopt(keep=True).run("print(1)") == "1"


def test_a_socket_that_another_thread_closes_at_the_last_moment_is_no_reason_to_refuse(kp_kernel: Kernel) -> None:
    """As the kernel's own threads do when a client leaves."""
    kp_kernel.run(
        "import socket, sys\n"
        "files = sys.modules['_jupyter_kernelpool.files']\n"
        "stock, pair = files.open_descriptors, socket.socketpair()\n"
        "def look_and_close(**options):\n"
        "    found = stock(**options)\n"
        "    for one in pair: one.close()\n"
        "    return found\n"
        "files.open_descriptors = look_and_close"
    )
    assert kp_kernel.park().facts["manifest"]["shared"] == []


def test_a_connection_accepted_at_the_last_moment_is_the_parents_alone(kp_kernel: Kernel) -> None:
    """Else its client would not see the parent's end while the fork lives."""
    kp_kernel.run(
        "import socket, sys, time\n"
        "inheritance = sys.modules['_jupyter_kernelpool.inheritance'].Inheritance\n"
        "stock = inheritance.take_descriptors\n"
        "def then_connect(self, ours):\n"
        "    found = stock(self, ours)\n"
        "    global client\n"
        "    client = socket.create_connection(('127.0.0.1', self.app.shell_port))\n"
        "    time.sleep(0.3)\n"
        "    return found\n"
        "inheritance.take_descriptors = then_connect"
    )
    parked = kp_kernel.park()
    port = kp_kernel.info["shell_port"]
    assert any(one.laddr.port == port for one in psutil.Process(kp_kernel.pid).net_connections("tcp"))
    assert not any(
        port in (one.laddr.port, one.raddr and one.raddr.port)
        for one in psutil.Process(parked.pid).net_connections("tcp")
    )
