"""An ipykernel application that is whole but for its identity: started, and bound to nothing yet.

Stock `IPKernelApp.initialize` reads the connection file first and binds as it goes. Here everything that
does not need the identity comes first (`build_shell` in a template, `start_unbound` in the process that
becomes the kernel); `take_identity` and `serve` follow when the claim brings it.

Facts about ipykernel were read in kernelapp.py, heartbeat.py and iostream.py of 6.29 and 7.4.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import zmq
from ipykernel.kernelapp import IPKernelApp
from IPython.core.application import ENV_CONFIG_DIRS, SYSTEM_CONFIG_DIRS
from jupyter_client.session import new_id
from traitlets import default

from . import confine, magics, pieces, strays
from .channels import CHANNELS, HELD, HandedHeartbeat, begin_in, bind_to_listener
from .history import LateHistory, without_history
from .machinery import Machinery

DEBUG_SHELL = "inproc://jupyter-kernelpool-debug-shell"
CONTROL_TIMEOUT = 1.0


class UnboundKernelApp(IPKernelApp):
    """`IPKernelApp` whose sockets are made at once and bound when the identity comes."""

    name = "ipython-kernel"
    _when_closed: Any = None
    _module_files: list[str] | None = None
    _patched_once = False
    machinery: Machinery
    parking: Any  # the orders to this kernel; its magics ask through it
    _complete = False
    _binding: list[Any]

    @default("outstream_class")
    def _send_in_pieces(self) -> str:
        """Ours in place of ipykernel's; not in place of one that was configured, or that we don't know."""
        stock = str(IPKernelApp.outstream_class.default_value)
        return pieces.NAME if stock == pieces.STOCK else stock

    def _try_bind_socket(self, s: zmq.Socket[Any], port: int) -> int:
        if s is self.iopub_socket:
            # Now, before it has a peer: libzmq tells each of them (socket_base.cpp `update_pipe_options`), and one that
            # was closed, and of whose end this socket has not heard yet, is no more: the process ended by SIGSEGV.
            s.setsockopt(zmq.SNDHWM, HELD)
        return port  # bound later, in take_identity

    def prepare(self, argv: list[str]) -> None:
        """Read configuration and arguments: what stock `initialize` does before it opens a connection file."""
        super(IPKernelApp, self).initialize(argv)
        self.init_pdb()
        self.init_blackhole()

    def build_shell(self) -> None:
        """Build the shell beforehand, without history; only for ipykernel's own kernel and shell.

        `IPythonKernel.__init__` asks for `shell_class.instance(…)` and is then given this one.
        """
        from ipykernel.compiler import XCachingCompiler
        from ipykernel.ipkernel import IPythonKernel
        from ipykernel.zmqshell import ZMQInteractiveShell

        if self.kernel_class is not IPythonKernel:
            return
        self.init_path()
        self.shell = without_history(
            lambda: ZMQInteractiveShell.instance(
                parent=self,
                profile_dir=self.profile_dir,
                compiler_class=XCachingCompiler,
                user_module=None,
                user_ns=self.user_ns,
            )
        )
        magics.load(self.shell)
        self._module_files = [
            file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))
        ]
        if not self.config.get("StoreMagics"):  # restores variables as it loads: the owner's business
            for extension in self.default_extensions:
                self.shell.extension_manager.load_extension(extension)

    def complete_shell(self) -> None:
        """Do beforehand what `finish_shell` need not do again, where the configuration has nothing run at start.

        Called when preloads and init code are done: what the namespace holds by then is not the user's.
        """
        options = (self.extensions, self.extra_extensions, self.exec_lines, self.exec_files, self.code_to_run)
        self.session  # noqa: B018  (made here; `own_session` makes it a fork's own)
        plain = not any((*options, self.file_to_run, self.module_to_run, self.gui, self.pylab, self.matplotlib))
        self._complete = plain and self._module_files is not None and not self.config.get("StoreMagics")
        if self._complete:
            shell: Any = self.shell
            if self.hide_initial_ns:
                shell.user_ns_hidden.update(shell.user_ns)
            shell._sys_modules_keys = set(sys.modules.keys())

    def start_unbound(self, attend: Callable[[Any], None] | None = None) -> None:
        """Make sockets, threads and the kernel; no channel listens and no loop of the main thread runs.

        *attend* is given the kernel before it starts.
        """
        prebuilt = self.shell
        self.machinery = Machinery()
        self.own_session()
        self.open_channels()
        self.init_signal()
        if prebuilt is None:
            without_history(self.init_kernel)
        else:
            self.init_kernel_sharing_pages()
        if prebuilt is not None:
            prebuilt.parent = self.kernel
            prebuilt.kernel = self.kernel
        self.init_path()
        self.init_shell()
        if self.shell is not None:
            magics.load(self.shell)
            strays.watch(self.shell)
        if attend is not None:
            attend(self.kernel)
        self.kernel.start()
        self.machinery.note(self)

    def open_channels(self) -> None:
        """Make the context, the sockets and the streams that stand for stdout and stderr."""
        # "running over TCP" would be said before it is known. Not by `log_level`: setting that takes 4 ms.
        logger = getattr(self.log, "logger", self.log)
        logger.disabled = True
        try:
            self.init_sockets()
        finally:
            logger.disabled = False
        self.heartbeat = HandedHeartbeat()
        self.heartbeat.start()
        self.init_io()
        self._patched_once = True

    def patch_io(self) -> None:
        """As stock, once a process: it wraps what it finds, in a fork its parent's wrapper."""
        if not self._patched_once:
            super().patch_io()

    def configure_tornado_logger(self) -> None:
        """As stock, once a process: it adds a handler."""
        if not self._patched_once:
            super().configure_tornado_logger()

    def own_session(self) -> None:
        """Make the template's session, whose making takes 2 ms, this process's (jupyter_client/session.py)."""
        strays.settle()
        session: Any = self.session
        session.pid = os.getpid()
        session.session = new_id()
        session.digest_history = set()

    def init_kernel_sharing_pages(self) -> None:
        """`init_kernel`, with the list of modules' files that the template made.

        ipykernel's kernel makes that list anew, which touches each module and its dict: 5 ms and 3 MB of
        pages that a fork then no longer shares.
        """
        from ipykernel import ipkernel

        stock_sys = ipkernel.sys
        ipkernel.sys = SimpleNamespace(**{**vars(stock_sys), "modules": {}})  # type: ignore[assignment]
        try:
            self.init_kernel()
        finally:
            ipkernel.sys = stock_sys
        kernel: Any = self.kernel
        kernel._kernel_modules = self._module_files
        debugger = getattr(kernel, "debugger", None)
        if debugger is not None:
            debugger.kernel_modules = self._module_files

    def _open_pipes(self) -> None:
        """Let each thread that publishes make its way to iopub now, not when it first does (`IOPubThread._event_pipe`):
        in a kernel that has as many files open as it may nothing would ever be heard from it again."""
        iopub = self.iopub_thread
        getattr(iopub, "_event_pipe", None)
        for loop in (iopub.io_loop, self.control_thread.io_loop, self._shell_loop()):
            if loop is not None:  # else it is this thread's
                loop.add_callback(getattr, iopub, "_event_pipe", None)

    def take_identity(self, info: dict[str, Any], connection_file: str, listeners: list[int]) -> None:
        """Become the kernel of *info* (a connection file's content), accepting on *listeners*.

        *listeners* are descriptors in the order of `CHANNELS`. Each socket is bound by the thread that
        uses it: ZeroMQ sockets are not to be shared. `serve` waits until they all are.
        """
        self.connection_file = connection_file
        with contextlib.suppress(OSError):  # for %connect_info and its like; nothing else reads it
            confine.show(connection_file, json.dumps(info, indent=2).encode())
        self.load_connection_info(info)  # type: ignore[arg-type]
        endpoint = {name: self._endpoint(getattr(self, f"{name}_port")) for name in CHANNELS}
        handed = dict(zip(CHANNELS, listeners, strict=True))

        iopub = self.iopub_thread
        self._binding = [
            self._bind_in_owner(loop, sock, endpoint[name], handed[name])
            for name, loop, sock in (
                ("iopub", iopub.io_loop, iopub.socket),
                ("shell", self._shell_loop(), self.shell_socket),
                ("control", self.control_thread.io_loop, self.control_socket),
                ("stdin", None, self.stdin_socket),
            )
        ]
        # Not over the network, as stock: the kernel's may be another one than the listener's.
        self.debug_shell_socket.connect(DEBUG_SHELL)
        self._hand_heartbeat(handed["hb"])
        self._open_pipes()
        self._ports = {name: getattr(self, f"{name}_port") for name in CHANNELS}
        self.kernel.record_ports({f"{name}_port": port for name, port in self._ports.items()})

    def finish_shell(self) -> None:
        """What depends on cwd, environment and identity, in stock's order: history, extensions, start-up files."""
        shell = self.kernel.shell
        session_name = os.environ.get("JPY_SESSION_NAME")
        if session_name:
            shell.user_ns["__session__"] = shell.user_ns_hidden["__session__"] = session_name
        LateHistory(self.kernel).start()
        self.init_gui_pylab()
        if self._complete and not self._has_startup_files():
            return
        self.init_extensions()
        self.init_code()
        sys.stdout.flush()
        sys.stderr.flush()

    def serve(self) -> None:
        """Run the loop until shutdown: the rest of stock's `start`, whose `kernel.start()` is done already."""
        from tornado import ioloop

        for bound in self._binding:
            bound()
        self.io_loop = ioloop.IOLoop.current()
        with contextlib.suppress(KeyboardInterrupt):
            self.io_loop.start()

    @property
    def is_ending(self) -> bool:
        """Whether the loop stops, or has stopped, for good."""
        kernel: Any = self.kernel
        return kernel._shutdown_message is not None or bool(kernel.shell.exit_now)

    def let_control_finish(self) -> None:
        """Wait for the control thread when it was told to stop: it may be in the midst of the request that said so.

        It then flushes its output through iopub; were that ended first, it would wait for 10 s.
        """
        kernel: Any = self.kernel
        if kernel._shutdown_message is not None and self.control_thread.is_alive():
            self.control_thread.join(CONTROL_TIMEOUT)

    def close(self) -> None:
        """As stock; then tell the server that ports and listeners are free (it waits for that at a restart)."""
        super().close()
        if self._when_closed is not None:
            self._when_closed()

    def _has_startup_files(self) -> bool:
        """Whether there is something for `init_code` to run that the configuration does not name.

        Where IPython looks: IPython/core/shellapp.py `_run_startup_files`.
        """
        if self.exec_PYTHONSTARTUP and os.environ.get("PYTHONSTARTUP"):
            return True
        profile: Any = self.profile_dir
        folders = [os.path.join(path, "startup") for path in (*ENV_CONFIG_DIRS, *SYSTEM_CONFIG_DIRS)]
        for folder in (profile.startup_dir, *folders):
            with contextlib.suppress(OSError):
                if any(name.endswith((".py", ".ipy")) for name in os.listdir(folder)):
                    return True
        return False

    def _endpoint(self, port: int) -> str:
        separator = ":" if self.transport == "tcp" else "-"
        return f"{self.transport}://{self.ip}{separator}{port}"

    def _shell_loop(self) -> Any:
        thread = getattr(self, "shell_channel_thread", None)  # ipykernel >= 7
        return thread.io_loop if thread is not None else None

    def _bind_in_owner(self, loop: Any, sock: zmq.Socket[Any], endpoint: str, listener: int) -> Callable[[], None]:
        def bind() -> None:
            if hasattr(self, "_apply_curve_server_options"):
                self._apply_curve_server_options(sock)
            elif getattr(self, "curve_secretkey", None):
                raise RuntimeError("this ipykernel cannot encrypt its transport")
            if sock is self.shell_socket:
                sock.bind(DEBUG_SHELL)
            elif sock is self.iopub_thread.socket:
                # What was published so far ("starting") is signed with the key of before. If this thread has not come
                # to it, clients would get it, which wait in the backlog; now it goes nowhere.
                self.iopub_thread._handle_event([])
            bind_to_listener(sock, endpoint, listener)

        return begin_in(loop, bind)

    def _hand_heartbeat(self, listener: int) -> None:
        curve = None
        if getattr(self, "curve_secretkey", None) is not None:
            curve = (self.curve_publickey, self.curve_secretkey)
        heartbeat: Any = self.heartbeat
        heartbeat.hand((self.transport, self.ip, self.hb_port), listener, curve)


def launcher_path() -> str:
    """The file that `python -m ipykernel_launcher` would have put in `sys.argv[0]`."""
    spec = importlib.util.find_spec("ipykernel_launcher")
    return spec.origin if spec is not None and spec.origin else "ipykernel_launcher.py"


def reseed() -> None:
    """A fork must not share its template's random stream; `random` reseeds itself after a fork, numpy does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
