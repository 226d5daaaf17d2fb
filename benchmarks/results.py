"""Reads and writes what a run leaves behind: the JSON, the table, the plot."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe_machine
from benchmarks.plot import draw
from benchmarks.report import make_page, make_readme_part, put_between_marks
from benchmarks.stats import Row, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.run import Run

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
COMPLETE, PARTIAL = RESULTS / "latest.json", RESULTS / "partial.json"
"""A complete run is kept in the repository; any other lies beside it, ignored by git."""


def begin(run: Run) -> dict[str, Any]:
    """The results of a run that has measured nothing yet."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "rounds": run.rounds,
        "quick": run.quick,
        "stand_ins": dict(run.stand_ins),
        "measures": {},
    }


def add(results: dict[str, Any], name: str, rows: list[Row]) -> None:
    """Add a measure's raw rows, microseconds kept, and the summary of what is kept."""
    tidy = [{key: _tidy(value) for key, value in row.items()} for row in rows]
    results["measures"][name] = {"rows": tidy, "summary": summarise(tidy)}


def save(results: Mapping[str, Any], path: Path) -> None:
    """Write the JSON, one row a line so that it can be read and compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_dump(results) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote."""
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def publish(results: Mapping[str, Any], out: Path | None, say: Callable[[str], None]) -> None:
    """Write the table and the plot into the documentation, or into the folder *out* only."""
    page = (out / "_benchmarks.md") if out else REPOSITORY / "docs" / "developers" / "_benchmarks.md"
    plot = (out / "benchmarks.png") if out else REPOSITORY / "docs" / "_static" / "benchmarks.png"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(make_page(results), encoding="utf-8")
    say(f"table: {_shown(page)}")
    try:
        draw(results, plot)
        say(f"plot:  {_shown(plot)}")
    except ImportError:
        say("no plot: matplotlib is not installed (pip install 'jupyter-kernelpool[bench]')")
    if out is None:
        _update_readme(make_readme_part(results), say)


def _update_readme(part: str, say: Callable[[str], None]) -> None:
    readme = REPOSITORY / "README.md"
    text = put_between_marks(readme.read_text(encoding="utf-8"), part) if readme.exists() else None
    if text is None:
        say("README.md has no <!-- bench:start --> … <!-- bench:end -->: left alone")
        return
    readme.write_text(text, encoding="utf-8")
    say("table: README.md")


def _dump(value: Any, indent: str = "") -> str:
    """JSON with a line for each row and each description: can be read, and compared by line."""
    deeper = indent + " "
    if (
        isinstance(value, dict)
        and any(isinstance(item, (dict, list)) for item in value.values())
        and "round" not in value
    ):
        body = ",\n".join(f"{deeper}{json.dumps(key)}: {_dump(item, deeper)}" for key, item in value.items())
        return f"{{\n{body}\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        body = ",\n".join(deeper + _dump(item, deeper) for item in value)
        return f"[\n{body}\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def _tidy(value: Any) -> Any:
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def _shown(path: Path) -> Path:
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
