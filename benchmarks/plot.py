"""The plot made from a run: horizontal bars on a logarithmic axis, times above, memory below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.figures import Unit
from benchmarks.report import write_amount
from benchmarks.stats import find_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart also by those who see no red or green, and by their lightness
# in grey.
COLOURS = {"stock": "#999999", "ours": "#0072B2", "floor": "#E69F00"}
LABELS = {
    "stock": "stock Jupyter Server",
    "ours": "jupyter_kernelpool",
    "floor": "floor: kernel already there",
}
TIMES = (
    ("start", "new notebook\n→ first result", "floor"),
    ("imports", "… numpy and\npandas usable", "floor"),
    ("restart", "restart\n→ first result", None),
    ("template_fork", "start, pool empty\n→ kernel_info", None),
    ("fork_arrays_1", "fork of a 1 GiB kernel\n→ kernel_info", None),
    ("restore", "restore in place\n→ first result", None),
    ("websocket", "1+1, back to back\n(floor: raw ZeroMQ)", "raw"),
    ("burst", "{kernels} at once,\nthe last's result", None),
)
HEIGHT = 0.27

Bar: TypeAlias = tuple[str, float]
"""Which side, and its value."""


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the plot as PNG. Needs matplotlib, which only this function imports."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    times = _find_times(results["measures"])
    memory = _find_memory(results["measures"])
    panels = [panel for panel in (times, memory) if panel]
    if not panels:
        return
    with pyplot.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(
            len(panels),
            1,
            squeeze=False,
            layout="constrained",
            figsize=(8, 1.2 + 0.85 * sum(map(len, panels))),
            height_ratios=[len(panel) for panel in panels],
        )
        for axis, panel in zip(axes[:, 0], panels, strict=True):
            is_time = panel is times
            _draw_bars(axis, panel, Unit.SECONDS if is_time else Unit.BYTES)
            axis.set_xlabel("time, logarithmic: less is better" if is_time else "private memory, logarithmic")
        handles = {
            label: patch for axis in axes[:, 0] for patch, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        pyplot.close(figure)


def _draw_bars(axis: Axes, groups: Sequence[tuple[str, list[Bar]]], unit: Unit) -> None:
    seen: set[str] = set()
    for place, (_, bars) in enumerate(groups):
        for index, (side, value) in enumerate(bars):
            at = place + (index - (len(bars) - 1) / 2) * HEIGHT
            label = LABELS[side] if side not in seen else None
            axis.barh(at, value, height=HEIGHT * 0.92, color=COLOURS[side], label=label)
            axis.annotate(
                write_amount(value, unit),
                (value, at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
            seen.add(side)
    values = [value for _, bars in groups for _, value in bars]
    axis.set_xscale("log")
    axis.set_xlim(min(values) / 3, max(values) * 4)
    axis.set_yticks(range(len(groups)), [title for title, _ in groups])
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(lambda value, _: write_tick(value, unit))
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)


def write_tick(value: float, unit: Unit) -> str:
    """A power of ten as people say it."""
    if unit is Unit.BYTES:
        return f"{value / 1e6:g} MB"
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"


def _find_times(measures: Mapping[str, Any]) -> list[tuple[str, list[Bar]]]:
    groups = []
    for name, title, floor in TIMES:
        measured = measures.get(name, {})
        bars = _bars(measured, "seconds", floor)
        if bars:
            kernels = max((row.get("kernels", 0) for row in measured.get("rows", ())), default=0)
            groups.append((title.format(kernels=kernels), bars))
    return groups


def _find_memory(measures: Mapping[str, Any]) -> list[tuple[str, list[Bar]]]:
    bars = _bars(measures.get("memory", {}), "private", None)
    return [("idle kernel with\nnumpy and pandas", bars)] if bars else []


def _bars(measured: Mapping[str, Any], value: str, floor: str | None) -> list[Bar]:
    summary = measured.get("summary", {})
    sides = {"stock": "stock", "ours": "ours", "floor": floor}
    found = ((shown, find_value(summary, side, value)) for shown, side in sides.items())
    return [(shown, seen) for shown, seen in found if seen]
