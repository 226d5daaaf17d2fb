"""What the websocket edge makes of messages that come when their client has gone."""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.session import Session
from jupyter_server.services.kernels.connection.base import serialize_msg_to_ws_v1

from jupyter_kernelpool.edge import Edge
from jupyter_kernelpool.notices import V1, Notices

HEADER = {"msg_id": "m", "msg_type": "execute_request"}


class Handler:
    """A websocket handler of tornado's, which knows its subprotocol as long as it is open."""

    is_open = True

    @property
    def selected_subprotocol(self) -> str:
        assert self.is_open
        return V1


class Stock:
    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.passed: list[Any] = []

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        self.passed.append(outgoing_msg)

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        self.taken.append(incoming_msg)


class Manager:
    def __init__(self) -> None:
        self.edge = Edge()


class Connection(Notices, Stock):
    def __init__(self) -> None:
        super().__init__()
        self.websocket_handler = Handler()
        self.multi_kernel_manager = Manager()
        self.kernel_id = "k"
        self.channels: dict[str, Any] = {"shell": object()}


def frame() -> bytes:
    parts = [json.dumps(part).encode() for part in (HEADER, {}, {}, {})]
    return bytes(serialize_msg_to_ws_v1(parts, "shell"))


def test_protocol_of_a_client_is_known_when_it_has_gone() -> None:
    connection = Connection()
    connection.remember_protocol()
    connection.websocket_handler.is_open = False
    assert connection.subprotocol == V1


def test_message_of_a_client_is_awaited() -> None:
    connection = Connection()
    connection.handle_incoming_message(frame())
    assert connection._awaited == {"m": HEADER}


def test_message_that_was_held_until_its_client_had_gone_is_not_taken_for_one_that_runs() -> None:
    connection = Connection()
    connection.remember_protocol()
    connection.websocket_handler.is_open = False
    connection.channels = {}
    connection.handle_incoming_message(frame())
    assert connection._awaited == {}
    assert connection._subprotocol == V1
    assert len(connection.taken) == 1, "stock says what it makes of it"


def test_kernels_own_answer_that_comes_too_late_is_not_a_second_one() -> None:
    connection = Connection()
    connection.session = Session(key=b"")
    connection.write_own = lambda message, binary=False: None
    connection.handle_incoming_message(frame())
    own = connection.session.serialize(connection.session.msg("execute_reply", content={"status": "ok"}, parent=HEADER))
    other = connection.session.serialize(connection.session.msg("inspect_reply", parent={"msg_id": "n"}))
    assert connection.give_up("KernelDied", "it ended") == [HEADER]
    for message in (own, other):
        connection.handle_outgoing_message("shell", message)
    assert connection.passed == [other]
