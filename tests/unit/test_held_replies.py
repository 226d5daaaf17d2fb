"""Answers to cells that are kept back until it is told what a limit did to their kernel."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from jupyter_client.session import Session

from jupyter_kernelpool.cell_ends import CellEnd
from jupyter_kernelpool.held_replies import HeldReplies


class Stock:
    def __init__(self) -> None:
        self.passed: list[str] = []
        self.given_up: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.fails = False  # once
        self._awaited: dict[str, dict[str, Any]] = {}

    def give_up(self, ename: str, evalue: str) -> list[dict[str, Any]]:
        self.given_up, self._awaited = list(self._awaited.values()), {}
        return self.given_up

    def _answer(self, msg_ids: list[str], words: tuple[str, str]) -> None:
        self.answered += msg_ids

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        if self.fails:
            self.fails = False
            raise ValueError("a wrong signature")
        _, parts = SESSION.feed_identities(outgoing_msg)
        if stream == "shell":
            self._awaited.pop(SESSION.unpack(parts[2]).get("msg_id", ""), None)  # as `Notices`
        self.passed.append(self.kind_of(outgoing_msg))

    def kind_of(self, message: list[Any]) -> str:
        _, parts = SESSION.feed_identities(message)
        return str(SESSION.unpack(parts[1])["msg_type"])

    def disconnect(self) -> None:
        self.kept: list[tuple[str, str]] = []


class Guard:
    """Settles when the test says so."""

    def __init__(self) -> None:
        self.looks = True
        self.brief_too = True
        self.settled = asyncio.Event()
        self.asked: list[dict[str, Any]] = []
        self.fails = False

    def looks_at_ends(self, kernel_id: str) -> bool:
        return self.looks

    def is_worth_a_look(self, kernel_id: str, end: CellEnd) -> bool:
        return self.brief_too or not end.brief or end.refused is not None

    async def settle(self, kernel_id: str, end: CellEnd) -> None:
        self.asked.append(end.header)
        if self.fails:
            raise RuntimeError("no such file")
        await self.settled.wait()


SESSION = Session(key=b"")


class Connection(HeldReplies, Stock):
    def __init__(self) -> None:
        super().__init__()
        self.guard = Guard()
        self.multi_kernel_manager = self
        self.session = SESSION
        self.kernel_id = "k"

    def find_replay(self) -> Any:
        return self

    def append(self, message: tuple[str, list[Any]]) -> None:
        self.kept.append((message[0], self.kind_of(message[1])))

    def ask(self) -> dict[str, Any]:
        header: dict[str, Any] = SESSION.msg("execute_request")["header"]
        self._awaited[header["msg_id"]] = header
        return header

    def hears(self, kind: str, parent: dict[str, Any], channel: str = "shell", *, error: str = "") -> None:
        content = {"status": "error", "ename": "OSError", "evalue": error} if error else {"status": "ok"}
        started = datetime.now(UTC).isoformat().replace("+00:00", "Z")  # as ipykernel writes it
        message = SESSION.msg(kind, content=content, parent=parent, metadata={"started": started})
        self.handle_outgoing_message(channel, SESSION.serialize(message))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_answer_and_what_follows_it_wait_in_order_and_all_else_does_not() -> None:
    connection = Connection()
    header = connection.ask()
    connection.hears("complete_reply", {})
    connection.hears("execute_reply", header)
    connection.hears("inspect_reply", {})
    connection.hears("stream", header, "iopub")
    await turn()
    assert connection.passed == ["complete_reply", "stream"]
    assert connection.guard.asked == [header]
    connection.guard.settled.set()
    await turn()
    assert connection.passed == ["complete_reply", "stream", "execute_reply", "inspect_reply"]
    connection.hears("inspect_reply", {})
    assert connection.passed[-2:] == ["inspect_reply", "inspect_reply"], "at once"


@pytest.mark.parametrize("looks", [True, False])
async def test_answer_to_another_client_or_of_a_kernel_without_limits_does_not_wait(looks: bool) -> None:
    connection = Connection()
    connection.guard.looks = looks
    connection.hears("execute_reply", {"msg_id": "another's"} if looks else connection.ask())
    assert connection.passed == ["execute_reply"]


async def test_answer_to_a_brief_cell_waits_only_if_something_was_refused() -> None:
    connection = Connection()
    connection.guard.brief_too = False
    connection.hears("execute_reply", connection.ask())
    assert connection.passed == ["execute_reply"]
    connection.hears("execute_reply", connection.ask(), error="[Errno 2] No such file or directory: 'x'")
    assert connection.passed == ["execute_reply"] * 2
    connection.hears("execute_reply", connection.ask(), error="[Errno 24] Zu viele offene Dateien: 'x'")
    await turn()
    assert len(connection.guard.asked) == 1
    assert connection.passed == ["execute_reply"] * 2


async def test_answer_that_was_given_in_the_name_of_the_kernel_meanwhile_is_not_given_twice() -> None:
    connection = Connection()
    connection.hears("execute_reply", connection.ask())
    await turn()
    connection._awaited.clear()  # as `Notices.give_up`
    connection.guard.settled.set()
    await turn()
    assert connection.passed == []


async def test_what_is_held_when_its_client_goes_is_kept_for_it() -> None:
    connection = Connection()
    connection.hears("execute_reply", connection.ask())
    connection.hears("inspect_reply", {})
    await turn()
    connection.disconnect()
    connection.guard.settled.set()
    await turn()
    assert (connection.passed, connection.kept) == ([], [("shell", "execute_reply"), ("shell", "inspect_reply")])


async def test_answer_passes_where_it_can_not_be_seen_what_was_killed() -> None:
    connection = Connection()
    connection.guard.fails = True
    connection.hears("execute_reply", connection.ask())
    await turn()
    assert connection.passed == ["execute_reply"]


async def test_what_is_held_was_answered_by_the_kernel_though_it_ends_now() -> None:
    connection = Connection()
    first, second = connection.ask(), connection.ask()
    connection.hears("execute_reply", first)
    await turn()
    connection.give_up("KernelKilled", "memory")
    assert connection.passed == ["execute_reply"], "before the second is given up"
    assert connection.given_up == [second]
    connection.guard.settled.set()
    await turn()
    assert connection.passed == ["execute_reply"]


async def test_one_look_serves_all_that_is_held_and_none_of_it_counts_as_not_answered() -> None:
    connection = Connection()
    headers = [connection.ask() for _ in range(4)]
    for header in headers:
        connection.hears("execute_reply", header)
    connection._answer([header["msg_id"] for header in headers], ("NotAnswered", ""))
    assert connection.answered == []
    await turn()
    connection.guard.settled.set()
    await turn()
    assert connection.passed == ["execute_reply"] * 4
    assert connection.guard.asked == headers[:1]


async def test_answer_that_can_not_be_passed_on_keeps_no_other() -> None:
    connection = Connection()
    headers = [connection.ask() for _ in range(2)]
    connection.fails = True
    for header in headers:
        connection.hears("execute_reply", header)
    connection.guard.settled.set()
    await turn()
    assert connection.passed == ["execute_reply"]
