"""From a process that holds a kernel's state and nothing that runs, to an unbound kernel.

The objects of the application, the kernel, the shell and the output streams stay the same, since the user's
objects refer to them (comms, loggers, magics); what they hold of the parent's is made anew. For kernel and
streams ipykernel's own constructors do that: they can be called again.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import uuid
from collections.abc import Callable
from typing import Any

from ipykernel import kernelapp
from IPython.core import interactiveshell

from . import endings
from .app import UnboundKernelApp, reseed
from .channels import CHANNELS
from .inheritance import Inheritance


def start_again(app: UnboundKernelApp, past: Inheritance, attend: Callable[[Any], None]) -> None:
    """What `UnboundKernelApp.start_unbound` does for a new kernel, around the shell of *past*."""
    from .machinery import Machinery

    collecting = gc.isenabled()
    gc.disable()  # a collection now would copy every page that holds an object
    try:
        app.machinery = Machinery()
        asyncio.set_event_loop(asyncio.new_event_loop())
        app.context = app.heartbeat = app.iopub_thread = None
        app.control_thread = app.shell_channel_thread = None
        app._when_closed = None
        app.own_session()
        for name in CHANNELS:
            setattr(app, f"{name}_port", 0)  # else load_connection_info takes it for the user's choice
        for key in ("curve_publickey", "curve_secretkey"):
            if hasattr(app, key):
                setattr(app, key, None)
        _open_channels_again(app, past.outputs)
        _make_kernel_again(app)
        sys.stdout, sys.stderr = past.streams  # which the user may have replaced
        attend(app.kernel)
        app.kernel.start()
        app.machinery.note(app)
        endings.own(app.shell)
    finally:
        if collecting:
            gc.enable()


def settle_random_streams(past: Inheritance, *, fresh: bool) -> None:
    """Go on with the parent's random streams, or with *fresh* ones."""
    if fresh:
        reseed()
    else:
        random.setstate(past.random_state)
        _draw_no_tips_from(random)


def _draw_no_tips_from(stream: Any) -> None:
    """Have each `kernel_info` leave *stream* as it is: IPython 9 draws the tip in its banner from it."""
    pick = getattr(interactiveshell, "pick_tip", None)
    if pick is None or hasattr(pick, "stock"):
        return

    def pick_tip() -> str:
        state = stream.getstate()
        try:
            return str(pick())
        finally:
            stream.setstate(state)

    pick_tip.stock = pick  # type: ignore[attr-defined]
    interactiveshell.pick_tip = pick_tip


def _open_channels_again(app: UnboundKernelApp, outputs: tuple[Any, Any]) -> None:
    """As `open_channels`; *outputs* (stdout, stderr) become the streams, and keep what the user hooked to them."""
    again = dict(zip(("stdout", "stderr"), outputs, strict=True))
    stock = kernelapp.import_item

    def import_item(name: str) -> Any:
        if name != str(app.outstream_class):
            return stock(name)

        def construct(session: Any, thread: Any, stream: str, **options: Any) -> Any:
            output, hooks = again[stream], again[stream]._hooks
            output.__init__(session, thread, stream, **options)
            output._hooks.extend(hooks)
            return output

        return construct

    kernelapp.import_item = import_item
    try:
        app.open_channels()
    finally:
        kernelapp.import_item = stock


def _make_kernel_again(app: UnboundKernelApp) -> None:
    kernel: Any = app.kernel
    shell: Any = app.shell
    kernel.ident = str(uuid.uuid4())  # part of its messages' topics
    kernel._aborting = False
    kernel._shutdown_message = None
    kernel.processes = {}
    kernel.eventloop = None
    kernel.shell = None  # else it would be given the constructor's (empty) namespace

    def again(**facts: Any) -> Any:
        kernel.__init__(**facts)
        return kernel

    # `init_kernel` asks the class for its one instance.
    kernel_class: Any = app.kernel_class
    kernel_class.instance = again
    try:
        app.init_kernel_sharing_pages()
    finally:
        del kernel_class.instance
    shell.configurables[:] = list({id(part): part for part in shell.configurables}.values())
    shell.set_parent({})
