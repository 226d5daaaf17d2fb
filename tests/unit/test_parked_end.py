"""A process that holds a kernel's state ends without doing what the kernel has to do at its end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
import atexit, pathlib, socket, sys

from jupyter_kernelpool.kernelside import parked

left = pathlib.Path(sys.argv[1])
atexit.register(left.unlink)  # as IPython's shell does with its temporary files

class Manifest:
    def as_message(self):
        return {}

class Inheritance:
    manifest = Manifest()

ours, servers = socket.socketpair()
PREPARE
parked.Parked(Inheritance(), ours).run()
"""


@pytest.mark.parametrize(
    "prepare,code",
    [
        ("servers.close()", 0),
        ("servers.shutdown(socket.SHUT_RDWR)", 0),
        ("def fail(*_): raise ValueError('a defect')\nparked.serve_forks = fail", 1),
    ],
    ids=["the server is gone", "the server let go", "a defect"],
)
def test_parked_process_leaves_what_its_kernel_would_tidy_up(prepare: str, code: int, tmp_path: Path) -> None:
    file = tmp_path / "temporary"
    file.touch()
    program = textwrap.dedent(PROGRAM).replace("PREPARE", prepare)
    ended = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=60)
    assert file.exists()
    assert ended.returncode == code, ended.stderr
    assert ("a defect" in ended.stderr) is bool(code)
