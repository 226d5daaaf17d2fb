"""The lives of the server's kernels, told as they go: as events in their true order, to the metrics, to the alerts.

Called where things happen; it does nothing to a kernel itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from jupyter_kernelpool import metrics
from jupyter_kernelpool.allowance import SECONDS
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Event, Events
from jupyter_kernelpool.ledger import Execution, Ledger
from jupyter_kernelpool.lookout import Lookout

ENDING = frozenset({"interrupted", "killed", "restarted", "restored"})  # what is done about a breach that ends a cell
BY_ITSELF = frozenset({"died", "unresponsive"})  # causes that are no decision about the cell that ran
CAUSES = {"asked": "asked for", "died": "its process ended", "unresponsive": "it did not answer"}


@dataclass
class Life:
    """A kernel's present process: since when it *starts* (monotonic), why it is *restarted*, whether it is dead."""

    starts: float | None = None
    restarted: tuple[str, str] | None = None  # cause and reason
    was_ready: bool = False
    dead: bool = False


class Chronicle:
    """Tells of every kernel that has an owner; of warm ones nothing."""

    def __init__(self, events: Events, edge: Edge, lookout: Lookout) -> None:
        self._events = events
        self._edge = edge
        self._lookout = lookout
        self._lives: dict[str, Life] = {}
        edge.on_ledger.append(self._listen)
        events.listen(self._happened)

    # -- processes ----------------------------------------------------------------------------------

    def restarts(self, kernel_id: str, cause: str, reason: str = "") -> None:
        """The kernel's process is about to be replaced by a fresh one."""
        self._life(kernel_id).restarted = cause, reason or CAUSES.get(cause, cause)
        self._lookout.watch.restarted(kernel_id, time.time())

    def starts(self, kernel_id: str) -> None:
        """A process is being made for the kernel: its first, or the next one."""
        self._edge.clear(kernel_id)  # what ran in the one before
        life = self._life(kernel_id)
        life.starts, life.dead = time.monotonic(), False
        cause, reason = life.restarted or ("", "")
        self._emit("starting", kernel_id, f"restarted: {reason}" if cause else "")

    def start_failed(self, kernel_id: str, error: BaseException, *, ours: bool) -> None:
        """No process came of it; *ours* if that is this server's failure, and not a refusal."""
        life = self._life(kernel_id)
        if ours:
            metrics.START_FAILURES.inc()
            self._lookout.watch.start_failed(time.time())
        life.starts = None
        self.dies(kernel_id, f"not started: {error}")
        if not life.was_ready:
            self._lives.pop(kernel_id, None)  # nobody ever had it, so nobody will shut it down

    def awaits_life(self, kernel_id: str, way: str) -> None:
        """Its process runs, and doesn't say by itself when it answers: it is ready when it is first heard."""
        if self._life(kernel_id).starts is not None:
            self._edge.ledger(kernel_id).on_life = lambda: self.serves(kernel_id, way)

    def serves(self, kernel_id: str, way: str) -> None:
        """The process that was started answers; it came to be in that *way*."""
        life = self._life(kernel_id)
        if life.starts is None:
            life.restarted = None
            return  # the next one behind a kernel that was restored, which was not started
        seconds, life.starts = time.monotonic() - life.starts, None
        life.was_ready = True
        self._lookout.watch.started(way, seconds, time.time())
        self._emit("ready", kernel_id, way=way, seconds=seconds)
        if life.restarted is not None:
            (cause, reason), life.restarted = life.restarted, None
            self._emit("restarted", kernel_id, reason, cause=cause)

    def ends(self, kernel_id: str, cause: str, reason: str) -> None:
        """Its process has ended without anybody's asking (`died`), or was ended for its silence (`unresponsive`): what
        ran in it is lost for that. Another one takes its place, or it `dies`."""
        self._life(kernel_id).restarted = cause, reason

    def dies(self, kernel_id: str, reason: str, *, by_itself: bool = False) -> None:
        """Its process has ended, and is not replaced; told once."""
        life = self._life(kernel_id)
        if by_itself:
            life.restarted = "died", reason
        self._edge.clear(kernel_id)
        life.restarted = None
        if not life.dead:
            self._emit("dead", kernel_id, reason)

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone for good."""
        if kernel_id in self._lives:
            self.dies(kernel_id, "shut down")
            self._lives.pop(kernel_id, None)

    # -- cells --------------------------------------------------------------------------------------

    def _listen(self, kernel_id: str, ledger: Ledger) -> None:
        ledger.on_show.append(lambda execution: self._began(kernel_id, execution))
        ledger.on_end.append(lambda execution: self._ended(kernel_id, execution))
        ledger.on_abort.append(metrics.EXECUTION_ERRORS.labels(kind="aborted").inc)

    def _began(self, kernel_id: str, execution: Execution) -> None:
        if execution.subshell is None:
            self._emit("busy", kernel_id)

    def _ended(self, kernel_id: str, execution: Execution) -> None:
        if not (execution.shown or execution.limit or execution.lost):
            return  # what a front end runs by itself, or what was given up before it began
        life = self._lives.get(kernel_id, Life())
        outcome = outcome_of(execution, life.restarted[0] if life.restarted is not None else "")
        seconds = execution.ran(time.monotonic())
        metrics.EXECUTION.labels(outcome=outcome).observe(seconds)
        if outcome != "ok":
            metrics.EXECUTION_ERRORS.labels(kind=kind_of(outcome, execution)).inc()
        metrics.OUTPUT.observe(execution.output)
        self._lookout.watch.ended(outcome, seconds, execution.code, time.time())
        if execution.subshell is None and not execution.lost:
            self._emit("idle", kernel_id, status=outcome, seconds=seconds)

    # -- all events ---------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        metrics.EVENTS.labels(type=event.type).inc()
        cause = event.facts.get("cause", "other")
        match event.type:
            case "dead" if event.kernel_id in self._lives:
                self._lives[event.kernel_id].dead = True
            case "restarted":
                metrics.RESTARTS.labels(cause=cause).inc()
            case "restored" if "cause" in event.facts:  # in the place of a restart
                metrics.RESTARTS.labels(cause=cause).inc()
            case "unresponsive":
                metrics.UNRESPONSIVE.labels(cause=cause).inc()
            case "culled":
                metrics.CULLS.labels(cause=cause).inc()
            case "breached":
                limit, outcome = event.facts["limit"], event.facts["outcome"]
                metrics.BREACHES.labels(limit=limit, outcome=outcome).inc()
                running = self._edge.ledger(event.kernel_id).running
                if running is not None and outcome in ENDING:
                    running.limit = limit

    def _emit(self, type: str, kernel_id: str, reason: str = "", **facts: str | float) -> None:  # noqa: A002
        self._events.emit(type, kernel_id, now=time.time(), reason=reason, **facts)

    def _life(self, kernel_id: str) -> Life:
        return self._lives.setdefault(kernel_id, Life())


def outcome_of(execution: Execution, restarted: str = "") -> str:
    """How the execution ended; *restarted* is why its process is being replaced meanwhile, if it is.

    An error in the user's code is a result (`error`), and no failure of anybody else's.
    """
    if execution.limit:
        return "timeout" if execution.limit in SECONDS else "killed"
    if execution.lost or (execution.failed and restarted):  # a restart interrupts first, which may be heard or not
        return "died" if restarted in BY_ITSELF else "cancelled"
    return "error" if execution.failed else "ok"


def kind_of(outcome: str, execution: Execution) -> str:
    """The kind of error of an execution with that *outcome*; not the exception's name: these are any number."""
    if outcome != "error":
        return outcome
    return "interrupted" if execution.interrupted else "exception"
