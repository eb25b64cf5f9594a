"""Asks a TCPStore again over a second connection where the first one does not answer soon.

On a link that loses packets a connection stands still until the kernel has sent the lost data again.  A heartbeat waits
for the answer to the one before and to what was read in between, so that a few such pauses in a row are a lease, and
the other nodes would call this one lost.  Two connections seldom stand still together.

torch's client cannot send without waiting for the answer, so the requests are written here: only compare-and-sets,
which may arrive twice.  The later one finds another value than it expects, and changes nothing.  This holds as long as
no key is deleted: a store that ends with its job keeps its keys until then.

What does not live here: what is asked (:mod:`._store`).
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from typing import final

from quorate.clock import monotonic
from quorate.net import close_in_children, set_keep_alive, set_linear_retransmission

from ._requests import NONCE_BYTES, AnswerReader, compare_set_request, greeting
from ._values import ABSENT, IDENTITY_KEY

#: An answer that takes longer is late.  Far above usual round trips, and a fraction of a lease.
_LATE_SECONDS = 0.5
_PIECE_BYTES = 1 << 16


@final
class Lanes:
    """The connections over which one handle asks: torch's own, and one more once that was late.

    One thread at a time uses it.

    Arguments:
        identity: of the store; a second connection that reaches another store is not used.
        timeout: seconds within which one of them has to answer.
    """

    def __init__(self, identity: bytes, timeout: float) -> None:
        self._identity, self._timeout = identity, timeout
        self._first: _Lane | None = None
        self._second: _Lane | None = None
        close_in_children(self)

    def ask(self, work: socket.socket, requests: Sequence[bytes]) -> list[bytes]:
        """Send ``requests`` over ``work``, and over another connection if that is late; return the first answers.

        Raises:
            RuntimeError: ``work`` is broken, or there was no answer in time.
        """
        started = monotonic()
        first, second = self._lane_of(work), None
        # Where an answer is late already, this one would be later.
        deadline, late_at = started + self._timeout, started + (0.0 if first.owed else _LATE_SECONDS)
        first.ask(requests)
        while True:
            for lane in (first, second):
                if lane is not None and lane.has_answered:
                    return lane.answers
            now = monotonic()
            if now >= deadline or first.silent_for(now) >= self._timeout:
                raise RuntimeError(f"no answer within {self._timeout:g} s")
            if now >= late_at:
                late_at = deadline
                second = self._ask_second(work, requests)
                continue  # the answer may be there already
            _await([lane for lane in (first, second) if lane is not None], min(deadline, late_at) - now)
            first.move()
            if second is not None:
                second = self._move_second(second)

    def settle(self, work: socket.socket) -> None:
        """Wait for the answers that are still to come over ``work``, so that torch can use it.

        Raises:
            RuntimeError: as for :meth:`ask`.
        """
        lane, deadline = self._first, monotonic() + self._timeout
        while lane is not None and lane.sock is work and lane.owed:
            left = deadline - monotonic()
            if left <= 0:
                raise RuntimeError(f"no answer within {self._timeout:g} s")
            _await([lane], left)
            lane.move()

    def close(self) -> None:
        """Close the second connection; the first is torch's."""
        self._first = None
        self._drop_second()

    def close_after_fork(self) -> None:
        """Close a forked child's copy."""
        self.close()

    def _lane_of(self, work: socket.socket) -> _Lane:
        if self._first is None or self._first.sock is not work:
            self._first = _Lane(work)
        return self._first

    def _ask_second(self, work: socket.socket, requests: Sequence[bytes]) -> _Lane | None:
        if self._second is not None and self._second.silent_for(monotonic()) >= self._timeout:
            self._drop_second()
        if self._second is None:
            self._second = _open(work, self._identity)
        if self._second is None:
            return None
        try:
            self._second.ask(requests)
        except RuntimeError:
            self._drop_second()
        return self._second

    def _move_second(self, second: _Lane) -> _Lane | None:
        try:
            second.move()
        except RuntimeError:
            self._drop_second()
        return self._second

    def _drop_second(self) -> None:
        if self._second is not None:
            self._second.sock.close()
            self._second = None


@final
class _Lane:
    """One connection, and which of the answers that come over it belong to the question that is asked now."""

    def __init__(self, sock: socket.socket, nonce: bytes = b"", identity: bytes = b"") -> None:
        self.sock = sock
        self.answers: list[bytes] = []
        self._count = 0
        self._older = 0  # how many answers to earlier questions come before those
        self._nonce, self._identity = nonce, identity
        self._unsent = bytearray()
        self._held = bytearray()  # until it is known which store answers
        self._reader = AnswerReader()
        self._heard_at = monotonic()
        if nonce:
            self._unsent += greeting(nonce) + compare_set_request(IDENTITY_KEY, ABSENT, ABSENT)

    @property
    def owed(self) -> int:
        """How many answers are still to come."""
        return self._older + self._count - len(self.answers)

    @property
    def has_answered(self) -> bool:
        return not self.owed

    def silent_for(self, now: float) -> float:
        """Return for how long an answer is owed and none has come, in seconds."""
        return now - self._heard_at if self.owed else 0.0

    def ask(self, requests: Sequence[bytes]) -> None:
        if not self.owed:
            self._heard_at = monotonic()
        self._older += self._count - len(self.answers)
        self.answers, self._count = [], len(requests)
        for request in requests:
            (self._held if self._identity else self._unsent).extend(request)
        self.move()

    def wanted_events(self) -> int:
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def move(self) -> None:
        """Send and receive what can be without waiting.

        Raises:
            RuntimeError: the connection is broken, or leads elsewhere.
        """
        try:
            while self._unsent:
                sent = self.sock.send(self._unsent[:_PIECE_BYTES], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError as error:
            raise RuntimeError(error.strerror or str(error)) from None
        try:
            while piece := self.sock.recv(_PIECE_BYTES, socket.MSG_DONTWAIT):
                self._reader.feed(piece)
        except BlockingIOError:
            self._read()
        except OSError as error:
            raise RuntimeError(error.strerror or str(error)) from None
        else:
            raise RuntimeError("the server closed the connection")

    def _read(self) -> None:
        if self._nonce:
            echo = self._reader.take(NONCE_BYTES)
            if echo is None:
                return
            if echo != self._nonce:
                raise RuntimeError("it does not answer a ping as a TCPStore does")
            self._nonce = b""
        try:
            while (self.owed or self._identity) and (value := self._reader.next_value()) is not None:
                self._heard_at = monotonic()
                self._take(value)
        except ValueError as error:
            raise RuntimeError(str(error)) from None

    def _take(self, value: bytes) -> None:
        if self._identity:
            if value != self._identity:
                raise RuntimeError("it is another store")
            self._identity = b""
            self._unsent += self._held
            self._held.clear()
        elif self._older:
            self._older -= 1
        else:
            self.answers.append(value)


def _open(work: socket.socket, identity: bytes) -> _Lane | None:
    """Begin to connect to where ``work`` leads; ``None`` if that cannot be begun."""
    try:
        sock = socket.socket(work.family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_keep_alive(sock)
        set_linear_retransmission(sock)
        sock.connect_ex(work.getpeername())  # a failure shows when it is used
        return _Lane(sock, os.urandom(NONCE_BYTES), identity)
    except OSError:
        sock.close()
        return None


def _await(lanes: Sequence[_Lane], seconds: float) -> None:
    poll = select.poll()
    for lane in lanes:
        poll.register(lane.sock, lane.wanted_events())
    poll.poll(max(0.0, seconds) * 1000)
