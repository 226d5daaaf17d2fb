"""The table made from a run. Pure: text in, text out; `results` writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.figures import FIGURES, Figure, Outcome, Unit, judge
from benchmarks.stats import find_ratio, find_value

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
HEAD = ("figure", "stock", "ours", "floor", "ratio", "goal", "met")


def write_amount(number: float | None, unit: Unit) -> str:
    """A number with its unit, in three digits or so; a dash for none."""
    if number is None:
        return "–"
    if unit is Unit.BYTES:
        return f"{number / 1e6:.1f} MB"
    if unit is Unit.CORES:
        return f"{number * 100:.{1 if abs(number) >= 0.001 else 2}f} %"
    if number >= 1:
        return f"{number:.2f} s" if number < 10 else f"{number:.1f} s"
    milliseconds = number * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.1f} ms"


def make_table(results: Mapping[str, Any], figures: Iterable[Figure] = FIGURES) -> str:
    """A Markdown table with a line for each of *figures* that was measured."""
    measures = results["measures"]
    lines = [
        _line(figure, measures[figure.measure]) for figure in figures if measures.get(figure.measure, {}).get("summary")
    ]
    marks = ["---", *["---:"] * 4, "---", "---"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [HEAD, marks, *lines])


def make_page(results: Mapping[str, Any]) -> str:
    """The table with what a reader needs to judge it: where, when, how, and what went wrong."""
    return "\n\n".join([make_table(results), *_notes(results), _origin(results)]) + "\n"


def make_readme_part(results: Mapping[str, Any]) -> str:
    """What stands between the README's marks: a table of what users notice, and the plot."""
    figures = [figure for figure in FIGURES if figure.is_in_readme]
    return f"{make_table(results, figures)}\n\n![The benchmarks](docs/_static/benchmarks.png)"


def put_between_marks(text: str, table: str) -> str | None:
    """*text* with what stands between the marks replaced, or None where it has no marks."""
    head, start, rest = text.partition(START)
    _, end, tail = rest.partition(END)
    return f"{head}{START}\n{table.strip()}\n{END}{tail}" if start and end else None


def _line(figure: Figure, measured: Mapping[str, Any]) -> list[str]:
    summary = measured["summary"]
    sides = (figure.stock, figure.ours, figure.floor)
    stock, ours, floor = (
        write_amount(find_value(summary, side, figure.value, figure.statistic), figure.unit) for side in sides
    )
    if figure.floor_is and floor != "–":
        floor = f"{floor} ({figure.floor_is})"
    outcomes = judge(figure, summary)
    ratios = [_write_ratio(outcome.seen, outcome.goal.ratio_to) for outcome in outcomes if outcome.goal.under]
    if figure.ratio_to and figure.floor:
        ratios.append(_write_ratio(find_ratio(summary, figure.value, figure.ours, figure.floor), figure.ratio_to))
    return [
        _title(figure, measured.get("rows", ())),
        stock,
        ours,
        floor,
        ", ".join(filter(None, ratios)) or "–",
        ", ".join(outcome.goal.text for outcome in outcomes) or "–",
        ", ".join(_met(outcome) for outcome in outcomes) or "–",
    ]


def _title(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> str:
    """The figure's title with the counts that this run really used."""
    facts = {"kernels": 0, "live": 0, "checkpoints": 0}
    for row in rows:
        facts = {name: max(most, row.get(name, 0)) for name, most in facts.items()}
    return figure.title.format(**facts)


def _write_ratio(seen: float | None, to: str) -> str:
    return "" if seen is None else f"{seen:.{2 if seen < 10 else 1}f} × {to}"


def _met(outcome: Outcome) -> str:
    return {True: "yes", False: "**no**", None: "?"}[outcome.is_met]


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = []
    for name, measured in results["measures"].items():
        if measured.get("error"):
            notes.append(f"`{name}` was not measured: {measured['error']}")
        hits = measured.get("summary", {}).get("sides", {}).get("ours", {}).get("hit")
        if hits and hits["true"] < hits["n"]:
            notes.append(f"`{name}`: only {hits['true']} of {hits['n']} kernels came from the pool.")
    if results.get("quick"):
        notes.append("**A quick run:** fewer kernels than the figures are about.")
    if results.get("stand_ins"):
        replaced = ", ".join(f"{name} by {other}" for name, other in results["stand_ins"].items())
        notes.append(f"**Not a result:** servers were replaced ({replaced}) to try the harness.")
    return notes


def _mishaps(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong on the way to rows that count all the same, side by side."""
    kinds = {
        "failed": "samples failed and were taken again",
        "lost": "kernels died while they started and are left out",
        "repeated": "cells were run again, their result lost after a restart",
    }
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for kind in kinds:
            counts[row["side"], kind] = counts.get((row["side"], kind), 0) + row.get(kind, 0)
    return [f"{side}: {count} {kinds[kind]}" for (side, kind), count in counts.items() if count]


def _origin(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured {results['when']} on {machine['cores']} cores with "
        f"{machine['memory'] / 2**30:.0f} GiB, "
        f"{machine['system']} {machine['kernel']}, Python {machine['python']}; {versions}. "
        f"Medians of {results['rounds']} rounds (fewer where a round starts many kernels) "
        "in which the sides take turns; a ratio is the median of the rounds' own ratios."
    )
