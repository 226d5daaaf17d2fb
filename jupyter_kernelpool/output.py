"""How much of an execution's output its client gets: message by message, pass, cut or leave out. Pure.

Sizes are bytes as they are sent: the message's content, as JSON, its buffers, and something for its envelope. The same
messages in the same order get the same verdicts, so that every client's connection can count for itself.

What is counted is what a client keeps, for that is what grows without end. So updates of a display count only as far
as one is larger than all before it, and `clear_output` gives everything back.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from jupyter_kernelpool.allowance import human

APPENDED = frozenset({"stream", "display_data", "execute_result"})
OUTPUT = APPENDED | {"update_display_data"}  # all else passes: states, and what widgets say to each other
ERRORS = frozenset({"error", "execute_reply"})  # always pass, and count for nothing; those that are huge are shortened
SMALL_UPDATE = 64 << 10  # an update up to this size passes whatever is left: a progress bar grows with its digits
ENVELOPE = 200  # of a message: thousands of small ones are no less work for a browser than a large one
NOTE_SIZE = ENVELOPE + 100
MOST_NOTES = 10
GOES_ON = 2  # times the limit
REMEMBERED = 100


@dataclass(frozen=True)
class Pass:
    """The client gets the message as it is."""


@dataclass(frozen=True)
class Cut:
    """The client gets as much of the text as makes a message of *room* bytes, and is told that the rest is left out."""

    room: int


@dataclass(frozen=True)
class LeaveOut:
    """The client gets a note in place of this message, of *size* bytes."""

    size: int


@dataclass(frozen=True)
class Drop:
    """The client gets nothing: it was told before."""


Verdict = Pass | Cut | LeaveOut | Drop


@dataclass
class Budget:
    """The output of one execution: *kept* by its client, and *produced*, with what was left out."""

    kept: int = 0
    produced: int = 0
    marked: bool = False  # the client was told that no more comes
    notes: int = 0
    displays: dict[str, int] = field(default_factory=dict)  # by display id, the most that each has cost

    def judge(self, kind: str, size: int, limit: int, display: str = "") -> Verdict:
        """What becomes of the next message, of type *kind*; *display* is its display id, if it has one."""
        if kind == "clear_output":
            self.kept, self.produced, self.marked, self.notes, self.displays = 0, 0, False, 0, {}
            return Pass()
        if kind == "update_display_data":
            return self._judge_update(size, limit, display)
        if kind not in APPENDED:
            return Pass()
        self.produced += min(size, limit)  # one that is huge is no sign of a loop
        left = limit - self.kept
        if size <= left:
            self._keep(size, display)
            return Pass()
        if kind == "stream" and left > 0:
            self.kept, self.marked = limit, True
            return Cut(left)
        return self._leave_out(size, limit)

    def goes_on(self, limit: int) -> bool:
        """Whether the execution has gone on printing long after its client gets no more of it."""
        return self.produced > GOES_ON * limit

    def copy(self) -> Budget:
        """The same, to go on by itself."""
        return replace(self, displays=dict(self.displays))

    def _judge_update(self, size: int, limit: int, display: str) -> Verdict:
        had = self.displays.get(display)
        if had is None:  # shown by another execution: what it replaces is not known
            return Pass() if size <= max(SMALL_UPDATE, limit - self.kept) else self._leave_out(size, limit)
        if size > max(had, SMALL_UPDATE) and size - had > limit - self.kept:
            return self._leave_out(size, limit)
        self._keep(max(0, size - had), display)
        return Pass()

    def _keep(self, size: int, display: str) -> None:
        self.kept += size
        if display:
            self.displays[display] = self.displays.get(display, 0) + size

    def _leave_out(self, size: int, limit: int) -> Verdict:
        if self.marked:
            return Drop()
        if self.kept + NOTE_SIZE >= limit:
            self.kept, self.marked = max(self.kept, limit), True
            return Cut(0)
        if self.notes == MOST_NOTES:
            return Drop()
        self.kept += NOTE_SIZE
        self.notes += 1
        return LeaveOut(size)


class Budgets:
    """The budgets of the last executions, by msg_id."""

    def __init__(self) -> None:
        self._budgets: OrderedDict[str, Budget] = OrderedDict()

    def of(self, msg_id: str) -> Budget:
        """The execution's; a new one for one that is not known."""
        budget = self._budgets.pop(msg_id, None) or Budget()
        self._budgets[msg_id] = budget
        if len(self._budgets) > REMEMBERED:
            self._budgets.popitem(last=False)
        return budget

    def take(self, msg_id: str, budget: Budget) -> None:
        """Go on from *budget* for that execution."""
        self._budgets[msg_id] = budget.copy()


def marker(limit: int) -> str:
    """What the client is told where its output ends."""
    return f"\n… output limit of {human('output', limit)} reached: the rest is left out\n"


def note(size: int, limit: int) -> str:
    """What the client is told in place of an output of *size* bytes."""
    return f"… an output of {human('output', size)} is left out: the output limit is {human('output', limit)}\n"


def size_of(parts: Iterable[Any]) -> int:
    """The size of a message with this content and these buffers."""
    return ENVELOPE + sum(len(part) for part in parts)


def fitting(text: str, room: int) -> str:
    """The start of *text* that takes *room* bytes at most as it is sent; ends between two characters."""
    text = text[: max(0, room)].encode("utf-8", "replace").decode()  # no character takes less than a byte
    sent = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    if len(sent) <= room:
        return text
    start = sent[:room].decode("utf-8", "ignore")
    while start:
        try:
            return str(json.loads(f'"{start}"'))
        except ValueError:  # in the middle of an escape: \u001b has six characters
            start = start[:-1]
    return ""


def shorten_error(content: dict[str, Any], limit: int) -> dict[str, Any]:
    """An error's *content* in about *limit* bytes, or `SMALL_UPDATE` where that is more: half of that for its text, and
    as much of the traceback as then fits."""
    room = max(limit, SMALL_UPDATE)
    evalue = fitting(str(content.get("evalue", "")), room // 2)
    left, lines = room - _sent(evalue), list[str]()
    for line in content.get("traceback") or []:
        part = fitting(str(line), left)
        lines.append(part)
        left -= _sent(part)
        if len(part) < len(str(line)):
            break
    return {**content, "evalue": evalue, "traceback": [*lines, marker(limit).strip()]}


def _sent(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def display_of(kind: str, content: Any, unpack: Callable[[Any], Any]) -> str:
    """The display id in a message's packed *content*, or "". Reads it only where there may be one."""
    if kind not in OUTPUT or kind == "stream" or b"display_id" not in bytes(content):
        return ""
    return str(unpack(content).get("transient", {}).get("display_id") or "")
