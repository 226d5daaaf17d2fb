"""What a kernel may use, as plain data: read from what people write, merged, compared. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from jupyter_kernelpool.errors import Loosens, NotValid

# Powers of 1024, as systemd, Docker and JupyterHub count.
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?\s*", re.IGNORECASE)
BYTES = ("memory", "output")
SECONDS = ("execution_timeout", "idle_output_timeout")
COUNTS = ("processes", "open_files")
LEAST_OPEN_FILES = 128  # a kernel has some sixty for itself, and ends when it can't accept a client


@dataclass(frozen=True)
class Allowance:
    """The limits that hold for one kernel. 0 sets none.

    *memory* (private to its processes) and *output* (of one execution) in bytes, *cpu* in cores, *execution_timeout*
    in seconds of one execution, *idle_output_timeout* in seconds in which it puts out nothing, *processes* with threads
    counted, *open_files* of each process.
    """

    memory: int = 0
    cpu: float = 0.0
    execution_timeout: float = 0.0
    idle_output_timeout: float = 0.0
    output: int = 0
    processes: int = 0
    open_files: int = 0

    @functools.cached_property
    def limited(self) -> frozenset[str]:
        """The names of those that are set. Asked of each kernel at each look: making it takes 15 µs."""
        return frozenset(name for name, value in asdict(self).items() if value)

    def changed(self, changes: Mapping[str, float]) -> Allowance:
        """This one with *changes*, as `read_limits` gives them."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def tightened(self, changes: Mapping[str, float]) -> Allowance:
        """The same; raises `Loosens` for a change that allows more than this one does."""
        for name, value in changes.items():
            present = getattr(self, name)
            if present and (not value or value > present):
                raise Loosens(
                    f"{name} = {value:g} would loosen the limit of {present:g}",
                    limit=name,
                    allowed=present,
                    asked=value,
                )
        return self.changed(changes)

    def within(self, other: Allowance) -> Allowance:
        """The tighter of both, limit by limit."""
        both = ((name, value, getattr(self, name)) for name, value in asdict(other).items() if value)
        return self.changed({name: min(value, own) if own else value for name, value, own in both})

    def for_execution(self, asked: Any) -> tuple[Allowance, list[str]]:
        """This one as one execution has it that asked for the limits *asked*: those that tighten are heeded.

        And for each that is not, a sentence that says why.
        """
        allowance, refusals = self, []
        for part in [{name: value} for name, value in asked.items()] if isinstance(asked, Mapping) else [asked]:
            try:
                allowance = allowance.tightened(read_limits(part))
            except (NotValid, Loosens) as error:
                refusals.append(f"Limit not heeded: {error}.")
        return allowance, refusals

    def as_model(self) -> dict[str, float | None]:
        """For JSON: null where there is no limit."""
        return {name: value or None for name, value in asdict(self).items()}


LIMITS = tuple(field.name for field in fields(Allowance))


def read_size(value: Any) -> int:
    """Bytes from a number, or from text such as "600M", "1.5 GiB"; raises `NotValid`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value != value:
        raise NotValid(f"{value!r} is no size")
    if not isinstance(value, str):
        if value < 0 or value == float("inf"):
            raise NotValid(f"{value!r} is no size")
        return int(value)
    match = SIZE.fullmatch(value)
    if match is None:
        raise NotValid(f"{value!r} is no size; write bytes, or 600M, 1.5G, 512MiB")
    return int(float(match[1]) * UNITS[(match[2] or "").lower()])


def read_limit(name: str, value: Any) -> float:
    """The value of the limit *name*, 0 for none; raises `NotValid`, naming both."""
    if value is None:
        return 0
    if name in BYTES:
        try:
            return read_size(value)
        except NotValid as error:
            raise NotValid(f"{name} = {error}", field=name) from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise NotValid(f"{name} = {value!r} must be a number of 0 (none) or more", field=name)
    if name in COUNTS and value != int(value):
        raise NotValid(f"{name} = {value!r} must be a whole number", field=name)
    if name == "open_files" and 0 < value < LEAST_OPEN_FILES:
        raise NotValid(f"{name} = {value!r} is too low: a kernel needs {LEAST_OPEN_FILES} for itself", field=name)
    return int(value) if name in COUNTS else float(value)


def read_limits(given: Any) -> dict[str, float]:
    """What *given*, a dict of limits by name, says; null is none. Raises `NotValid`, naming what is wrong."""
    if not isinstance(given, Mapping):
        raise NotValid(f"limits = {given!r} must be an object of limits by name", field="limits")
    unknown = sorted(set(given) - set(LIMITS))
    if unknown:
        raise NotValid(f"{unknown[0]!r} is no limit; there are: {', '.join(LIMITS)}", field="limits")
    return {name: read_limit(name, value) for name, value in given.items()}


def human(name: str, value: float) -> str:
    """The value of the limit *name* for people."""
    if name in BYTES:
        for unit in "tgmk":
            if value >= UNITS[unit]:
                return f"{value / UNITS[unit]:.4g} {unit.upper()}B"
        return f"{value:g} bytes"
    return f"{value:.3g} cores" if name == "cpu" else f"{value:.4g} s" if name in SECONDS else f"{value:g}"


@dataclass(frozen=True)
class Breach:
    """A limit that was crossed: what was *allowed*, what was *seen* (the most), and when (seconds since the epoch).

    *outcome*: `interrupted`, `killed`, `restarted`, `restored`, `refused` (by the operating system), `truncated`,
    `child_killed` (a process that the kernel had started was ended, the kernel goes on) or `reported` (nothing could
    be done).
    *group* names the kernels that crossed it together, if it is a limit on their sum.
    """

    limit: str
    allowed: float
    seen: float
    at: float
    outcome: str
    group: str = ""

    @property
    def state_lost(self) -> bool:
        """Whether variables were lost: all, or where it was `restored` what came after the checkpoint."""
        return self.outcome in ("killed", "restarted", "restored")

    def __str__(self) -> str:
        allowed, seen = human(self.limit, self.allowed), human(self.limit, self.seen)
        if self.group:
            return f"{self.limit.replace('_', ' ')} limit of {self.group}: {seen} used together, {allowed} allowed"
        return f"{self.limit.replace('_', ' ')} limit: {seen} used, {allowed} allowed"
