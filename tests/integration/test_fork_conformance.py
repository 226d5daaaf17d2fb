"""A fork is a Jupyter kernel like any other: Jupyter's conformance suite, and what the suite does not ask."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

import jupyter_kernel_test
import pytest
from jupyter_client import BlockingKernelClient

from .conftest import Server
from .kernelside_driver import PATIENCE, Kernel

pytestmark = pytest.mark.integration


class Conformance(jupyter_kernel_test.KernelTests):
    """The suite with every sample it knows of, for ipykernel."""

    __test__ = False  # run by `conformance`

    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = (
        {"text": "zi", "matches": {"zip"}},
        {"text": "'a'.isal", "matches": {"isalnum", "isalpha"}},
    )
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise ValueError"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    )
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>t</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('1'))", "mime": "text/latex"},
    )
    code_history_pattern = "1?2*"
    # Not "range": IPython calls the session that asks 0, where the suite expects its number.
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    def execute_helper(self, *arguments: Any, **options: Any) -> Any:
        """As the suite's, which gives each message 0.1 s: too little on a busy machine."""
        channel = self.kc.iopub_channel
        stock = channel.get_msg
        channel.get_msg = lambda **_: stock(timeout=PATIENCE)
        try:
            return super().execute_helper(*arguments, **options)
        finally:
            del channel.get_msg


def conformance(client: BlockingKernelClient | None = None) -> unittest.TestResult:
    """Run the suite with the kernel of *client*, or with one that it starts itself."""

    class Attached(Conformance):
        @classmethod
        def setUpClass(cls) -> None:
            assert client is not None
            cls.kc = client

        @classmethod
        def tearDownClass(cls) -> None:
            pass

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Attached if client else Conformance).run(result)
    return result


@pytest.mark.slow
def test_fork_passes_the_conformance_suite_as_a_cold_kernel_does(
    kp_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # the suite searches the whole history
    kp_server.wait_warm(1)
    parent = kp_server.start_kernel()
    kp_server.run(parent, "mark = 'of the parent'")
    status, reply = kp_server.call(f"/kernelpool/v1/kernels/{parent}/fork", "POST")
    assert status == 201, reply
    client = kp_server.client(reply["kernels"][0]["id"])
    assert kp_server.run(client, "print(mark)") == "of the parent"
    everything = unittest.defaultTestLoader.getTestCaseNames(Conformance)
    for result in (conformance(client), conformance()):
        assert (result.failures, result.errors) == ([], [])
        assert [reason for _, reason in result.skipped] == ["History range not supported"]
        assert result.testsRun == len(everything) >= 12


# -- what the suite does not ask --------------------------------------------------------------------


class Debugger:
    """A front end's side of the debug adapter protocol, on the control channel."""

    def __init__(self, kernel: Kernel) -> None:
        self.client = kernel.client
        self._sent = 0

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request; the body of its response."""
        self.send(command, **arguments)
        return self.answer(command)

    def send(self, command: str, **arguments: Any) -> None:
        self._sent += 1
        request = {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        self.client.control_channel.send(self.client.session.msg("debug_request", request))

    def answer(self, command: str) -> dict[str, Any]:
        content = self.client.control_channel.get_msg(timeout=PATIENCE)["content"]
        assert (content["command"], content["success"]) == (command, True), content
        return dict(content.get("body", {}))

    def event(self, name: str) -> dict[str, Any]:
        """Wait for the debugger's event *name* on iopub."""
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["msg_type"] == "debug_event" and message["content"]["event"] == name:
                return dict(message["content"].get("body", {}))

    def begin(self) -> None:
        self.ask("initialize", clientID="t", adapterID="", linesStartAt1=True, columnsStartAt1=True, pathFormat="path")
        self.send("attach")  # debugpy answers it after configurationDone


def test_debugger_attaches_to_a_fork_stops_at_a_breakpoint_and_goes_on(kp_kernel: Kernel) -> None:
    kp_kernel.run("inherited = 20")
    fork = kp_kernel.fork()
    debugger = Debugger(fork)
    debugger.begin()
    code = "def double(n):\n    twice = n * 2\n    return twice\nprint(double(inherited))"
    debugger.event("initialized")
    debugger.answer("attach")
    path = debugger.ask("dumpCell", code=code)["sourcePath"]
    found = debugger.ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}], sourceModified=False)
    assert [point["verified"] for point in found["breakpoints"]] == [True]
    debugger.ask("configurationDone")
    request = fork.client.execute(code)
    thread = debugger.event("stopped")["threadId"]
    frame = debugger.ask("stackTrace", threadId=thread)["stackFrames"][0]
    assert (frame["name"], frame["line"]) == ("double", 3)
    scope = debugger.ask("scopes", frameId=frame["id"])["scopes"][0]["variablesReference"]
    variables = debugger.ask("variables", variablesReference=scope)["variables"]
    assert {one["name"]: one["value"] for one in variables}["twice"] == "40"
    debugger.ask("continue", threadId=thread)
    while (reply := fork.client.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != request:
        pass
    assert reply["content"]["status"] == "ok"
    debugger.ask("disconnect", restart=False, terminateDebuggee=False)
    assert kp_kernel.run("print(inherited)") == "20", "the parent has no debugger"


@pytest.fixture
def has_subshells(kp_kernel: Kernel) -> bool:
    """ipykernel 7 has them."""
    info = kp_kernel.client.kernel_info(reply=True, timeout=PATIENCE)["content"]
    return "kernel subshells" in info.get("supported_features", [])


def test_subshell_of_a_fork_runs_cells_while_its_main_shell_is_busy(
    kp_kernel: Kernel, has_subshells: bool, tmp_path: Path
) -> None:
    kp_kernel.run("inherited = 'kept'")
    fork = kp_kernel.fork()
    if not has_subshells:
        assert "subshell_id" not in control(fork, "create_subshell_request")
        return
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    subshell = control(fork, "create_subshell_request")["subshell_id"]
    assert control(fork, "list_subshell_request")["subshell_id"] == [subshell]
    busy = fork.client.execute(f"answer = open({str(gate)!r}).read()")
    content = {"code": f"open({str(gate)!r}, 'w').write(inherited)", "silent": False, "store_history": False,
               "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}  # fmt: skip
    message = fork.client.session.msg("execute_request", content)
    message["header"]["subshell_id"] = subshell
    fork.client.shell_channel.send(message)
    replies = [fork.client.get_shell_msg(timeout=PATIENCE) for _ in range(2)]
    assert {reply["parent_header"]["msg_id"] for reply in replies} == {busy, message["header"]["msg_id"]}
    assert {reply["content"]["status"] for reply in replies} == {"ok"}
    assert fork.run("print(answer)") == "kept"
    control(fork, "delete_subshell_request", subshell_id=subshell)
    assert control(fork, "list_subshell_request")["subshell_id"] == []
    assert control(kp_kernel, "list_subshell_request")["subshell_id"] == []


def test_lost_subshell_is_made_again_in_a_fork_and_works_on_in_the_parent(
    kp_kernel: Kernel, has_subshells: bool
) -> None:
    if not has_subshells:
        assert "subshell_id" not in control(kp_kernel, "create_subshell_request")
        return
    subshell = control(kp_kernel, "create_subshell_request")["subshell_id"]
    fork = kp_kernel.fork()
    assert control(fork, "list_subshell_request")["subshell_id"] == []
    for kernel, one in ((fork, control(fork, "create_subshell_request")["subshell_id"]), (kp_kernel, subshell)):
        message = kernel.client.session.msg("kernel_info_request", {})
        message["header"]["subshell_id"] = one
        kernel.client.shell_channel.send(message)
        reply = kernel.client.get_shell_msg(timeout=PATIENCE)
        assert reply["parent_header"]["msg_id"] == message["header"]["msg_id"]


def test_target_registered_before_the_fork_takes_a_new_comm(kp_kernel: Kernel) -> None:
    kp_kernel.run(
        "heard = []\ndef opened(comm, message):\n    comm.on_msg(lambda m: heard.append(m['content']['data']))\n"
        "    comm.send({'hello': message['content']['data']})\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)"
    )
    fork = kp_kernel.fork()
    session = fork.client.session
    for kind, content in (
        ("comm_open", {"comm_id": "c1", "target_name": "echo", "data": "front end"}),
        ("comm_msg", {"comm_id": "c1", "data": 7}),
    ):
        fork.client.shell_channel.send(session.msg(kind, content))
    while (message := fork.client.get_iopub_msg(timeout=PATIENCE))["msg_type"] != "comm_msg":
        pass
    assert message["content"] == {"comm_id": "c1", "data": {"hello": "front end"}}
    assert fork.run("print(heard)") == "[7]"
    assert kp_kernel.run("print(heard)") == "[]"


def control(kernel: Kernel, kind: str, **content: Any) -> dict[str, Any]:
    """The answer to a request on the control channel."""
    kernel.client.control_channel.send(kernel.client.session.msg(kind, content))
    return dict(kernel.client.control_channel.get_msg(timeout=PATIENCE)["content"])
