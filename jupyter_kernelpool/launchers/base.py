"""What the pool knows of a way to launch kernels."""

from __future__ import annotations

import logging
import socket
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.lifecycle import Record
from jupyter_kernelpool.metrics import record_born
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipes import Recipe
from jupyter_kernelpool.supervision import Supervision


class Launcher(ABC):
    """Launches the kernels of one recipe. The pool calls `prepare` once before the first `launch`."""

    way: ClassVar[str]

    def __init__(self, recipe: Recipe, supervision: Supervision, log: logging.Logger) -> None:
        self.recipe = recipe
        self.supervision = supervision
        self.log = log

    @property
    def quick(self) -> bool:
        """Whether a launch is so quick that a waiting user is better served by it than by a cold start."""
        return False

    @property
    def pid(self) -> int:
        """The process that stands behind the launches (a template), or 0."""
        return 0

    @property
    def alive(self) -> bool:
        """Whether what stands behind the launches, once prepared, is still there."""
        return True

    def watched(self) -> list[str]:
        """Paths whose change makes what was launched so far stale."""
        return []

    @abstractmethod
    async def prepare(self) -> None:
        """Get ready to launch. Raises `Unfit` if this recipe can't be launched this way, `LaunchFailed` if
        it may work another time."""

    @abstractmethod
    async def launch(self, *, ahead: bool = True) -> Process:
        """A started process in state WARM; *ahead* tells that nobody waits for it.

        Raises `LaunchFailed`; when cancelled, nothing is left behind.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of whatever stands behind the launches; launched processes live on."""

    def new_record(self) -> Record:
        """A record in state STARTING, counted."""
        record = Record(recipe=self.recipe.name, way=self.way, born=time.time())
        record_born(record)
        return record


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A channel's two ends, ours and the process's.

    Raises `LaunchFailed` where this process can have no more descriptors: no fault of the recipe's, and tried
    again as soon as any launch that failed.
    """
    try:
        return socket.socketpair()
    except OSError as error:
        raise LaunchFailed(f"no socket for it: {error.strerror}") from error
