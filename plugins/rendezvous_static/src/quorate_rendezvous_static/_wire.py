"""The frames between the TCP store's clients and its server: one generic message, packed and unpacked.

A frame is a length (4 bytes, big-endian) and a body: code, request number, one integer, and a list of byte strings,
each of which may be absent.  The layout carries no types but these, so there is nothing in it that could execute.
What the codes mean to the server is in ``_server``, to the client in ``_client``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, final

MAGIC = b"quorate-tcp-store"
#: Version 2 added the challenge, version 3 last words.  Every version answers a hello of two items, so that two
#: versions can say so.
PROTOCOL_VERSION = 3
LENGTH_BYTES = 4

#: Limits in bytes.  Before a valid hello a connection may make the server hold no more than a hello.
LARGEST_KEY = 4096
LARGEST_VALUE = (1 << 20) + 64  # the largest that the store's contract names, and a signature
LARGEST_FRAME = 2 << 20
LARGEST_HELLO = 4096
#: Limits on the number of items, whatever their size: each costs memory of its own.
MOST_ITEMS = 1 << 14
HELLO_ITEMS = 2

_FRAME = struct.Struct(">IBIqI")
_BODY = struct.Struct(">BIqI")
_LENGTH = struct.Struct(">I")
_ABSENT = _LENGTH.pack(0xFFFFFFFF)


@final
class Code(IntEnum):
    """What a message is.  Requests come from the client, the rest from the server."""

    HELLO = 1  # number: protocol version; items: MAGIC, run id
    CREATE = 2  # items: key, value
    PUT = 3  # items: key, value, key, value, …
    ADD = 4  # number: amount; items: key
    GET = 5  # items: keys
    WAIT = 6  # items: key; answered with PENDING, or OK at once; later with OK
    DELETE = 7  # items: prefix
    PROVE = 8  # after CHALLENGE; items: the client's nonce, its proof; no items: it has no token
    NO_TOKEN = 9  # after OK: the client has a token, and leaves a server that has none
    IDENTIFY = 10  # items: what the connections of one store have in common; not answered
    LAST_WORDS = 11  # number: milliseconds to come back; items: kind (CREATE or PUT), key, value, kind, …
    OK = 64  # number and items depend on the request
    PENDING = 65  # the key does not exist yet; the server answers again once it does
    PROBLEM = 66  # number: a Problem; items: a sentence
    CHALLENGE = 67  # to HELLO, where a token is needed; number: protocol version; items: the server's nonce


@final
class Problem(IntEnum):
    """Why the server did not do what it was asked."""

    VERSION = 1
    OTHER_JOB = 2
    NOT_A_COUNTER = 3
    FULL = 4
    BUSY = 5  # as many connections as the server takes
    TOKEN = 6  # the client did not prove that it has the job's token
    TLS = 7  # the client does not use TLS; this answer is not encrypted


@final
class WireError(ValueError):
    """The bytes do not follow the protocol; the connection that sent them is of no more use."""


@final
class TlsError(OSError):
    """The other side does not speak TLS as this one needs it; the text says why."""


@final
class Message(NamedTuple):
    """One message.  ``request`` pairs an answer with its question (0 to 2**32 - 1), ``number`` has 64 bits, signed."""

    code: int
    request: int
    number: int
    items: list[bytes | None]


def encode(code: int, request: int, number: int = 0, items: Sequence[bytes | None] = ()) -> bytes:
    """Return the whole frame of a message.

    Raises:
        WireError: the frame would be larger than ``LARGEST_FRAME`` or have too many items, or a number does not fit.
    """
    if len(items) > MOST_ITEMS:
        raise WireError(f"a frame of {len(items)} items has more than the limit of {MOST_ITEMS}")
    parts = [b""]
    size = _BODY.size
    for item in items:
        if item is None:
            parts.append(_ABSENT)
            size += 4
        else:
            parts.append(_LENGTH.pack(len(item)))
            parts.append(item)
            size += 4 + len(item)
    if size > LARGEST_FRAME:
        raise WireError(f"a frame of {size} bytes is larger than the limit of {LARGEST_FRAME}")
    try:
        parts[0] = _FRAME.pack(size, code, request, number, len(items))
    except struct.error as error:
        raise WireError(str(error)) from None
    return b"".join(parts)


def decode(body: bytes, most_items: int = MOST_ITEMS) -> Message:
    """Return the message in the body of a frame, which has at most ``most_items`` items.

    Raises:
        WireError: it is cut short, too long, or its lengths do not add up.
    """
    if len(body) < _BODY.size:
        raise WireError("the frame is shorter than its header")
    code, request, number, count = _BODY.unpack_from(body)
    position, end = _BODY.size, len(body)
    if count > most_items or count * 4 > end - position:
        raise WireError(f"the frame has {count} items; it may have {most_items}, and needs 4 bytes for each")
    items: list[bytes | None] = []
    for _ in range(count):
        if position + 4 > end:
            raise WireError("an item's length is cut off")
        (length,) = _LENGTH.unpack_from(body, position)
        position += 4
        if length == 0xFFFFFFFF:
            items.append(None)
            continue
        if length > end - position:
            raise WireError("an item is cut off")
        items.append(body[position : position + length])
        position += length
    if position != end:
        raise WireError("the frame has bytes behind its last item")
    return Message(code, request, number, items)


@final
class FrameBuffer:
    """Cuts a stream of bytes into frames; holds at most one frame of ``limit`` bytes and what was fed after it."""

    __slots__ = ("_bytes", "limit")

    def __init__(self, limit: int = LARGEST_FRAME) -> None:
        self.limit = limit
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        self._bytes += data

    def next(self) -> bytes | None:
        """Return the body of the next whole frame, or ``None`` if more bytes are needed.

        Raises:
            WireError: the length says that the frame is larger than ``limit`` or smaller than a header.
        """
        held = self._bytes
        if len(held) < 4:
            return None
        (size,) = _LENGTH.unpack_from(held)
        if not _BODY.size <= size <= self.limit:
            raise WireError(f"a frame cannot have {size} bytes")
        if len(held) < 4 + size:
            return None
        body = bytes(memoryview(held)[4 : 4 + size])
        del held[: 4 + size]
        return body


def present_items(message: Message, count: int | None = None) -> list[bytes]:
    """Return the items of a request.  Raises WireError if one is absent or their number is not ``count``."""
    items = [item for item in message.items if item is not None]
    if len(items) != len(message.items) or (count is not None and len(items) != count):
        raise WireError("the request does not have the items it needs")
    return items
