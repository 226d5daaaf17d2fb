"""Batches of forks: the fork processes that one request asks for become kernels of the server's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jupyter_kernelpool.allowance import Allowance
from jupyter_kernelpool.copies import Bounds, Copies, Folders, Order
from jupyter_kernelpool.errors import KernelPoolError, LaunchFailed, PoolExhausted
from jupyter_kernelpool.lineage import Lineage, Node
from jupyter_kernelpool.names import Names
from jupyter_kernelpool.process import Process

MOST_FORKS = 100


@dataclass(frozen=True)
class Origin:
    """Where a fork comes from: the id of its parent, the kernelspec, and how a restart of it begins; whose it is, and
    its parent's limits where these are others than its kernelspec's.
    """

    parent: str
    spec_name: str
    surroundings: dict[str, Any] = field(repr=False)
    owner: str
    allowance: Allowance | None


@dataclass(frozen=True)
class Forked:
    """What came of a fork: for each one wanted, the id of a kernel or the error, and the *seconds* it took.

    *folders* says for kernels with files of their own where these are.
    """

    kernels: list[str | KernelPoolError]
    manifest: dict[str, Any]
    seconds: float
    folders: dict[str, str]


@dataclass
class Batch:
    """Forks that one request asks for, and what came of them so far.

    *inherited* are the copied folders that their parent works in; with *copy* each gets one of its own, *folders*.
    """

    origin: Origin
    names: list[str | None]
    inherited: Folders
    copy: bool
    atomic: bool
    later: bool = False
    kernels: list[str | KernelPoolError] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)  # kernel id -> folder
    manifest: dict[str, Any] | None = None  # of the first


class Batches:
    """Starts the forks of batches as kernels of *manager*, Jupyter's way, and enters them where forks are known."""

    def __init__(self, manager: Any, names: Names, lineage: Lineage, copies: Copies) -> None:
        self._manager = manager
        self._names = names
        self._lineage = lineage
        self._copies = copies

    def folder(self, copy: bool, *, later: bool = False) -> contextlib.AbstractAsyncContextManager[Order | None]:
        """A folder for a copy of a working directory, if there is to be one."""
        if not copy:
            return contextlib.nullcontext()
        pool = self._manager.pool
        place = pool.copies_dir or self._manager.connection_dir
        return self._copies.lent(Bounds(place, pool.max_copied_bytes, pool.max_copied_files), later=later)

    async def start_all(self, batch: Batch, make: Callable[[Order | None], Awaitable[Process]]) -> None:
        """Make the forks of *batch* one by one; raises the first error if it is atomic. Whatever is raised, none
        of them is left."""
        try:
            for name in batch.names:
                last = batch.kernels[-1] if batch.kernels else None
                if isinstance(last, PoolExhausted):
                    batch.kernels.append(last)  # it would wait as long for the same answer
                    continue
                outcome = await self._start_one(batch, make, name)
                batch.kernels.append(outcome)
                if batch.atomic and isinstance(outcome, KernelPoolError):
                    raise outcome
        except BaseException:
            await asyncio.shield(self._shut_down([each for each in batch.kernels if isinstance(each, str)]))
            raise

    async def _start_one(
        self, batch: Batch, make: Callable[[Order | None], Awaitable[Process]], name: str | None
    ) -> str | KernelPoolError:
        try:
            async with self.folder(batch.copy, later=batch.later) as files:
                fork = await make(files)
                if batch.manifest is None:
                    batch.manifest = fork.manifest
                if files is None:
                    return await self._start(fork, batch.origin, name, batch.inherited)
                cwd = {**batch.origin.surroundings, "cwd": files.to}
                started = await self._start(fork, replace(batch.origin, surroundings=cwd), name, frozenset([files.to]))
                if isinstance(started, str):
                    batch.folders[started] = files.to
                return started
        except KernelPoolError as error:
            return error

    async def _shut_down(self, kernels: list[str]) -> None:
        """End *kernels*, which are not wanted any more."""
        ends = [self._manager.shutdown_kernel(kernel_id, now=True) for kernel_id in kernels]
        for kernel_id, failure in zip(kernels, await asyncio.gather(*ends, return_exceptions=True), strict=True):
            if isinstance(failure, BaseException):
                self._manager.log.warning("Kernel %s could not be shut down: %s", kernel_id, failure)

    async def _start(self, fork: Process, origin: Origin, name: str | None, folders: Folders) -> str | KernelPoolError:
        """Make *fork*, which works in *folders*, a kernel of the server's; the error if that did not work."""
        try:
            with self._manager.owners.acting_for(origin.owner):
                kernel_id: str = await self._manager.start_kernel(
                    kernel_name=origin.spec_name, origin=fork, allowance=origin.allowance, **origin.surroundings
                )
        except asyncio.CancelledError:
            fork.discard("the request was cancelled")
            raise
        except Exception as error:
            fork.discard("not started")
            for known in (error, error.__cause__):  # the manager translates ours for Jupyter
                if isinstance(known, KernelPoolError):
                    return known
            return LaunchFailed(f"the fork was not started: {error}", reason=type(error).__name__)
        self._copies.hold(kernel_id, folders)
        self._names.settle(kernel_id, name)
        self._lineage.add(Node(kernel_id, "kernel", origin.parent, time.time(), name))
        self._tell(origin.parent, kernel_id, name)
        return kernel_id

    def _tell(self, parent: str, child: str, name: str | None) -> None:
        """An event of the kernel that was forked, be it from a checkpoint of it."""
        node = self._lineage.find(parent)
        facts = {"child": child}
        if name:
            facts["name"] = name
        if node is not None and node.kind == "checkpoint":
            facts["checkpoint"], parent = parent, node.parent or ""
        self._manager.events.emit("forked", parent, now=time.time(), **facts)

    def result(self, batch: Batch, manifest: dict[str, Any], began: float) -> Forked:
        """What to answer, if a kernel came of it; *manifest* is the parked process's, if there was one."""
        errors = [each for each in batch.kernels if isinstance(each, KernelPoolError)]
        if len(errors) == len(batch.kernels):
            raise errors[0]
        told = dict(manifest or batch.manifest or {})
        if batch.copy and batch.manifest is not None:
            told = {**batch.manifest, "copied": {**batch.manifest["copied"], "to": list(batch.folders.values())}}
        return Forked(batch.kernels, told, time.monotonic() - began, batch.folders)
