"""Start, shutdown and restart of one kernel without stock's waits: the part of its manager that drives processes.

Stock in everything else, and wholly so without a pool.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import zmq
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.manager import KernelManager, _get_future, _ShutdownStatus
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from jupyter_kernelpool.allowance import Breach
from jupyter_kernelpool.errors import NotEnforceable
from jupyter_kernelpool.launchers.cold import in_pieces
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.provisioner import PoolProvisioner
from jupyter_kernelpool.restarter import PromptRestarter

LOCAL_PROVISIONER = "local-provisioner"
WAITING = 16  # messages of iopub that the server has not yet read, for each subscriber


def pending(
    method: Callable[..., Coroutine[Any, Any, Any]],
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """jupyter_client's `in_pending_state` without its sleep of 10 ms: the same meaning of `ready`.

    Source: jupyter_client/manager.py `in_pending_state`, which sleeps for its own tests' sake.
    """

    @functools.wraps(method)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._attempted_start or not self._ready:
            self._ready = _get_future()
        try:
            result = await method(self, *args, **kwargs)
            if self.pool is None or getattr(self.parent, "use_pending_kernels", False):
                # Whoever starts a pending kernel sees it pending at least once, as with stock.
                await asyncio.sleep(0.01)
            if self.owns_kernel:
                self._ready.set_result(None)
            return result
        except asyncio.CancelledError:
            self._ready.cancel()  # as where the server stops: its `shutdown_all` asks whether it failed
            raise
        except Exception as error:
            self._ready.set_exception(error)
            self.log.exception(error)
            raise

    return wrapper


def _undecorated(name: str) -> Any:
    """Stock's method without `in_pending_state` around it."""
    method = getattr(KernelManager, name)
    return getattr(method, "__wrapped__", method)


class PromptKernelManager(AsyncIOLoopKernelManager):
    """Start, shutdown and restart of one kernel, driven by what happens instead of by polls and sleeps.

    It stands below ServerKernelManager in the method resolution order, so that its `start_kernel` and the
    like still emit their events. jupyter_client has two names for each method, and both are overridden.
    """

    pool: KernelPool | None = None
    restarts_for: tuple[str, str] | None = None  # why the next restart is made: a word and a sentence; None: asked for
    stays_dead_for: Breach | None = None  # the limit that its process crossed: nobody restarts it but its user
    origin: Process | None = None  # the fork that this kernel is to be; taken by its first start
    _sends_in_pieces = False  # it started cold, and has that of our kernels
    _start_kernel = _undecorated("_async_start_kernel")
    _shutdown_kernel = _undecorated("_async_shutdown_kernel")

    @pending
    async def _async_start_kernel(self, **kw: Any) -> None:
        kernel_id = self.kernel_id or kw.get("kernel_id", "")
        self.kernel_asked_for(kernel_id)
        try:
            await self._start_kernel(**kw)
        except BaseException as error:
            self.kernel_did_not_start(kernel_id, error)
            raise
        self.kernel_started()

    @pending
    async def _async_shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        if restart:
            self.kernel_restarts()
        await self._shutdown_kernel(now=now, restart=restart)

    start_kernel: Any = _async_start_kernel
    shutdown_kernel: Any = _async_shutdown_kernel

    async def _async_pre_start_kernel(self, **kw: Any) -> Any:
        if self.provisioner is None and self.pool is not None and self.pool.active:
            self._put_provisioner(kw)
        self._refuse_outside_sandbox()
        prepared = await super()._async_pre_start_kernel(**kw)
        self.kernel_starts()
        return prepared

    pre_start_kernel: Any = _async_pre_start_kernel

    async def _async_post_start_kernel(self, **kw: Any) -> None:
        """As stock, but the control socket is left to whoever first needs it: stock connects it there, too."""
        if self.pooled is None or self.pooled.claimed is None:
            await super()._async_post_start_kernel(**kw)
            if self.pooled is None:
                await self._hold_anothers()
            return
        _ = self.context  # where nobody gave one, stock makes it here: it is then closed when the kernel is shut down
        self.start_restarter()
        await self.pooled.post_launch(**kw)

    post_start_kernel: Any = _async_post_start_kernel

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        if type(self.provisioner) is LocalProvisioner:
            kernel_cmd = self.cold_command(kernel_cmd)
        await super()._async_launch_kernel(kernel_cmd, **kw)

    _launch_kernel: Any = _async_launch_kernel

    def cold_command(self, cmd: list[str]) -> list[str]:
        """What is run in place of *cmd*, the kernelspec's own command, where stock starts this kernel."""
        limited = self.output_is_limited() and self.kernel_spec is not None
        command = in_pieces(cmd, self.kernel_spec) if limited else cmd
        self._sends_in_pieces = command != cmd
        return command

    async def _hold_anothers(self) -> None:
        try:
            await self.kernel_is_anothers()
        except BaseException:
            self.stop_restarter()
            await self._async_kill_kernel()
            await self._async_cleanup_resources()
            raise

    def _reconcile_connection_info(self, info: Any) -> None:
        """As stock, which reads the file again; what a claim goes by was just written to it."""
        if self.pooled is None or self.pooled.claimed is None or info != self.get_connection_info():
            super()._reconcile_connection_info(info)

    async def _async_request_shutdown(self, restart: bool = False) -> None:
        """As stock, but not of a process that has ended: its successor, which has the same address, would obey."""
        if self.pooled is None or await self.is_alive():
            await super()._async_request_shutdown(restart=restart)

    request_shutdown: Any = _async_request_shutdown

    async def _async_finish_shutdown(
        self, waittime: float | None = None, pollinterval: float = 0.1, restart: bool = False
    ) -> None:
        """As stock; but at a restart the successor may begin as soon as the predecessor let go of its sockets."""
        provisioner = self.pooled
        process = provisioner.claimed if provisioner is not None else None
        if provisioner is None or process is None or not restart:
            await super()._async_finish_shutdown(waittime, pollinterval, restart)
            return
        patience = max(self.shutdown_wait_time if waittime is None else waittime, 0) / 2
        for status, step in (
            (_ShutdownStatus.SigtermRequest, provisioner.terminate),
            (_ShutdownStatus.SigkillRequest, provisioner.kill),
        ):
            try:
                async with asyncio.timeout(patience):
                    await asyncio.shield(process.hung_up)
                break
            except TimeoutError:
                self._shutdown_status = status
                await step(restart=restart)
        else:
            await asyncio.shield(process.exited)
        provisioner.let_go(patience or 1.0)

    finish_shutdown: Any = _async_finish_shutdown

    async def _async_wait(self, pollinterval: float = 0.1) -> None:
        """Wait for the end of the process; called by stock with a timeout around it."""
        process = self.pooled.claimed if self.pooled is not None else None
        if process is not None:
            await asyncio.shield(process.exited)
        await super()._async_wait(pollinterval=pollinterval)

    async def replace_process(self, successor: Process) -> None:
        """Let *successor*, a fork, become this kernel, under the same id, ports and key; clients stay.

        No restart: the restarter must not see the moment without a process. When it fails, the kernel is dead, and
        the restarter starts a fresh one, unless the kernel had been left dead before.
        """
        assert self.pooled is not None
        server_manager: Any = self
        watched, was_dead = self._is_watched(), self.pooled.has_ended
        state = getattr(self, "execution_state", "")
        self.stop_restarter()
        if state not in ("", "idle"):
            server_manager.execution_state = "starting"  # it may have died while it was busy
        if was_dead:
            self.what_ran_is_lost()
        try:
            await self.pooled.replace(successor)
        except BaseException:
            if state:
                server_manager.execution_state = state
            if watched:
                self.start_restarter()
            raise
        self.start_restarter()

    def _is_watched(self) -> bool:
        """Whether the kernel would be restarted if it ended."""
        return self._restarter is not None and self._restarter._pcallback is not None

    def what_ran_is_lost(self) -> None:
        """The process is dead, and another takes its place: what ran in it gets no answer any more."""

    def connect_iopub(self, *args: Any, **kwargs: Any) -> Any:
        """As stock; but ZeroMQ, which counts messages and not bytes, holds few for the server: a thousand images are a
        gigabyte. The others wait in the kernel, which holds the more (`kernelside/app.py`): none is lost for that.

        Not to be changed while messages come: libzmq (`pipe.cpp`) would forget those that were read, and may sleep for
        ever. None has come yet, for nobody has asked for them before this one.
        """
        stream = super().connect_iopub(*args, **kwargs)
        if self._sends_in_pieces or (self.pooled is not None and self.pooled.claimed is not None):
            stream.socket.setsockopt(zmq.RCVHWM, WAITING)
            stream.is_shallow = True  # what is not read from it waits in the kernel
        return stream

    def cleanup_ipc_files(self) -> None:
        """As stock, which does it at each restart too; the files of a bound identity outlive its processes."""
        if self.pooled is None or not self.pooled.identity.bound:
            super().cleanup_ipc_files()

    def start_restarter(self) -> None:
        super().start_restarter()
        if isinstance(self._restarter, PromptRestarter) and self.pooled is not None:
            # Ports can't be lost to somebody else while the server holds the listeners.
            self._restarter.random_ports_until_alive = False

    @property
    def pooled(self) -> PoolProvisioner | None:
        """Our provisioner, if this kernel has it."""
        return self.provisioner if isinstance(self.provisioner, PoolProvisioner) else None

    def _put_provisioner(self, kw: dict[str, Any]) -> None:
        """Use ours where stock would use its local one; a kernelspec that names another keeps it."""
        assert self.pool is not None
        spec = self.kernel_spec
        if spec is None or not is_ours_to_provision(spec, self.parent):
            return
        self.kernel_id = self.kernel_id or kw.get("kernel_id") or str(uuid.uuid4())  # as stock would a line later
        provisioner = PoolProvisioner(manager=self, kernel_id=self.kernel_id, kernel_spec=spec)
        provisioner.pool = self.pool
        provisioner.on_exit = self._kernel_exited
        provisioner.on_serving = self.kernel_serves
        provisioner.on_process = self.kernel_has_process
        provisioner.on_not_started = self.kernel_not_started
        provisioner.cold_command = self.cold_command
        provisioner.temporary = getattr(self, "temporary", False)
        provisioner.origin, self.origin = self.origin, None
        self.provisioner = provisioner

    def kernel_starts(self) -> None:
        """Its first process, or the next one, is about to start: the former one runs no more."""

    def kernel_asked_for(self, kernel_id: str) -> None:
        """A process is to be made for this kernel: its first, or the next one."""

    def kernel_did_not_start(self, kernel_id: str, error: BaseException) -> None:
        """It could not be made."""

    def kernel_did_not_come_back(self, error: Exception) -> None:
        """Its process ended, and its restarter could not make another; nobody tries again."""
        raise error

    def kernel_started(self) -> None:
        """It is made, and need not answer yet."""

    def kernel_restarts(self) -> None:
        """The process is about to be replaced by a fresh one, for `restarts_for` if that is set."""

    def _refuse_outside_sandbox(self) -> None:
        """Raise `NotEnforceable` for a kernel that is to be confined and that others than we would start."""
        pool = self.pool
        if pool is None or not pool.enabled or self.pooled is not None or not pool.is_sandboxed(self.kernel_name):
            return
        why = "its kernelspec or the server names another provisioner" if pool.active else "the pool does not run"
        raise NotEnforceable(f"the sandbox of {self.kernel_name!r} can't be made: {why}")

    def kernel_serves(self, process: Process) -> None:
        """*process*, the first or the next one behind this kernel, answers whoever connects."""

    async def kernel_has_process(self, pid: int) -> None:
        """*pid* is to be this kernel's process, which its user does not have yet. Raises `NotEnforceable`."""

    async def kernel_is_anothers(self) -> None:
        """Another provisioner than ours has started its process. Raises `NotEnforceable`; it is ended then."""

    def kernel_not_started(self, error: OSError) -> None:
        """The kernelspec's command can't be executed."""

    def output_is_limited(self) -> bool:
        """Whether its executions are held to a limit on output from their first on."""
        return False

    async def stays_dead(self) -> bool:
        """Whether its process, which has ended, is not to be replaced; asked by the restarter."""
        return self.stays_dead_for is not None

    def _kernel_exited(self) -> None:
        if isinstance(self._restarter, PromptRestarter):
            self._restarter.poke()


def is_ours_to_provision(spec: Any, parent: Any) -> bool:
    """Whether stock would use its local provisioner for *spec*; *parent* is the server's kernel manager."""
    factory = KernelProvisionerFactory.instance(parent=parent)
    return "kernel_provisioner" not in spec.metadata and factory.default_provisioner_name == LOCAL_PROVISIONER
