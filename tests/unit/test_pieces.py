"""The stream of our kernels: one message for what is small, pieces for what is not; with ipykernel's own parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from ipykernel import iostream
from jupyter_client.session import Session

from jupyter_kernelpool.kernelside import pieces
from jupyter_kernelpool.kernelside.app import UnboundKernelApp
from jupyter_kernelpool.kernelside.pieces import PIECE, OutStream

SMILE = "\ud83d\ude00"  # one character as two surrogates, which JSON puts together again


class Recorder(Session):
    """Keeps what it is to send."""

    def send(self, stream: Any, message: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]
        self.sent.append(message)

    @property
    def sent(self) -> list[dict[str, Any]]:
        return self.__dict__.setdefault("sent_messages", [])

    @property
    def texts(self) -> list[str]:
        return [one["content"]["text"] for one in self.sent]


@pytest.fixture
def session() -> Recorder:
    return Recorder()


@pytest.fixture
def thread() -> Iterator[iostream.IOPubThread]:
    """ipykernel's, not started: what is to be done there is done at once."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        one = iostream.IOPubThread(socket)
        yield one
        one._event_puller.close()
        one.io_loop.close(all_fds=True)


@pytest.fixture
def stream(session: Recorder, thread: iostream.IOPubThread, monkeypatch: pytest.MonkeyPatch) -> OutStream:
    one = OutStream(session, thread, "stdout", watchfd=False)
    monkeypatch.setattr(one, "_schedule_flush", lambda: None)  # its time has not come
    return one


@given(st.text(st.characters(codec=None), max_size=200), st.integers(1, 40))
def test_pieces_are_the_text_and_none_is_too_large(text: str, size: int) -> None:
    cut = list(pieces.pieces(text, size))
    assert "".join(cut) == text
    assert all(cut)
    assert all(len(one.encode("utf-8", "surrogatepass")) <= max(size, 4) for one in cut)


@pytest.mark.parametrize("before", range(4))
def test_two_surrogates_of_one_character_stay_together(before: int) -> None:
    cut = list(pieces.pieces("a" * before + SMILE * 5, 12))
    assert not any(one.startswith(SMILE[1]) or one.endswith(SMILE[0]) for one in cut)
    assert len(cut) > 2


def test_what_is_small_is_one_message(stream: OutStream, session: Recorder) -> None:
    for _ in range(100):
        assert stream.write("line\n") == 5
    assert session.sent == []
    stream.flush()
    assert session.texts == ["line\n" * 100]


def test_what_is_large_is_sent_in_order_while_it_is_written(stream: OutStream, session: Recorder) -> None:
    stream.set_parent({"header": {"msg_id": "cell"}})
    stream.write("before")
    large = "x" * (2 * PIECE) + "é" * 2 + "y" * PIECE
    assert stream.write(large) == len(large)
    stream.write("after")
    stream.flush()
    assert "".join(session.texts) == "before" + large + "after"
    assert session.texts[0] == "before"
    assert max(len(text.encode()) for text in session.texts) <= PIECE
    assert {one["parent_header"]["msg_id"] for one in session.sent} == {"cell"}


def test_many_small_ones_are_sent_before_they_are_too_much(stream: OutStream, session: Recorder) -> None:
    for _ in range(50):
        stream.write("x" * (PIECE // 10))
    stream.flush()
    assert [len(text) for text in session.texts] == [PIECE // 10 * 10] * 5


def test_hooks_get_each_piece_and_may_keep_any(stream: OutStream, session: Recorder) -> None:
    heard: list[str] = []

    def keep_second(message: dict[str, Any]) -> dict[str, Any] | None:
        heard.append(message["content"]["text"][0])
        return None if len(heard) == 2 else message

    stream.register_hook(keep_second)
    stream.write("".join(letter * PIECE for letter in "abc"))
    stream.flush()
    assert heard == ["a", "b", "c"]
    assert [text[0] for text in session.texts] == ["a", "c"]


def test_interrupt_ends_the_print_and_leaves_out_the_rest(stream: OutStream, session: Recorder) -> None:
    def interrupt(message: dict[str, Any]) -> dict[str, Any]:
        if len(session.sent) == 2:
            raise KeyboardInterrupt
        return message

    stream.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream.write("x" * (100 * PIECE))
    stream.unregister_hook(interrupt)
    stream.write("next")
    stream.flush()
    assert [len(text) for text in session.texts] == [PIECE, PIECE, 4]


@pytest.mark.parametrize("no_text", [5, b"bytes", None, [], b"x" * (PIECE + 1)])
def test_what_is_no_text_is_refused_as_by_ipykernel(stream: OutStream, no_text: Any) -> None:
    with pytest.raises(TypeError, match="must be str, not"):
        stream.write(no_text)


def test_closed_stream_says_so(stream: OutStream) -> None:
    stream.close()
    for text in ("x", "x" * (3 * PIECE)):
        with pytest.raises(ValueError, match="closed file"):
            stream.write(text)


def test_stream_looks_like_the_one_it_stands_for(stream: OutStream) -> None:
    assert isinstance(stream, iostream.OutStream)
    assert str(type(stream)) == str(iostream.OutStream)


def test_it_is_ours_unless_another_one_is_configured_or_stock_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert UnboundKernelApp().outstream_class == f"{pieces.__name__}.OutStream"
    assert UnboundKernelApp(outstream_class="mine.Stream").outstream_class == "mine.Stream"
    monkeypatch.setattr(pieces, "STOCK", "ipykernel.iostream.Former")
    assert UnboundKernelApp().outstream_class == "ipykernel.iostream.OutStream"
