"""What runs in a kernel, as its iopub tells: kept by the server for each kernel, with or without clients.

Fed by the stream with which jupyter_server watches a kernel's activity, and by the websocket edge, which alone sees
questions for input. Pure: times are seconds on the monotonic clock, passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Execution:
    """An execute request that runs: its header, since when, for how long it waited for input, its output in bytes."""

    header: dict[str, Any]
    began: float
    waited: float = 0.0
    waits_since: float | None = None
    output: int = 0
    notes: dict[str, Any] = field(default_factory=dict)  # of whoever limits it

    @property
    def msg_id(self) -> str:
        """The request's id: what its output names as parent."""
        return str(self.header.get("msg_id", ""))

    @property
    def subshell(self) -> str | None:
        """The subshell it runs in; None for the main shell, which alone an interrupt reaches."""
        return self.header.get("subshell_id")

    def ran(self, now: float) -> float:
        """Seconds that it ran, without those in which it waited for input."""
        waits = now - self.waits_since if self.waits_since is not None else 0.0
        return now - self.began - self.waited - waits


class Ledger:
    """The executions of one kernel. Whoever wants to know appends to `on_begin`, `on_end` and `on_output`."""

    def __init__(self) -> None:
        self.executions: dict[str, Execution] = {}  # by msg_id, oldest first
        self.on_begin: list[Callable[[Execution], None]] = []
        self.on_end: list[Callable[[Execution], None]] = []
        self.on_output: list[Callable[[Execution, str, int], None]] = []  # with the message's type and size

    @property
    def running(self) -> Execution | None:
        """What runs in the main shell."""
        return next((one for one in self.executions.values() if one.subshell is None), None)

    def find(self, msg_id: str) -> Execution | None:
        """The running execution with that id."""
        return self.executions.get(msg_id)

    def heard(self, kind: str, parent: dict[str, Any], size: int, state: str | None, now: float) -> None:
        """A message of iopub came: its type, its parent's header, its size in bytes; *state* of a status."""
        if parent.get("msg_type") != "execute_request":
            return  # requests on control, comms and the like are busy and idle, too
        msg_id = str(parent.get("msg_id", ""))
        execution = self.executions.get(msg_id)
        if kind == "status" and state == "busy":
            if execution is None:
                execution = self.executions[msg_id] = Execution(parent, now)
                _tell(self.on_begin, execution)
        elif kind == "status" and state == "idle":
            if execution is not None:
                del self.executions[msg_id]
                _tell(self.on_end, execution)
        elif execution is not None:
            execution.output += size
            for listener in list(self.on_output):
                listener(execution, kind, size)

    def waits(self, msg_id: str, now: float) -> None:
        """The execution asks its client for input."""
        execution = self.executions.get(msg_id)
        if execution is not None and execution.waits_since is None:
            execution.waits_since = now

    def goes_on(self, now: float) -> None:
        """Input came, for whichever execution waits."""
        for execution in self.executions.values():
            if execution.waits_since is not None:
                execution.waited += now - execution.waits_since
                execution.waits_since = None

    def clear(self) -> None:
        """The process is gone or replaced: whatever ran runs no more."""
        ended, self.executions = list(self.executions.values()), {}
        for execution in ended:
            _tell(self.on_end, execution)


def _tell(listeners: list[Callable[[Execution], None]], execution: Execution) -> None:
    for listener in list(listeners):
        listener(execution)
