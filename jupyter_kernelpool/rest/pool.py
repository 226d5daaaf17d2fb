"""GET /pool (for now)."""
from __future__ import annotations
import json
from typing import Any
from jupyter_server.base.handlers import APIHandler
from jupyter_server.auth.decorator import authorized
from tornado import web

class PoolHandler(APIHandler):
    auth_resource = "kernels"
    @web.authenticated
    @authorized
    async def get(self) -> None:
        p = self.kernel_manager.pool
        self.finish(json.dumps({"recipes":[{"name":x.recipe.name,"hits":x.hits,"misses":x.misses,"warm":len(x.warm),"starting":x.starting,"last_error":x.last_error and x.last_error.reason, "stage": x.stage} for x in p.pools.values()]}))

ROUTES: list[tuple[Any, ...]] = [(r"/kernelpool/v1/pool", PoolHandler)]
