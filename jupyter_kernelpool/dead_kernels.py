"""What clients get of a kernel that stays dead until somebody restarts it: a websocket, and the reason."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from jupyter_kernelpool.messages import NO_MESSAGE
from jupyter_kernelpool.notices import read_incoming


class DeadKernels:
    """Mixin over any kernel websocket connection class of jupyter_server's that has `Notices`."""

    multi_kernel_manager: Any
    kernel_manager: Any
    session: Any
    kernel_id: str
    edge: Any
    subprotocol: Any
    refuse: Any
    _register_session: Any

    async def prepare(self) -> None:
        """As stock; but for a dead kernel the websocket opens at once, and who restarts it is its client.

        Stock waits for a minute that it comes to life, and then fails.
        """
        prepare = getattr(super(), "prepare", None)
        if prepare is None:
            return  # another's class, which has nothing to do before it connects
        if self.why_dead() is None or not hasattr(self, "_register_session"):
            await prepare()
            return
        await self._register_session()
        self.session.key = self.kernel_manager.session.key

    def nudge(self) -> Any:
        """As stock, the future that is done when the kernel is heard; nobody waits for a dead one."""
        if self.why_dead() is None:
            return super().nudge()  # type: ignore[misc]
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def answer_for_dead(self, incoming_msg: Any) -> bool:
        """Answer what the client asks a kernel to run that stays dead until somebody restarts it; whether that was so.

        ZeroMQ would keep it, and the next process run it. The status `dead` is not sent: JupyterLab takes it for the
        end of the kernel, and its button for restarts then does nothing (@jupyterlab/services, `KernelConnection`).
        """
        why = self.why_dead()
        if why is None:
            return False
        with contextlib.suppress(*NO_MESSAGE):
            channel, header, _ = read_incoming(self.subprotocol, incoming_msg)
            if channel == "shell" and header.get("msg_type") == "execute_request":
                self.refuse(header, "KernelDied", why)
                return True
        return False

    def why_dead(self) -> str | None:
        """Why the kernel is dead, and what to do; None where it lives, or is being restarted."""
        manager: Any = self.multi_kernel_manager
        if self.edge is None or self.kernel_id not in manager:
            return None
        kernel = manager.get_kernel(self.kernel_id)
        if getattr(kernel, "execution_state", "") != "dead" or kernel.shutting_down or not kernel.ready.done():
            return None
        reason = str(getattr(kernel, "reason", "") or "").rstrip(".")
        return f"The kernel {self.kernel_id} is dead{f' ({reason})' if reason else ''}. Restart it."
