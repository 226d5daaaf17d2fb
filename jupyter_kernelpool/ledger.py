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
    """An execute request that runs: its header, since when, for how long it waited for input, its output in bytes.

    *lost*: it did not end; its process did. *shown*: it is a cell, not what a front end runs silently by itself.
    """

    header: dict[str, Any]
    began: float
    waited: float = 0.0
    waits_since: float | None = None
    output: int = 0
    lost: bool = False
    shown: bool = False
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
    """The executions of one kernel. Whoever wants to know appends to `on_begin`, `on_end`, `on_output`, `on_pause`."""

    def __init__(self) -> None:
        self.executions: dict[str, Execution] = {}  # by msg_id, oldest first
        self.on_begin: list[Callable[[Execution], None]] = []
        self.on_end: list[Callable[[Execution], None]] = []
        self.on_output: list[Callable[[Execution, str, int, str], None]] = []  # with the type, size and display id
        self.on_pause: list[Callable[[Execution], None]] = []  # it waits for input, or goes on
        self.used_at = 0.0  # when somebody last used the kernel: a cell began or ended, a widget was moved
        self._asked_early: dict[str, float] = {}  # questions for input that overtook the busy of their execution

    @property
    def running(self) -> Execution | None:
        """What runs in the main shell."""
        return next((one for one in self.executions.values() if one.subshell is None), None)

    def find(self, msg_id: str) -> Execution | None:
        """The running execution with that id."""
        return self.executions.get(msg_id)

    def heard(
        self, kind: str, parent: dict[str, Any], size: int, state: str | None, now: float, display: str = ""
    ) -> None:
        """A message of iopub came: its type, its parent's header, its size in bytes; *state* of a status, *display* the
        id of what it shows."""
        if parent.get("msg_type") == "comm_msg":
            self.used_at = now  # somebody moved a widget
        if parent.get("msg_type") != "execute_request":
            return  # requests on control, comms and the like are busy and idle, too
        msg_id = str(parent.get("msg_id", ""))
        execution = self.executions.get(msg_id)
        if kind == "status" and state == "busy":
            if execution is None:
                self._begin(Execution(parent, now, waits_since=self._asked_early.pop(msg_id, None)))
        elif kind == "status" and state == "idle":
            if execution is not None:
                self.used_at = now if execution.shown else self.used_at
                self.end(execution)
        elif execution is not None:
            if kind == "execute_input":
                execution.shown, self.used_at = True, now
            execution.output += size
            for listener in list(self.on_output):
                listener(execution, kind, size, display)

    def waits(self, msg_id: str, now: float) -> None:
        """The execution asks its client for input."""
        execution = self.executions.get(msg_id)
        if execution is None:
            self._asked_early[msg_id] = now  # heard over another socket than the status
        elif execution.waits_since is None:
            execution.waits_since = now
            _tell(self.on_pause, execution)

    def goes_on(self, now: float) -> None:
        """Input came, or an interrupt, for whichever execution waits."""
        self._asked_early.clear()
        for execution in list(self.executions.values()):
            if execution.waits_since is not None:
                execution.waited += now - execution.waits_since
                execution.waits_since = None
                _tell(self.on_pause, execution)

    def end(self, execution: Execution) -> None:
        """The execution has ended."""
        if self.executions.pop(execution.msg_id, None) is not None:
            _tell(self.on_end, execution)

    def clear(self) -> None:
        """The process is gone or replaced: whatever ran runs no more."""
        self._asked_early.clear()
        ended, self.executions = list(self.executions.values()), {}
        for execution in ended:
            execution.lost = True
            _tell(self.on_end, execution)

    def _begin(self, execution: Execution) -> None:
        former = self.running
        if execution.subshell is None and former is not None:
            self.end(former)  # a shell runs one at a time: what told of its end was lost, as after much output
        self.executions[execution.msg_id] = execution
        _tell(self.on_begin, execution)


def _tell(listeners: list[Callable[[Execution], None]], execution: Execution) -> None:
    for listener in list(listeners):
        listener(execution)
