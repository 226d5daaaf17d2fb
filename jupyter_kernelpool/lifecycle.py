"""States of a process, the moves between them, and the record that is the only one to make a move.

Pure: no I/O, no clock (`now` is passed in). Metrics and events hang off `Record.on_move`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from jupyter_kernelpool.errors import InvalidTransition

MOST_MOVES = 100  # that are remembered, beside the first


class State(StrEnum):
    """Where a process is in its life. Jupyter's own `execution_state` (idle, busy) is not copied."""

    STARTING = "starting"
    WARM = "warm"
    ACTIVE = "active"
    UNRESPONSIVE = "unresponsive"
    HELD = "held"
    STOPPING = "stopping"
    DEAD = "dead"


LIVE = frozenset({State.STARTING, State.WARM, State.ACTIVE, State.UNRESPONSIVE, State.HELD})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.WARM, State.ACTIVE, State.HELD, State.STOPPING, State.DEAD}),
    State.WARM: frozenset({State.ACTIVE, State.STOPPING, State.DEAD}),
    State.ACTIVE: frozenset({State.UNRESPONSIVE, State.HELD, State.STOPPING, State.DEAD}),
    State.UNRESPONSIVE: frozenset({State.ACTIVE, State.STOPPING, State.DEAD}),
    State.HELD: frozenset({State.ACTIVE, State.STOPPING, State.DEAD}),
    State.STOPPING: frozenset({State.DEAD}),
    State.DEAD: frozenset(),
}


@dataclass(frozen=True)
class Move:
    """One step of a process: to which state, why, and when (seconds since the epoch)."""

    to: State
    why: str
    at: float


@dataclass
class Record:
    """What is known of one process. A restart makes a new record under the same kernel id.

    *way* is how it came to be: `template`, `spawn`, `whole` or `cold`. *kernel_id* is empty until it has
    an owner.
    """

    recipe: str
    way: str
    born: float
    kernel_id: str = ""
    pid: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    story: list[Move] = field(default_factory=list)
    on_move: Callable[[Record, Move], None] | None = None

    def __post_init__(self) -> None:
        if not self.story:
            self.story.append(Move(State.STARTING, "asked for", self.born))

    @property
    def state(self) -> State:
        """The present state: the last move's."""
        return self.story[-1].to

    def move(self, to: State, *, why: str, now: float) -> None:
        """Go to *to*; raises `InvalidTransition` with the last moves when no arrow leads there."""
        if to not in TRANSITIONS[self.state]:
            steps = " → ".join(f"{move.to} ({move.why})" for move in self.story[-4:])
            raise InvalidTransition(
                f"process {self.pid} of recipe {self.recipe!r} can't go from {self.state} to {to} ({why}): {steps}"
            )
        move = Move(to, why, now)
        self.story.append(move)
        del self.story[1 : len(self.story) - MOST_MOVES]
        if self.on_move is not None:
            self.on_move(self, move)

    def end(self, *, why: str, now: float) -> None:
        """Note the death, whatever came before; a second call changes nothing."""
        if self.state is not State.DEAD:
            self.move(State.DEAD, why=why, now=now)
