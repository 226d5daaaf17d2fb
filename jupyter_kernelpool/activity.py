"""Feeds a kernel's ledger from the stream with which jupyter_server watches its activity: also without a client."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from jupyter_kernelpool.ledger import Ledger
from jupyter_kernelpool.nudge import is_nudge
from jupyter_kernelpool.output import display_of, size_of

HEADER, PARENT, METADATA, CONTENT = 1, 2, 3, 4  # places in a message after its identities; 0 is the signature
INTERRUPTED = "KeyboardInterrupt"  # ipykernel's name for it
NO_MESSAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)  # what reading one raises

log = logging.getLogger("jupyter_kernelpool")


def feed(kernel: Any, ledger: Ledger, alive: Callable[[], None] | None = None) -> None:
    """Have *ledger* hear what *kernel*'s activity stream brings, after jupyter_server did; *alive* is called whenever
    that shows that the kernel is up. Neither hears of our own nudges: they are no activity.

    Called once the stream is watched (jupyter_server's `start_watching_activity`), as after a restart with other ports.
    """
    stream, session = kernel._activity_stream, kernel.session
    stock = stream._recv_callback

    def heard(parts: list[Any]) -> None:
        # It must not raise, nor stock's: nothing would be heard of the kernel any more, not even of its next process.
        # A ZMQStream looks whether more has come when its callback is done, and its socket does not say so twice.
        try:
            if is_nudge(parts):
                return
            stock(parts)
            state = tell(ledger, session, parts)
            if alive is not None and state != "starting":
                alive()
        except NO_MESSAGE:  # whatever runs in the kernel can publish there
            log.debug("Kernel %s published what is no message", kernel.kernel_id, exc_info=True)
        except Exception:
            log.exception("Kernel %s: what it published could not be taken note of", kernel.kernel_id)

    stream.on_recv(heard)


def tell(ledger: Ledger, session: Any, parts: list[Any]) -> str | None:
    """Tell *ledger* of one message of iopub, *parts* as ZeroMQ gave them; returns the state that a status names."""
    _, message = session.feed_identities(parts)
    kind = session.unpack(message[HEADER])["msg_type"]
    parent = session.unpack(message[PARENT])
    state = session.unpack(message[CONTENT]).get("execution_state") if kind == "status" else None
    size = size_of(message[CONTENT:])
    ledger.heard(kind, parent, size, state, time.monotonic(), display_of(kind, message[CONTENT], session.unpack))
    execution = ledger.find(parent.get("msg_id", "")) if kind in ("execute_input", "error") else None
    if execution is not None and kind == "error":
        execution.interrupted = session.unpack(message[CONTENT])["ename"] == INTERRUPTED
    elif execution is not None:  # not the code itself, nor what could be told from one server to the next
        execution.code = hash(session.unpack(message[CONTENT])["code"])
    return state
