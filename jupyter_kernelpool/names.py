"""Names that were given to kernels: in our routes and magics each stands for the kernel's id."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from jupyter_kernelpool.errors import NameTaken

LONGEST = 200


def is_name(value: object) -> bool:
    """Whether *value* can be a name: it stands in paths and in one line of text."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable() and "/" not in value


class Names:
    """Who has which name; *exists* says whether there is a kernel with an id."""

    def __init__(self, exists: Callable[[str], bool]) -> None:
        self._exists = exists
        self._ids: dict[str, str] = {}  # "" while a name is reserved

    def id_of(self, key: str) -> str:
        """The id of the kernel called *key*; *key* itself if none is."""
        return self._ids.get(key) or key

    def of(self, kernel_id: str) -> str | None:
        """The name that was given to the kernel, if one was."""
        return next((name for name, other in self._ids.items() if other == kernel_id), None)

    @contextlib.contextmanager
    def giving(self, kernel_id: str, name: str | None) -> Iterator[None]:
        """Call the kernel *name* from the end of the block on, if it has one and does not fail; raises `NameTaken`."""
        if name is None or self._ids.get(name) == kernel_id:
            yield
            return
        with self.reserved(name, 1):
            yield
            self.forget(kernel_id)
            self.settle(kernel_id, name)

    def forget(self, kernel_id: str) -> None:
        """The kernel has ended: its name is free."""
        name = self.of(kernel_id)
        if name is not None:
            del self._ids[name]

    def refuse_taken(self, name: str | None, count: int) -> list[str]:
        """The names that *count* kernels called *name* get, none without one; raises `NameTaken` if one is."""
        if name is None:
            return []
        names = [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]
        for each in names:
            if each in self._ids or self._exists(each):
                raise NameTaken(f"there is a kernel {each!r} already", name=each)
        return names

    @contextlib.contextmanager
    def reserved(self, name: str | None, count: int) -> Iterator[list[str | None]]:
        """The names of *count* kernels that are to be, kept free of others meanwhile; raises `NameTaken`."""
        names = self.refuse_taken(name, count)
        if name is None:
            yield [None] * count
            return
        self._ids.update(dict.fromkeys(names, ""))
        try:
            yield list(names)
        finally:
            for each in names:
                if not self._ids.get(each):
                    self._ids.pop(each, None)

    def settle(self, kernel_id: str, name: str | None) -> None:
        """The kernel that *name* was reserved for is there."""
        if name is not None:
            self._ids[name] = kernel_id
