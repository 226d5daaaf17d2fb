"""Warm kernels of any language, handed over whole: started early with a connection of their own.

Such a kernel can't be moved after its start, so its cwd is part of the recipe, and what belongs to a request
alone (`JPY_SESSION_NAME`) is not in its environment. Off unless a recipe asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session, new_id_bytes
from jupyter_core.paths import jupyter_runtime_dir

from jupyter_kernelpool.errors import LaunchFailed, Unfit
from jupyter_kernelpool.launchers.base import Launcher
from jupyter_kernelpool.launchers.confined import confined_command, prove
from jupyter_kernelpool.process import Process, until_ready
from jupyter_kernelpool.recipes import resolve_interpreter

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class WholeLauncher(Launcher):
    """Runs the kernelspec's own command and waits until the kernel answers `kernel_info`."""

    way = "whole"

    async def prepare(self) -> None:
        program = self._command("")[0]
        if shutil.which(program) is None:
            reason = f"{program!r} is not to be found"
            raise Unfit(reason, reason=reason, traceback="")
        await prove(self.recipe)

    def watched(self) -> list[str]:
        """The program and the kernelspec's folder; what else a kernel of another language reads is unknown."""
        program = shutil.which(self._command("")[0])
        return [path for path in (program, self.recipe.resource_dir) if path]

    async def launch(self, *, ahead: bool = True) -> Process:
        process = Process(self.new_record(), self.supervision, None)
        path = os.path.join(jupyter_runtime_dir(), f"kernelpool-{secrets.token_hex(8)}.json")
        self.supervision.guard([path])
        path, info = write_connection_file(
            path, key=new_id_bytes(), transport="tcp", kernel_name=self.recipe.kernel_name
        )
        process.connection = {**info, "file": path}
        try:
            pid = await self.supervision.spawn(
                confined_command(self._command(path), self.recipe.confinement, path),
                env={**self.recipe.environment, "JPY_PARENT_PID": str(self.supervision.pid)},
                cwd=self.recipe.cwd or "/",
                settings=None,
            )
            process.own(pid)
            answers = asyncio.ensure_future(_answers(dict(info), self.recipe.settings.load_timeout))
            answers.add_done_callback(lambda done: _pass_on(done, process))
            try:
                await until_ready(process, self.recipe.settings.load_timeout)
            finally:
                answers.cancel()
        except BaseException:
            process.discard("not launched")
            self.forget(process)
            raise
        process.exited.add_done_callback(lambda _: self.forget(process))
        process.serving.set_result(None)
        return process

    def forget(self, process: Process) -> None:
        """Remove the process's own connection file."""
        if process.connection is not None:
            path = str(process.connection["file"])
            with contextlib.suppress(OSError):
                os.unlink(path)
            self.supervision.release([path])

    async def close(self) -> None:
        """Nothing stands behind kernels handed over whole."""

    def _command(self, connection_file: str) -> list[str]:
        values = {"{connection_file}": connection_file, "{resource_dir}": self.recipe.resource_dir}
        argv = [values.get(part, part.replace("{resource_dir}", self.recipe.resource_dir)) for part in self.recipe.argv]
        return [resolve_interpreter(argv[0]), *argv[1:]]


async def _answers(info: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Ask on the control channel until the kernel answers; returns what `Process.ready` carries."""
    session = Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"])
    context = zmq.asyncio.Context.instance()
    with context.socket(zmq.DEALER) as control:
        control.linger = 0
        control.connect(f"tcp://{info['ip']}:{info['control_port']}")
        async with asyncio.timeout(timeout):
            session.send(control, "kernel_info_request")
            await control.recv_multipart()
    return {"event": "warm"}


def _pass_on(answer: asyncio.Future[dict[str, Any]], process: Process) -> None:
    if answer.cancelled() or process.ready.done():
        return
    error = answer.exception()
    if error is None:
        process.ready.set_result(answer.result())
    else:
        process.ready.set_exception(LaunchFailed(f"the kernel did not answer: {error!r}"))
