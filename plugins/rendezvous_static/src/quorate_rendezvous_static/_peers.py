"""The TCP store's connections: what each makes the server hold, for how long, and how answers leave.

What does not live here: what requests mean, who listens and who accepts (``_server``).
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import final

from attrs import define, field

from quorate.clock import monotonic
from quorate.net import set_keep_alive, set_linear_retransmission

from ._auth import Session
from ._limits import Limits
from ._wire import LARGEST_FRAME, LARGEST_HELLO, FrameBuffer

_RECEIVE_BYTES = 1 << 16


_Socket = socket.socket


@final
@define(eq=False)
class Peer:
    """One accepted connection."""

    socket: _Socket
    frames: FrameBuffer = field(factory=lambda: FrameBuffer(LARGEST_HELLO))
    out: bytearray = field(factory=bytearray)
    held_bytes: int = 0  # of both, as last counted
    authenticated: bool = False
    nonce: bytes = b""  # of the challenge that it has to answer
    session: Session | None = None  # signs its frames, where there is a token
    waits_for: bytes | None = None
    request: int = 0
    client: bytes = b""  # whose connection it is, where it has said so


@final
class Peers:
    """All connections of one server, within its limits.  Used by the server's thread alone.

    Arguments:
        selector: where the connections are registered, each with its Peer.
        limits: what they may take.
        warn_once: called with a kind and a sentence where a limit closes a connection.
        on_drop: called with each connection that is closed.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        limits: Limits,
        warn_once: Callable[[str, str], None],
        on_drop: Callable[[Peer], None],
    ) -> None:
        self._selector, self._limits = selector, limits
        self._warn_once, self._on_drop = warn_once, on_drop
        self._peers: dict[Peer, None] = {}
        # Both hold when each connection's time began, the oldest first.
        self._unauthenticated: dict[Peer, float] = {}
        self._transfers: dict[Peer, float] = {}
        self._buffered_bytes = 0

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._peers

    @property
    def client_count(self) -> int:
        """How many connections have sent a valid hello."""
        return len(self._peers) - len(self._unauthenticated)

    @property
    def sockets(self) -> list[socket.socket]:
        """Every connection's socket."""
        return [peer.socket for peer in self._peers]

    def add(self, sock: socket.socket) -> None:
        """Take a new connection.  Raises OSError if it is broken already; it is then not taken."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_keep_alive(sock)
        set_linear_retransmission(sock)
        peer = Peer(sock)
        self._selector.register(sock, selectors.EVENT_READ, peer)
        self._peers[peer] = None
        self._unauthenticated[peer] = monotonic()

    def authenticate(self, peer: Peer) -> None:
        """A valid hello has come: the limits of a client apply from now on."""
        peer.authenticated = True
        peer.frames.limit = LARGEST_FRAME
        self._unauthenticated.pop(peer, None)

    def drop(self, peer: Peer) -> None:
        """Close a connection.  Does nothing if it is closed."""
        if peer not in self._peers:
            return
        del self._peers[peer]
        self._unauthenticated.pop(peer, None)
        self._transfers.pop(peer, None)
        self._buffered_bytes -= peer.held_bytes
        self._on_drop(peer)
        self._selector.unregister(peer.socket)
        peer.socket.close()

    def drop_oldest_unauthenticated(self) -> bool:
        """Close the connection that has been without a hello for longest; returns whether there was one."""
        if not self._unauthenticated:
            return False
        self.drop(next(iter(self._unauthenticated)))
        return True

    # --- time -----------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when :meth:`drop_late` may have something to close."""
        return min((next(iter(since.values())) + timeout for since, timeout in self._timed() if since), default=None)

    def drop_late(self, now: float) -> None:
        """Close the connections whose time is over."""
        for since, timeout in self._timed():
            while since and next(iter(since.values())) + timeout <= now:
                self.drop(next(iter(since)))

    def _timed(self) -> list[tuple[dict[Peer, float], float]]:
        return [
            (self._unauthenticated, self._limits.hello_timeout_seconds),
            (self._transfers, self._limits.transfer_timeout_seconds),
        ]

    def transfer_is_complete(self, peer: Peer) -> None:
        """A request has arrived whole, or an answer has been taken whole: the time of the next one begins."""
        self._transfers.pop(peer, None)

    def count(self, peer: Peer) -> None:
        """Bring up to date what ``peer`` makes the server hold, and since when; enforce the bound on all."""
        if peer not in self._peers:
            return
        held = len(peer.frames) + len(peer.out)
        self._buffered_bytes += held - peer.held_bytes
        peer.held_bytes = held
        if held:
            self._transfers.setdefault(peer, monotonic())
        else:
            self._transfers.pop(peer, None)
        while self._buffered_bytes > self._limits.buffered_bytes:
            self._warn_once(
                "buffers", f"holds {self._buffered_bytes} bytes for slow connections and closes the largest of them"
            )
            self.drop(max(self._peers, key=lambda peer: peer.held_bytes))

    # --- bytes ----------------------------------------------------------------------------------------------------

    def receive(self, peer: Peer) -> bool:
        """Take what has arrived; returns whether the connection is still open.  Raises OSError."""
        data = peer.socket.recv(_RECEIVE_BYTES if peer.authenticated else LARGEST_HELLO)
        if not data:
            self.drop(peer)
            return False
        peer.frames.feed(data)
        return True

    def send(self, peer: Peer, frame: bytes) -> None:
        """Send what the socket takes now and keep the rest.  Drops a broken peer instead of raising."""
        if peer.session is not None:
            frame = peer.session.sign(frame)
        try:
            if peer.out:
                peer.out += frame
                return
            sent = 0
            with suppress(BlockingIOError):
                sent = peer.socket.send(frame)
            if sent < len(frame):
                peer.out += memoryview(frame)[sent:]
                # Until it has taken this answer, nothing more is read from it.
                self._selector.modify(peer.socket, selectors.EVENT_WRITE, peer)
        except OSError:
            self.drop(peer)

    def flush(self, peer: Peer) -> None:
        """Send more of what was kept.  Raises OSError."""
        sent = peer.socket.send(peer.out)
        del peer.out[:sent]
        if not peer.out:
            self.transfer_is_complete(peer)
            self._selector.modify(peer.socket, selectors.EVENT_READ, peer)
