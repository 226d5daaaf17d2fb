"""What a process of ours is, one thing after the other.

A template's fork becomes a warm kernel, a fork of a serving kernel becomes a parked process or a warm kernel,
a parked process's fork becomes a warm kernel, and so on without end. Each is a life; it ends by returning the
next one. So the stack is as deep in the hundredth generation as in the first, and what a life entered (its
`contextvars` context) is left before the next begins.
"""

from __future__ import annotations

from contextvars import Context
from typing import Protocol


class Life(Protocol):
    """`run` returns the next life in a fork, None when the process has come to its end."""

    context: Context | None

    def run(self) -> Life | None: ...


def live(life: Life | None) -> None:
    """Run *life* and whatever follows from it, each inside its own context."""
    while life is not None:
        life = life.run() if life.context is None else life.context.run(life.run)
