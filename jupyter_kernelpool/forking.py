"""Forks, checkpoints and restores of the server's kernels: who asks for what, and what came of it.

A fork goes through Jupyter's own start (`origin`), so that it is a kernel like any other; a checkpoint is a
parked process; a restore swaps the process behind a kernel id.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from jupyter_kernelpool.batches import Batch, Batches, Forked, Origin
from jupyter_kernelpool.checkpoints.memory import Family, Kept, MemoryBound
from jupyter_kernelpool.checkpoints.parked import Parked, fork_live
from jupyter_kernelpool.copies import Copies, Order
from jupyter_kernelpool.errors import KernelPoolError, NameTaken, NotFound, NotRelated, WrongState
from jupyter_kernelpool.forkable import Forkable, until_at_rest
from jupyter_kernelpool.lineage import Lineage, Node
from jupyter_kernelpool.metrics import timed
from jupyter_kernelpool.names import Names
from jupyter_kernelpool.process import Process, taking_no_cells
from jupyter_kernelpool.supervision import Supervision


@dataclass(frozen=True)
class Checkpoint:
    """A kept state of the kernel *kernel_id*; *created* is in seconds since the epoch.

    An *automatic* one was taken after a cell, to be undone (`undo`). *inherited* is the kernel's, for `memory.charge`.
    """

    id: str
    kernel_id: str
    name: str | None
    created: float
    parked: Parked
    origin: Origin
    automatic: bool = False
    inherited: int = 0


class Forking:
    """What is done to the kernels of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self.lineage = Lineage()
        self.forkable = Forkable(manager, self.lineage)
        self.checkpoints: dict[str, Checkpoint] = {}
        self.names = Names(lambda kernel_id: kernel_id in manager)
        self.copies = Copies(manager.pool.supervision, manager.log)
        self._batches = Batches(manager, self.names, self.lineage, self.copies)
        self._changing: set[str] = set()  # kernels whose process is being replaced
        self._memory = MemoryBound(manager.pool.max_checkpoint_memory, self._families, self._drop_if_there)

    @property
    def supervision(self) -> Supervision:
        """Who owns the processes."""
        supervision: Supervision = self._manager.pool.supervision
        return supervision

    # -- what there is ------------------------------------------------------------------------------

    def find_kernel(self, key: str) -> str:
        """The id of the kernel with the id or the given name *key*; raises `NotFound`."""
        kernel_id = self.names.id_of(key)
        if kernel_id not in self._manager:
            raise NotFound(f"there is no kernel {key!r}", kernel=key)
        return kernel_id

    def find_checkpoint(self, key: str) -> Checkpoint:
        """The checkpoint with the id *key*; raises `NotFound`."""
        if key not in self.checkpoints:
            raise NotFound(f"there is no checkpoint {key!r}", checkpoint=key)
        return self.checkpoints[key]

    def checkpoints_of(self, kernel_id: str) -> list[Checkpoint]:
        """Those of one kernel, oldest first."""
        return [checkpoint for checkpoint in self.checkpoints.values() if checkpoint.kernel_id == kernel_id]

    # -- forks --------------------------------------------------------------------------------------

    @timed("fork")
    async def fork(
        self,
        kernel_id: str,
        *,
        count: int = 1,
        name: str | None = None,
        reseed: bool = False,
        timeout: float = 30.0,
        copy: bool = False,
        atomic: bool = False,
    ) -> Forked:
        """*count* new kernels that go on from the state of the kernel *kernel_id*.

        A running cell is waited for, *timeout* seconds at most (`Busy`). With *copy* each has a copy of the working
        directory for itself. Raises `CannotFork`, `WrongState`, `NameTaken`, `LaunchFailed`, `PoolExhausted`,
        `TooLarge` and `CopyFailed` when nothing came of it at all, or with *atomic* when one of them failed: no
        kernel is left then, as after a cancellation.
        """
        process = await self.forkable.serving_process_of(kernel_id)
        supervision = self.supervision
        origin = self._origin(kernel_id)
        began = time.monotonic()
        inherited = self.copies.of(kernel_id)
        with self.names.reserved(name, count) as names, self.copies.kept(inherited):
            self._enter_kernel(kernel_id)
            batch = Batch(origin, names, inherited, copy=copy, atomic=atomic)
            if count == 1:

                async def make(files: Order | None) -> Process:
                    return await fork_live(process, supervision, reseed=reseed, timeout=timeout, files=files)

                await self._batches.start_all(batch, make)
                return self._batches.result(batch, {}, began)
            # The forks are made from a parked process, their files from its.
            async with self._batches.folder(copy) as base:
                parked = await Parked.take(process, supervision, timeout=timeout, files=base)
                try:
                    await self._batches.start_all(batch, lambda files: parked.fork(reseed=reseed, files=files))
                finally:
                    parked.drop()
            return self._batches.result(batch, parked.manifest, began)

    @timed("fork")
    async def fork_checkpoint(
        self,
        key: str,
        *,
        count: int = 1,
        name: str | None = None,
        reseed: bool = False,
        copy: bool = False,
        atomic: bool = False,
    ) -> Forked:
        """*count* new kernels that go on from a checkpoint; what *copy* copies are the files of now.

        Raises `NotFound`, and as `fork`.
        """
        checkpoint = self.find_checkpoint(key)
        origin = replace(checkpoint.origin, parent=checkpoint.id)
        began = time.monotonic()
        inherited = self.copies.of(key)
        with self.names.reserved(name, count) as names, self.copies.kept(inherited):
            batch = Batch(origin, names, inherited, copy=copy, atomic=atomic, later=True)
            await self._batches.start_all(batch, lambda files: checkpoint.parked.fork(reseed=reseed, files=files))
            return self._batches.result(batch, checkpoint.parked.manifest, began)

    # -- checkpoints --------------------------------------------------------------------------------

    @timed("checkpoint")
    async def take_checkpoint(self, kernel_id: str, *, name: str | None = None, timeout: float = 30.0) -> Checkpoint:
        """Keep the kernel's present state; raises as `fork`, and `WrongState` when all it may have are named.

        Beyond `KernelPool.max_checkpoints` the oldest without a name goes.
        """
        process = await self.forkable.serving_process_of(kernel_id)
        surplus = self.refuse_checkpoint(kernel_id, name)
        parked = await Parked.take(process, self.supervision, timeout=timeout)
        for other in surplus:
            self._drop_if_there(other.id)
        return self.enter_checkpoint(kernel_id, parked, name=name)

    def refuse_checkpoint(self, kernel_id: str, name: str | None) -> list[Checkpoint]:
        """Raise `NameTaken` or `WrongState` if the kernel can't have one more; returns those that would have to go."""
        own = [other for other in self.checkpoints_of(kernel_id) if not other.automatic]
        if name is not None and any(other.name == name for other in own):
            raise NameTaken(f"the kernel has a checkpoint {name!r} already", name=name)
        most = self._manager.pool.max_checkpoints
        spare = [other for other in own if other.name is None]
        if len(own) >= most and not spare:
            raise WrongState(
                f"the kernel has {len(own)} checkpoints with names, and KernelPool.max_checkpoints is {most}",
                reason="too_many",
            )
        return spare[: max(0, len(own) + 1 - most)]

    def enter_checkpoint(
        self, kernel_id: str, parked: Parked, *, name: str | None = None, automatic: bool = False
    ) -> Checkpoint:
        """*parked* is a state of the kernel *kernel_id* that is kept from now on."""
        origin = self._origin(kernel_id)
        pooled = self._manager.get_kernel(kernel_id).pooled
        process = pooled.claimed if pooled is not None else None
        inherited = process.inherited if process is not None else 0
        checkpoint = Checkpoint(uuid.uuid4().hex, kernel_id, name, time.time(), parked, origin, automatic, inherited)
        self._enter_kernel(kernel_id)
        parked.when_ready(self._manager.guard.set_apart)
        self.checkpoints[checkpoint.id] = checkpoint
        self.copies.hold(checkpoint.id, self.copies.of(kernel_id))
        self.lineage.add(Node(checkpoint.id, "checkpoint", kernel_id, checkpoint.created, name))
        self._memory.poke()
        if not automatic:
            named = {"name": name} if name else {}
            self._tell("checkpointed", kernel_id, checkpoint=checkpoint.id, **named)
        return checkpoint

    def drop(self, key: str) -> None:
        """End a checkpoint; what was forked from it lives on. Raises `NotFound`."""
        checkpoint = self.find_checkpoint(key)
        del self.checkpoints[key]
        checkpoint.parked.drop()
        self.copies.let_go(key)
        self.lineage.end(key)

    @timed("restore")
    async def restore(
        self, kernel_id: str, source: str, *, timeout: float = 30.0, why: tuple[str, str] | None = None
    ) -> None:
        """Let the kernel become what the checkpoint or kernel *source*, a relative of it, is; its clients stay.

        *why*, a word and a sentence, is told where nobody asked for it.
        So does a kernel that is dead, or that had to start cold after its crash. Raises `Busy` while a cell runs,
        `NotRelated`, `NotFound`, `CannotFork`, `WrongState` while it starts; the kernel is as it was then.
        """
        await self.forkable.until_serving(kernel_id)
        kernel = self.forkable.replaceable(kernel_id)
        process = kernel.pooled.process
        own = None
        if source in self.checkpoints:
            checkpoint = self.checkpoints[source]
            own = checkpoint if checkpoint.kernel_id == kernel_id else None
            prepare: Callable[[], Awaitable[Process]] = checkpoint.parked.fork
        else:
            source = self.find_kernel(source)
            if source == kernel_id:
                raise WrongState("a kernel can't be restored from itself", reason="same_kernel")
            other = await self.forkable.serving_process_of(source)
            supervision = self.supervision
            prepare = lambda: fork_live(other, supervision, reseed=False, timeout=timeout)  # noqa: E731
        if not self.lineage.related(kernel_id, source):
            raise NotRelated(f"{source!r} does not descend from the same kernel as {kernel_id!r}", source=source)
        if kernel_id in self._changing:
            raise WrongState("the kernel is being restored already", reason="restoring")
        self._changing.add(kernel_id)
        try:
            with taking_no_cells(process):
                await until_at_rest(kernel)
                self.copies.hold(kernel_id, self.copies.of(source))
                successor = await prepare()
                if own is not None:  # what it has from the checkpoint is the kernel's own, as it was before
                    successor.inherited = own.inherited
                try:
                    await until_at_rest(kernel)  # a cell may have been on its way, or come from elsewhere
                    if kernel.pooled is None or kernel.pooled.process is not process:
                        raise WrongState("the kernel was restarted or ended meanwhile", reason="not_running")
                except BaseException:
                    successor.discard("the kernel is not to be replaced")
                    raise
                await kernel.replace_process(successor)
                facts = {"checkpoint": source} if source in self.checkpoints else {}
                if why is not None:
                    facts["cause"], facts["reason"] = why
                self._tell("restored", kernel_id, source=source, **facts)
        finally:
            self._changing.discard(kernel_id)

    # -- ends ---------------------------------------------------------------------------------------

    def kernel_ended(self, kernel_id: str) -> None:
        """Jupyter forgets the kernel: its checkpoints go, its name is free, its forks live on."""
        for checkpoint in self.checkpoints_of(kernel_id):
            self.drop(checkpoint.id)
        self.names.forget(kernel_id)
        self.copies.let_go(kernel_id)
        self.lineage.end(kernel_id)

    def close(self) -> None:
        """The server stops: end every checkpoint."""
        self._memory.close()
        for key in list(self.checkpoints):
            self.drop(key)

    # -- parts --------------------------------------------------------------------------------------

    def _origin(self, kernel_id: str) -> Origin:
        """What its forks are to know of the kernel."""
        kernel, manager = self._manager.get_kernel(kernel_id), self._manager
        owner, allowance = manager.owners.of(kernel_id), manager.guard.allowances.own_of(kernel_id)
        return Origin(kernel_id, kernel.kernel_name, surroundings(kernel), owner, allowance)

    def _tell(self, type: str, kernel_id: str, **facts: str) -> None:  # noqa: A002
        self._manager.events.emit(type, kernel_id, now=time.time(), **facts)

    def _families(self) -> list[Family]:
        """What there is for the bound on memory to look at."""
        kept: dict[str, list[Kept]] = {}
        for one in self.checkpoints.values():
            if one.parked.pid:
                kept.setdefault(one.kernel_id, []).append(Kept(one.id, one.parked.pid, one.name is None))
        return [Family(self._pid_of(kernel_id), tuple(found)) for kernel_id, found in kept.items()]

    def _pid_of(self, kernel_id: str) -> int:
        try:
            return self.forkable.process_of(kernel_id).pid
        except KernelPoolError:
            return 0

    def _drop_if_there(self, key: str) -> None:
        if key in self.checkpoints:
            self.drop(key)

    def _enter_kernel(self, kernel_id: str) -> None:
        if self.lineage.find(kernel_id) is None:
            self.lineage.add(Node(kernel_id, "kernel", None, time.time(), self.names.of(kernel_id)))


def surroundings(kernel: Any) -> dict[str, Any]:
    """Folder and environment that a restart of a fork of *kernel* begins with: the kernel's, without its notebook."""
    arguments = getattr(kernel, "_launch_args", {}) or {}
    found = {}
    if arguments.get("cwd"):
        found["cwd"] = arguments["cwd"]
    if arguments.get("env"):
        found["env"] = {name: value for name, value in arguments["env"].items() if name != "JPY_SESSION_NAME"}
    return found
