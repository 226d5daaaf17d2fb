"""The benchmarks' statistics, goals and tables on known rows; and that what is published is made from its rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import results as store
from benchmarks.figures import FIGURES, Bound, Figure, Goal, Unit, find_missed, judge
from benchmarks.measures import LARGE, MEASURES
from benchmarks.measures.held import ENFORCERS, HOGS
from benchmarks.measures.hub import find_more, use_of
from benchmarks.plot import TIMES, write_tick
from benchmarks.pool import PoolView, read_pool, was_forked, was_hit
from benchmarks.report import (
    END,
    START,
    make_page,
    make_readme_part,
    make_table,
    put_between_marks,
    write_amount,
)
from benchmarks.run import take_turns
from benchmarks.stats import Row, describe, find_ratio, find_value, pair_ratios, percentile, summarise

README = store.REPOSITORY / "README.md"
PAGE = store.REPOSITORY / "docs" / "developers" / "_benchmarks.md"
MACHINE = {
    "cores": 4,
    "memory": 8 * 2**30,
    "system": "Linux x86_64",
    "kernel": "6.1",
    "python": "3.12.1",
    "versions": {"ipykernel": "7.0"},
}


def rows_of(stock: list[float], ours: list[float], **further: list[float]) -> list[Row]:
    """A row for each side and round."""
    sides = {"stock": stock, "ours": ours, **further}
    return [
        {"round": number, "side": side, "seconds": seconds}
        for side, seen in sides.items()
        for number, seconds in enumerate(seen)
    ]


def results_of(measure: str, rows: list[Row], **facts: Any) -> dict[str, Any]:
    """The results of a run that took one measure."""
    results = {"when": "2026-01-02", "machine": MACHINE, "rounds": 15, "measures": {}, **facts}
    store.add(results, measure, rows)
    return results


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


# -- statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, percent, expected",
    [
        ([5.0], 99, 5.0),
        ([3.0, 1.0, 2.0], 0, 1.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([3.0, 1.0, 2.0], 100, 3.0),
        ([10.0, 20.0], 25, 12.5),
        ([float(number) for number in range(101)], 99, 99.0),
        ([0.0, 0.0, 0.0, 1.0], 99, 0.97),
    ],
)
def test_percentile_lies_between_neighbours(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError):
        percentile([], 50)


def test_describe_gives_count_median_p99_and_extremes() -> None:
    assert describe([4.0, 1.0, 2.0, 3.0]) == {"n": 4, "median": 2.5, "p99": 3.97, "min": 1.0, "max": 4.0}


def test_ratios_are_taken_within_a_round() -> None:
    rows = rows_of([2.0, 30.0, 8.0], [1.0, 10.0])
    assert pair_ratios(rows, "seconds", "stock", "ours") == [2.0, 3.0]
    assert pair_ratios(rows, "seconds", "ours", "stock") == pytest.approx([0.5, 0.333333])


def test_round_without_a_positive_number_below_gives_no_ratio() -> None:
    rows = rows_of([2.0, 2.0], [0.0, 1.0])
    rows.append({"round": 2, "side": "stock", "seconds": None})
    rows.append({"round": 2, "side": "ours", "seconds": 1.0})
    assert pair_ratios(rows, "seconds", "stock", "ours") == [2.0]


def test_median_ratio_is_of_the_rounds_ratios_not_of_the_medians() -> None:
    summary = summarise(rows_of([10.0, 1.0, 100.0], [1.0, 1.0, 50.0]))
    assert find_ratio(summary, "seconds", "stock", "ours") == 2.0
    assert find_value(summary, "stock", "seconds") == 10.0
    assert find_value(summary, "ours", "seconds") == 1.0


def test_summary_counts_booleans_and_leaves_lists_and_nothings_out() -> None:
    rows: list[Row] = [
        {"round": 0, "side": "ours", "seconds": 1.0, "hit": True, "each": [1.0, 2.0], "from_pool": None},
        {"round": 1, "side": "ours", "seconds": 3.0, "hit": False, "each": [3.0], "from_pool": None},
    ]
    summary = summarise(rows)
    assert summary["sides"]["ours"] == {"seconds": describe([1.0, 3.0]), "hit": {"n": 2, "true": 1}}
    assert summary["ratios"] == {}


def test_what_was_not_measured_is_none() -> None:
    summary = summarise(rows_of([1.0], [2.0]))
    assert find_value(summary, "floor", "seconds") is None
    assert find_value(summary, None, "seconds") is None
    assert find_value(summary, "ours", "private") is None
    assert find_ratio(summary, "seconds", "ours", "floor") is None
    assert find_value({}, "ours", "seconds") is None


# -- goals ------------------------------------------------------------------------------------------


def figure_with(goal: Goal) -> Figure:
    return Figure("a figure", "start", (goal,))


@pytest.mark.parametrize(
    "ours, is_met",
    [([0.029, 0.030, 0.9], True), ([0.030, 0.031, 0.9], False), ([0.001, 0.031, 0.031], False)],
)
def test_absolute_goal_is_about_the_median(ours: list[float], is_met: bool) -> None:
    goal = Goal("p50 ≤ 30 ms", "ours", Bound.AT_MOST, 0.030)
    (outcome,) = judge(figure_with(goal), summarise(rows_of([], ours)))
    assert outcome.seen == sorted(ours)[1]
    assert outcome.is_met is is_met
    assert not goal.is_asserted


def test_goal_may_be_about_another_statistic() -> None:
    goal = Goal("≤ 50 ms", "ours", Bound.AT_MOST, 0.050, statistic="max")
    (outcome,) = judge(figure_with(goal), summarise(rows_of([], [0.01, 0.01, 0.06])))
    assert (outcome.seen, outcome.is_met) == (0.06, False)


@pytest.mark.parametrize("stock, is_met", [(14.9, False), (15.0, True), (40.0, True)])
def test_ratio_goal_is_met_at_its_limit(stock: float, is_met: bool) -> None:
    goal = Goal("≥ 15 × faster", "stock", Bound.AT_LEAST, 15, under="ours", ratio_to="faster")
    (outcome,) = judge(figure_with(goal), summarise(rows_of([stock], [1.0])))
    assert outcome.is_met is is_met
    assert goal.is_asserted


def test_goal_that_was_not_measured_is_neither_met_nor_missed() -> None:
    goal = Goal("≤ 1.3 × floor", "ours", Bound.AT_MOST, 1.3, under="floor", ratio_to="floor")
    (outcome,) = judge(figure_with(goal), summarise(rows_of([1.0], [1.0])))
    assert (outcome.seen, outcome.is_met) == (None, None)


def test_missed_ratio_is_named_with_what_was_seen() -> None:
    summary = summarise(rows_of([8.0], [1.0]))
    assert find_missed({"restart": {"summary": summary}}) == ["restart: 8.00 ×, wanted ≥ 10 × faster"]


def test_met_ratio_and_absolute_goal_are_not_reported_as_missed() -> None:
    restart = {"summary": summarise(rows_of([10.0], [1.0]))}
    fork = {"summary": summarise(rows_of([50.0], [5.0]))}  # far above 30 ms, but 10 times faster
    assert find_missed({"restart": restart, "template_fork": fork}) == []


def test_failed_measure_misses_its_ratios() -> None:
    failed = {"rows": [], "summary": {}, "error": "RuntimeError: no"}
    assert find_missed({"restart": failed}) == ["restart: not measured, wanted ≥ 10 × faster"]


def test_every_figure_is_about_a_measure_and_every_measure_has_a_figure() -> None:
    assert {figure.measure for figure in FIGURES} == set(MEASURES)
    assert {name for name, _, _ in TIMES} <= set(MEASURES)


def test_every_measure_says_what_it_is() -> None:
    assert [name for name, measure in MEASURES.items() if not (measure.__doc__ or "").strip()] == []


# -- tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, unit, expected",
    [
        (None, Unit.SECONDS, "–"),
        (0.0004, Unit.SECONDS, "0.4 ms"),
        (0.0433, Unit.SECONDS, "43.3 ms"),
        (0.2321, Unit.SECONDS, "232 ms"),
        (1.194, Unit.SECONDS, "1.19 s"),
        (44.12, Unit.SECONDS, "44.1 s"),
        (17_440_000, Unit.BYTES, "17.4 MB"),
        (0.0568, Unit.CORES, "5.7 %"),
        (0.000093, Unit.CORES, "0.01 %"),
        (-0.000512, Unit.CORES, "-0.05 %"),
    ],
)
def test_amount_is_written_with_its_unit(number: float | None, unit: Unit, expected: str) -> None:
    assert write_amount(number, unit) == expected


@pytest.mark.parametrize(
    "value, unit, expected",
    [(0.01, Unit.SECONDS, "10 ms"), (10.0, Unit.SECONDS, "10 s"), (1e7, Unit.BYTES, "10 MB")],
)
def test_tick_is_written_as_people_say_it(value: float, unit: Unit, expected: str) -> None:
    assert write_tick(value, unit) == expected


def test_table_has_a_line_for_each_figure_that_was_measured() -> None:
    rows = rows_of([0.75, 0.75], [0.040, 0.040], floor=[0.032, 0.032])
    head, marks, line = make_table(results_of("start", rows)).splitlines()
    assert cells(head) == ["figure", "stock", "ours", "floor", "ratio", "goal", "met"]
    assert cells(marks) == ["---", "---:", "---:", "---:", "---:", "---", "---"]
    assert cells(line) == [
        "`POST /api/sessions` → first result",
        "750 ms",
        "40.0 ms",
        "32.0 ms",
        "1.25 × floor, 18.8 × faster",
        "≤ 1.3 × floor, ≥ 15 × faster",
        "yes, yes",
    ]


def test_missed_goal_stands_out() -> None:
    rows = rows_of([0.5], [0.040])
    line = cells(make_table(results_of("start", rows)).splitlines()[-1])
    assert line[3:5] == ["–", "12.5 × faster"]
    assert line[-1] == "?, **no**"


def test_title_has_the_counts_of_the_run() -> None:
    rows = [{**row, "kernels": 40} for row in rows_of([10.0], [1.0])]
    assert cells(make_table(results_of("burst", rows)).splitlines()[-1])[0].startswith("40 kernels at once")


def test_two_goals_about_one_value_are_judged_apart() -> None:
    rows = rows_of([], [0.020, 0.020, 0.090], floor=[0.002, 0.004, 0.009])
    fork, pause = make_table(results_of("fork_arrays_1", rows)).splitlines()[2:]
    assert cells(fork) == [
        "fork of a live kernel with 1 GiB of arrays → kernel_info",
        "–",
        "20.0 ms",
        "4.0 ms (`os.fork`)",
        "10.0 × `os.fork`",
        "p50 ≤ 25 ms, p99 ≤ 60 ms",
        "yes, **no**",
    ]
    assert cells(pause)[1:] == ["–", "–", "–", "–", "≤ 5 ms", "?"]


def test_idle_server_of_a_hub_is_judged_by_what_it_costs_more() -> None:
    seen = {"stock": (80e6, 0.0001), "ours": (88e6, 0.0003), "more": (8e6, 0.0002)}
    rows: list[Row] = [
        {
            "round": 0,
            "side": side,
            "fresh_memory": memory,
            "fresh_cpu": cpu,
            "later_memory": 2 * memory,
            "later_cpu": cpu,
        }
        for side, (memory, cpu) in seen.items()
    ]
    fresh, fresh_cpu, later, _ = make_table(results_of("hub", rows)).splitlines()[2:]
    assert cells(fresh)[1:] == ["80.0 MB", "88.0 MB", "8.0 MB (more)", "–", "≤ 10 MB more", "yes"]
    assert cells(fresh_cpu)[1:] == ["0.01 %", "0.03 %", "0.02 % (more)", "–", "≤ 0.1 % of a core more", "yes"]
    assert cells(later)[3:] == ["16.0 MB (more)", "–", "≤ 10 MB more", "**no**"]


def test_more_is_the_difference_and_may_be_less() -> None:
    assert find_more({"memory": 88, "cpu": 0.25}, {"memory": 80, "cpu": 0.5}) == {"memory": 8, "cpu": -0.25}


def test_use_counts_processes_that_came_and_leaves_out_those_that_went() -> None:
    assert use_of({1: 2.0, 2: 1.0}, {1: 2.5, 3: 0.25}) == 0.75


def test_claim_beside_a_hung_kernel_is_asserted_as_a_ratio() -> None:
    rows: list[Row] = [
        {"round": number, "side": side, "claim": claim}
        for number in range(3)
        for side, claim in (("none", 0.010), ("hung", 0.018))
    ]
    measured = results_of("hung", rows)
    assert find_missed(measured["measures"]) == ["hung: 1.80 ×, wanted ≤ 1.5 × without"]
    assert cells(make_table(measured).splitlines()[-1])[2:] == [
        "18.0 ms",
        "10.0 ms (without)",
        "1.80 × without",
        "≤ 1.5 × without, < 50 ms",
        "**no**, yes",
    ]


@pytest.mark.parametrize("enforcer", ENFORCERS)
def test_each_hog_is_judged_by_itself_on_each_enforcer(enforcer: str) -> None:
    seconds = {"quiet": 0.010, "memory": 0.025, "forks": 0.015, "loop": 0.012, "printer": 0.020}
    others = dict.fromkeys(("child", "read", "files", "sleep", "deaf"), 0.013)
    rows: list[Row] = [
        {"round": 0, "side": "limited", "live": 50, "overhead": 0.004},
        {"round": 0, "side": "near", "live": 50, "overhead": 0.012},
        {"round": 0, "side": "astir", "live": 50, "overhead": 0.009},
        *({"round": 0, "side": side, "seconds": took, "grown": 2e6} for side, took in (others | seconds).items()),
    ]
    rows[-1]["grown"] = 70e6
    rows[-2]["cores"] = 0.79
    measured = results_of(f"held_{enforcer}", rows)
    assert find_missed(measured["measures"]) == [f"held_{enforcer}: 2.50 ×, wanted memory ≤ 2 ×"]
    overhead, beside, beside_others, cores, grown = (cells(line) for line in make_table(measured).splitlines()[2:])
    assert overhead[0].startswith(f"holding 50 idle kernels to limits by `{enforcer}`")
    assert overhead[2:4] == ["1.2 %", "0.4 % (none near)"]
    assert overhead[-1] == "**no**, yes, yes"
    assert beside[4].startswith("2.50 × without it (memory), 1.50 × without it (forks), ")
    assert beside[-1] == "**no**, yes, yes, yes"
    assert (beside_others[2], beside_others[-1]) == ("13.0 ms", "yes, yes, yes, yes, yes")
    assert (cores[2], cores[-1]) == ("79.0 %", "yes")
    assert (grown[2], grown[-1]) == ("70.0 MB", "**no**, yes, yes, yes, yes, yes, yes, yes, yes")


def test_hogs_of_the_measure_are_those_that_are_judged() -> None:
    judged = {goal.over for figure in FIGURES if figure.measure == "held_cgroup" for goal in figure.goals}
    assert judged == {"limited", "near", "astir", *HOGS}


def test_checkpoints_are_counted_in_the_title() -> None:
    rows: list[Row] = [{"round": 0, "side": "ours", "checkpoints": 100, "memory": 390e6}]
    line = cells(make_table(results_of("undo_points", rows)).splitlines()[-1])
    assert line[0].startswith("memory of 100 checkpoints")
    assert (line[2], line[-1]) == ("390.0 MB", "yes")


def test_failed_measure_has_no_line_but_a_note() -> None:
    results = results_of("start", rows_of([0.5], [0.04]))
    results["measures"]["restart"] = {"rows": [], "summary": {}, "error": "RuntimeError: gone"}
    page = make_page(results)
    assert "restart → first result" not in page
    assert "`restart` was not measured: RuntimeError: gone" in page


@pytest.mark.parametrize("hits, is_noted", [([True, True], False), ([True, False], True)])
def test_kernels_that_missed_the_pool_are_noted(hits: list[bool], is_noted: bool) -> None:
    rows: list[Row] = [{"round": number, "side": "ours", "seconds": 1.0, "hit": hit} for number, hit in enumerate(hits)]
    assert ("`start`: only 1 of 2 kernels came from the pool." in make_page(results_of("start", rows))) is is_noted


@pytest.mark.parametrize(
    "facts, note",
    [({"quick": True}, "A quick run"), ({"stand_ins": {"ours": "stock"}}, "ours by stock")],
)
def test_run_that_does_not_count_says_so(facts: dict[str, Any], note: str) -> None:
    rows = rows_of([0.5], [0.04])
    assert note in make_page(results_of("start", rows, **facts))
    assert note not in make_page(results_of("start", rows))


def test_page_says_where_it_was_measured() -> None:
    page = make_page(results_of("start", rows_of([0.5], [0.04])))
    assert "Measured 2026-01-02 on 4 cores with 8 GiB, Linux x86_64 6.1, Python 3.12.1; ipykernel 7.0." in page
    assert "Medians of 15 rounds" in page


def test_only_what_is_between_the_marks_is_replaced() -> None:
    text = f"before\n{START}\nold\n{END}\nafter\n"
    assert put_between_marks(text, "new\n") == f"before\n{START}\nnew\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", f"{START} without an end", f"{END} without a start"])
def test_text_without_both_marks_is_left_alone(text: str) -> None:
    assert put_between_marks(text, "new") is None


# -- what is kept and published ---------------------------------------------------------------------


def test_results_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    results = results_of("start", rows_of([0.5, 0.6], [0.04, 0.05]), quick=False)
    store.save(results, tmp_path / "new" / "run.json")
    assert store.load(tmp_path / "new" / "run.json") == results


def test_each_row_is_a_line_of_the_json(tmp_path: Path) -> None:
    store.save(results_of("start", rows_of([0.5], [0.04])), tmp_path / "run.json")
    lines = [line.strip().rstrip(",") for line in (tmp_path / "run.json").read_text().splitlines()]
    assert '{"round": 0, "side": "stock", "seconds": 0.5}' in lines
    assert '{"round": 0, "side": "ours", "seconds": 0.04}' in lines


def test_summary_is_of_the_rows_that_are_kept() -> None:
    results = results_of("start", rows_of([0.50000049], [0.0400004]))
    measured = results["measures"]["start"]
    assert [row["seconds"] for row in measured["rows"]] == [0.5, 0.04]
    assert measured["summary"] == summarise(measured["rows"])


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The run that the published figures are from."""
    return store.load(store.COMPLETE)


def test_published_run_is_a_complete_one(published: dict[str, Any]) -> None:
    assert published["rounds"] >= command.ROUNDS
    assert not published["quick"]
    assert not published["stand_ins"]
    assert not any(measured.get("error") for measured in published["measures"].values())


def test_published_summaries_are_those_of_the_published_rows(published: dict[str, Any]) -> None:
    for name, measured in published["measures"].items():
        again = summarise(measured["rows"])
        assert again["sides"].keys() == measured["summary"]["sides"].keys(), name
        for side, values in measured["summary"]["sides"].items():
            for value, seen in values.items():
                # Rows keep microseconds.
                assert again["sides"][side][value] == pytest.approx(seen, rel=1e-3, abs=1e-6), (name, side, value)
        for value, pairs in measured["summary"]["ratios"].items():
            for pair, seen in pairs.items():
                median = find_ratio(again, value, *pair.split("/"))
                assert median == pytest.approx(seen["median"], rel=1e-3), (name, value, pair)


def test_readme_has_the_table_that_the_published_rows_make(published: dict[str, Any]) -> None:
    readme = README.read_text(encoding="utf-8")
    assert put_between_marks(readme, make_readme_part(published)) == readme


def test_documentation_has_the_page_that_the_published_rows_make(published: dict[str, Any]) -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(published)


# -- the harness's other decisions ------------------------------------------------------------------


def test_each_side_is_first_in_its_turn() -> None:
    turns = list(take_turns(["a", "b", "c"], 4))
    assert [number for number, _ in turns] == [0, 1, 2, 3]
    assert [sides for _, sides in turns] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_pool_is_read_over_all_recipes() -> None:
    body = {
        "recipes": [
            {"hits": 2, "misses": 1, "warm": 1, "starting": 0, "target": 2},
            {"hits": 3, "warm": 1, "target": 1, "last_error": {"reason": "no memory"}},
        ]
    }
    assert read_pool(body) == PoolView(hits=5, misses=1, warm=2, starting=0, target=3, last_error="no memory")


@pytest.mark.parametrize(
    "view, warm, is_ready",
    [
        (PoolView(0, 0, warm=2, starting=0, target=2), None, True),
        (PoolView(0, 0, warm=1, starting=0, target=2), None, False),
        (PoolView(0, 0, warm=2, starting=1, target=2), None, False),
        (PoolView(0, 0, warm=0, starting=0, target=None), None, False),
        (PoolView(0, 0, warm=0, starting=0, target=2), 0, True),
    ],
)
def test_pool_is_ready_when_it_has_what_it_wants(view: PoolView, warm: int | None, is_ready: bool) -> None:
    assert view.is_ready(warm) is is_ready


@pytest.mark.parametrize("judge_start, warm", [(was_hit, 1), (was_forked, 0)])
def test_start_is_told_from_the_pools_counters(judge_start: Callable[..., bool | None], warm: int) -> None:
    before = PoolView(hits=4, misses=0, warm=warm, starting=0, target=1)
    hit, missed = (PoolView(hits=hits, misses=0, warm=0, starting=0, target=1) for hits in (5, 4))
    other = PoolView(hits=4, misses=0, warm=1 - warm, starting=0, target=1)
    assert judge_start(before, hit) is True
    assert judge_start(before, missed) is False
    assert judge_start(other, hit) is False
    assert judge_start(None, None) is None


def test_quick_run_leaves_out_what_is_large_unless_it_is_named() -> None:
    assert command.choose([], quick=False) == list(MEASURES)
    assert command.choose([], quick=True) == [name for name in MEASURES if name not in LARGE]
    assert command.choose(["restart", "fork_objects_4", "start"], quick=True) == ["start", "restart", "fork_objects_4"]
    assert {"fork_arrays_0.1", "fork_objects_0.1"}.isdisjoint(LARGE)


def test_list_names_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(MEASURES)


@pytest.mark.parametrize("arguments", [["no_such_measure"], ["start", "--rounds", "0"], ["--variants", "ours=nothing"]])
def test_what_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_stand_ins_are_pairs_or_one_for_all() -> None:
    assert command._read_stand_ins("ours=stock") == {"ours": "stock"}
    assert set(command._read_stand_ins("stock").values()) == {"stock"}
    with pytest.raises(argparse.ArgumentTypeError):
        command._read_stand_ins("ours=stock,burst=stock")
