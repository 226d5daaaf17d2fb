"""What the websocket edge holds while a kernel has no process, and what becomes of that."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from jupyter_kernelpool import websocket as websocket_module
from jupyter_kernelpool.websocket import Prompt


class Stock:
    """jupyter_server's connection: what it is given goes to the kernel."""

    def __init__(self):
        self.sent = []

    def handle_incoming_message(self, incoming_msg):
        self.sent.append(incoming_msg)


class Connection(Prompt, Stock):
    """To a kernel whose process has ended; when it is known to stay *dead*, cells are answered."""

    kernel_id = "k"

    def __init__(self):
        super().__init__()
        self.kernel_manager = SimpleNamespace(pooled=SimpleNamespace(process=None))
        self.dead, self.answered = False, []

    def answer_for_dead(self, incoming_msg):
        if self.dead:
            self.answered.append(incoming_msg)
        return self.dead


@pytest.mark.parametrize("dead", [True, False])
async def test_cell_that_came_just_before_its_kernel_was_left_dead_is_answered_not_kept_for_the_next(monkeypatch, dead):
    monkeypatch.setattr(websocket_module, "HOLD_TIMEOUT", 0.1)
    connection = Connection()
    connection.handle_incoming_message("cell")
    connection.dead = dead
    async with asyncio.timeout(10):
        await connection._delivery
    assert (connection.answered, connection.sent) == ((["cell"], []) if dead else ([], ["cell"]))
