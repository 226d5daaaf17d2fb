"""What is measured: one module a measure, listed here.

A measure is an async function that is given the `Run` and returns raw rows (see `stats`). To add
one: write its module, list it here, and give its figure a line in `figures.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from benchmarks.measures.burst import measure_burst
from benchmarks.measures.checkpoints import measure_checkpoint, measure_restore, measure_undo_points
from benchmarks.measures.fork import FORKS
from benchmarks.measures.held import HELD
from benchmarks.measures.hub import measure_hub
from benchmarks.measures.hung import measure_hung, measure_wedged
from benchmarks.measures.limits import measure_limits
from benchmarks.measures.loop import measure_loop
from benchmarks.measures.memory import measure_memory
from benchmarks.measures.restart import measure_restart
from benchmarks.measures.scale import measure_scale
from benchmarks.measures.start import measure_imports, measure_start
from benchmarks.measures.template_fork import measure_template_fork
from benchmarks.measures.websocket import measure_websocket
from benchmarks.run import Run
from benchmarks.stats import Row

MEASURES: Mapping[str, Callable[[Run], Awaitable[list[Row]]]] = {
    "start": measure_start,
    "imports": measure_imports,
    "restart": measure_restart,
    "template_fork": measure_template_fork,
    **FORKS,
    "checkpoint": measure_checkpoint,
    "undo_points": measure_undo_points,
    "restore": measure_restore,
    "websocket": measure_websocket,
    "memory": measure_memory,
    "loop": measure_loop,
    "burst": measure_burst,
    "scale": measure_scale,
    "limits": measure_limits,
    **HELD,
    "hung": measure_hung,
    "wedged": measure_wedged,
    "hub": measure_hub,
}

LARGE = frozenset(name for name in FORKS if not name.endswith("_0.1"))
"""Left out of a quick run, unless they are named: they need gigabytes, and take their time to make them."""
