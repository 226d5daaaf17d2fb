"""The verdict of a chaos run on known executions and figures."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.judge import (
    LOST,
    OK,
    Execution,
    Fault,
    Limit,
    Slope,
    Verdict,
    count_outcomes,
    fit,
    judge_executions,
    judge_rest,
    judge_slopes,
    measure_slope,
)
from benchmarks.chaos.report import make_page
from benchmarks.chaos.run import OPTIONS, find_tracebacks
from benchmarks.chaos.samples import count_fds

FDS = Limit("server_fds", "", 24)


def execution(outcome: str, **changes: Any) -> Execution:
    return Execution(**{"id": "x1", "kernel": "k", "client": 3, "kind": "sum", "sent": 100.0, "ended": 101.0,
                        "outcome": outcome, **changes})  # fmt: skip


def judged(one: Execution, times: int, *faults: Fault) -> Verdict:
    verdict = Verdict()
    judge_executions([one], {one.id: times}, faults, verdict)
    return verdict


def samples(slope: float, seconds: float = 1800.0, noise: float = 0.0) -> list[dict[str, float]]:
    choice = random.Random(1)
    count = int(seconds / 10) + 1
    return [
        {"at": at * 10.0, "server_fds": 100 + slope * at * 10 / 3600 + choice.gauss(0, noise)} for at in range(count)
    ]


def measured(points: list[dict[str, float]], seconds: float = 1800.0) -> Slope:
    slope = measure_slope(points, FDS, seconds)
    assert slope is not None
    return slope


@pytest.mark.parametrize(
    "outcome,times",
    [(OK, 1), ("error ZeroDivisionError", 1), ("aborted", 0), ("closed", 0), ("closed", 1), ("dead", 1)],
)
def test_execution_whose_client_was_told_is_not_held_against_the_run(outcome: str, times: int) -> None:
    assert judged(execution(outcome), times).good


@pytest.mark.parametrize("outcome", ["", LOST])
def test_execution_of_which_nothing_was_heard_is_lost(outcome: str) -> None:
    verdict = judged(execution(outcome, ended=None), 1)
    assert len(verdict.lost) == 1
    assert not verdict.good


@pytest.mark.parametrize("outcome", [OK, "error KernelDied", "closed"])
def test_code_that_ran_twice_is_found_whatever_its_client_heard(outcome: str) -> None:
    assert len(judged(execution(outcome), 2).twice) == 1


def test_answer_of_code_that_never_ran_is_found() -> None:
    assert len(judged(execution(OK), 0).unfounded) == 1


def test_story_of_a_lost_execution_names_the_faults_that_may_have_to_do_with_it() -> None:
    faults = [
        Fault("kill", 99.0, "k", "pid 7"), Fault("supervisor", 100.5), Fault("segv", 100.5, "another"),
        Fault("stop", 20.0, "k"), Fault("exit", 102.0, "k"),
    ]  # fmt: skip
    [story] = judged(execution(LOST), 0, *faults).lost
    assert story.endswith("faults: kill at 99.0 (pid 7), supervisor at 100.5")
    assert "client 3 in kernel k" in story


def test_outcomes_are_counted_and_none_counts_as_lost() -> None:
    assert count_outcomes([execution(OK), execution(""), execution(OK)]) == {OK: 2, LOST: 1}


def test_line_through_points_on_a_line_is_exact() -> None:
    assert fit([(x, 3.0 * x + 1) for x in range(10)]) == (pytest.approx(3.0), pytest.approx(0.0))


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(0.0, 1.0), (1.0, 5.0)], [(2.0, 1.0), (2.0, 2.0), (2.0, 3.0)]])
def test_too_few_points_say_nothing_of_a_slope(points: list[tuple[float, float]]) -> None:
    assert fit(points) == (0.0, float("inf"))


@pytest.mark.parametrize(
    "slope,noise,leaks", [(0, 0, False), (0, 5, False), (40, 1, False), (60, 1, True), (100, 5, True), (-100, 1, False)]
)
def test_figure_leaks_if_it_grows_by_more_than_is_allowed(slope: float, noise: float, leaks: bool) -> None:
    assert measured(samples(slope, noise=noise)).leaks is leaks


def test_growth_within_the_noise_is_no_leak() -> None:
    found = measured(samples(60, noise=200))
    assert found.error > 20
    assert not found.leaks


def test_growth_in_the_first_half_is_not_counted() -> None:
    points = [{"at": at * 10.0, "server_fds": float(min(at, 90))} for at in range(181)]
    assert measured(points).slope == pytest.approx(0.0)


def test_descriptors_that_are_left_at_rest_are_a_leak() -> None:
    verdict = Verdict()
    judge_rest(
        {"server_fds": 12, "server_pss": 80, "supervisor_fds": 9}, {"server_fds": 22, "server_pss": 230}, verdict
    )
    assert verdict.good, "memory that was freed is kept for the next kernels"
    judge_rest({"server_fds": 12}, {"server_fds": 112}, verdict)
    assert verdict.leaks == ["server_fds: 100 more at rest than before (allowed: 24)"]


def test_slopes_of_a_short_run_are_shown_and_not_judged() -> None:
    verdict = Verdict()
    [slope] = judge_slopes(samples(1000, seconds=120), 120, verdict)
    assert slope.slope == pytest.approx(1000)
    assert verdict.good


def test_leak_fails_the_run_and_is_told() -> None:
    verdict = Verdict()
    judge_slopes(samples(100), 1800, verdict)
    assert verdict.leaks == ["server_fds grows by 50.0 in half an hour (allowed: 24)"]


def test_page_says_what_was_found() -> None:
    verdict = judged(execution(LOST), 1)
    run = {
        "seconds": 1800, "kernels": 50, "clients": 20, "every": 2.5, "seed": 7, "when": "today", "outcomes": {"ok": 9},
        "faults": {"kill": 3}, "counts": {}, "odd": [], "before": {"processes": 4.0}, "after": {"processes": 5.0},
        "options": [*OPTIONS, "--KernelPool.warm=3"],
    }  # fmt: skip
    page = make_page(run, judge_slopes(samples(100), 1800, verdict), verdict)
    assert page.startswith("# Chaos: FAILED")
    assert "| server_fds | 125 | 150 | +100.0 ± 0.0 | 24 | leaks |" in page
    assert "processes 4 → 5" in page
    assert "`--KernelRestarter.restart_limit=1000`, `--Session.digest_history_size=1000`" in page
    assert "`--KernelPool.warm=3`." in page
    assert "## Lost: 1\n\n- x1 (sum)" in page


def test_tracebacks_in_a_log_are_counted_by_what_ended_them() -> None:
    plain = "fine\nTraceback (most recent call last):\n  File\n    code\nValueError: no\nfine\n"
    indented = "\n".join(f"    {line}" for line in plain.splitlines())
    assert find_tracebacks(plain + indented) == ["traceback in the server's log, 2 times: ValueError: no"]


def test_open_files_are_counted_without_those_of_processes_that_live() -> None:
    before = count_fds(os.getpid())
    child = subprocess.Popen(["sleep", "60"])
    pidfd = os.pidfd_open(child.pid)
    try:
        assert count_fds(os.getpid()) == before
        child.kill()
        child.wait()
        assert count_fds(os.getpid()) == before + 1, "nobody let go of it"
    finally:
        os.close(pidfd)
    with Path(os.devnull).open():
        assert count_fds(os.getpid()) == before + 1
