"""A warm kernel that was spawned, not forked: where forking is not possible or not wanted."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import traceback
from typing import Any

from . import wire
from .app import UnboundKernelApp
from .lives import Life
from .warm import Warm, make_room_for_descriptors


def run(settings: dict[str, Any], orders: socket.socket) -> Life:
    """Import and preload; returns the kernel that this process is to be."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from . import parked  # noqa: F401  (a fork finds it imported)

        make_room_for_descriptors()
        app = UnboundKernelApp.instance()
        app.prepare(settings["arguments"])
        for module in settings["preload"]:
            importlib.import_module(module)
        app.build_shell()
        if settings["init_code"]:
            from .template import run_init_code

            run_init_code(app, settings["init_code"])
        app.complete_shell()
    except BaseException as error:
        cause = error.__cause__ or error
        wire.send(
            orders,
            {
                "event": "unfit",
                "kind": getattr(error, "kind", "preload"),
                "reason": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(cause)),
            },
        )
        os._exit(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return Warm(app, orders, lifeline=settings["lifeline"])
