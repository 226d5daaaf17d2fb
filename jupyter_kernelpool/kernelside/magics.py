"""%fork, %checkpoint, %restore, %undo: what a cell can have done to its kernel.

They ask the server through the kernel's private socket, so they need neither an address nor a token. The server
says at once whether it can be done, and does it when the cell has ended; the cell's output then tells what came of it.
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring


@magics_class
class ForkMagics(Magics):
    """The line magics of a kernel that has a pool behind it."""

    @magic_arguments()
    @argument("name", nargs="?", help="A name for the new kernel; of several, NAME-1, NAME-2 …")
    @argument("-n", "--count", type=int, default=1, help="How many; 1 if left out.")
    @argument("--reseed", action="store_true", help="Random streams go on apart from this kernel's.")
    @line_magic
    def fork(self, line: str) -> None:
        """Make new kernels that go on from the state of this one, as it is when the cell has ended.

        Example: `%fork trial --count 3`
        """
        given = parse_argstring(self.fork, line)
        self._ask("fork", name=given.name, count=given.count, reseed=given.reseed)

    @magic_arguments()
    @argument("name", nargs="?", help="A name for the checkpoint; those without one may be dropped for newer ones.")
    @line_magic
    def checkpoint(self, line: str) -> None:
        """Keep the state of this kernel, as it is when the cell has ended, for `%restore`.

        Example: `%checkpoint clean-data`
        """
        self._ask("checkpoint", name=parse_argstring(self.checkpoint, line).name)

    @magic_arguments()
    @argument(
        "source", nargs="?", help="A checkpoint's name or id, or a relative's; the newest checkpoint if left out."
    )
    @line_magic
    def restore(self, line: str) -> None:
        """Put this kernel back to a checkpoint, or to what another fork has become, when the cell has ended.

        Cells that are queued behind this one are not run. Example: `%restore clean-data`
        """
        self._ask("restore", ends=True, source=parse_argstring(self.restore, line).source)

    @magic_arguments()
    @argument("steps", nargs="?", default="1", help="How many cells; or `on`, `off`.")
    @argument("most", nargs="?", type=int, default=20, help="With `on`: how many cells can be undone; 20 if left out.")
    @line_magic
    def undo(self, line: str) -> None:
        """Take this kernel back by some cells; `%undo on` has the state after each cell kept from now on.

        The cell with `%undo` does not count. Cells that are queued behind it are not run. Example: `%undo 2`
        """
        given = parse_argstring(self.undo, line)
        self._parking.skip_this_cell()
        if given.steps in ("on", "off"):
            self._ask("keep", steps=given.most if given.steps == "on" else 0)
        elif given.steps.isdecimal() and int(given.steps) > 0:
            self._ask("undo", ends=True, steps=int(given.steps))
        else:
            raise UsageError(f"%undo {given.steps}: a number of cells, `on` or `off` is expected")

    @property
    def _parking(self) -> Any:
        """The orders to this kernel."""
        return self.shell.kernel.parent.parking  # type: ignore[union-attr]

    def _ask(self, what: str, *, ends: bool = False, **wish: Any) -> None:
        """Show the server's answer; what comes of it replaces that. With *ends* this kernel's process is replaced."""
        kernel: Any = self.shell.kernel  # type: ignore[union-attr]
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(f"%{what} works in the kernel's main shell only, not in a subshell or a thread")
        header = {name: value for name, value in kernel.get_parent("shell")["header"].items() if name != "date"}
        display = uuid.uuid4().hex
        try:
            answer = self._parking.ask(what=what, wish=wish, display=display, parent=header)
        except ConnectionError as error:
            raise UsageError(str(error)) from error
        if answer["error"] is not None:
            raise UsageError(answer["error"])
        if ends:
            kernel._aborting = True  # what is queued would run in a process that is about to go
        publish(kernel, answer["text"], display, update=False)


def load(shell: Any) -> None:
    """Give *shell* the magics, once."""
    if "ForkMagics" not in shell.magics_manager.registry:
        shell.register_magics(ForkMagics)


def report(kernel: Any, order: dict[str, Any]) -> None:
    """Show what came of a wish in the output of the cell that had it, which has ended."""
    kernel._aborting = False
    publish(kernel, order["text"], order["display"], update=True, parent=order["parent"])


def publish(kernel: Any, text: str, display: str, *, update: bool, parent: dict[str, Any] | None = None) -> None:
    """Show *text* as the display *display*, or *update* that."""
    kind = "update_display_data" if update else "display_data"
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": display}}
    header = {"header": parent} if parent is not None else kernel.get_parent("shell")
    kernel.session.send(kernel.iopub_socket, kind, content, parent=header, ident=kernel._topic(kind))
