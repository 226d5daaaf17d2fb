"""What the server hears of a kernel, whatever that publishes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from jupyter_client.session import DELIM, Session

from jupyter_kernelpool.activity import feed
from jupyter_kernelpool.ledger import Ledger

NO_MESSAGES = {
    "nothing": [],
    "no delimiter": [b"no message"],
    "parts missing": [DELIM, b"", b"{}"],
    "no JSON": [DELIM, b"", *[b"\xff"] * 4],
    "no mappings": [DELIM, b"", *[b"[]"] * 4],
    "nested without end": [DELIM, b"", *[b"[" * 100_000] * 4],
}


class Stream:
    """As pyzmq's: who hears what comes."""

    def __init__(self, stock):
        self._recv_callback = stock

    def on_recv(self, callback):
        self._recv_callback = callback

    def bring(self, parts):
        self._recv_callback(parts)


def heard_by(ledger, stock):
    session = Session(key=b"")
    stream = Stream(stock)
    feed(SimpleNamespace(_activity_stream=stream, session=session, kernel_id="k"), ledger)
    return session, stream


@pytest.mark.parametrize("parts", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_what_is_no_message_raises_nothing(parts):
    heard_by(Ledger(), lambda parts: None)[1].bring(parts)


@pytest.mark.parametrize("error", [ValueError("Invalid Signature"), AttributeError("get"), RuntimeError("a defect")])
def test_error_of_stocks_raises_nothing_and_the_next_message_is_heard(error):
    """pyzmq's stream would be deaf ever after: `test_upstream_workarounds.py`."""
    errors, ledger = [error], Ledger()

    def stock(parts):
        if errors:
            raise errors.pop()

    session, stream = heard_by(ledger, stock)
    request = session.msg("execute_request", {"code": "1"})
    for _ in range(2):
        stream.bring(session.serialize(session.msg("status", {"execution_state": "busy"}, parent=request)))
    assert not errors
    assert ledger.find(request["header"]["msg_id"]) is not None
