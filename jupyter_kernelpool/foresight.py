"""Foresight: which kernelspecs are kept warm from now on, before anybody has asked for one of their kernels."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from jupyter_kernelpool.adoption import Request
from jupyter_kernelpool.prompt import is_ours_to_provision
from jupyter_kernelpool.provisioner import PoolProvisioner


class Foresight:
    """Works out what a start would ask of the pool of *manager*, the server's kernel manager."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._unforeseen: set[str] = set()  # kernelspecs that are not there, and that the log tells of already

    async def request_for(self, kernel_name: str) -> Request:
        """The request that a plain start of *kernel_name* in the root folder would be.

        Raises `NoSuchKernel`. Reads the kernelspec off the event loop.
        """
        manager = self._manager
        specs = manager.kernel_spec_manager or KernelSpecManager(parent=manager)  # without a server there may be none
        spec = await asyncio.to_thread(specs.get_kernel_spec, kernel_name)
        probe = PoolProvisioner(manager=None, kernel_id="", kernel_spec=spec)
        prepared = await super(PoolProvisioner, probe).pre_launch(env=dict(os.environ))
        environment = {**prepared["env"], "JPY_PARENT_PID": str(os.getpid())}
        return Request("", kernel_name, spec, environment, manager.root_dir, "tcp")

    async def foresee(self, kernel_name: str) -> bool:
        """Keep kernels of *kernel_name* warm from now on; false when there is no such kernelspec (yet)."""
        try:
            request = await self.request_for(kernel_name)
            if not is_ours_to_provision(request.spec, self._manager):
                return True  # its kernels are another provisioner's: none of ours could be claimed
            self._manager.pool.recipe_pool(request, pinned=True)
        except Exception as error:
            if kernel_name not in self._unforeseen:
                self._unforeseen.add(kernel_name)
                self._manager.log.warning("No kernels of %s are kept warm: %s", kernel_name, error)
            return False
        self._unforeseen.discard(kernel_name)
        return True
