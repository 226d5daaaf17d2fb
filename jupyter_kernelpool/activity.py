"""Feeds a kernel's ledger from the stream with which jupyter_server watches its activity: also without a client."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jupyter_kernelpool.ledger import Ledger
from jupyter_kernelpool.messages import CONTENT, HEADER, NO_MESSAGE, PARENT
from jupyter_kernelpool.nudge import is_nudge
from jupyter_kernelpool.output import display_of, size_of

READ = ("status", "error", "execute_input")  # whose content counts
INTERRUPTED = "KeyboardInterrupt"  # ipykernel's name for it

log = logging.getLogger("jupyter_kernelpool")


def feed(kernel: Any, ledger: Ledger, alive: Callable[[], None] | None = None) -> None:
    """Have *ledger* hear what *kernel*'s activity stream brings, after jupyter_server did; *alive* is called whenever
    that shows that the kernel is up. Neither hears of our own nudges: they are no activity.

    Called once the stream is watched (jupyter_server's `start_watching_activity`), as after a restart with other ports.
    """
    stream, session = kernel._activity_stream, kernel.session
    stock = stream._recv_callback

    def hear(parts: list[Any]) -> None:
        # It must not raise, nor stock's: nothing would be heard of the kernel any more, not even of its next process.
        # A ZMQStream looks whether more has come when its callback is done, and its socket does not say so twice.
        try:
            heard = read_one(parts)
            if heard is not None:
                heard.tell(ledger)
                if alive is not None and heard.state != "starting":
                    alive()
        except Exception:
            log.exception("Kernel %s: what it published could not be taken note of", kernel.kernel_id)

    def read_one(parts: list[Any]) -> Heard | None:
        try:
            if is_nudge(parts):
                return None
            stock(parts)
            return Heard.read(session, parts)
        except NO_MESSAGE:  # whatever runs in the kernel can publish there
            log.debug("Kernel %s published what is no message", kernel.kernel_id, exc_info=True)
            return None

    stream.on_recv(hear)


@dataclass(frozen=True)
class Heard:
    """What a ledger takes note of, of one message of iopub; *state* is what a status names, *display* what it updates,
    *code* a hash of what runs (not the code itself, nor what could be told from one server to the next)."""

    kind: str
    parent: dict[str, Any]
    size: int
    state: str | None
    display: str
    error: str | None = None
    code: int | None = None

    @classmethod
    def read(cls, session: Any, parts: list[Any]) -> Heard:
        """Read *parts*, as ZeroMQ gave them; raises one of `NO_MESSAGE`."""
        _, message = session.feed_identities(parts)
        kind = session.unpack(message[HEADER])["msg_type"]
        content = session.unpack(message[CONTENT]) if kind in READ else {}
        return cls(
            kind,
            session.unpack(message[PARENT]),
            size_of(message[CONTENT:]),
            content.get("execution_state") if kind == "status" else None,
            display_of(kind, message[CONTENT], session.unpack),
            content["ename"] if kind == "error" else None,
            hash(content["code"]) if kind == "execute_input" else None,
        )

    def tell(self, ledger: Ledger) -> None:
        """Have *ledger* take note of it."""
        ledger.heard(self.kind, self.parent, self.size, self.state, time.monotonic(), self.display)
        execution = ledger.find(self.parent.get("msg_id", "")) if self.kind in ("execute_input", "error") else None
        if execution is not None and self.kind == "error":
            execution.interrupted = self.error == INTERRUPTED
        elif execution is not None:
            execution.code = self.code
