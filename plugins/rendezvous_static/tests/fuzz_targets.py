"""What the tcp store's server reads from clients, and clients from it; found by ``core.tests.fuzz``."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from functools import cache

from core.tests.fuzz.target import Target, over_a_socket

from quorate.clock import monotonic
from quorate.errors import QuorateError
from quorate_rendezvous_static._auth import NONCE_BYTES, TAG_BYTES, Challenge, Role, Session
from quorate_rendezvous_static._client import TcpStore
from quorate_rendezvous_static._clients import Clients
from quorate_rendezvous_static._greeting import Greeter
from quorate_rendezvous_static._limits import Limits
from quorate_rendezvous_static._link import BrokenError, Link, Target as ServerTarget, _RefusedError
from quorate_rendezvous_static._peers import Peer
from quorate_rendezvous_static._server import TcpStoreServer
from quorate_rendezvous_static._table import Table
from quorate_rendezvous_static._wire import (
    HELLO_ITEMS,
    LARGEST_FRAME,
    LARGEST_HELLO,
    LENGTH_BYTES,
    MAGIC,
    MOST_ITEMS,
    PROTOCOL_VERSION,
    Code,
    FrameBuffer,
    Problem,
    WireError,
    decode,
    encode,
)

_KEY, _NONCE, _INCARNATION = bytes(range(32)), bytes(NONCE_BYTES), b"i" * 16
_LIMITS = Limits()


def _read_frames(data: bytes) -> None:
    frames = FrameBuffer()
    frames.feed(data)
    while (body := frames.next()) is not None:
        message = decode(body)
        assert len(message.items) <= MOST_ITEMS
        assert encode(*message)[LENGTH_BYTES:] == body


class _Peers:
    """Takes the answers of a server without connections; each must be a frame that a client reads."""

    def send(self, peer: Peer, frame: bytes) -> None:
        decode(frame[LENGTH_BYTES:])

    def authenticate(self, peer: Peer) -> None:
        peer.authenticated, peer.frames.limit = True, LARGEST_FRAME

    def drop(self, peer: Peer) -> None:
        peer.authenticated = False

    def count(self, peer: Peer) -> None:
        pass


def _serve(key: bytes | None) -> Callable[[bytes], None]:
    """Return what reads a client's bytes as the server does, which takes any error of a peer for the peer's end."""

    def read(data: bytes) -> None:
        server = object.__new__(TcpStoreServer)
        server._peers = _Peers()
        server._table, server._clients, server._waiters = Table(1 << 20, 100), Clients(_LIMITS), {}
        server._warned, server._where = set(), "[::1]:1"
        server._warn_once = lambda kind, problem: None
        server._greeter = Greeter("job", _INCARNATION, key, server._peers, lambda kind, problem: None)
        server._answers = {
            Code.CREATE: server._create, Code.PUT: server._put, Code.ADD: server._add, Code.GET: server._get,
            Code.WAIT: server._wait, Code.DELETE: server._delete, Code.NO_TOKEN: server._leave_without_token,
            Code.IDENTIFY: server._identify, Code.LAST_WORDS: server._set_last_words,
        }  # fmt: skip
        peer = Peer(_unconnected())
        peer.frames.feed(data[: LARGEST_HELLO + LARGEST_FRAME])
        try:
            while (body := peer.frames.next()) is not None:
                if peer.session is not None:
                    body = peer.session.check(body)
                server._handle(peer, decode(body, MOST_ITEMS if peer.authenticated else HELLO_ITEMS))
                peer.nonce = _NONCE if peer.nonce else b""
        finally:
            server._forget_peer(peer)
        server._wake_waiters(server._clients.write_for_lost(server._table, monotonic() + 1e6))
        assert server._table._held_bytes <= 1 << 20
        assert not server._waiters

    return read


@cache
def _unconnected() -> socket.socket:
    return socket.socket()


def _read_signed(data: bytes) -> None:
    session = Session(b"a" * 32, b"b" * 32)
    session.check(data)


def _greet(key: bytes | None) -> Callable[[socket.socket], None]:
    """Return what reads a server's bytes as a client does."""

    def read(sock: socket.socket) -> None:
        link = Link(ServerTarget("127.0.0.1", 1, "job", "a host", key))
        ours = sock.dup()
        ours.setblocking(False)
        link._socket, link._frames = ours, FrameBuffer(LARGEST_FRAME + TAG_BYTES)
        try:
            link._greet(monotonic() + 5.0)
            store = object.__new__(TcpStore)
            store._target, store._closed = link._target, False
            store._work_lock, store._worker, store._operation_timeout = threading.Lock(), _Answered(link), 5.0
            store._call("key", Code.GET, 0, [b"key"])
        except (BrokenError, _RefusedError, QuorateError) as error:
            if not str(error).isprintable():
                raise AssertionError(f"it would be shown as it came: {str(error)!r}") from error
            raise
        finally:
            link.shut()
            link.release()

    return read


class _Answered:
    """A link whose only answer is the next message, whatever it was asked."""

    is_shut = False

    def __init__(self, link: Link) -> None:
        self._link = link

    def call(self, code: Code, number: int, items: object, deadline: float, *, repeatable: bool) -> object:
        return self._link._receive(0, deadline)


_HELLO = encode(Code.HELLO, 0, PROTOCOL_VERSION, [MAGIC, b"job"])
_CHALLENGE = Challenge(_KEY, b"job", _NONCE, b"c" * NONCE_BYTES)
_PROOF = encode(Code.PROVE, 0, 0, [b"c" * NONCE_BYTES, _CHALLENGE.proof(Role.CLIENT)])
_REQUESTS = (
    encode(Code.IDENTIFY, 0, 0, [b"me"]),
    encode(Code.CREATE, 1, 0, [b"a", b"1"]) + encode(Code.PUT, 2, 0, [b"a", b"2", b"b", b"3"]),
    encode(Code.ADD, 3, 5, [b"c"]) + encode(Code.GET, 4, 0, [b"a", b"c", b"d"]) + encode(Code.DELETE, 5, 0, [b"a"]),
    encode(Code.WAIT, 6, 0, [b"d"]) + encode(Code.CREATE, 7, 0, [b"d", b""]) + encode(Code.WAIT, 8, 0, [b"e"]),
    encode(Code.IDENTIFY, 0, 0, [b"me"])
    + encode(Code.LAST_WORDS, 9, 1000, [b"2", b"x", b"1", b"3", b"y", b"2"])
    + encode(Code.NO_TOKEN, 0),
)
_WELCOME = encode(Code.OK, 0, PROTOCOL_VERSION, [_INCARNATION])


def _signed_requests() -> bytes:
    session = _CHALLENGE.session(Role.CLIENT)
    return b"".join(
        session.sign(request) for request in (encode(Code.ADD, 3, 5, [b"c"]), encode(Code.GET, 4, 0, [b"c"]))
    )


_BROKEN = (BrokenError, _RefusedError, QuorateError)
TARGETS: Mapping[str, Target] = {
    "frames": Target(_read_frames, (b"".join(_REQUESTS), encode(1, 2, -3, [None, b"x"])), (WireError,)),
    "requests": Target(_serve(None), tuple(_HELLO + request for request in _REQUESTS), (WireError,)),
    "proofs and signed requests": Target(
        _serve(_KEY), (_HELLO + _PROOF + _signed_requests(), _HELLO + encode(Code.PROVE, 0)), (WireError,)
    ),
    "signatures": Target(
        _read_signed, (Session(b"b" * 32, b"a" * 32).sign(encode(1, 2, 3))[LENGTH_BYTES:],), (WireError,)
    ),
    "answers": Target(
        over_a_socket(_greet(None)), (_WELCOME + encode(Code.OK, 0, 1, [b"v"]), _WELCOME + encode(Code.OK, 0)), _BROKEN
    ),
    "refusals": Target(
        over_a_socket(_greet(None)),
        (_WELCOME + encode(Code.OK, 0),),
        _BROKEN,
        (
            encode(Code.PROBLEM, 0, Problem.OTHER_JOB, [b"another"]),
            _WELCOME + encode(Code.PROBLEM, 0, Problem.NOT_A_COUNTER, [b"no\xff"]),
            encode(Code.CHALLENGE, 0, PROTOCOL_VERSION, [_NONCE]),
        ),
    ),
    "challenges": Target(
        over_a_socket(_greet(_KEY)),
        (),
        _BROKEN,
        (
            encode(Code.CHALLENGE, 0, PROTOCOL_VERSION, [_NONCE]) + encode(Code.OK, 0, 3, [_INCARNATION, b"p" * 32]),
            _WELCOME,
        ),
    ),
}
