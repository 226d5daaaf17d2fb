"""What runs in a kernel, as its iopub tells: kept by the server for each kernel, with or without clients.

Fed by the stream with which jupyter_server watches a kernel's activity, and by the websocket edge, which alone sees
questions for input, and requests of which the kernel says nothing: a cell that begins in C code without letting go of
the interpreter's lock keeps ipykernel's own thread from publishing that it runs. Pure: times are seconds on the
monotonic clock, passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Execution:
    """An execute request that runs: its header, since when, for how long it waited for input, its output in bytes.

    *lost*: it did not end; its process did. *presumed*: the kernel said nothing of it so far. *shown*: it is a cell,
    not what a front end runs silently by itself. *failed*: it ended with an error, which is the user's. *limit*: for
    which it is interrupted or ended. *interrupted*: that error is an interrupt's. *answered*: a client was sent the
    answer, so the kernel is done with it, and what is still heard was under way. *code* stands for what runs, the same
    for the same source; None if not published.
    """

    header: dict[str, Any]
    began: float
    waited: float = 0.0
    waits_since: float | None = None
    output: int = 0
    lost: bool = False
    shown: bool = False
    presumed: bool = False
    failed: bool = False
    interrupted: bool = False
    answered: bool = False
    limit: str = ""
    quiet_since: float | None = None  # when it last put something out, or was given input; None: never
    code: int | None = None
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

    def quiet(self, now: float) -> float:
        """Seconds since it last put something out; 0 while it waits for input."""
        if self.waits_since is not None:
            return 0.0
        return now - (self.began if self.quiet_since is None else self.quiet_since)


class Ledger:
    """The executions of one kernel. Whoever wants to know appends to `on_begin`, `on_end`, `on_output`, `on_pause`."""

    def __init__(self) -> None:
        self.executions: dict[str, Execution] = {}  # by msg_id, oldest first
        self.on_begin: list[Callable[[Execution], None]] = []
        self.on_end: list[Callable[[Execution], None]] = []
        self.on_output: list[Callable[[Execution, str, int, str], None]] = []  # with the type, size and display id
        self.on_show: list[Callable[[Execution], None]] = []  # it turned out to be a cell
        self.on_pause: list[Callable[[Execution], None]] = []  # it waits for input, or goes on
        self.used_at = 0.0  # when somebody last used the kernel: a cell began or ended, a widget was moved
        self.worked_at = 0.0  # when the main shell was last heard of with what may take its time
        self.on_expect: list[Callable[[], None]] = []  # an execution was asked for
        self.on_abort: list[Callable[[], None]] = []  # an execution was answered as not run
        self.expected: dict[str, tuple[dict[str, Any], float]] = {}  # header and time of those not heard of yet
        self._rested_at = 0.0  # until then the main shell did something else
        self._answers = False  # whether the process said anything yet that somebody asked for
        self._others: set[str] = set()  # what is handled and no execution
        self.on_life: Callable[[], None] | None = None  # called once, at the next message of any kind
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
        if self.on_life is not None:
            came, self.on_life = self.on_life, None
            came()
        if parent.get("msg_type") == "comm_msg":
            self.used_at = now  # somebody moved a widget
        if str(parent.get("msg_type", "")).startswith(("execute_", "comm_")) and parent.get("subshell_id") is None:
            self.worked_at = now
        msg_id = str(parent.get("msg_id", ""))
        if parent.get("msg_type") != "execute_request":  # requests on control, comms and the like, too, are busy
            if msg_id and state is not None:
                self._handles(msg_id, state, now)
            return
        self._answers = True
        execution = self.executions.get(msg_id)
        if kind == "status" and state == "busy":
            if execution is None:
                self._begin(Execution(parent, now, waits_since=self._asked_early.pop(msg_id, None)))
            elif execution.presumed:
                execution.presumed, execution.began = False, now
                _tell(self.on_pause, execution)
        elif kind == "status" and state == "idle":
            if execution is not None:
                self._rested_at = now
                self.used_at = now if execution.shown else self.used_at
                self.end(execution)
        elif execution is not None:
            if kind == "execute_input":
                execution.shown, self.used_at = True, now
                _tell(self.on_show, execution)
            else:
                execution.quiet_since = now
            execution.output += size
            execution.failed |= kind == "error"
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
                execution.waits_since, execution.quiet_since = None, now
                _tell(self.on_pause, execution)

    def expect(self, header: dict[str, Any], now: float) -> None:
        """A client asks for an execution: the kernel is to say when it begins."""
        if header.get("subshell_id") is None:
            self.expected[str(header.get("msg_id", ""))] = header, now
            for listener in list(self.on_expect):
                listener()

    def answered(self, msg_id: str) -> None:
        """The kernel has replied to that request."""
        self.expected.pop(msg_id, None)
        execution = self.executions.get(msg_id)
        if execution is not None:
            execution.answered = True

    def unheard(self, before: float) -> list[str]:
        """The requests of the main shell from *before* that time of which the kernel has said nothing; none while it
        says that it runs another one."""
        running = self.running
        if running is not None and not running.presumed:
            return []
        presumed = [one.msg_id for one in self.executions.values() if one.presumed and one.began <= before]
        return presumed + [msg_id for msg_id, (_, asked_at) in self.expected.items() if asked_at <= before]

    @property
    def owes(self) -> bool:
        """Whether there are requests of which the kernel has said nothing, whatever else it runs."""
        return bool(self.expected) or any(one.presumed for one in self.executions.values())

    def lose(self, msg_id: str) -> None:
        """The kernel will say nothing of that request."""
        self.expected.pop(msg_id, None)
        execution = self.executions.get(msg_id)
        if execution is not None:
            self.end(execution)

    def aborted(self) -> None:
        """A client was told that what it asked for is not run, as after an error in a cell before it."""
        for listener in list(self.on_abort):
            listener()

    def presume(self, patience: float, now: float, *, engaged: bool = False) -> float | None:
        """Take the first execution that was asked for as begun, if the kernel says nothing for *patience* seconds.

        Not while it is *engaged* otherwise: starting, or forking itself. Returns in how many seconds it is worth
        another look; None: not before something is asked for or ends.
        """
        if not self.expected or self.running is not None:
            return None
        if engaged or self._others or not self._answers:
            self._rested_at = now
            return patience
        header, asked_at = next(iter(self.expected.values()))
        since = max(asked_at, self._rested_at)
        if now - since < patience:
            return since + patience - now
        self._begin(Execution(header, since, presumed=True))
        return None

    def blame(self) -> None:
        """The process crossed a limit: the first execution that was asked for has begun, where none is known to run.

        One that takes memory in a single step keeps the kernel from saying so.
        """
        if self.running is None and self.expected:
            header, asked_at = next(iter(self.expected.values()))
            self._begin(Execution(header, asked_at, presumed=True))

    def end(self, execution: Execution) -> None:
        """The execution has ended."""
        if self.executions.pop(execution.msg_id, None) is not None:
            _tell(self.on_end, execution)

    def clear(self) -> None:
        """The process is gone or replaced: whatever ran runs no more."""
        self._asked_early.clear()
        self.expected.clear()
        self._others.clear()
        self._answers = False
        ended, self.executions = list(self.executions.values()), {}
        for execution in ended:
            execution.lost = True
            _tell(self.on_end, execution)

    def _handles(self, msg_id: str, state: str, now: float) -> None:
        self._answers, self._rested_at = True, now
        (self._others.add if state == "busy" else self._others.discard)(msg_id)

    def _begin(self, execution: Execution) -> None:
        former = self.running
        if execution.subshell is None and former is not None:
            self.end(former)  # a shell runs one at a time: what told of its end was lost, as after much output
        self.expected.pop(execution.msg_id, None)
        if not execution.presumed:
            self._others.clear()  # what they leave behind is an idle that was lost
        self.executions[execution.msg_id] = execution
        _tell(self.on_begin, execution)


def _tell(listeners: list[Callable[[Execution], None]], execution: Execution) -> None:
    for listener in list(listeners):
        listener(execution)
