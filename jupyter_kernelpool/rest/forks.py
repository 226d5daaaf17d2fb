"""POST /kernels/{kernel}/fork, /restore and /undo, /kernels/{kernel}/checkpoints, /checkpoints/{id}, GET /lineage."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool.batches import MOST_FORKS, Forked
from jupyter_kernelpool.errors import KernelPoolError, NotFound, NotValid
from jupyter_kernelpool.forking import Checkpoint, Forking
from jupyter_kernelpool.lineage import Node
from jupyter_kernelpool.memory import read_memory
from jupyter_kernelpool.rest.base import PREFIX, KernelPoolHandler, authorized_to_execute, error_body
from jupyter_kernelpool.rest.bodies import Body
from jupyter_kernelpool.rest.models import Model, rfc3339
from jupyter_kernelpool.undo import MOST_STEPS, Undo

LONGEST_WAIT = 3600.0
PATIENCE = 30.0
FILES = ("shared", "copy")


class ForkingHandler(KernelPoolHandler):
    """The base of what forks kernels."""

    async def working_forking(self) -> Forking:
        """The server's forks; raises `Disabled` where nothing is pooled."""
        return (await self.working_manager()).forking

    def forking_or_none(self) -> Forking | None:
        """The same for reads, which answer everywhere."""
        manager = self.pooling
        return manager.forking if manager is not None else None

    def read_body(self) -> Body:
        """The body, which may be left out."""
        return Body(self.read_object() if self.request.body.strip() else {})

    def reply_forked(self, forking: Forking, forked: Forked) -> None:
        """Finish with the kernels that came to be, and the errors of those that did not."""
        kernels = [
            self._error(each)
            if isinstance(each, KernelPoolError)
            else {**self._kernel(forking, each), "folder": forked.folders.get(each)}
            for each in forked.kernels
        ]
        self.reply({"kernels": kernels, "manifest": forked.manifest, "seconds": forked.seconds}, 201)

    def _kernel(self, forking: Forking, kernel_id: str) -> Model:
        model = self.kernel_manager.kernel_model(kernel_id)
        return {**model, "given_name": forking.names.of(kernel_id), "lineage": lineage_model(forking, kernel_id)}

    def _error(self, error: KernelPoolError) -> Model:
        return {"error": error_body(error.status, error)}


class ForkHandler(ForkingHandler):
    """Forks of a live kernel."""

    @web.authenticated
    @authorized_to_execute
    async def post(self, kernel: str) -> None:
        body = self.read_body()
        count = body.count("count", 1, least=1, most=MOST_FORKS)
        name, reseed, atomic = body.text("name"), body.flag("reseed"), body.flag("atomic")
        copy = body.choice("files", FILES) == "copy"
        timeout = body.number("timeout", PATIENCE, least=0, most=LONGEST_WAIT)
        body.done()
        forking = await self.working_forking()
        kernel_id = forking.find_kernel(kernel)
        options = {"reseed": reseed, "copy": copy, "atomic": atomic}
        forked = await forking.fork(kernel_id, count=count, name=name, timeout=timeout, **options)
        self.reply_forked(forking, forked)


class RestoreHandler(ForkingHandler):
    """A kernel becomes what a checkpoint of it, or a relative, is."""

    @web.authenticated
    @authorized_to_execute
    async def post(self, kernel: str) -> None:
        body = self.read_body()
        checkpoint, relative = body.text("checkpoint"), body.text("kernel")
        timeout = body.number("timeout", PATIENCE, least=0, most=LONGEST_WAIT)
        body.done()
        if (checkpoint is None) == (relative is None):
            raise NotValid("name one of checkpoint and kernel: what to restore from", field="checkpoint")
        forking = await self.working_forking()
        kernel_id = forking.find_kernel(kernel)
        if checkpoint is not None:
            forking.find_checkpoint(checkpoint)
        source = checkpoint or forking.find_kernel(str(relative))
        await forking.restore(kernel_id, source, timeout=timeout)
        self.reply(self._kernel(forking, kernel_id))


class UndoHandler(ForkingHandler):
    """A kernel goes back some cells."""

    @web.authenticated
    @authorized_to_execute
    async def post(self, kernel: str) -> None:
        body = self.read_body()
        steps = body.count("steps", 1, least=1, most=MOST_STEPS)
        body.done()
        manager = await self.working_manager()
        kernel_id = manager.forking.find_kernel(kernel)
        state = await manager.undo.undo(kernel_id, steps)
        model = self._kernel(manager.forking, kernel_id)
        self.reply({**model, "checkpoint": state.id, "undo": undo_model(manager.undo, kernel_id)})


class KernelCheckpointsHandler(ForkingHandler):
    """The checkpoints of one kernel."""

    @web.authenticated
    @authorized
    async def get(self, kernel: str) -> None:
        forking = self.forking_or_none()
        if forking is None:
            raise NotFound(f"there is no kernel {kernel!r} with checkpoints: {self.why_disabled()}", kernel=kernel)
        found = forking.checkpoints_of(forking.find_kernel(kernel))
        page, following = self.cut((f"{one.created:020.6f}{one.id}", one) for one in found)
        self.reply({"checkpoints": await checkpoint_models(page), "next": following})

    @web.authenticated
    @authorized_to_execute
    async def post(self, kernel: str) -> None:
        body = self.read_body()
        name = body.text("name")
        timeout = body.number("timeout", PATIENCE, least=0, most=LONGEST_WAIT)
        body.done()
        forking = await self.working_forking()
        checkpoint = await forking.take_checkpoint(forking.find_kernel(kernel), name=name, timeout=timeout)
        (model,) = await checkpoint_models([checkpoint])
        self.reply_created(model, "checkpoints", checkpoint.id)


class CheckpointHandler(ForkingHandler):
    """One checkpoint."""

    @web.authenticated
    @authorized
    async def get(self, checkpoint: str) -> None:
        forking = self.forking_or_none()
        if forking is None:
            raise NotFound(f"there is no checkpoint {checkpoint!r}: {self.why_disabled()}", checkpoint=checkpoint)
        (model,) = await checkpoint_models([forking.find_checkpoint(checkpoint)])
        self.reply(model)

    @web.authenticated
    @authorized_to_execute
    async def delete(self, checkpoint: str) -> None:
        (await self.working_forking()).drop(checkpoint)
        self.set_status(204)
        self.finish()


class CheckpointForkHandler(ForkingHandler):
    """Forks of a checkpoint."""

    @web.authenticated
    @authorized_to_execute
    async def post(self, checkpoint: str) -> None:
        body = self.read_body()
        count = body.count("count", 1, least=1, most=MOST_FORKS)
        name, reseed, atomic = body.text("name"), body.flag("reseed"), body.flag("atomic")
        copy = body.choice("files", FILES) == "copy"
        body.done()
        forking = await self.working_forking()
        options = {"reseed": reseed, "copy": copy, "atomic": atomic}
        self.reply_forked(forking, await forking.fork_checkpoint(checkpoint, count=count, name=name, **options))


class LineageHandler(ForkingHandler):
    """Who was forked from whom."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        forking = self.forking_or_none()
        nodes = forking.lineage.nodes() if forking is not None else []
        page, following = self.cut((f"{node.created:020.6f}{node.id}", node) for node in nodes)
        assert forking is not None or not page
        self.reply({"nodes": [node_model(forking, node) for node in page], "next": following})


def lineage_model(forking: Forking, kernel_id: str) -> Model | None:
    """The kernel or the checkpoint that a kernel was forked from; None if it was not forked."""
    node = forking.lineage.find(kernel_id)
    if node is None or node.parent is None:
        return None
    parent = forking.lineage.find(node.parent)
    if parent is not None and parent.kind == "checkpoint":
        return {"parent": parent.parent, "checkpoint": parent.id}
    return {"parent": node.parent, "checkpoint": None}


def undo_model(undo: Undo, kernel_id: str) -> Model:
    """How many cells of the kernel can be undone: at most, and now."""
    return {
        "steps": undo.steps_of(kernel_id),
        "available": undo.available(kernel_id),
        "why": undo.why_not(kernel_id),
    }


def node_model(forking: Any, node: Node) -> Model:
    """A kernel or checkpoint in the forest."""
    return {
        "id": node.id,
        "kind": node.kind,
        "name": node.name,
        "parent": node.parent,
        "created": rfc3339(node.created),
        "alive": forking.lineage.is_living(node.id),
    }


async def checkpoint_models(checkpoints: list[Checkpoint]) -> list[Model]:
    """The models of *checkpoints*, with what each has for itself now: read from /proc in a thread."""
    memory = await asyncio.to_thread(read_memory, [one.parked.pid for one in checkpoints if one.parked.pid])
    return [
        {
            "id": one.id,
            "name": one.name,
            "kernel_id": one.kernel_id,
            "created": rfc3339(one.created),
            "bytes": memory[one.parked.pid].uss if one.parked.pid in memory else None,
            "alive": one.parked.alive,
            "automatic": one.automatic,
            "durable": False,
            "manifest": one.parked.manifest,
        }
        for one in checkpoints
    ]


ROUTES: list[tuple[Any, ...]] = [
    (PREFIX + r"/kernels/(?P<kernel>[^/]+)/fork", ForkHandler),
    (PREFIX + r"/kernels/(?P<kernel>[^/]+)/restore", RestoreHandler),
    (PREFIX + r"/kernels/(?P<kernel>[^/]+)/undo", UndoHandler),
    (PREFIX + r"/kernels/(?P<kernel>[^/]+)/checkpoints", KernelCheckpointsHandler),
    (PREFIX + r"/checkpoints/(?P<checkpoint>[^/]+)", CheckpointHandler),
    (PREFIX + r"/checkpoints/(?P<checkpoint>[^/]+)/fork", CheckpointForkHandler),
    (PREFIX + "/lineage", LineageHandler),
]
