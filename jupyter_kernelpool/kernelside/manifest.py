"""What a fork shares with its parent, what it lost, and what to do about it."""

from __future__ import annotations

import os
from typing import Any


class Manifest:
    """Three lists of `{"kind", "what", "hint"}`, for people to read."""

    def __init__(self) -> None:
        self.shared: list[dict[str, str]] = []
        self.lost: list[dict[str, str]] = []
        self.warnings: list[dict[str, str]] = []

    @classmethod
    def of(cls, app: Any, libraries: list[str]) -> Manifest:
        return cls()

    def add_shared_file(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self.shared.append({"kind": "file", "what": f"the position in {path}", "hint": "Open the file again."})

    def as_message(self) -> dict[str, list[dict[str, str]]]:
        return {"shared": self.shared, "lost": self.lost, "warnings": self.warnings}
