"""The page of a chaos run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.chaos.judge import Slope, Verdict

MOST_LINES = 40


def make_page(run: Mapping[str, Any], slopes: Iterable[Slope], verdict: Verdict) -> str:
    """Markdown: what was done, what came of it, how the figures moved."""
    parts = [
        f"# Chaos: {'passed' if verdict.good else 'FAILED'}",
        f"{run['seconds'] / 60:.1f} minutes, {run['kernels']} kernels, {run['clients']} clients, a fault about every "
        f"{run['every']:g} s, seed {run['seed']}, {run['when']}.",
        "The server's options, beside those of every benchmark: "
        + ", ".join(f"`{option}`" for option in run["options"])
        + ".",
        f"{sum(run['outcomes'].values())} executions: {_list(run['outcomes'])}.",
        f"{sum(run['faults'].values())} faults: {_list(run['faults'])}.",
        f"Requests: {_list(run['counts'])}.",
        _make_slopes(slopes),
        "At rest, before and after: "
        + ", ".join(
            f"{name} {run['before'][name]:.0f} → {run['after'][name]:.0f}"
            for name in run["before"]
            if name in run["after"]
        )
        + ".",
    ]
    for title, lines in (
        ("Lost", verdict.lost),
        ("Ran twice", verdict.twice),
        ("Answered, but never ran", verdict.unfounded),
        ("Leaks", verdict.leaks),
        ("Left", verdict.left),
        ("Failures", verdict.failures),
        ("Odd, and no failure", run["odd"]),
    ):
        parts.append(f"## {title}: {len(lines)}")
        parts += ["\n".join(f"- {line}" for line in lines[:MOST_LINES])] if lines else []
    return "\n\n".join(parts) + "\n"


def _make_slopes(slopes: Iterable[Slope]) -> str:
    rows = [
        f"| {one.figure} | {one.first:.0f} | {one.last:.0f} | {one.slope:+.1f} ± {one.error:.1f}{one.unit} "
        f"| {one.floor:g}{one.unit} | {'leaks' if one.leaks else 'no leak'} |"
        for one in slopes
    ]
    head = "| second half of the run | first | last | slope an hour | allowed in half an hour | |"
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: | --- |", *rows])


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1])) or "none"
