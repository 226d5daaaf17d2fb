"""jupyter_client's door: where stock says "launch this kernel", ask the pool for a warm one.

All else is stock's LocalProvisioner: ports, encryption policy, connection file, environment and command are
worked out by it; and it launches the kernel itself whenever the pool has nothing to give.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from string import Template
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import localhost
from jupyter_client.provisioning import LocalProvisioner

from jupyter_kernelpool import metrics
from jupyter_kernelpool.adoption import Adoption, Request
from jupyter_kernelpool.cold_start import ColdStart
from jupyter_kernelpool.errors import LaunchFailed
from jupyter_kernelpool.identity import Identity
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.lifecycle import Record, State
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.process import Process
from jupyter_kernelpool.recipe_pool import RecipePool
from jupyter_kernelpool.recipes import CONNECTION_FILE, Recipe
from jupyter_kernelpool.recovery import describe_end, is_crash

Makers = tuple[RecipePool, Launcher | None]

# What a start may carry besides, and still be served by a claim: the rest is for Popen, so for a cold start.
CLAIMABLE_ARGUMENTS = {"env", "cwd", "kernel_id", "cmd"}


class PoolProvisioner(LocalProvisioner):
    """Launches by claiming; *pool* is set by the KernelManager that made it."""

    pool: KernelPool
    process: Any  # a Popen, as stock has it, or a Process of the pool
    on_exit: Callable[[], None] | None = None
    on_serving: Callable[[Process], None] | None = None
    on_process: Callable[[int], Awaitable[None]] | None = None  # before the user has it; raises `NotEnforceable`
    on_not_started: Callable[[OSError], None] | None = None  # its command can't be executed
    cold_command: Callable[[list[str]], list[str]] | None = None  # what is run where stock starts it

    def __init__(self, *, manager: Any, **kwargs: Any) -> None:
        # Without `parent`, which would merge the whole configuration (0.5 ms) for a class without options.
        super().__init__(**kwargs)
        self.parent = manager
        self.identity = Identity(manager, lambda paths: self.pool.supervision.guard(paths))
        self.record: Record | None = None
        self.temporary = False
        self.created = time.time()
        self._asked: Request | None = None
        self._recipe_pool: RecipePool | None = None
        self._whole: Process | None = None
        self._begun: Process | None = None
        self.origin: Process | None = None  # the fork of a live kernel that this kernel is to be
        self._launched = False
        self._crashed = ""  # how its last process, one of the pool's, ended before it answered
        self._cold: ColdStart | None = None

    # -- launching ----------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Called by `KernelManager.pre_start_kernel`: bind the id's listeners first, then as stock.

        The ports are thereby set before stock would look for free ones, and stock writes the connection file
        (with `jupyter_session`) exactly once.
        """
        manager: Any = self.parent
        if manager.connection_file:  # before it is written: the server may be killed just then
            self.pool.supervision.guard([manager.connection_file])
        self._recipe_pool = None
        self._asked = self._request(kwargs)
        crashed, self._crashed = self._crashed, ""
        if self.origin is not None:
            if self._asked is None or not self.identity.bind():
                self._abandon()
                raise LaunchFailed("the fork could not be given listeners of its own", reason="no_listeners")
            self.ports_cached = True
        elif crashed and not self._sandboxed:
            self._say_why_cold(f"its process {crashed} before it answered")
        elif self._asked is not None:
            self._recipe_pool = self.pool.poolable(self._asked)
            if self._recipe_pool is not None:
                if self.identity.bind():
                    self.ports_cached = True
                    self._begin_claim()
                else:
                    self._say_why_cold("its listeners could not be bound")
            elif not manager._connection_file_written:
                await self._take_whole(self._asked)
            if self._sandboxed and self.pool.recipe_for(self._asked).adoptable and self._recipe_pool is None:
                self.ports_cached = self.identity.bind() or self.ports_cached
        try:
            prepared = await super().pre_launch(**kwargs)
        except BaseException:
            self._abandon()
            raise
        self.pool.supervision.guard([manager.connection_file, *self.identity.ipc_paths()])
        return prepared

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Called by `KernelManager.launch_kernel`: a claimed kernel if there is one, else stock's launch."""
        began = time.monotonic()
        self.pool.user_start_began(self.kernel_id)
        try:
            process, makers = await self._take_origin(cmd) or self._whole, None
            self._whole = None
            if process is None:
                process = await self._claim(cmd)
                makers = (self._recipe_pool, self._recipe_pool.launcher) if process and self._recipe_pool else None
            if process is None and self._sandboxed:
                process = await self._start_confined(cmd)
            if process is None:
                await self._launch_cold(cmd, kwargs)
                await self._limit(self.pid)
                metrics.START.labels(way="cold").observe(time.monotonic() - began)
            else:
                self._take_over(process, kwargs.get("cwd"))
                await self._limit(process.pid)
                process.serving.add_done_callback(lambda done: self._serving(done, process, began, makers))
        except BaseException:
            self._abandon()
            raise
        self._launched = True
        return self.connection_info

    def _request(self, kwargs: dict[str, Any]) -> Request | None:
        """What the pool is asked for; None if this start can't be served by a claim."""
        arguments = {name for name, value in kwargs.items() if value not in (None, [], {})}
        if not self.pool.active:
            return None
        if self.temporary and self.origin is None and not self._sandboxed:
            self._say_why_cold("KernelPool.max_kernels are running, and it is temporary")
            return None
        if arguments - CLAIMABLE_ARGUMENTS:
            self._say_why_cold(f"it is started with {', '.join(sorted(arguments - CLAIMABLE_ARGUMENTS))}")
            return None
        manager: Any = self.parent
        spec = self.kernel_spec
        environment = dict(kwargs.get("env") or os.environ)
        if spec.env:  # what stock's pre_launch does with it
            environment.update({name: Template(value).safe_substitute(environment) for name, value in spec.env.items()})
        if spec.language.lower().startswith("python"):
            environment.pop("PYTHONEXECUTABLE", None)
        environment["JPY_PARENT_PID"] = str(os.getpid())
        cwd = os.path.abspath(kwargs.get("cwd") or os.getcwd())
        return Request(
            kernel_id=self.kernel_id,
            kernel_name=manager.kernel_name,
            spec=spec,
            environment=environment,
            cwd=cwd,
            transport=manager.transport,
        )

    def _begin_claim(self) -> None:
        """Let a warm kernel adopt while stock's `pre_launch` goes on; not where that makes keys first."""
        assert self._asked is not None
        assert self._recipe_pool is not None
        manager: Any = self.parent
        if self._is_encrypted():
            return
        self.pool.user_start_began(self.kernel_id)
        adoption = self._adoption(manager.get_connection_info(), manager.format_kernel_cmd())
        self._begun = self.pool.begin_claim(self._recipe_pool, self._asked, adoption)

    def _abandon(self) -> None:
        """The start failed: let go of what was taken for it, and of the identity too if no kernel ever had it.

        Nobody calls `cleanup` for a kernel that did not start; the listeners of one that did not come back after
        a restart stay, since its user may restart it.
        """
        for process in (self._begun, self.origin):
            if process is not None:
                process.discard("the start failed")
        self._begun = self.origin = None
        self.pool.user_start_ended(self.kernel_id)
        if not self._launched:
            manager: Any = self.parent
            manager.cleanup_connection_file()
            self._let_identity_go()

    def _let_identity_go(self) -> None:
        manager: Any = self.parent
        self.pool.supervision.release([manager.connection_file, *self.identity.ipc_paths()])
        self.identity.close()

    async def _claim(self, cmd: list[str]) -> Process | None:
        if self._asked is None or self._recipe_pool is None or not self.identity.bound:
            return None
        begun, self._begun = self._begun, None
        return await self.pool.claim(self._recipe_pool, self._asked, self._adoption(self.connection_info, cmd), begun)

    @property
    def _sandboxed(self) -> bool:
        manager: Any = self.parent
        return self.pool.is_sandboxed(manager.kernel_name)

    async def _start_confined(self, cmd: list[str]) -> Process | None:
        """A kernel of ours in its sandbox, or None where stock has to start it.

        Raises `NotEnforceable`, `LaunchFailed`.
        """
        if self._asked is None or not self.identity.bound:
            return None
        recipe = self.pool.recipe_for(self._asked)
        tried = self._recipe_pool is not None and self._recipe_pool.verified
        return await self.pool.start_confined(
            recipe, self._asked, self._adoption(self.connection_info, cmd, recipe), tried=tried
        )

    async def _take_origin(self, cmd: list[str]) -> Process | None:
        """The fork that this kernel is to be, once it has its identity; raises `LaunchFailed`: never a fresh one."""
        origin = self.origin
        if origin is not None:
            assert self._asked is not None
            await self.pool.hand_over(origin, self._asked, self._adoption(self.connection_info, cmd))
            self.origin = None
        return origin

    async def replace(self, successor: Process) -> None:
        """Let *successor*, a fork, serve the id in the place of its process, which is killed if it lives; returns once
        it serves.

        Called from `PromptKernelManager.replace_process`. Raises `LaunchFailed`; the id then has a dead process.
        """
        began = time.monotonic()
        former = self.process
        assert former is not None
        assert self._asked is not None
        try:
            await self._make_way()
            await self.pool.hand_over(successor, self._asked, self._adoption(self.connection_info, []))
        except BaseException:
            self.process = former
            successor.discard("it could not take the place of another")
            raise
        self._take_over(successor, self.cwd)
        await self._limit(successor.pid)
        successor.serving.add_done_callback(lambda done: self._serving(done, successor, began))
        await asyncio.shield(successor.serving)
        await asyncio.sleep(0)  # it may have served since before it was limited: `_serving` runs in the next turn
        if isinstance(former, Process):
            await asyncio.shield(former.exited)

    async def _make_way(self) -> None:
        """End the process, if it lives, and have the listeners: the websocket holds what comes from here on."""
        former, self.process = self.process, None
        if isinstance(former, Process):
            if former.record.state not in (State.STOPPING, State.DEAD):
                former.record.move(State.STOPPING, why="replaced", now=time.time())
            former.kill()  # its threads run no more; the successor need not wait until its memory is given back
            former.kill_what_is_left()
            return
        # Stock started it, and it binds the ports itself.
        if former.poll() is None:
            os.killpg(former.pid, signal.SIGKILL)
            await asyncio.to_thread(former.wait)
        self._note_end(former.poll())
        if not self.identity.bind():
            raise LaunchFailed("the kernel's ports could not be bound again", reason="no_listeners")

    async def _limit(self, pid: int | None) -> None:
        """Hold the process to its limits, before its user has it; one that can't be held is ended."""
        if self.on_process is None or not pid:
            return
        try:
            await self.on_process(pid)
        except BaseException as error:
            if self.claimed is not None:
                self.claimed.discard(f"not limited: {error}")
            else:
                await self.kill()
            raise

    def _adoption(
        self, connection_info: KernelConnectionInfo, cmd: list[str], recipe: Recipe | None = None
    ) -> Adoption:
        manager: Any = self.parent
        info = {**connection_info, "key": _text(connection_info["key"])}
        path = os.path.realpath(manager.connection_file)  # as stock does: format_kernel_cmd
        if recipe is None and self._recipe_pool is not None:
            recipe = self._recipe_pool.recipe
        command = recipe.command if recipe is not None else None
        arguments = [path if part == CONNECTION_FILE else part for part in command.arguments] if command else []
        return Adoption(info, path, self.identity.descriptors(), cmd, arguments)

    async def _take_whole(self, request: Request) -> None:
        """Take over the connection of a warm kernel of another kind, before stock writes the file."""
        if not self._may_be_whole():
            self._say_why_cold("its connection is encrypted, or not tcp on localhost")
            return
        process = await self.pool.claim_whole(request)
        if process is None or process.connection is None:
            return
        manager: Any = self.parent
        for name in ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"):
            setattr(manager, name, process.connection[name])
        manager.ip = process.connection["ip"]
        manager.session.key = process.connection["key"].encode()
        self.ports_cached = True
        self._whole = process

    def _may_be_whole(self) -> bool:
        """Whether this id is to have the connection that `WholeLauncher` gives: tcp on localhost, in the clear."""
        manager: Any = self.parent
        return bool(manager.transport == "tcp" and manager.ip == localhost() and not self._is_encrypted())

    def _say_why_cold(self, why: str) -> None:
        manager: Any = self.parent
        manager.log.info("Kernel %s starts cold: %s", self.kernel_id, why)

    def _is_encrypted(self) -> bool:
        manager: Any = self.parent
        encrypts = getattr(manager, "transport_encryption", "disabled") != "disabled"  # jupyter_client >= 8.9
        return bool(encrypts and manager._kernel_supports_curve_encryption())

    async def _launch_cold(self, cmd: list[str], kwargs: dict[str, Any]) -> None:
        self.identity.release()
        manager: Any = self.parent
        cold = self._cold = ColdStart(self.pool, manager.kernel_name, self.kernel_id)
        self.record = cold.record
        try:
            if self.cold_command is not None:
                cmd = self.cold_command(cmd)
            cmd, kwargs = await cold.prepare(cmd, kwargs, self._recipe_pool, manager.connection_file)
            await super().launch_kernel(cmd, **kwargs)
        except BaseException as error:
            cold.failed(error)
            if isinstance(error, OSError) and cmd and error.filename == cmd[0] and self.on_not_started is not None:
                self.on_not_started(error)
            raise
        assert self.pid is not None
        cold.began(self.pid)

    def _take_over(self, process: Process, cwd: Any) -> None:
        self.process = process
        self.record = process.record
        self.pid = self.pgid = process.pid
        self.cwd = cwd or os.getcwd()
        self._tell_kernel_info(process)
        process.exited.add_done_callback(lambda _: self._exited(process))

    def _tell_kernel_info(self, process: Process) -> None:
        """Spare the first websocket the question that it opens with: a warm kernel has told its info already.

        jupyter_server keeps the answer on the kernel manager (channels.py `request_kernel_info`).
        """
        manager: Any = self.parent
        if process.kernel_info is not None and not hasattr(manager, "_kernel_info_future"):
            manager._kernel_info_future = Future()
            manager._kernel_info_future.set_result(process.kernel_info)

    def _serving(
        self, done: asyncio.Future[None], process: Process, began: float, makers: Makers | None = None
    ) -> None:
        """*process* answers, or does not. *makers* are who made it ahead, of all such kernels alike."""
        if done.cancelled() or done.exception() is not None:
            self.pool.user_start_ended(self.kernel_id)
            if makers is not None:
                process.exited.add_done_callback(lambda _: self._did_not_serve(process, makers))
            return
        if makers is not None:
            makers[0].served()
        if process is self.process:
            self._crashed = ""
        metrics.START.labels(way=process.record.way).observe(time.monotonic() - began)
        manager: Any = self.parent
        if process is self.process and getattr(manager, "execution_state", None) == "starting":
            # Stock learns it from the first status that a client's request brings, in steps of 50 ms.
            manager.execution_state = "idle"
        if process is self.process and self.on_serving is not None:
            self.on_serving(process)
        self.pool.user_start_ended(self.kernel_id)

    def _did_not_serve(self, process: Process, makers: Makers) -> None:
        """It ended before it answered: where that was a crash, it may be for how we made it, so stock tries next."""
        if process is self.process and is_crash(process.exit_code):
            self._crashed = f"ended {describe_end(process.exit_code)}"
            pool, launcher = makers
            pool.did_not_serve(launcher, self._crashed)

    def _exited(self, process: Process) -> None:
        if process is self.process and self.on_exit is not None:
            self.on_exit()

    # -- the running kernel -------------------------------------------------------------------------

    @property
    def claimed(self) -> Process | None:
        """The pool's process behind this kernel, or None if it runs as stock started it."""
        return self.process if isinstance(self.process, Process) else None

    @property
    def has_ended(self) -> bool:
        """Whether the process behind this kernel has ended, and no other one is being started."""
        return self.process is not None and self.process.poll() is not None

    @property
    def lost_its_state(self) -> bool:
        """Whether the process has ended, or stock started it after one of the pool's; a fork may take its place."""
        if self.process is None or self._asked is None:
            return False
        return self.claimed is None or (self.has_ended and self.identity.bound)

    def let_go(self, timeout: float) -> None:
        """At a restart: the predecessor no longer holds the listeners; see it off in the background."""
        process = self.claimed
        if process is not None:
            if process.record.state not in (State.STOPPING, State.DEAD):
                process.record.move(State.STOPPING, why="restarted", now=time.time())
            self.pool.retire(process, timeout)
            self.process = None

    async def wait(self) -> int | None:
        """As stock, woken by the exit instead of by a poll every 100 ms."""
        process = self.claimed
        if process is not None:
            await asyncio.shield(process.exited)
        code = await super().wait()
        self._note_end(code)
        return code

    async def cleanup(self, restart: bool = False) -> None:
        """Called by `KernelManager.cleanup_resources`."""
        await super().cleanup(restart=restart)
        self._note_end(None)
        if not restart:
            self._let_identity_go()
            self.pool.user_start_ended(self.kernel_id)

    def _note_end(self, code: int | None) -> None:
        if self._cold is not None and self.process is None:
            self._cold.ended(code)
            self._cold = None


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
