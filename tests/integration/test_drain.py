"""What warm kernels were made from changes: none of the old ones is handed out, new ones take their place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Server, eventually, gone
from .traces import make_venv, remove_spec, site_packages_of, warm_processes, write_spec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

OURS = "--KernelPool.recipes={'edited': {'warm': 2}}"
READ = "import os; print(os.environ['CONTENT'])"


def test_edited_kernelspec_is_what_the_next_kernel_is_of(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    write_spec(tmp_path, "edited", env={"CONTENT": "old"})
    server = kp_start(OURS, JUPYTER_PATH=str(tmp_path))
    server.wait_warm(name="edited")
    assert server.run(server.start_kernel(name="edited"), READ) == "old"
    server.wait_warm(name="edited")
    server.wait_warm(name="python3")
    old = [p for p in warm_processes(server) if p.environ().get("CONTENT") == "old"]
    assert len(old) == 2
    write_spec(tmp_path, "edited", env={"CONTENT": "new"})
    assert server.run(server.start_kernel(name="edited"), READ) == "new", "at once"
    eventually(lambda: gone(old), "the old warm ones ended")
    server.wait_warm(name="edited")
    hits = server.recipe("edited")["hits"]
    assert server.run(server.start_kernel(name="edited"), READ) == "new"
    assert server.recipe("edited")["hits"] == hits + 1
    rows = [row["name"] for row in server.call("/kernelpool/v1/pool")[1]["recipes"]]
    assert sorted(rows) == ["edited", "python3"]


def test_edited_kernelspec_is_noticed_without_a_request(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    write_spec(tmp_path, "edited", env={"CONTENT": "old"})
    server = kp_start(OURS, JUPYTER_PATH=str(tmp_path))
    server.wait_warm(name="edited")
    key = server.recipe("edited")["key"]
    write_spec(tmp_path, "edited", env={"CONTENT": "new"})
    eventually(lambda: server.recipe("edited").get("key") not in (None, key), "the recipe is another")
    server.wait_warm(name="edited")
    assert server.run(server.start_kernel(name="edited"), READ) == "new"
    assert server.recipe("edited")["hits"] == 1


def test_restart_after_an_edit_is_as_on_stock(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    """Stock's KernelManager keeps the kernelspec that it was made with."""
    write_spec(tmp_path, "edited", env={"CONTENT": "old"})
    server = kp_start(OURS, JUPYTER_PATH=str(tmp_path))
    server.wait_warm(name="edited")
    kernel = server.start_kernel(name="edited")
    server.run(kernel, READ)
    write_spec(tmp_path, "edited", env={"CONTENT": "new"})
    eventually(lambda: server.run(server.start_kernel(name="edited"), READ) == "new", "the edit is seen")
    assert server.call(f"/api/kernels/{kernel}/restart", "POST")[0] == 200
    assert server.run(kernel, READ) == "old"
    assert server.run(server.start_kernel(name="edited"), READ) == "new"


def test_install_into_the_kernels_environment_drains(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    python = make_venv(venv)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_spec(tmp_path, "edited", argv=argv)
    server = kp_start(OURS, JUPYTER_PATH=str(tmp_path))
    server.wait_warm(name="edited")
    server.wait_warm(name="python3")
    code = "import importlib.metadata as m, sys\nprint(sys.prefix, 'later' in {d.name for d in m.distributions()})"
    assert server.run(server.start_kernel(name="edited"), code) == f"{venv} False"
    server.wait_warm(name="edited")
    template = server.recipe("edited")["template"]["pid"]
    other = server.template()
    old = [p for p in warm_processes(server) if p.cmdline()[0] == str(python)]
    assert len(old) == 2
    info = site_packages_of(venv) / "later-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: later\nVersion: 1.0\n")
    assert server.run(server.start_kernel(name="edited"), code) == f"{venv} True", "at once"
    eventually(lambda: gone(old), "the old warm ones ended")
    server.wait_warm(name="edited")
    assert server.recipe("edited")["template"]["pid"] != template
    assert server.run(server.start_kernel(name="edited"), code) == f"{venv} True"
    assert server.template() == other, "nothing happened to the other environment's"


def test_failing_preload_that_is_mended_gets_warm_by_itself(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    module = tmp_path / "mended.py"
    module.write_text("raise RuntimeError('not yet')\n")
    server = kp_start("--KernelPool.preload=mended", PYTHONPATH=str(tmp_path))
    eventually(lambda: server.recipe().get("last_error"), "the failure is in /pool")
    assert server.recipe()["retry_in"] < 60
    module.write_text("answer = 42\n")
    eventually(lambda: server.recipe()["warm"] >= 2, "warm again", 60)
    assert server.recipe()["last_error"] is None
    kernel = server.start_kernel()
    assert server.run(kernel, "import sys; print(sys.modules['mended'].answer)") == "42"


def test_kernels_older_than_max_warm_age_are_replaced(kp_start: Callable[..., Server]) -> None:
    server = kp_start("--KernelPool.max_warm_age=4")
    server.wait_warm()
    old = warm_processes(server)
    assert len(old) == 2
    eventually(lambda: gone(old), "the old ones ended", 20)
    server.wait_warm()
    assert not {p.pid for p in old} & {p.pid for p in warm_processes(server)}
    assert server.run(server.start_kernel(), "print(1)") == "1"


GROWS_WHEN_TOLD = """
import os, threading, time
def watch():
    while not os.path.exists(os.path.join({folder!r}, str(os.getpid()))):
        time.sleep(0.1)
    os.grown = b"x" * (200 << 20)
os.register_at_fork(after_in_child=lambda: threading.Thread(target=watch, daemon=True).start())
"""


@pytest.mark.slow  # warm kernels are measured every half minute
def test_warm_kernel_larger_than_max_warm_memory_is_replaced(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    grows = GROWS_WHEN_TOLD.format(folder=str(tmp_path))
    server = kp_start("--KernelPool.max_warm_memory=100M", f"--KernelPool.init_code={grows}")
    server.wait_warm()
    large, small = warm_processes(server)
    (tmp_path / str(large.pid)).touch()
    eventually(lambda: gone([large]), "the large one ended", 75)
    assert not gone([small]), "which uses less than that"
    server.wait_warm()
    evicted = [line for line in server.call("/metrics")[1].splitlines() if "larger than max_warm_memory" in line]
    assert [float(line.split()[-1]) for line in evicted if "evictions_total" in line] == [1.0]
    hits = server.hit()
    kernels = [server.start_kernel(), server.start_kernel()]
    assert server.hit() == hits + 2
    for kernel in kernels:
        assert server.run(kernel, "import os; print(hasattr(os, 'grown'))") == "False"


def test_removed_kernelspec_answers_as_stock_and_keeps_nothing_warm(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    write_spec(tmp_path, "edited", env={"CONTENT": "old"})
    server = kp_start(OURS, JUPYTER_PATH=str(tmp_path))
    stock = kp_start("--KernelPool.enabled=False")
    server.wait_warm(name="edited")
    server.wait_warm(name="python3")
    doomed = [p for p in warm_processes(server) if p.environ().get("CONTENT") == "old"]
    assert len(doomed) == 2
    remove_spec(tmp_path, "edited")
    ours = server.call("/api/kernels", "POST", {"name": "edited"})
    theirs = stock.call("/api/kernels", "POST", {"name": "edited"})
    assert ours[0] == theirs[0]
    assert ours[1]["message"] == theirs[1]["message"]
    eventually(lambda: gone(doomed), "its warm ones ended")
    time.sleep(1)
    assert server.recipe("edited").get("warm", 0) == 0
    assert server.recipe("python3")["warm"] == 2
    write_spec(tmp_path, "edited", env={"CONTENT": "back"})
    assert server.run(server.start_kernel(name="edited"), READ) == "back"


def test_reinstalled_kernelspec_gets_warm_again_by_itself(kp_start: Callable[..., Server], tmp_path: Path) -> None:
    """`jupyter kernelspec install --replace` removes the folder first."""
    write_spec(tmp_path, "edited", env={"CONTENT": "old"})
    server = kp_start(OURS, JUPYTER_PATH=str(tmp_path))
    server.wait_warm(name="edited")
    remove_spec(tmp_path, "edited")
    eventually(lambda: server.recipe("edited").get("warm", 0) == 0, "none is warm")
    write_spec(tmp_path, "edited", env={"CONTENT": "new"})
    eventually(lambda: server.recipe("edited").get("warm", 0) >= 2, "warm again", 60)
    assert server.run(server.start_kernel(name="edited"), READ) == "new"
