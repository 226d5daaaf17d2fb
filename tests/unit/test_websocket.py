"""What the websocket edge holds while a kernel has no process, and what becomes of that."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from tornado.websocket import WebSocketClosedError

from jupyter_kernelpool import websocket as websocket_module
from jupyter_kernelpool.websocket import Prompt


class Stock:
    """jupyter_server's connection: what it is given goes to the kernel."""

    def __init__(self):
        self.sent = []

    def handle_incoming_message(self, incoming_msg):
        self.sent.append(incoming_msg)

    def handle_outgoing_message(self, stream, outgoing_msg):
        raise outgoing_msg[0]


class Connection(Prompt, Stock):
    """To a kernel whose process has ended; when it is known to stay *dead*, cells are answered."""

    kernel_id = "k"
    log = logging.getLogger("jupyter_kernelpool")

    def __init__(self):
        super().__init__()
        self.kernel_manager = SimpleNamespace(pooled=SimpleNamespace(process=None))
        self.dead, self.answered = False, []

    def why_dead(self):
        return "it died" if self.dead else None

    def answer_for_dead(self, incoming_msg):
        if self.dead:
            self.answered.append(incoming_msg)
        return self.dead


@pytest.mark.parametrize("dead", [True, False])
async def test_cell_that_came_just_before_its_kernel_was_left_dead_is_answered_not_kept_for_the_next(monkeypatch, dead):
    if not dead:
        monkeypatch.setattr(websocket_module, "HOLD_TIMEOUT", 0.1)
    connection = Connection()
    connection.handle_incoming_message("cell")
    connection.dead = dead
    async with asyncio.timeout(websocket_module.HOLD_TIMEOUT / 2 if dead else 10):
        await connection._delivery
    assert (connection.answered, connection.sent) == ((["cell"], []) if dead else ([], ["cell"]))


@pytest.mark.parametrize("error", [ValueError("Invalid Signature"), AttributeError("get"), RecursionError()])
def test_what_is_no_message_is_told_in_a_debug_log_only_and_the_next_one_is_read(caplog, error):
    with caplog.at_level("DEBUG"):
        Connection().handle_outgoing_message(SimpleNamespace(channel="iopub"), [error])
    assert [(one.levelname, "what is no message" in one.message) for one in caplog.records] == [("DEBUG", True)]


def test_defect_in_passing_on_is_told_in_the_log_and_the_next_one_is_read(caplog):
    Connection().handle_outgoing_message(SimpleNamespace(channel="iopub"), [OSError("a defect")])
    assert "could not be passed on" in caplog.text


def test_no_more_is_read_for_a_client_that_has_gone():
    with pytest.raises(WebSocketClosedError):
        Connection().handle_outgoing_message(SimpleNamespace(channel="iopub"), [WebSocketClosedError()])
