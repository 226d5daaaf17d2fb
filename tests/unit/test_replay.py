"""What is kept for a client that is away, and what a client gets of it."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.session import Session

from jupyter_kernelpool.bounded import _judge_frame
from jupyter_kernelpool.gate import Gate
from jupyter_kernelpool.output import Budget
from jupyter_kernelpool.replay import Kept, Replay

KERNEL = "kernel"


class Watch:
    """An `OutputWatch` of one kernel, with one limit."""

    def __init__(self, limit: int, budgets: dict[str, Budget] | None = None) -> None:
        self.limit, self.budgets = limit, budgets or {}

    def limited(self, kernel_id: str) -> bool:
        return bool(self.limit)

    def limit_of(self, kernel_id: str, msg_id: str) -> int:
        return self.limit

    def budgets_of(self, kernel_id: str) -> dict[str, Budget]:
        return self.budgets


@pytest.fixture
def session() -> Session:
    return Session(key=b"a key")


def message(session: Session, kind: str, content: dict[str, Any], parent: str = "cell") -> list[Any]:
    """What ZeroMQ gives for a message of iopub."""
    made = session.msg(kind, content=content, parent={"msg_id": parent, "msg_type": "execute_request"})
    return [b"kernel.topic", *session.serialize(made)]


def stream(session: Session, text: str, parent: str = "cell") -> list[Any]:
    return message(session, "stream", {"name": "stdout", "text": text}, parent)


def read(session: Session, parts: list[Any]) -> tuple[str, Any]:
    """Type and content; fails where the signature does not fit."""
    _, fed = Session(key=session.key).feed_identities(parts)
    told = Session(key=session.key).deserialize(fed)
    return told["msg_type"], told["content"]


def texts(session: Session, replay: Replay) -> list[str]:
    return [str(read(session, parts)[1].get("text", read(session, parts)[0])) for _, parts in replay]


def gate(session: Session, limit: int, budgets: dict[str, Budget] | None = None) -> Gate:
    return Gate(KERNEL, session, Watch(limit, budgets))  # type: ignore[arg-type]


def test_text_is_cut_and_marked_and_signed_anew(session: Session) -> None:
    one = gate(session, 1000)
    assert one.judge(parts := stream(session, "first")) is parts
    judged = one.judge(stream(session, "x" * 5000))
    assert judged is not None
    kind, content = read(session, judged)
    assert kind == "stream"
    assert content["name"] == "stdout"
    assert content["text"].startswith("xxx")
    assert "output limit of 1000 bytes reached" in content["text"]
    assert content["text"].count("x") <= 1000
    assert one.judge(stream(session, "more")) is None
    assert one.judge(parts := message(session, "status", {"execution_state": "idle"})) is parts


def test_image_is_replaced_by_a_note(session: Session) -> None:
    judged = gate(session, 1000).judge(message(session, "display_data", {"data": {"image/png": "x" * 5000}}))
    assert judged is not None
    kind, content = read(session, judged)
    assert (kind, content["name"]) == ("stream", "stderr")
    assert "is left out: the output limit is 1000 bytes" in content["text"]


def test_each_execution_has_its_own_budget(session: Session) -> None:
    one = gate(session, 500)
    assert one.judge(stream(session, "x" * 5000)) is not None
    assert one.judge(stream(session, "more")) is None
    assert one.judge(parts := stream(session, "ok", parent="another")) is parts


def test_client_that_comes_late_goes_on_where_the_execution_is(session: Session) -> None:
    spent = Budget(kept=100, marked=True)
    assert gate(session, 100, {"cell": spent}).judge(stream(session, "more")) is None


def test_frame_of_another_class_is_judged_like_a_message(session: Session) -> None:
    from jupyter_server.services.kernels.connection.base import deserialize_msg_from_ws_v1, serialize_msg_to_ws_v1

    def frame(channel: str, text: str) -> bytes:
        return bytes(serialize_msg_to_ws_v1(session.feed_identities(stream(session, text))[1][1:], channel))

    one = gate(session, 1000)
    assert _judge_frame(one, whole := frame("control", "x" * 5000)) is whole
    assert _judge_frame(one, whole := frame("iopub", "first")) is whole
    cut = _judge_frame(one, frame("iopub", "x" * 5000))
    assert cut is not None
    channel, body = deserialize_msg_from_ws_v1(cut)
    assert channel == "iopub"
    assert "output limit of 1000 bytes reached" in session.unpack(body[3])["text"]
    assert _judge_frame(one, frame("iopub", "more")) is None
    assert _judge_frame(one, b"\xff" * 100) == b"\xff" * 100


def test_replay_drops_the_oldest_output_and_says_so(session: Session) -> None:
    replay = Replay(9000, session)
    replay.append(("iopub", message(session, "status", {"execution_state": "busy"})))
    for number in range(50):
        replay.append(("iopub", stream(session, f"line {number} ".ljust(100, "."))))
    replay.append(("shell", message(session, "execute_reply", {"status": "ok"})))
    replay.append(("iopub", message(session, "status", {"execution_state": "idle"})))
    told = texts(session, replay)
    assert replay.size <= 9000
    assert told[0] == "status"
    assert "some output is left out" in told[1]
    assert told[-3].startswith("line 49")
    assert told[-2:] == ["execute_reply", "status"]
    assert sum("left out" in text for text in told) == 1
    assert bool(replay)


def test_replay_never_drops_answers_states_and_errors(session: Session) -> None:
    replay = Replay(1, session)
    kinds = ["status", "execute_input", "error", "comm_open", "comm_close", "clear_output"]
    for kind in kinds:
        replay.append(("iopub", message(session, kind, {})))
    replay.append(("shell", message(session, "execute_reply", {})))
    replay.append(("stdin", message(session, "input_request", {})))
    replay.append(("iopub", stream(session, "text")))
    assert [read(session, parts)[0] for _, parts in replay][:-1] == [*kinds, "execute_reply", "input_request"]


def test_replay_drops_output_before_what_widgets_say(session: Session) -> None:
    replay = Replay(6000, session)
    replay.append(("iopub", message(session, "comm_msg", {"data": "y" * 1000})))
    for _ in range(20):
        replay.append(("iopub", stream(session, "x" * 500)))
    assert read(session, next(iter(replay))[1])[0] == "comm_msg"
    for _ in range(20):
        replay.append(("iopub", message(session, "comm_msg", {"data": "y" * 1000})))
    assert replay.size <= 6000


def test_replay_says_for_each_cell_that_something_is_missing(session: Session) -> None:
    replay = Replay(5000, session)
    for cell in "abc":
        for _ in range(10):
            replay.append(("iopub", stream(session, "x" * 200, parent=cell)))
    parents = [Session(key=session.key).deserialize(Session().feed_identities(parts)[1])["parent_header"]["msg_id"]
               for _, parts in replay if "left out" in str(read(session, parts)[1])]  # fmt: skip
    assert parents[:2] == ["a", "b"]


def test_replay_without_a_limit_keeps_all(session: Session) -> None:
    replay = Replay(0, session)
    for _ in range(100):
        replay.append(("iopub", stream(session, "x" * 1000)))
    assert len(replay) == 100


def test_replay_is_held_to_the_output_limit_once(session: Session) -> None:
    replay = Replay(0, session)
    replay.gate = gate(session, 1500)
    for _ in range(100):
        replay.append(("iopub", stream(session, "x" * 400)))
    assert len(replay) == 3
    assert "output limit" in texts(session, replay)[-1]
    assert all(isinstance(parts, Kept) for _, parts in replay)


def test_replay_keeps_what_is_no_message(session: Session) -> None:
    replay = Replay(10, session)
    replay.append(("iopub", [b"nonsense"]))
    assert [parts for _, parts in replay] == [[b"nonsense"]]


@pytest.mark.parametrize("parts", [[b"no message"], [b"<IDS|MSG>", b"", *[b"[]"] * 4]])
def test_what_is_no_message_is_kept_as_it_is(session: Session, parts: list[Any]) -> None:
    replay = Replay(1000, session)
    replay.append(("iopub", parts))
    assert list(replay) == [("iopub", parts)]
