"""Messages over private sockets: descriptors travel, pieces are put together, nonsense ends it."""

import asyncio
import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_kernelpool.channel import Channel
from jupyter_kernelpool.kernelside import wire


@pytest.fixture
def kp_pair():
    one, two = socket.socketpair()
    with one, two:
        one.settimeout(10)
        two.settimeout(10)
        yield one, two


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
MESSAGES = st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5)


@settings(max_examples=40)
@given(MESSAGES, st.lists(st.integers(1, 20), min_size=1))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(messages, sizes):
    data = b"".join(wire.encode(message) for message in messages)
    decoder, received, place, cut = wire.Decoder(), [], 0, 0
    while place < len(data):
        size = sizes[cut % len(sizes)]
        received += decoder.feed(data[place : place + size])
        place, cut = place + size, cut + 1
    assert received == messages


def test_part_of_a_message_is_kept():
    data = wire.encode({"op": "ping"})
    decoder = wire.Decoder()
    assert decoder.feed(data[:-1]) == []
    assert decoder.feed(data[-1:]) == [{"op": "ping"}]


def test_oversized_message_is_refused_before_it_is_read(kp_pair):
    header = wire.HEADER.pack(wire.MAX_MESSAGE + 1)
    with pytest.raises(wire.WireError, match=str(wire.MAX_MESSAGE + 1)):
        wire.Decoder().feed(header)
    one, two = kp_pair
    one.sendall(header)
    with pytest.raises(wire.WireError, match=str(wire.MAX_MESSAGE + 1)):
        wire.receive(two)


def test_descriptors_travel_with_their_message(kp_pair):
    one, two = kp_pair
    reads, writes = os.pipe()
    wire.send(one, {"op": "first"})
    wire.send(one, {"op": "second"}, [writes])
    wire.send(one, {"op": "third"})
    os.close(writes)
    assert wire.receive(two) == ({"op": "first"}, [])
    message, (received,) = wire.receive(two)
    assert message == {"op": "second"}
    os.write(received, b"it is the same pipe")
    assert os.read(reads, 100) == b"it is the same pipe"
    assert not os.get_inheritable(received)
    assert wire.receive(two) == ({"op": "third"}, [])
    for fd in (received, reads):
        os.close(fd)


def test_as_many_descriptors_as_allowed_travel(kp_pair):
    one, two = kp_pair
    given = [os.open(os.devnull, os.O_RDONLY) for _ in range(wire.MAX_FDS)]
    wire.send(one, {}, given)
    _, received = wire.receive(two)
    assert len(received) == wire.MAX_FDS
    for fd in (*given, *received):
        os.close(fd)


@pytest.mark.parametrize("sent", [b"", wire.encode({"op": "x"})[:2], wire.encode({"op": "x"})[:-1]])
def test_end_of_file_is_none_even_in_the_middle_of_a_message(kp_pair, sent):
    one, two = kp_pair
    one.sendall(sent)
    one.close()
    assert wire.receive(two) is None


# -- the server's end -------------------------------------------------------------------------------


class Listener:
    """A channel on one socket of *pair*, and what it heard; `until` waits for something to be so."""

    def __init__(self, sock):
        self.heard = []
        self.closings = 0
        self.changed = asyncio.Event()
        self.channel = Channel(sock, self._hear, self._close)

    def _hear(self, message):
        self.heard.append(message)
        self.changed.set()

    def _close(self):
        self.closings += 1
        self.changed.set()

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def test_channel_hears_messages_in_order(kp_pair):
    one, two = kp_pair
    listener = Listener(one)
    await asyncio.to_thread(lambda: [wire.send(two, {"n": number}) for number in range(100)])
    await listener.until(lambda: len(listener.heard) == 100)
    assert listener.heard == [{"n": number} for number in range(100)]
    listener.channel.close()


async def test_channel_sends_descriptors(kp_pair):
    one, two = kp_pair
    listener = Listener(one)
    reads, writes = os.pipe()
    listener.channel.send({"op": "fork"}, [writes])
    os.close(writes)
    message, (received,) = wire.receive(two)
    assert message == {"op": "fork"}
    os.close(received)
    assert os.read(reads, 1) == b""
    os.close(reads)
    listener.channel.close()


async def test_channel_sends_what_the_buffer_does_not_take_later_and_in_order(kp_pair):
    one, two = kp_pair
    listener = Listener(one)
    big = "x" * (4 << 20)
    for number in range(3):
        listener.channel.send({"n": number, "big": big})
    received = await asyncio.to_thread(lambda: [wire.receive(two)[0] for _ in range(3)])
    assert [message["n"] for message in received] == [0, 1, 2]
    assert received[2]["big"] == big
    listener.channel.send({"n": 3})
    assert (await asyncio.to_thread(wire.receive, two))[0] == {"n": 3}
    listener.channel.close()


async def test_channel_hands_no_descriptors_to_who_does_not_read(kp_pair):
    listener = Listener(kp_pair[0])
    listener.channel.send({"big": "x" * (4 << 20)})
    with pytest.raises(ConnectionError, match="too slow"):
        listener.channel.send({"op": "adopt"}, [0])
    listener.channel.close()


async def test_channel_tells_once_that_the_other_side_is_gone(kp_pair):
    one, two = kp_pair
    listener = Listener(one)
    wire.send(two, {"last": "words"})
    two.close()
    await listener.until(lambda: listener.closings)
    assert listener.heard == [{"last": "words"}]
    assert listener.channel.closed
    with pytest.raises(ConnectionError):
        listener.channel.send({"op": "ping"})
    listener.channel.close()
    assert listener.closings == 1


async def test_channel_that_was_closed_says_nothing(kp_pair):
    one, two = kp_pair
    listener = Listener(one)
    listener.channel.close()
    assert two.recv(1) == b""
    await asyncio.sleep(0)
    assert listener.closings == 0
    assert listener.heard == []


async def test_channel_closed_by_a_message_hears_none_of_the_following(kp_pair):
    one, two = kp_pair
    listener = Listener(one)

    def close(message):
        listener.heard.append(message)
        listener.channel.close()

    listener.channel._on_message = close
    two.sendall(wire.encode({"n": 1}) + wire.encode({"n": 2}))
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(two.recv, 1) == b""
    assert listener.heard == [{"n": 1}]


@pytest.mark.parametrize(
    "nonsense",
    [b"GET / HTTP/1.1\r\n\r\n", wire.HEADER.pack(4) + b"what", wire.HEADER.pack(2) + b"\xff\xfe"],
    ids=["oversized", "no JSON", "no text"],
)
async def test_channel_closes_on_nonsense(kp_pair, nonsense, caplog):
    one, two = kp_pair
    listener = Listener(one)
    two.sendall(nonsense)
    await listener.until(lambda: listener.closings)
    assert listener.heard == []
    assert two.recv(1) == b""
    assert "no message" in caplog.text
    assert nonsense.decode(errors="ignore")[:3] not in caplog.messages[0]


async def test_message_may_hold_any_text(kp_pair):
    one, two = kp_pair
    listener = Listener(one)
    text = json.loads('"\\u0000 \\ud800 ü 🦆"')
    wire.send(two, {"env": {"A": text}})
    await listener.until(lambda: listener.heard)
    assert listener.heard == [{"env": {"A": text}}]
    listener.channel.close()
