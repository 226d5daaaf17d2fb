"""GET /kernels, GET and PATCH /kernels/{kernel}: every kernel of the server, and the story of each."""

from __future__ import annotations

import time
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool.culling import Recycle
from jupyter_kernelpool.errors import NotFound
from jupyter_kernelpool.health import Standing
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.rest.base import PREFIX, KernelPoolHandler, authorized_to_execute
from jupyter_kernelpool.rest.bodies import Body
from jupyter_kernelpool.rest.forks import lineage_model, undo_model
from jupyter_kernelpool.rest.models import Model, breach_model, current_model, health_model, kernel_model, rfc3339
from jupyter_kernelpool.rest.usage import usage_models
from jupyter_kernelpool.undo import MOST_STEPS

RECYCLED = ("age", "memory", "uses")
LONGEST_KEEP = 366 * 24 * 3600.0
MOST_USES = 10**9


class KernelsHandler(KernelPoolHandler):
    """All kernels that Jupyter lists, those it adopted and those of other provisioners included."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        state = self.read_choice("state", State)
        recipe = self.get_query_argument("recipe", None)
        models = [describe(self.kernel_manager, kernel_id) for kernel_id in self.kernel_manager.list_kernel_ids()]
        page, following = self.cut(
            (model["id"], model)
            for model in models
            if state in (None, model["state"]) and recipe in (None, model["recipe"])
        )
        used = await usage_models(self.kernel_manager, self.settings, [model["id"] for model in page])
        self.reply({"kernels": [{**model, "usage": used[model["id"]]} for model in page], "next": following})


class KernelHandler(KernelPoolHandler):
    """One kernel."""

    @web.authenticated
    @authorized
    async def get(self, kernel: str) -> None:
        kernel_id = self.pooling.forking.names.id_of(kernel) if self.pooling is not None else kernel
        if kernel_id not in self.kernel_manager.list_kernel_ids():
            raise NotFound(f"there is no kernel {kernel!r}", kernel=kernel)
        await self._reply_kernel(kernel_id)

    @web.authenticated
    @authorized_to_execute
    async def patch(self, kernel: str) -> None:
        body = Body(self.read_object())
        name, steps = body.text("name"), body.count_or_none("undo_steps", least=0, most=MOST_STEPS)
        limits = body.limits("limits")
        keep_alive = body.number_or_none("keep_alive", least=0, most=LONGEST_KEEP)
        recycle = read_recycle(body.object_or_none("recycle"))
        body.done()
        manager = await self.working_manager()
        kernel_id = manager.forking.find_kernel(kernel)
        with manager.forking.names.giving(kernel_id, name):
            if steps is not None:
                manager.undo.refuse_change(kernel_id, steps)
            if limits:
                await manager.guard.change(kernel_id, limits)
                manager.forking.find_kernel(kernel_id)  # else it has ended meanwhile
            # Nothing is refused from here on: all is changed, or nothing is.
            if keep_alive is not None:
                manager.culler.keep(kernel_id, keep_alive)
            if recycle is not None:
                manager.culler.recycle(kernel_id, recycle)
            if steps is not None:
                manager.undo.set_steps(kernel_id, steps)
        await self._reply_kernel(kernel_id)

    async def _reply_kernel(self, kernel_id: str) -> None:
        model = describe(self.kernel_manager, kernel_id)
        used = await usage_models(self.kernel_manager, self.settings, [kernel_id])
        self.reply({**model, "usage": used[kernel_id]})


def describe(manager: Any, kernel_id: str) -> Model:
    """The model of the kernel *kernel_id* of *manager*, which may be any kernel manager."""
    connections = getattr(manager, "_kernel_connections", {}).get(kernel_id, 0)
    ours = isinstance(manager, PoolingKernelManager)
    standing = manager.care.standing_of(kernel_id) if ours else Standing()
    model = kernel_model(kernel_id, manager.get_kernel(kernel_id), connections, standing.verdict)
    forking = manager.forking if ours else None
    why = forking.forkable.why_not(kernel_id) if forking is not None else "nothing is pooled on this server"
    return {
        **model,
        "given_name": forking.names.of(kernel_id) if forking is not None else None,
        "lineage": lineage_model(forking, kernel_id) if forking is not None else None,
        "checkpoints": [one.id for one in forking.checkpoints_of(kernel_id)] if forking is not None else [],
        "undo": undo_model(manager.undo, kernel_id) if ours else None,
        "limits": manager.guard.allowances.of(kernel_id).as_model() if ours else None,
        "health": health_model(standing) if ours else None,
        "failure_count": standing.total,
        "current": current_model(manager.edge.ledger(kernel_id).running, time.monotonic(), time.time())
        if ours
        else None,
        "breach": breach_model(manager.guard.breaches.get(kernel_id)) if ours else None,
        "cull": cull_model(manager, kernel_id) if ours else None,
        "capabilities": {"fork": {"available": why is None, "why": why}},
    }


def read_recycle(given: dict[str, Any] | None) -> Recycle | None:
    """When the owner of a kernel wants it restarted, null for never, as the model has it; raises `NotValid`."""
    if given is None:
        return None
    body = Body({name: value for name, value in given.items() if value is not None or name not in RECYCLED})
    age, memory = body.number("age", 0, least=0, most=LONGEST_KEEP), body.size("memory")
    uses = body.count("uses", 0, least=0, most=MOST_USES)
    body.done()
    return Recycle(age, memory, uses)


def cull_model(manager: PoolingKernelManager, kernel_id: str) -> Model:
    """When the kernel will be ended if nothing changes, and when its owner wants it restarted."""
    at, why = manager.culler.ends_at(kernel_id)
    wish = manager.culler.recycle_of(kernel_id)
    return {
        "at": rfc3339(at) if at is not None else None,
        "why": why or None,
        "recycle": {"age": wish.age or None, "memory": wish.memory or None, "uses": wish.uses or None},
    }


ROUTES: list[tuple[Any, ...]] = [
    (PREFIX + "/kernels", KernelsHandler),
    (PREFIX + r"/kernels/(?P<kernel>[^/]+)", KernelHandler),
]
