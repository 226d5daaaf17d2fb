"""The end of a cell, as its answer tells it: what it may have done to a limit since anybody last looked. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jupyter_kernelpool.messages import CONTENT, HEADER, METADATA

BRIEF = 0.02  # seconds in which a cell can't take much of anything
NO_MORE_FILES = re.compile(
    r"\[Errno 24\]"
)  # EMFILE: the process may open no more; what the error is called is translated
NO_MORE_PROCESSES = re.compile(r"\[Errno 11\]|can't start new thread")  # EAGAIN of fork(2) and clone(2)


@dataclass(frozen=True)
class CellEnd:
    """*header* is that of its request. *brief*: it did not run for long. *refused* is the limit of which the operating
    system gave it no more, by its error."""

    header: dict[str, Any]
    brief: bool = False
    refused: str | None = None


def read_end(parts: Sequence[Any], unpack: Callable[[Any], Any], header: dict[str, Any]) -> CellEnd:
    """What an `execute_reply` says of the cell with that *header*; *parts* are those after its identities.

    Raises `ValueError`, `KeyError`, `IndexError` or `TypeError` for what is none.
    """
    content = unpack(parts[CONTENT])
    began = unpack(parts[METADATA]).get("started")  # as ipykernel says it
    brief = began is not None and _seconds_between(began, unpack(parts[HEADER])["date"]) < BRIEF
    if content["status"] != "error":
        return CellEnd(header, brief)
    return CellEnd(header, brief, _refused(str(content.get("ename", "")), str(content.get("evalue", ""))))


def _refused(ename: str, evalue: str) -> str | None:
    if NO_MORE_FILES.search(evalue):
        return "open_files"
    if ename in ("BlockingIOError", "RuntimeError", "OSError") and NO_MORE_PROCESSES.search(evalue):
        return "processes"
    return None


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
