"""jupyter_server's and jupyter_client's own tests, of the installed versions, run on our classes.

The tests come from the source distributions, which pip fetches into pytest's cache; a fetch that
fails is a failure. They run unedited: what is exchanged, the plugins beside this file exchange.
"""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = Path(__file__).parent
TIMEOUT = 1800.0
# A test that hangs fails by itself instead of ending the run, or at least tells where; no live log.
SETTINGS = ("timeout_method=signal", "faulthandler_timeout=110", "log_cli=false")
# Upstream treats warnings as errors. These two are about upstream's tests, not about what they
# test: jupyter_server 2.21 builds its requests in a way that tornado 6.6 deprecates.
IGNORED = (
    "ignore:The method, uri, and version arguments:DeprecationWarning",
    "ignore:The start_line argument to HTTPServerRequest:DeprecationWarning",
)


@dataclass(frozen=True)
class Suite:
    """Some of a package's own tests, and what has to be seen when they have run."""

    package: str
    tests: tuple[str, ...]
    options: tuple[str, ...]
    at_least: int  # tests, collected with the stock package
    exercised: str  # what the plugin counts in each test: our classes had a part in it
    exercised_in: int  # tests, at least


SERVER = ("tests/services/kernels", "tests/services/sessions")
CLIENT = (
    "tests/test_manager.py",
    "tests/test_kernelmanager.py",
    "tests/test_multikernelmanager.py",
    "tests/test_restarter.py",
)
CLIENT_OPTIONS = (
    *("-p", "upstream_client"),
    "-k",
    "async or required_transport_encryption or start_new_kernel or templated_kspec_env"
    " or (test_signal_kernel_subprocesses and not Gracefully)",
)
SUITES = {
    # All of them, as they are: the extension's defaults serve where a test names no manager, and
    # where one names a manager (synchronous, asynchronous, NewPorts) that manager is respected.
    "server-with-extension": Suite("jupyter_server", SERVER, ("-p", "upstream_server"), 180, "hits", 13),
    # Those that name the asynchronous manager, plain or with pending kernels, on ours.
    "server-on-our-manager": Suite("jupyter_server", SERVER, ("-p", "upstream_server", "--pooled"), 56, "hits", 33),
    # Those that make an asynchronous kernel manager: the other tests never meet our class. Without a pool it is stock.
    "client-on-our-kernel-manager": Suite("jupyter_client", CLIENT, CLIENT_OPTIONS, 43, "ours", 43),
    # The same with a pool, where every start has to be a claim unless the plugin knows why it can't be. No claim is
    # possible in ten: five start no kernel (`test_get_connect_info`, `test_required_transport_encryption…`), the
    # kernels of four fail to start (`test_bad_kernelspec…`, `test_async_restarter_gives_up`), and in
    # `test_async_restart_check[ipc]` the kernel is a program of its own, which can be warm on tcp only.
    # `tests/integration/test_client_twins.py` has twins on claimed kernels of those that are about a running kernel.
    "client-on-the-claimed-path": Suite("jupyter_client", CLIENT, (*CLIENT_OPTIONS, "--pooled"), 43, "hits", 33),
}


def fetch_tests(package: str, cache: Path) -> Path:
    """The folder with the tests of the installed *package*, and nothing else of its source."""
    release = f"{package}-{version(package)}"
    root = cache / release
    if not root.is_dir():
        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--dest", cache)
        subprocess.run([*pip, "--no-binary", package, f"{package}=={version(package)}"], check=True, timeout=300)
        folders = (f"{release}/pyproject.toml", f"{release}/tests/")
        with tarfile.open(cache / f"{release}.tar.gz") as archive, TemporaryDirectory(dir=cache) as partial:
            wanted = [member for member in archive if member.name.startswith(folders)]
            archive.extractall(partial, wanted, filter="data")
            Path(partial, release).rename(root)
    return root


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT + 330)
@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES.keys())
def test_upstream_suite_passes(suite: Suite, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    root = fetch_tests(suite.package, pytestconfig.cache.mkdir("upstream"))
    report, log = tmp_path / "report.xml", tmp_path / "output.txt"
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", *suite.tests, *suite.options]
    command += [f"--junitxml={report}", f"--basetemp={tmp_path / 'upstream'}"]
    command += [part for name in ("cacheprovider", "flaky") for part in ("-p", f"no:{name}")]
    command += [part for setting in SETTINGS for part in ("-o", setting)]
    command += [part for warning in IGNORED for part in ("-W", warning)]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        # Into a file, not a pipe: a kernel that outlives the run would keep a pipe open.
        with log.open("wb") as output:
            run = subprocess.run(
                command,
                cwd=root,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            )
    finally:
        print(log.read_text(errors="replace"))
    assert run.returncode == 0

    result = next(ET.parse(report).iter("testsuite"))
    assert int(result.attrib["tests"]) >= suite.at_least
    # Upstream skips none of these on Linux.
    assert [result.attrib[name] for name in ("failures", "errors", "skipped")] == ["0"] * 3
    counts = [
        int(entry.attrib["value"]) for entry in result.iter("property") if entry.attrib["name"] == suite.exercised
    ]
    assert sum(count > 0 for count in counts) >= suite.exercised_in
