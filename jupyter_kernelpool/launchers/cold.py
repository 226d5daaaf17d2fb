"""What stock runs for an ipykernel whose output has a limit: stock's own, with `kernelside/cold.py` before it."""

from __future__ import annotations

from typing import Any

from jupyter_kernelpool.kernelside import launch
from jupyter_kernelpool.recipes import read_python_command

# In place of `-m`, which it ends in. The folder of the notebook is on `sys.path` as `-m` has it, once ours is loaded:
# it has no modules to offer (`ipykernel_launcher` takes it off, too). Neither a Python that can't run ours nor a folder
# that can't be read from there must keep the kernel from starting: so it is text, which any Python reads.
BEGIN = f"""\
import sys
module = sys.argv.pop(1)
in_folder = sys.path[:1] == [""]
if in_folder: del sys.path[0]
if "-c" in getattr(sys, "orig_argv", ()):
    at = sys.orig_argv.index("-c")
    sys.orig_argv[at : at + 2] = ["-m"]
try:
    ours = {{"__name__": "launch", "__file__": {launch.__file__!r}}}
    with open(ours["__file__"]) as file: exec(compile(file.read(), file.name, "exec"), ours)
    ours["load_package"]()
    from _jupyter_kernelpool import cold
    cold.hold_more()
    ours["check_versions"]()
    cold.send_in_pieces()
except BaseException as error:
    try: sys.stderr.write("What this kernel prints is not sent in pieces: %s\\n" % error)
    except Exception: pass
if in_folder:
    import os
    try: sys.path.insert(0, os.getcwd())
    except OSError: pass
import runpy
runpy._run_module_as_main(module)
"""


def in_pieces(cmd: list[str], spec: Any) -> list[str]:
    """*cmd*, which was made of the kernelspec *spec*, with that before it where it launches ipykernel."""
    command = read_python_command(list(spec.argv)) if spec.language.lower() == "python" else None
    if command is None:
        return cmd
    at = 1 + len(command.options)
    if cmd[at : at + 2] != ["-m", command.module]:
        return cmd  # it was given another
    return [*cmd[:at], "-c", BEGIN, *cmd[at + 1 :]]
