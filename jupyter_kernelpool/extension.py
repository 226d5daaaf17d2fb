"""The server extension: puts our classes in place, starts and stops background work, adds the REST routes.

The order of things in jupyter_server: link (before the managers are made), load (handlers), start (the
event loop runs), stop (before kernels are shut down).
"""

from __future__ import annotations

import gc
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from jupyter_server.gateway.managers import GatewayClient

from jupyter_kernelpool.culler import KernelCuller
from jupyter_kernelpool.events import publish_on
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.lookout import KernelAlerts
from jupyter_kernelpool.manager import PoolingKernelManager
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.presets import for_server
from jupyter_kernelpool.rest import handlers
from jupyter_kernelpool.rest.stock import tell_refusals
from jupyter_kernelpool.sandbox import SANDBOX_SETTINGS
from jupyter_kernelpool.websocket import over

MANAGER = "jupyter_kernelpool.manager.PoolingKernelManager"
WEBSOCKET = "jupyter_kernelpool.websocket.PooledWebsocketConnection"


def why_not_ours(serverapp: Any) -> str | None:
    """Why our kernel manager is not put in place, or None if it is.

    Looks at the configuration only: reading the trait itself raises before the managers are made.
    """
    server_config = serverapp.config.ServerApp
    if serverapp.config.KernelPool.get("enabled", True) in (False, "False", "false", "0"):
        return "KernelPool.enabled is False"
    if GatewayClient.instance(parent=serverapp).gateway_enabled:
        return "kernels run on a gateway"
    chosen = server_config.get("kernel_manager_class")
    if chosen is not None and not _is_ours(chosen):
        return f"ServerApp.kernel_manager_class is set to {_name(chosen)}"
    return None


def asks_for_sandboxes(serverapp: Any) -> bool:
    """Whether the configuration names a sandbox for any kernelspec; looks at it only roughly."""
    recipes = serverapp.config.KernelPool.get("recipes", {})
    given = recipes.values() if isinstance(recipes, dict) else ()
    return any(name in settings for settings in given if isinstance(settings, dict) for name in SANDBOX_SETTINGS)


class KernelPoolExtension(ExtensionApp):
    """What jupyter_server loads; an ExtensionApp, because only those are told of the server's stop."""

    name = "jupyter_kernelpool"
    extension_url = "/kernelpool"
    load_other_extensions = True
    put_in_place = False
    classes = [KernelPool, KernelLimits, KernelHealth, KernelCuller, KernelAlerts]  # noqa: RUF012 (as upstream declares it)
    description = "Warm kernels: kernels start at once. Configure KernelPool.* as any other trait of the server."

    def _link_jupyter_server_extension(self, serverapp: Any) -> None:
        """Called before the server makes its managers; the one moment when their classes can be set."""
        super()._link_jupyter_server_extension(serverapp)
        reason = why_not_ours(serverapp)
        if reason is not None:
            serverapp.log.info("Kernels are not pooled: %s", reason)
            if asks_for_sandboxes(serverapp):
                serverapp.log.warning("KernelPool.recipes asks for sandboxes, and NOBODY MAKES THEM: %s", reason)
            return
        self.put_in_place = True
        chosen = serverapp.config.ServerApp
        ours = {"kernel_manager_class": MANAGER, "kernel_websocket_connection_class": WEBSOCKET}
        # Set on the traits, not in the configuration: what an application such as JupyterLab has in its own
        # configuration files is applied later, and must still win.
        for name, value in {**ours, **for_server(serverapp.config)}.items():
            if name not in chosen:
                setattr(serverapp, name, value)

    def initialize_handlers(self) -> None:
        """Called at load; the managers exist by now, and every other extension is linked."""
        serverapp: Any = self.serverapp
        manager = self.pooling_manager
        if manager is None:
            if self.put_in_place:  # and replaced since, by another extension or an application's configuration
                serverapp.log.warning(
                    "Kernels are not pooled: the server's kernel manager is %s", _name(type(serverapp.kernel_manager))
                )
        else:
            put_over_websockets(serverapp)
        if manager is not None:
            serverapp.log.info(
                "Kernels are pooled: %s, %s",
                _name(type(manager)),
                _name(serverapp.kernel_websocket_connection_class),
            )
        if manager is not None:
            manager.events.listen(publish_on(serverapp.event_logger))
            if manager.refuses_starts:
                tell_refusals(serverapp.web_app)
            manager.care.starts.on_open = lambda: tell_refusals(serverapp.web_app)
        self.handlers.extend(handlers())

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Called once the event loop runs."""
        manager = self.pooling_manager
        if manager is not None:
            put_over_websockets(serverapp)  # an extension that was loaded after ours may have changed it
            if manager.pool.warm_at_start:
                await manager.start_pool()
            else:
                manager.keeper.start()  # kernels are looked after, metrics written, alerts judged without a pool, too
            # What the server holds by now it keeps. Each full collection would go through it, which keeps the event
            # loop from everybody for 0.1 to 0.2 s; bursts of starts make such collections frequent.
            gc.collect()
            gc.freeze()

    async def stop_extension(self) -> None:
        """Called before the server shuts its kernels down."""
        manager = self.pooling_manager
        if manager is not None:
            await manager.stop_pool()
            if not len(manager):
                # jupyter_server's `cleanup_kernels` takes a manager whose len() is 0 for none: no shutdown_all.
                await manager.close_supervision()

    @property
    def pooling_manager(self) -> PoolingKernelManager | None:
        """The server's kernel manager, if it is ours and switched on."""
        manager = getattr(self.serverapp, "kernel_manager", None)
        if isinstance(manager, PoolingKernelManager) and manager.pool.enabled:
            return manager
        return None


def put_over_websockets(serverapp: Any) -> None:
    """Put ours over the connection class that kernels' websockets have, which keeps everything it does."""
    chosen = over(serverapp.web_app.settings["kernel_websocket_connection_class"])
    serverapp.kernel_websocket_connection_class = chosen
    serverapp.web_app.settings["kernel_websocket_connection_class"] = chosen


def _name(chosen: Any) -> str:
    return chosen if isinstance(chosen, str) else f"{chosen.__module__}.{chosen.__qualname__}"


def _is_ours(chosen: Any) -> bool:
    if isinstance(chosen, str):
        return chosen == MANAGER
    return isinstance(chosen, type) and issubclass(chosen, PoolingKernelManager)
