"""A start with an environment of its own: what can act late is set at the claim, all else needs another recipe.

Stock's REST takes no environment for a kernel, so it comes from where it comes from in practice: from an extension
that starts kernels through the server's manager, and from a kernelspec.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Server
from .traces import write_spec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

EXTENSION = """
import os
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

class Starts(APIHandler):
    auth_resource = "kernels"

    @web.authenticated
    @authorized
    async def post(self):
        body = self.get_json_body()
        env = {**os.environ, **body["given"]}
        for name in body["without"]:
            del env[name]
        self.finish({"id": await self.kernel_manager.start_kernel(kernel_name="python3", env=env)})

def _jupyter_server_extension_points():
    return [{"module": "giving"}]

def _load_jupyter_server_extension(app):
    app.web_app.add_handlers(".*$", [(url_path_join(app.base_url, "giving"), Starts)])
"""
HASH = "print(hash('a'))"
THREADS = "import numpy, threadpoolctl; print([pool['num_threads'] for pool in threadpoolctl.threadpool_info()])"
MARKED = "import os, marked; print(os.path.dirname(marked.__file__))"
LIBRARY = "import ctypes; print(ctypes.CDLL('libmarked.so')._name)"
# A variable, a value ("FOLDER" is a folder with a module and a library), and what shows that it took effect.
ONLY_AT_THE_START = {
    "PYTHONHASHSEED": ("42", HASH),
    "PYTHONOPTIMIZE": ("2", "import sys; print(sys.flags.optimize)"),
    "PYTHONPATH": ("FOLDER", MARKED),
    "LD_LIBRARY_PATH": ("FOLDER", LIBRARY),
    "TZ": ("NOWHERE-5", "import time; print(time.tzname[0])"),
    "OMP_NUM_THREADS": ("1", THREADS),
}


def put_extension(folder: Path) -> None:
    """For a server in *folder*, which is not started yet."""
    config = folder / "config"
    (config / "jupyter_server_config.d").mkdir(parents=True)
    (config / "giving.py").write_text(EXTENSION)
    (config / "jupyter_server_config.py").write_text(f"import sys; sys.path.insert(0, {str(config)!r})\n")
    (config / "jupyter_server_config.d" / "giving.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": {"giving": True}}})
    )


def start(server: Server, *without: str, **given: str) -> str:
    """Start a kernel with the server's environment, *given* besides and the variables *without* taken away."""
    status, reply = server.call("/giving", "POST", {"given": given, "without": without})
    assert status == 200, reply
    return str(reply["id"])


def way(server: Server, kernel: str) -> str:
    return str(server.call(f"/kernelpool/v1/kernels/{kernel}")[1]["way"])


def recipes(server: Server) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in server.call("/kernelpool/v1/pool")[1]["recipes"]}


def in_a_fresh_python(code: str, **given: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a module and a library that are found by a variable only."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "marked.py").touch()
    ctypes.CDLL("libm.so.6")
    loaded = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    shutil.copy(next(path for path in loaded if path.endswith("/libm.so.6")), folder / "libmarked.so")
    return str(folder)


@pytest.fixture(scope="module")
def preloading(kp_servers: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose kernels have numpy loaded, so that what numpy reads as it loads is decided."""
    folder = tmp_path_factory.mktemp("preloading")
    put_extension(folder)
    server = kp_servers(folder, "--KernelPool.preload=numpy", "--KernelPool.warm=1", TAKEN_AWAY="1")
    yield server
    server.stop()


@pytest.mark.parametrize("name", ONLY_AT_THE_START)
def test_what_acts_at_the_start_only_needs_another_recipe_and_takes_effect(
    preloading: Server, name: str, marked: str
) -> None:
    value, code = ONLY_AT_THE_START[name]
    value = marked if value == "FOLDER" else value
    expected = in_a_fresh_python(code, **{name: value})
    preloading.wait_warm(1)
    before = recipes(preloading)
    first = start(preloading, **{name: value})
    assert way(preloading, first) == "cold", "none of the warm ones fits"
    assert f"Kernel {first} starts cold: its recipe is being loaded" in preloading.log
    assert preloading.run(first, code) == expected
    # The recipe that it needs is made for the next one.
    (other,) = recipes(preloading).keys() - before.keys()
    assert other.startswith("python3-")
    preloading.wait_warm(1, other)
    second = start(preloading, **{name: value})
    assert way(preloading, second) == "template"
    assert preloading.run(second, code) == expected
    assert recipes(preloading)[other]["hits"] == 1
    assert recipes(preloading)["python3"]["hits"] == before["python3"]["hits"], "no kernel of the usual recipe"
    for kernel in (first, second):
        assert preloading.run(kernel, f"import os; print(os.environ[{name!r}])") == value
        assert preloading.call(f"/api/kernels/{kernel}", "DELETE")[0] == 204


def test_what_can_act_late_is_set_at_the_claim(preloading: Server) -> None:
    """Variables that are to be absent included, and also for the processes that the kernel starts."""
    preloading.wait_warm(1)
    before = recipes(preloading)
    given = {
        "JPY_SESSION_NAME": "a.ipynb",
        "KERNEL_ID": "mine",
        "ARBITRARY": "value",
        "PATH": os.environ["PATH"] + ":/x",
    }
    kernel = start(preloading, "TAKEN_AWAY", **given)
    assert recipes(preloading)["python3"]["hits"] == before["python3"]["hits"] + 1
    assert recipes(preloading).keys() == before.keys(), "no other recipe is made for it"
    ask = f"print([os.environ.get(name) for name in {[*given, 'TAKEN_AWAY']}])"
    expected = str([*given.values(), None])
    client = preloading.client(kernel)
    assert preloading.run(client, f"import os; {ask}") == expected
    preloading.run(client, f"import subprocess, sys; child = [sys.executable, '-c', {f'import os; {ask}'!r}]")
    child = "print(subprocess.check_output(child, text=True))"
    assert preloading.run(client, child) == expected


def test_what_a_library_reads_is_set_at_the_claim_where_it_is_not_loaded(
    kp_start: Callable[..., Server], tmp_path: Path
) -> None:
    put_extension(tmp_path / "server0")
    server = kp_start()
    server.wait_warm()
    hits = server.hit()
    kernel = start(server, OMP_NUM_THREADS="1")
    assert server.hit() == hits + 1
    loaded = "import sys; print({'matplotlib', 'numpy', 'pandas'} & sys.modules.keys())"
    assert server.run(kernel, loaded) == "set()", "as in a cold kernel: what loads them is the user's code"
    assert server.run(kernel, THREADS) == in_a_fresh_python(THREADS, OMP_NUM_THREADS="1")


def test_kernelspec_with_an_environment_has_warm_kernels_that_began_with_it(
    kp_start: Callable[..., Server], tmp_path: Path, marked: str
) -> None:
    write_spec(tmp_path / "data", "own", env={"PYTHONHASHSEED": "42", "LD_LIBRARY_PATH": marked, "TZ": "NOWHERE-5"})
    server = kp_start("--KernelPool.recipes={'own': {'warm': 1}}", JUPYTER_PATH=str(tmp_path / "data"))
    server.wait_warm(1, "own")
    server.wait_warm()
    own, usual = (server.start_kernel(name=name) for name in ("own", "python3"))
    assert (way(server, own), way(server, usual)) == ("template", "template")
    for code in (HASH, LIBRARY, ONLY_AT_THE_START["TZ"][1]):
        assert server.run(own, code) == in_a_fresh_python(
            code, PYTHONHASHSEED="42", LD_LIBRARY_PATH=marked, TZ="NOWHERE-5"
        )
    assert (recipes(server)["own"]["hits"], server.hit()) == (1, 1), "each took a kernel of its own recipe"
    names = {"PYTHONHASHSEED", "LD_LIBRARY_PATH", "TZ"}
    of_the_server = str(sorted(names & os.environ.keys()))
    assert server.run(usual, f"import os; print(sorted({names} & os.environ.keys()))") == of_the_server
