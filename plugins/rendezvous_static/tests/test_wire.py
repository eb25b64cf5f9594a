"""The frames: what was packed comes out again, and no bytes do harm."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from quorate_rendezvous_static._wire import (
    LARGEST_FRAME,
    MOST_ITEMS,
    Code,
    FrameBuffer,
    Message,
    WireError,
    decode,
    encode,
)

messages = st.builds(
    Message,
    code=st.integers(0, 255),
    request=st.integers(0, 2**32 - 1),
    number=st.integers(-(2**63), 2**63 - 1),
    items=st.lists(st.none() | st.binary(max_size=300), max_size=20),
)


@given(messages)
def test_what_was_packed_comes_out_again(message: Message) -> None:
    frame = encode(message.code, message.request, message.number, message.items)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert decode(frame[4:]) == message


@given(st.lists(messages, max_size=8), st.data())
def test_a_stream_may_be_cut_anywhere(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(encode(*message) for message in sent)
    buffer, received = FrameBuffer(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        buffer.feed(stream[:size])
        stream = stream[size:]
        while (body := buffer.next()) is not None:
            received.append(decode(body))
    assert received == sent
    assert len(buffer) == 0


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_a_message(body: bytes) -> None:
    try:
        message = decode(body)
    except WireError:
        return
    assert encode(*message)[4:] == body


@given(st.binary(max_size=400), st.integers(17, 100))
def test_a_stream_of_garbage_never_grows_beyond_its_limit(stream: bytes, limit: int) -> None:
    buffer = FrameBuffer(limit)
    with suppress(WireError):
        for byte in stream:
            buffer.feed(bytes([byte]))
            while buffer.next() is not None:
                pass
            assert len(buffer) <= limit + 4


def test_every_byte_of_a_frame_counts() -> None:
    frame = encode(Code.PUT, 7, -1, [b"key", None, b""])
    for size in range(4, len(frame)):
        with pytest.raises(WireError):
            decode(frame[4:size])
    with pytest.raises(WireError):
        decode(frame[4:] + b"x")


def test_limits() -> None:
    assert len(encode(Code.PUT, 0, 0, [bytes(LARGEST_FRAME - 21)])) == LARGEST_FRAME + 4
    assert len(decode(encode(Code.GET, 0, 0, [b""] * MOST_ITEMS)[4:]).items) == MOST_ITEMS
    for bad in ((Code.PUT, 0, 0, [bytes(LARGEST_FRAME - 20)]), (Code.ADD, 0, 2**63, []), (Code.ADD, 2**32, 0, [])):
        with pytest.raises(WireError):
            encode(*bad)
    buffer = FrameBuffer()
    buffer.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(WireError):
        buffer.next()


def test_the_number_of_items_is_bounded_before_they_are_taken() -> None:
    with pytest.raises(WireError, match="limit"):
        encode(Code.GET, 0, 0, [b""] * (MOST_ITEMS + 1))
    many = encode(Code.GET, 0, 0, [b""] * 3)[4:]
    assert len(decode(many, 3).items) == 3
    with pytest.raises(WireError, match="3 items; it may have 2"):
        decode(many, 2)
