"""Processor time is counted once, and a tree that pauses as it is told keeps to its cores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_kernelpool.limits.cputime import BACKLOG, LONGEST, PERIOD, SHORTEST, Budget, CpuCount
from jupyter_kernelpool.usage import Stat


def stat(pid: int, cpu: float, *, parent: int = 1, reaped: float = 0.0, started: int = 0, state: str = "R") -> Stat:
    return Stat(pid, parent, 10, state, cpu, 0, 1, started, reaped)


# -- counting ---------------------------------------------------------------------------------------


def test_first_look_counts_nothing():
    assert CpuCount().advance([stat(10, 5.0)], 0.0) == 0.0


def test_what_all_processes_used_since_the_last_look_is_counted():
    count = CpuCount()
    count.advance([stat(10, 5.0), stat(11, 1.0, parent=10)], 0.0)
    assert count.advance([stat(10, 5.5), stat(11, 2.0, parent=10)], 1.0) == pytest.approx(1.5)


def test_new_child_is_counted_from_its_beginning():
    count = CpuCount()
    count.advance([stat(10, 5.0)], 0.0)
    assert count.advance([stat(10, 5.0), stat(11, 0.3, parent=10)], 1.0) == pytest.approx(0.3)


def test_child_that_was_waited_for_is_not_counted_again():
    count = CpuCount()
    count.advance([stat(10, 5.0), stat(11, 100.0, parent=10)], 0.0)
    assert count.advance([stat(10, 105.2, reaped=100.2)], 0.1) == pytest.approx(0.2)


def test_child_that_was_waited_for_between_two_reads_is_not_counted_again():
    count = CpuCount()
    count.advance([stat(10, 5.0), stat(11, 100.0, parent=10)], 0.0)
    # The parent was read before it had waited, the child after that.
    assert count.advance([stat(10, 5.0)], 0.1) == 0.0
    assert count.advance([stat(10, 105.1, reaped=100.1)], 0.2) == pytest.approx(0.1)


def test_child_that_began_and_ended_between_two_looks_is_counted():
    count = CpuCount()
    count.advance([stat(10, 5.0)], 0.0)
    assert count.advance([stat(10, 5.4, reaped=0.4)], 1.0) == pytest.approx(0.4)


def test_process_that_nobody_waited_for_hides_no_later_child_for_long():
    count = CpuCount()
    count.advance([stat(10, 5.0), stat(11, 100.0, parent=10)], 0.0)
    count.advance([stat(10, 5.0)], 0.5)
    count.advance([stat(10, 5.0)], 2.0)
    assert count.advance([stat(10, 6.0, reaped=1.0)], 2.5) == pytest.approx(1.0)


def test_next_process_with_the_same_pid_is_another_one():
    count = CpuCount()
    count.advance([stat(10, 5.0), stat(11, 50.0, parent=10, started=1)], 0.0)
    assert count.advance([stat(10, 5.0), stat(11, 0.5, parent=10, started=2)], 1.0) == pytest.approx(0.5)


# -- the budget -------------------------------------------------------------------------------------


def simulate(budget: Budget, demand: float, seconds: float, late: float = 0.0) -> tuple[float, int, float]:
    """Cores used on average by a tree that always wants *demand*, the pauses it had, and the longest."""
    now = used = paused = longest = 0.0
    pauses, step, seen = 0, SHORTEST, 0.0
    while now < seconds:
        ran = budget.running
        passed = step + late
        spent = demand * passed if ran else 0.0
        now, used = now + passed, used + spent
        # As the system tells it: in steps of 10 ms.
        counted = int(used * 100) / 100
        step = budget.advance(passed, counted - seen)
        seen = counted
        paused = 0.0 if budget.running else paused + step
        longest = max(longest, paused)
        pauses += ran and not budget.running
    return used / now, pauses, longest


@given(
    cores=st.floats(0.05, 8), hunger=st.floats(1.1, 16), late=st.floats(0, 0.01), used=st.floats(0, 4),
)  # fmt: skip
def test_tree_that_wants_more_averages_at_most_its_cores_and_not_far_less(cores, hunger, late, used):
    used = min(used, cores)
    average, _, _ = simulate(Budget(cores, used), cores * hunger, 20, late)
    assert average <= cores * 1.005
    assert average >= 0.85 * cores - used / 20 - SHORTEST


@pytest.mark.parametrize("cores, demand", [(0.8, 1.0), (0.8, 2.0), (1.0, 4.0), (0.2, 1.0)])
def test_pauses_come_about_every_100_ms_and_are_short(cores, demand):
    _, pauses, longest = simulate(Budget(cores), demand, 10)
    assert 10 / (2.5 * PERIOD) <= pauses <= 10 / (0.4 * PERIOD)
    assert longest <= 2.5 * PERIOD


@given(demand=st.floats(0, 0.75))
def test_tree_that_wants_less_is_never_paused(demand):
    assert simulate(Budget(0.8), demand, 5)[1] == 0


def test_what_was_used_before_is_paid_back_without_a_long_pause():
    budget = Budget(0.8, used=0.6)
    average, _, longest = simulate(budget, 2.0, 10)
    assert average + 0.6 / 10 <= 0.8
    assert longest <= BACKLOG + 2.5 * PERIOD


def test_nothing_that_is_counted_pauses_a_tree_for_good():
    budget = Budget(1.0)
    budget.advance(0.1, 1000.0)
    now = 0.0
    while not budget.running:
        now += budget.advance(0.1, 0.0)
    assert now <= LONGEST + 1
