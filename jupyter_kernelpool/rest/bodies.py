"""What a body may hold: each field by name, checked, and nothing else."""

from __future__ import annotations

from typing import Any

from jupyter_kernelpool.allowance import read_limit, read_limits
from jupyter_kernelpool.errors import NotValid
from jupyter_kernelpool.names import LONGEST, is_name

MISSING = object()


class Body:
    """Takes the fields of *content* one by one; `done` refuses what is left. All raise `NotValid`."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._left = dict(content)
        self._known: list[str] = []

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """Seconds and the like, from *least* to *most*."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise NotValid(f"{name} = {value!r} must be a number from {least:g} to {most:g}", field=name)
        return float(value)

    def number_or_none(self, name: str, *, least: float, most: float) -> float | None:
        """The same; None if left out."""
        if name not in self._left:
            self._known.append(name)
            return None
        return self.number(name, 0.0, least=least, most=most)

    def object_or_none(self, name: str) -> dict[str, Any] | None:
        """An object; None if left out."""
        value = self._take(name, None)
        if value is not None and not isinstance(value, dict):
            raise NotValid(f"{name} = {value!r} must be an object", field=name)
        return value

    def size(self, name: str) -> int:
        """Bytes, also as text with a unit; 0 if left out or null."""
        return int(read_limit("memory", self._take(name, None)))

    def count(self, name: str, default: int, *, least: int, most: int) -> int:
        """A whole number from *least* to *most*."""
        value = self.count_or_none(name, least=least, most=most)
        return default if value is None else value

    def count_or_none(self, name: str, *, least: int, most: int) -> int | None:
        """The same; None if left out."""
        value = self._take(name, MISSING)
        if value is MISSING:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise NotValid(f"{name} = {value!r} must be a whole number from {least} to {most}", field=name)
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if left out."""
        value = self._take(name, False)
        if not isinstance(value, bool):
            raise NotValid(f"{name} = {value!r} must be true or false", field=name)
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of *choices*; the first if left out."""
        value = self._take(name, choices[0])
        if value not in choices:
            raise NotValid(f"{name} = {value!r} must be one of {', '.join(choices)}", field=name)
        return str(value)

    def text(self, name: str) -> str | None:
        """Text of one line, as names are; None if left out or null."""
        value = self._take(name, None)
        if value is None:
            return None
        if not is_name(value):
            raise NotValid(
                f"{name} = {value!r} must be text of 1 to {LONGEST} printable characters without '/'", field=name
            )
        return str(value)

    def limits(self, name: str) -> dict[str, float]:
        """Limits by name; none if left out."""
        return read_limits(self._take(name, {}))

    def done(self) -> None:
        """Refuse fields that nobody took."""
        for name, value in self._left.items():
            there_are = ", ".join(sorted(self._known))
            raise NotValid(f"{name} = {value!r} is no field; there are: {there_are}", field=name)

    def _take(self, name: str, default: Any) -> Any:
        self._known.append(name)
        return self._left.pop(name, default)
