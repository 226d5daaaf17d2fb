"""What is told of kernels' lives: each thing once, in its order, and every end of a cell for what it was."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from jupyter_kernelpool.chronicle import Chronicle, kind_of, outcome_of
from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.events import Events
from jupyter_kernelpool.ledger import Execution
from jupyter_kernelpool.lookout import KernelAlerts, Lookout

LIMIT = {"allowed": 1.0, "seen": 2.0}


class Told:
    """A chronicle, and the events that it told: (type, reason, facts)."""

    def __init__(self):
        self.events, self.edge = Events(), Edge()
        self.lookout = Lookout(KernelAlerts(least=1))
        self.chronicle = Chronicle(self.events, self.edge, self.lookout)

    @property
    def types(self):
        return [event.type for event in self.events.recent]

    def last(self):
        return self.events.recent[-1]

    def cell(self, state, kind="status", number=1, *, shown=True, **header):
        parent = {"msg_type": "execute_request", "msg_id": f"m{number}", **header}
        self.edge.ledger("k").heard(kind, parent, 10, state, 1.0)
        if state == "busy" and shown:
            self.edge.ledger("k").heard("execute_input", parent, 10, None, 1.0)

    def breach(self, limit, outcome):
        self.events.emit("breached", "k", now=1.0, limit=limit, outcome=outcome, **LIMIT)


@pytest.fixture
def told():
    told = Told()
    told.chronicle.starts("k")
    told.chronicle.serves("k", "template")
    return told


def count(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def outcomes():
    names = ("ok", "error", "timeout", "killed", "died", "cancelled")
    return {one: count("jupyter_kernelpool_execution_seconds_count", outcome=one) for one in names}


def new_outcomes(before):
    return [name for name, number in outcomes().items() if number > before[name]]


def test_a_start_is_told_with_its_way_and_seconds(told):
    assert told.types == ["starting", "ready"]
    assert told.last().facts["way"] == "template"
    assert told.last().facts["seconds"] >= 0


def test_the_next_process_of_a_kernel_that_was_not_started_is_no_start(told):
    told.chronicle.serves("k", "fork")
    assert told.types == ["starting", "ready"]


def test_a_restart_is_told_when_the_next_process_is_ready(told):
    before = count("jupyter_kernelpool_restarts_total", cause="died")
    told.chronicle.restarts("k", "died")
    told.chronicle.starts("k")
    assert told.last().reason == "restarted: its process ended"
    assert count("jupyter_kernelpool_restarts_total", cause="died") == before
    told.chronicle.serves("k", "template")
    assert told.types[2:] == ["starting", "ready", "restarted"]
    assert told.last().facts == {"cause": "died"}
    assert count("jupyter_kernelpool_restarts_total", cause="died") == before + 1


def test_a_kernel_dies_once_however_often_it_is_told(told):
    told.events.emit("dead", "k", now=1.0, reason="killed for a limit")
    told.chronicle.dies("k", "it ended too often")
    told.chronicle.forget("k")
    assert told.types == ["starting", "ready", "dead"]
    assert told.last().reason == "killed for a limit"


def test_a_dead_kernel_that_is_restarted_can_die_again(told):
    told.chronicle.dies("k", "one")
    told.chronicle.restarts("k", "asked")
    told.chronicle.starts("k")
    told.chronicle.serves("k", "template")
    told.chronicle.forget("k")
    assert told.types[2:] == ["dead", "starting", "ready", "restarted", "dead"]


def test_what_is_gone_is_forgotten(told):
    told.chronicle.forget("k")
    told.chronicle.forget("k")
    assert told.types == ["starting", "ready", "dead"]
    assert not told.chronicle._lives


@pytest.mark.parametrize("ours, failures", [(True, 1), (False, 0)])
def test_a_start_that_failed_is_dead_and_counted_if_it_was_the_server_that_failed(ours, failures):
    told, before = Told(), count("jupyter_kernelpool_start_failures_total")
    told.chronicle.starts("k")
    told.chronicle.start_failed("k", RuntimeError("no memory"), ours=ours)
    assert told.types == ["starting", "dead"]
    assert told.last().reason == "not started: no memory"
    assert count("jupyter_kernelpool_start_failures_total") == before + failures
    assert not told.chronicle._lives
    firing = [one.name for one in told.lookout.judge() if one.firing]
    assert firing == (["execution_failures"] if ours else [])


def test_a_cold_kernel_is_ready_once_at_its_first_message():
    told = Told()
    told.chronicle.starts("k")
    told.chronicle.awaits_life("k", "cold")
    assert told.types == ["starting"]
    for _ in range(2):
        told.edge.ledger("k").heard("status", {}, 10, "starting", 1.0)
    assert told.types == ["starting", "ready"]
    assert told.last().facts["way"] == "cold"


# -- cells ------------------------------------------------------------------------------------------


def test_cells_are_busy_and_idle_with_how_they_ended(told):
    before = outcomes()
    told.cell("busy")
    told.cell(None, "stream")
    told.cell("idle")
    told.cell("busy", number=2)
    told.cell(None, "error", number=2)
    told.cell("idle", number=2)
    assert told.types[2:] == ["busy", "idle"] * 2
    idle = [event.facts["status"] for event in told.events.recent if event.type == "idle"]
    assert idle == ["ok", "error"]
    assert new_outcomes(before) == ["ok", "error"]


def test_a_cell_of_a_subshell_is_counted_and_makes_nobody_busy(told):
    before = outcomes()
    told.cell("busy", subshell_id="s")
    told.cell("idle", subshell_id="s")
    assert told.types == ["starting", "ready"]
    assert new_outcomes(before) == ["ok"]


def test_what_a_front_end_runs_silently_is_no_cell(told):
    before = outcomes()
    told.cell("busy", shown=False)
    told.cell("idle")
    assert told.types == ["starting", "ready"]
    assert new_outcomes(before) == []


@pytest.mark.parametrize(
    "limit, outcome, ended",
    [
        ("execution_timeout", "interrupted", "timeout"),
        ("memory", "interrupted", "killed"),
        ("memory", "killed", "killed"),
        ("open_files", "refused", "ok"),
    ],
)
def test_a_cell_that_crossed_a_limit_ended_for_it(told, limit, outcome, ended):
    before, breaches = outcomes(), count("jupyter_kernelpool_breaches_total", limit=limit, outcome=outcome)
    told.cell("busy")
    told.breach(limit, outcome)
    told.cell("idle")
    assert told.last().facts["status"] == ended
    assert new_outcomes(before) == [ended]
    assert count("jupyter_kernelpool_breaches_total", limit=limit, outcome=outcome) == breaches + 1


def end_by_restart(told, cause):
    told.chronicle.restarts("k", cause)
    told.chronicle.starts("k")


@pytest.mark.parametrize(
    "end, ended",
    [
        (lambda told: end_by_restart(told, "died"), "died"),
        (lambda told: end_by_restart(told, "asked"), "cancelled"),
        (lambda told: told.chronicle.forget("k"), "cancelled"),
        (lambda told: told.chronicle.dies("k", "too often", by_itself=True), "died"),
    ],
    ids=["died", "restarted", "shut down", "died for good"],
)
def test_a_cell_that_was_lost_with_its_process_ended_for_what_ended_that_and_never_idle(told, end, ended):
    before = outcomes()
    told.cell("busy")
    end(told)
    assert new_outcomes(before) == [ended]
    assert "idle" not in told.types


def test_a_cell_that_a_restart_interrupts_is_cancelled_whether_or_not_that_is_heard(told):
    before = outcomes()
    told.cell("busy")
    told.chronicle.restarts("k", "asked")
    told.cell(None, "error")
    told.cell("idle")
    assert new_outcomes(before) == ["cancelled"]


@pytest.mark.parametrize("limit, ended", [("memory", "killed"), ("execution_timeout", "timeout")])
def test_a_cell_whose_kernel_was_ended_for_a_limit_ended_for_that(told, limit, ended):
    before = outcomes()
    told.cell("busy")
    told.breach(limit, "killed")
    told.edge.give_up("k", "KernelKilled", "memory")
    assert new_outcomes(before) == [ended]


@pytest.mark.parametrize(
    "outcome, interrupted, kind",
    [
        ("error", False, "exception"),
        ("error", True, "interrupted"),
        ("timeout", True, "timeout"),
        ("killed", True, "killed"),
        ("cancelled", True, "cancelled"),
        ("died", False, "died"),
    ],
)
def test_an_interrupt_is_a_kind_of_error_unless_something_else_was_behind_it(outcome, interrupted, kind):
    assert kind_of(outcome, Execution({}, 0.0, failed=True, interrupted=interrupted)) == kind


def test_errors_are_counted_by_kind_and_good_ends_are_not(told):
    kinds = ("exception", "interrupted", "timeout", "killed", "died", "cancelled", "aborted")

    def counted():
        return [count("jupyter_kernelpool_execution_errors_total", kind=kind) for kind in kinds]

    before = counted()
    told.cell("busy")
    told.cell("idle")
    assert counted() == before
    told.cell("busy", number=2)
    told.cell(None, "error", number=2)
    told.cell("idle", number=2)
    told.edge.ledger("k").aborted()
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 0, 0, 0, 0, 0, 1]


def test_an_error_of_the_user_is_blamed_on_nobody():
    assert outcome_of(Execution({}, 0.0, failed=True)) == "error"


# -- counted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["culled", "unresponsive"])
def test_culls_and_silences_are_counted_by_cause(told, kind):
    name = {"culled": "jupyter_kernelpool_culls_total", "unresponsive": "jupyter_kernelpool_unresponsive_total"}[kind]
    before, others = count(name, cause="x"), count(name, cause="other")
    told.events.emit(kind, "k", now=1.0, cause="x")
    told.events.emit(kind, "k", now=1.0)
    assert (count(name, cause="x"), count(name, cause="other")) == (before + 1, others + 1)
