"""The adoption: a warm kernel is told whose it is from now on, and takes that or ends.

Which kernel that is, and what follows if it did not take it, is the claim's (`pool`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.process import Process


@dataclass(frozen=True)
class Request:
    """One start of a kernel, as far as the pool is concerned. *environment* is what stock would pass."""

    kernel_id: str
    kernel_name: str
    spec: Any
    environment: Mapping[str, str]
    cwd: str
    transport: str


@dataclass(frozen=True)
class Adoption:
    """What the claimed kernel becomes: see `kernelside.warm` for the order it is sent as."""

    info: dict[str, Any]
    connection_file: str
    listeners: list[int]
    command: list[str]
    arguments: list[str]


def offer(
    process: Process,
    request: Request,
    identity: Adoption,
    environment: dict[str, str],
    log: logging.Logger,
    *,
    keep: bool = False,
) -> bool:
    """Make *process* the owner's and tell it so, and what it gets as *environment*; false if it ended before.

    With *keep*, for a fork of a live kernel, it keeps its surroundings.
    """
    if process.record.state is not State.WARM:
        return False  # it ended on its way from the launch to here
    process.record.kernel_id = request.kernel_id
    process.record.move(State.ACTIVE, why="claimed", now=time.time())
    order = {
        "info": identity.info,
        "connection_file": identity.connection_file,
        "command": identity.command,
        "arguments": identity.arguments,
        "cwd": request.cwd,
        "env": environment,
        "keep": keep,
    }
    try:
        process.offer(order, identity.listeners)
    except LaunchFailed as error:
        _not_adopted(process, request, error, log)
        return False
    return True


async def adopts(
    process: Process, request: Request, log: logging.Logger, *, replaceable: bool = False
) -> LaunchFailed | None:
    """None once *process* took what it was offered; else why it did not: it has ended then, as after a cancellation.

    With *replaceable*, where another one can take its place, it need not be waited for if it evidently hangs.
    """
    try:
        await process.adopted(replaceable=replaceable)
    except LaunchFailed as error:
        _not_adopted(process, request, error, log)
        return error
    except BaseException:
        process.discard("the claim was cancelled")
        raise
    return None


def _not_adopted(process: Process, request: Request, error: LaunchFailed, log: logging.Logger) -> None:
    log.warning("Kernel %s: a warm kernel could not be adopted: %s", request.kernel_id, error)
    process.discard("not adopted")
