"""Ipykernels that start the stock way and send in pieces: what is put before the command, and that it never hinders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from traitlets.config import Config

from jupyter_kernelpool.kernelside import cold, launch, pieces
from jupyter_kernelpool.kernelside.channels import HELD
from jupyter_kernelpool.launchers.cold import BEGIN, in_pieces
from jupyter_kernelpool.testing import python_spec

FILE = "{connection_file}"
TELLS = """
import json, sys
print(json.dumps({"path": sys.path, "argv": sys.argv, "orig_argv": sys.orig_argv, "names": [__name__, __file__]}))
"""


def argv(*parts: str) -> list[str]:
    return ["python3", *parts, "-f", FILE]


def command(spec_argv: list[str]) -> list[str]:
    """What jupyter_client makes of it, with an argument of its own."""
    return ["/env/bin/python3", *("k.json" if part == FILE else part for part in spec_argv[1:]), "--more"]


@pytest.mark.parametrize(
    "options", [(), ("-Xfrozen_modules=off",), ("-E", "-Wignore", "-OO")], ids=["none", "one", "some"]
)
@pytest.mark.parametrize("module", ["ipykernel_launcher", "ipykernel"])
def test_ours_stands_in_the_place_of_m(options, module):
    spec = python_spec(argv(*options, "-m", module))
    assert in_pieces(command(spec.argv), spec) == [
        "/env/bin/python3", *options, "-c", BEGIN, module, "-f", "k.json", "--more"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        python_spec(["Rscript", "-e", "IRkernel::main()", FILE]),
        python_spec(["env", "python", "-m", "ipykernel_launcher", "-f", FILE]),
        python_spec(argv("-m", "bash_kernel")),
        python_spec(argv("-mipykernel_launcher")),
    ],
    ids=["another language", "wrapper", "another kernel", "written otherwise"],
)
def test_what_is_not_recognised_is_left_as_it_is(spec):
    assert in_pieces(command(spec.argv), spec) == command(spec.argv)


def test_command_that_is_not_the_kernelspecs_is_left_as_it_is():
    assert in_pieces(["srun", *argv("-m", "ipykernel_launcher")], python_spec()) == [
        "srun", *argv("-m", "ipykernel_launcher")
    ]  # fmt: skip


def run(folder: Path, *command: str) -> tuple[int, str, str]:
    ran = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_what_is_launched_finds_all_as_with_m(tmp_path):
    (tmp_path / "told.py").write_text(TELLS)
    (tmp_path / "random.py").write_text("raise RuntimeError('ours finds what is in the folder of the notebook')")
    with_m, ours = (run(tmp_path, *way, "told", "a") for way in (("-m",), ("-c", BEGIN)))
    assert ours == with_m
    assert json.loads(ours[1])["path"][0] == str(tmp_path)


@pytest.mark.parametrize("option", ["-I", "-P"])
def test_folder_of_the_notebook_is_left_out_where_it_is_to_be(tmp_path, option):
    (tmp_path / "told.py").write_text(TELLS)
    with_m, ours = (run(tmp_path, option, *way, "told") for way in (("-m",), ("-c", BEGIN)))
    assert ours == with_m
    assert "No module named told" in ours[2]


def test_kernel_starts_also_where_ours_cannot_be_had(tmp_path):
    missing = BEGIN.replace(repr(launch.__file__), repr(str(tmp_path / "launch.py")))
    assert missing != BEGIN
    _, version, _ = run(tmp_path, "-m", "ipykernel_launcher", "--version")
    assert run(tmp_path, "-c", BEGIN, "ipykernel_launcher", "--version") == (0, version, "")
    code, told, complaint = run(tmp_path, "-c", missing, "ipykernel_launcher", "--version")
    assert (code, told) == (0, version)
    assert complaint.startswith("What this kernel prints is not sent in pieces: [Errno 2]")


class Application:
    """As `IPKernelApp`, of which cold's are made."""

    def __init__(self, stream: str = pieces.STOCK, **config: str) -> None:
        self.config = Config({"IPKernelApp": config}) if config else Config()
        self.outstream_class = stream
        self.iopub_socket = SimpleNamespace(set={}, setsockopt=lambda *_: None)
        self.made: list[str] = []

    def init_io(self) -> None:
        self.made.append(self.outstream_class)

    def _try_bind_socket(self, s: object, port: int) -> int:
        return port


@pytest.fixture
def application() -> type[Application]:
    one = type("Application", (Application,), {})
    cold.hold_more(one)
    cold.send_in_pieces(one)
    return one


def test_streams_are_ours_unless_others_are_configured_or_stock_has_others(application):
    for made, expected in (
        (application(), pieces.NAME),
        (application(outstream_class=pieces.STOCK), pieces.STOCK),
        (application("mine.Stream", outstream_class="mine.Stream"), "mine.Stream"),
        (application("ipykernel.iostream.Latter"), "ipykernel.iostream.Latter"),
    ):
        made.init_io()
        assert made.made == [expected]


def test_only_iopub_holds_more(application):
    held = []
    made = application()
    made.iopub_socket = SimpleNamespace(setsockopt=lambda option, value: held.append(value))
    assert made._try_bind_socket(SimpleNamespace(), 5) == 5
    assert held == []
    assert made._try_bind_socket(made.iopub_socket, 6) == 6
    assert held == [HELD]
