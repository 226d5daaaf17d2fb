"""The websocket edge: no Nagle's algorithm between kernel and client, no poll for a kernel just claimed, and
nothing lost right after a restart.

Upstream workaround: jupyter_server never sets TCP_NODELAY on kernel websockets, so the second of two small
messages waits for the delayed acknowledgement of the first (40 ms on Linux). tornado sets it for HTTP
responses only. https://github.com/jupyter-server/jupyter_server/blob/main/jupyter_server/services/kernels/websocket.py
`tests/integration/test_websocket.py::test_stock_still_lacks_nodelay` fails when upstream does it, and this can go.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool.bounded import Bounded
from jupyter_kernelpool.dead_kernels import DeadKernels
from jupyter_kernelpool.held_replies import HeldReplies
from jupyter_kernelpool.messages import NO_MESSAGE
from jupyter_kernelpool.notices import Notices, read_incoming
from jupyter_kernelpool.nudge import is_nudge
from jupyter_kernelpool.pings import Pinged
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.traffic import Traffic

PROBE_EVERY = 0.02
HOLD_TIMEOUT = 10.0


class Prompt:
    """Mixin over any kernel websocket connection class of jupyter_server's.

    After a restart the client's ZeroMQ sockets reconnect to the successor one by one, and what that publishes before
    they have is lost: a cell that was sent to a process that stock still starts runs as soon as that has the shell's
    port, and its output is gone where iopub connects later. So what a client sends meanwhile is held until its iopub
    is heard. What it sends to run in a process that is about to be replaced is held for the next one.
    """

    websocket_handler: Any
    kernel_manager: Any
    session: Any
    channels: Any
    kernel_info_timeout: float
    kernel_id: str
    subprotocol: Any
    remember_protocol: Any
    answer_for_dead: Any
    why_dead: Any
    log: Any
    _subscribed: Any = None  # the process that this connection's iopub is known to hear
    _held: list[Any]
    _probes: dict[str, int]  # requests of ours whose echoes are not the client's, and which channel they went by
    _echo: asyncio.Future[None] | None = None
    _delivery: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = []
        self._probes = {}

    def connect(self) -> Any:
        """Called by the websocket handler once the connection is open; it awaits what this returns."""
        self.websocket_handler.set_nodelay(True)
        self.remember_protocol()
        process = self._process()
        self._subscribed = process  # stock's nudge in `connect` ends when iopub is heard
        if not isinstance(process, Process) or process.serving.done():
            return super().connect()  # type: ignore[misc]
        return asyncio.ensure_future(self._connect_once(process.serving))

    def nudge(self) -> Any:
        """As stock, the future that is done when iopub is heard; but a kernel of the pool is known to serve.

        So one request on control is enough, which its main thread need not answer, repeated soon if it came
        before the subscription did; stock asks on shell and control, and again after half a second.
        """
        process = self._process()
        if not isinstance(process, Process) or self.kernel_manager.execution_state == "busy":
            return super().nudge()  # type: ignore[misc]
        return asyncio.ensure_future(self._hear(process))

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """As stock; held first while a restart is under way, and answered for a kernel that stays dead."""
        if self.answer_for_dead(incoming_msg):
            return
        process = self._process()
        leaving = isinstance(process, Process) and not process.stays.is_set()
        if (leaving and not self._is_for_shell(incoming_msg)) or (not self._held and self._hears(process)):
            super().handle_incoming_message(incoming_msg)  # type: ignore[misc]
            return
        self._held.append(incoming_msg)
        if self._delivery is None or self._delivery.done():
            self._delivery = asyncio.ensure_future(self._deliver_held())

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """As stock, but for what our own probes and nudges bring; and what is no message is left out.

        Upstream workaround: stock raises there, and its client hears no more of that channel: pyzmq (zmqstream.py
        `_handle_events`) looks whether more has come when its callback is done, and a socket does not say so twice.
        """
        is_iopub = getattr(stream, "channel", stream) == "iopub"
        try:
            if is_iopub and is_nudge(outgoing_msg):
                return  # a client would take it for the end of a cell that runs
            if is_iopub and self._probes and self._is_echo(outgoing_msg):
                return
            super().handle_outgoing_message(stream, outgoing_msg)  # type: ignore[misc]
        except WebSocketClosedError:
            raise  # more is not to be read before it is kept for this client: its connection is about to end
        except NO_MESSAGE:  # whatever runs in the kernel can send it, as often as it likes
            self.log.debug("Kernel %s sent what is no message", self.kernel_id, exc_info=True)
        except Exception:
            self.log.exception("Kernel %s: a message could not be passed on", self.kernel_id)

    async def _connect_once(self, serving: asyncio.Future[None]) -> None:
        """Wait the few milliseconds that a claimed kernel needs to serve; stock would look again after 50."""
        with contextlib.suppress(Exception):  # a kernel that ended meanwhile is stock's business below
            await asyncio.shield(serving)
        if self.websocket_handler.ws_connection is not None:
            await super().connect()  # type: ignore[misc]

    def _process(self) -> Any:
        """The process behind the kernel; None during a restart, or where the kernel is not of our manager."""
        provisioner = getattr(self.kernel_manager, "pooled", None)
        return provisioner.process if provisioner is not None else None

    def _hears(self, process: Any) -> bool:
        if getattr(self.kernel_manager, "pooled", None) is None:
            return True
        stays = not isinstance(process, Process) or process.stays.is_set()
        return process is not None and process is self._subscribed and _runs(process) and stays

    def _is_for_shell(self, incoming_msg: Any) -> bool:
        return read_incoming(self.subprotocol, incoming_msg)[0] == "shell"

    async def _deliver_held(self) -> None:
        leaving = self._process()
        if isinstance(leaving, Process):
            await leaving.stays.wait()
        try:
            async with asyncio.timeout(HOLD_TIMEOUT):
                while self.why_dead() is None and not self._hears(process := self._process()):
                    if process is None or not _runs(process):
                        await asyncio.sleep(PROBE_EVERY)
                    elif process is self._subscribed:  # it is about to be replaced
                        await process.stays.wait()
                    else:
                        await self._probe(process)
                        self._subscribed = process
        except TimeoutError:
            pass  # a kernel that is silent gets it nevertheless, as with stock
        except Exception:
            self.log.exception("Kernel %s: it is not known to be heard", self.kernel_id)
        self._subscribed = self._process()
        held, self._held = self._held, []
        for message in held:
            if self.answer_for_dead(message):
                continue  # it was held before anybody knew that the kernel stays dead
            try:
                super().handle_incoming_message(message)  # type: ignore[misc]
            except OSError:
                pass  # the client has gone meanwhile, and its streams are closed
            except Exception:
                self.log.exception("Kernel %s: a message could not be passed on", self.kernel_id)

    async def _hear(self, process: Process) -> None:
        """Wait until the iopub of this new connection brings something."""
        iopub = self.channels["iopub"]
        heard = asyncio.get_running_loop().create_future()
        iopub.on_recv(lambda _: None if heard.done() else heard.set_result(None))
        try:
            async with asyncio.timeout(self.kernel_info_timeout):
                await self._ask_until(heard, process)
        except TimeoutError:
            self.log.warning("Kernel %s is not heard on iopub; its websocket opens nevertheless", self.kernel_id)
        finally:
            if not iopub.closed():
                iopub.stop_on_recv()

    async def _probe(self, process: Any) -> None:
        """Ask *process* for its info until our iopub hears that it answers."""
        if isinstance(process, Process):
            with contextlib.suppress(Exception):  # it ended: the next turn of the loop sees that
                await asyncio.shield(process.serving)
        if not isinstance(self, ZMQChannelsWebsocketConnection):
            return  # another's class has sockets of its own, and shows us nothing of what they hear
        self._echo = asyncio.get_running_loop().create_future()
        await self._ask_until(self._echo, process)

    async def _ask_until(self, heard: asyncio.Future[None], process: Any) -> None:
        """Send `kernel_info_request`s, on channels of their own, until *heard* is done.

        A kernel of the pool is asked on control. One that stock started may answer on shell only (IRkernel does), and
        while it does not listen yet what is sent waits for it: so it is asked on both, and again once it has answered.
        """
        if heard.done():
            return
        is_stocks = not isinstance(process, Process)
        connects = [self.kernel_manager.connect_control, *([self.kernel_manager.connect_shell] if is_stocks else [])]
        answered = asyncio.Event()
        answered.set()  # nothing is asked yet
        with contextlib.ExitStack() as opened:
            channels = []
            for connect in connects:
                channels.append(connect())
                opened.callback(channels[-1].close, linger=0)  # what its process has not read is not the next one's
                channels[-1].on_recv(lambda _: answered.set())
            while not heard.done() and _runs(process) and self._has_client():
                if answered.is_set() or not is_stocks:
                    answered.clear()
                    for place, channel in enumerate(channels):
                        self._probes[self.session.send(channel, "kernel_info_request")["header"]["msg_id"]] = place
                await asyncio.wait([heard], timeout=PROBE_EVERY)

    def _has_client(self) -> bool:
        """Whether its client is there; what comes for one that has left is kept for it, and no echo is seen."""
        return bool(self.channels) and self.websocket_handler.ws_connection is not None

    def _is_echo(self, outgoing_msg: list[Any]) -> bool:
        _, parts = self.session.feed_identities(outgoing_msg)
        probe = self.session.unpack(parts[2]).get("msg_id")
        if probe not in self._probes:
            return False
        if self._echo is not None and not self._echo.done():
            self._echo.set_result(None)
        if self.session.unpack(parts[4]).get("execution_state") == "idle":
            asked = list(self._probes)
            for former in asked[: asked.index(probe) + 1]:  # those that nobody heard come no more
                if former == probe or self._probes[former] == self._probes[probe]:
                    del self._probes[former]
        return True


def _runs(process: Any) -> bool:
    """Whether *process*, of the pool or stock's, has not ended."""
    return process.alive if isinstance(process, Process) else process.poll() is None


class PooledWebsocketConnection(
    Prompt, Pinged, DeadKernels, HeldReplies, Notices, Traffic, Bounded, ZMQChannelsWebsocketConnection
):
    """jupyter_server's own connection class with ours over it; works with any kernel manager."""


def over(connection_class: type) -> type:
    """*connection_class* with our mixin over it; itself if it has that already."""
    if issubclass(connection_class, Prompt):
        return connection_class
    return type(
        f"Pooled{connection_class.__name__}",
        (Prompt, Pinged, DeadKernels, HeldReplies, Notices, Traffic, Bounded, connection_class),
        {"__module__": __name__},
    )
