"""The TCP store's server: one thread, one table of keys, many connections.

Every request is carried out whole before the next one is looked at, so all clients see one order of writes.  The
server trusts nobody: before a valid hello a connection may send 4 KiB and live 5 seconds; after it, a client that
does not read its answers is not read from either, so that what the server holds for it stays bounded.

What does not live here: the frames (``_wire``) and who hosts a server (``_backends``).
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
from collections.abc import Callable
from typing import final

from quorate.clock import monotonic

from ._endpoint import Address
from ._fork import close_in_children
from ._listen import bind_addresses, listen, reachable_host
from ._tuning import tune
from ._wire import (
    LARGEST_FRAME,
    LARGEST_HELLO,
    LARGEST_KEY,
    LARGEST_VALUE,
    MAGIC,
    PROTOCOL_VERSION,
    Code,
    FrameBuffer,
    Message,
    Problem,
    WireError,
    decode,
    encode,
)

__all__ = ["TcpStoreServer"]

HELLO_TIMEOUT_SECONDS = 5.0
LARGEST_STORE = 256 << 20
LARGEST_COUNT = 1 << 62
MOST_STRANGERS = 4096
_RECEIVE = 1 << 16
_BREATHER_SECONDS = 0.2


@final
class _Peer:
    """One accepted connection."""

    __slots__ = ("frames", "known", "out", "request", "since", "socket", "waits_for")

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.socket = sock
        self.frames = FrameBuffer(LARGEST_HELLO)
        self.out = bytearray()
        self.known = False
        self.since = now
        self.waits_for: bytes | None = None
        self.request = 0


@final
class TcpStoreServer:
    """Serves one job's store on an address of this machine, until it is closed.

    Arguments:
        host: a name or address of this machine; only its own addresses are bound (a name that resolves to nothing
            but loopback, as a machine's own name often does, binds all).
        port: TCP port; 0 takes a free one, see :attr:`port`.
        run_id: the job; clients of another are refused.
        linger_seconds: how long :meth:`close` waits for the clients to leave first.
        resolve_timeout: seconds that looking up ``host`` may take.

    Raises:
        OSError: ``EADDRINUSE`` where something listens already, ``EADDRNOTAVAIL`` where no address of ``host``
            belongs to this machine, or whatever else the system says.
    """

    def __init__(
        self, host: str, port: int, run_id: str, *, linger_seconds: float = 5.0, resolve_timeout: float = 10.0
    ) -> None:
        self.run_id = run_id
        self.host = host
        self.linger_seconds = linger_seconds
        self.incarnation = os.urandom(16)
        self._values: dict[bytes, bytes] = {}
        self._stored = 0
        self._waiters: dict[bytes, dict[_Peer, None]] = {}
        self._peers: dict[_Peer, None] = {}
        self._strangers: dict[_Peer, None] = {}
        self._resume_at: float | None = None
        self._leave_at: float | None = None
        self._asked_to_leave: float | None = None
        self._answers: dict[int, Callable[[_Peer, Message], None]] = {
            Code.CREATE: self._create,
            Code.PUT: self._put,
            Code.ADD: self._add,
            Code.GET: self._get,
            Code.WAIT: self._wait,
            Code.DELETE: self._delete,
        }
        self._listeners = listen(bind_addresses(host, port, resolve_timeout))
        self.port: int = self._listeners[0].getsockname()[1]
        # Asked for now: another thread may read them while the server's closes the listeners.
        self._addresses = [str(Address(sock.family, sock.getsockname())) for sock in self._listeners]
        self._reachable_host = reachable_host(self._listeners[0])
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._accept_again()
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name=f"quorate-store-{self.port}", daemon=True)
        close_in_children(self)
        self._thread.start()

    @property
    def addresses(self) -> list[str]:
        """What is listened on, each as ``host:port``; empty once the server is closed."""
        return list(self._addresses) if self._listeners else []

    @property
    def reachable_host(self) -> str:
        """An address at which this machine itself reaches the server."""
        return self._reachable_host

    def close(self, linger_seconds: float | None = None) -> None:
        """Take no new connections, wait for the clients to leave, then stop.  May be called twice.

        Arguments:
            linger_seconds: the longest wait; default is what the server was made with.
        """
        linger = self.linger_seconds if linger_seconds is None else linger_seconds
        with self._closing:
            if self._asked_to_leave is not None:
                return
            self._asked_to_leave = linger
            self._wake_in.send(b"x")
            self._thread.join(linger + 10.0)
            self._wake_in.close()

    def close_after_fork(self) -> None:
        """Close this process's copies of all descriptors; for a child that was forked off."""
        # The selector first: through its descriptor the child would change what its parent listens to.
        self._selector.close()
        for sock in [*self._listeners, *(peer.socket for peer in self._peers), self._wake_out, self._wake_in]:
            sock.close()

    # --- the loop -------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not self._may_leave():
                for key, events in self._selector.select(self._until_deadline()):
                    if isinstance(key.data, _Peer):
                        self._serve_peer(key.data, events)
                    elif key.data is None:
                        self._wake_out.recv(64)
                        self._start_to_leave()
                    else:
                        self._accept(key.data)
                self._meet_deadlines()
        finally:
            self._release()

    def _may_leave(self) -> bool:
        if self._leave_at is None:
            return False
        return len(self._peers) == len(self._strangers) or monotonic() >= self._leave_at

    def _start_to_leave(self) -> None:
        if self._asked_to_leave is None or self._leave_at is not None:
            return
        self._leave_at = monotonic() + self._asked_to_leave
        # A new server of the next job may listen here from now on, while this one still serves whom it knows.
        for listener in self._listeners:
            if self._resume_at is None:
                self._selector.unregister(listener)
            listener.close()
        self._listeners, self._resume_at = [], None

    def _until_deadline(self) -> float | None:
        deadlines = [moment for moment in (self._leave_at, self._resume_at) if moment is not None]
        if self._strangers:
            deadlines.append(next(iter(self._strangers)).since + HELLO_TIMEOUT_SECONDS)
        return max(0.0, min(deadlines) - monotonic()) if deadlines else None

    def _meet_deadlines(self) -> None:
        now = monotonic()
        # Strangers are kept in the order in which they came, and all have the same time.
        while self._strangers:
            oldest = next(iter(self._strangers))
            if oldest.since + HELLO_TIMEOUT_SECONDS > now and len(self._strangers) <= MOST_STRANGERS:
                break
            self._drop(oldest)
        if self._resume_at is not None and now >= self._resume_at:
            self._accept_again()

    def _release(self) -> None:
        for peer in list(self._peers):
            self._drop(peer)
        for listener in self._listeners:
            listener.close()
        self._selector.close()
        self._wake_out.close()

    # --- connections ----------------------------------------------------------------------------------------------

    def _accept_again(self) -> None:
        self._resume_at = None
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._pause_accepting()
                    return
                continue  # that connection was gone before it was accepted
            peer = _Peer(sock, monotonic())
            try:
                sock.setblocking(False)
                tune(sock)
                self._selector.register(sock, selectors.EVENT_READ, peer)
            except OSError:
                sock.close()
                continue
            self._peers[peer] = None
            self._strangers[peer] = None

    def _pause_accepting(self) -> None:
        # Out of descriptors the listener stays readable: without a pause the loop would spin.
        self._resume_at = monotonic() + _BREATHER_SECONDS
        for listener in self._listeners:
            self._selector.unregister(listener)

    def _drop(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        del self._peers[peer]
        self._strangers.pop(peer, None)
        self._forget_wait(peer)
        self._selector.unregister(peer.socket)
        peer.socket.close()

    def _serve_peer(self, peer: _Peer, events: int) -> None:
        if peer not in self._peers:
            return  # dropped earlier in this very turn
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if events & selectors.EVENT_READ:
                data = peer.socket.recv(_RECEIVE)
                if not data:
                    self._drop(peer)
                    return
                peer.frames.feed(data)
            while not peer.out and peer in self._peers and (body := peer.frames.next()) is not None:
                self._handle(peer, decode(body))
        except BlockingIOError:
            return
        except Exception:
            # Whatever a client manages to provoke ends its own connection, never the others'.
            self._drop(peer)

    def _handle(self, peer: _Peer, message: Message) -> None:
        if not peer.known:
            self._greet(peer, message)
            return
        answer = self._answers.get(message.code)
        if answer is None:
            raise WireError(f"unknown request {message.code}")
        answer(peer, message)

    def _greet(self, peer: _Peer, message: Message) -> None:
        if message.code != Code.HELLO or len(message.items) != 2 or message.items[0] != MAGIC:
            raise WireError("this is no hello")
        if message.number != PROTOCOL_VERSION:
            sentence = f"it speaks version {PROTOCOL_VERSION} of the store's protocol, this node {message.number}"
            self._refuse(peer, message, Problem.VERSION, sentence)
        elif message.items[1] != self.run_id.encode():
            self._refuse(peer, message, Problem.OTHER_JOB, "it serves another job (another run id)")
        else:
            peer.known = True
            peer.frames.limit = LARGEST_FRAME
            self._strangers.pop(peer, None)
            self._send(peer, encode(Code.OK, message.request, PROTOCOL_VERSION, [self.incarnation]))

    def _refuse(self, peer: _Peer, message: Message, problem: Problem, sentence: str) -> None:
        # It stays a stranger: it has read the answer and gone, or its time runs out.
        self._send(peer, encode(Code.PROBLEM, message.request, problem, [sentence.encode()]))

    def _send(self, peer: _Peer, frame: bytes) -> None:
        """Send what the socket takes now and keep the rest.  Drops a broken peer instead of raising."""
        try:
            if peer.out:
                peer.out += frame
                return
            sent = 0
            try:
                sent = peer.socket.send(frame)
            except BlockingIOError:
                pass
            if sent < len(frame):
                peer.out += memoryview(frame)[sent:]
                # Until it has taken this answer, nothing more is read from it.
                self._selector.modify(peer.socket, selectors.EVENT_WRITE, peer)
        except OSError:
            self._drop(peer)

    def _flush(self, peer: _Peer) -> None:
        sent = peer.socket.send(peer.out)
        del peer.out[:sent]
        if not peer.out:
            self._selector.modify(peer.socket, selectors.EVENT_READ, peer)

    # --- requests -------------------------------------------------------------------------------------------------

    def _create(self, peer: _Peer, message: Message) -> None:
        key, value = _whole(message, 2)
        if key in self._values:
            self._send(peer, encode(Code.OK, message.request, 0))
        elif self._store(peer, message, [key, value]):
            self._send(peer, encode(Code.OK, message.request, 1))

    def _put(self, peer: _Peer, message: Message) -> None:
        if self._store(peer, message, _whole(message)):
            self._send(peer, encode(Code.OK, message.request))

    def _add(self, peer: _Peer, message: Message) -> None:
        (key,) = _whole(message, 1)
        held = self._values.get(key, b"0")
        try:
            count = int(held) + message.number if len(held) <= 20 else LARGEST_COUNT
        except ValueError:
            count = LARGEST_COUNT
        if abs(count) >= LARGEST_COUNT:
            self._complain(peer, message, Problem.NOT_A_COUNTER, "it is no counter, or would overflow")
        elif self._store(peer, message, [key, b"%d" % count]):
            self._send(peer, encode(Code.OK, message.request, count))

    def _get(self, peer: _Peer, message: Message) -> None:
        found: list[bytes | None] = []
        room = LARGEST_FRAME - 64
        for key in _whole(message):
            value = self._values.get(key)
            room -= 4 + (len(value) if value is not None else 0)
            if room < 0:
                break  # the client sees how many values came and asks for the rest
            found.append(value)
        self._send(peer, encode(Code.OK, message.request, len(found), found))

    def _wait(self, peer: _Peer, message: Message) -> None:
        (key,) = _whole(message, 1)
        self._forget_wait(peer)
        value = self._values.get(key)
        if value is not None:
            self._send(peer, encode(Code.OK, message.request, 0, [value]))
            return
        peer.waits_for, peer.request = key, message.request
        self._waiters.setdefault(key, {})[peer] = None
        self._send(peer, encode(Code.PENDING, message.request))

    def _delete(self, peer: _Peer, message: Message) -> None:
        (prefix,) = _whole(message, 1)
        for key in [key for key in self._values if key.startswith(prefix)]:
            self._stored -= len(key) + len(self._values.pop(key))
        self._send(peer, encode(Code.OK, message.request))

    def _store(self, peer: _Peer, message: Message, pairs: list[bytes]) -> bool:
        """Write keys and values and wake who waits for them; ``False`` (and an answer) if there is no room."""
        keys, values = pairs[::2], pairs[1::2]
        if len(keys) != len(values) or any(len(value) > LARGEST_VALUE for value in values):
            raise WireError("a value is missing or too large")
        if any(len(key) > LARGEST_KEY for key in keys):
            raise WireError("a key is too long")
        if self._stored + sum(map(len, pairs)) > LARGEST_STORE:
            self._complain(peer, message, Problem.FULL, f"it holds {self._stored} bytes and takes no more")
            return False
        for key, value in zip(keys, values):  # noqa: B905 - equal lengths, checked above
            old = self._values.get(key)
            self._stored += len(value) - len(old) if old is not None else len(key) + len(value)
            self._values[key] = value
        for key in keys:
            for waiter in self._waiters.pop(key, ()):
                waiter.waits_for = None
                self._send(waiter, encode(Code.OK, waiter.request, 0, [self._values[key]]))
        return True

    def _forget_wait(self, peer: _Peer) -> None:
        if peer.waits_for is None:
            return
        waiters = self._waiters[peer.waits_for]
        del waiters[peer]
        if not waiters:
            del self._waiters[peer.waits_for]
        peer.waits_for = None

    def _complain(self, peer: _Peer, message: Message, problem: Problem, sentence: str) -> None:
        self._send(peer, encode(Code.PROBLEM, message.request, problem, [sentence.encode()]))


def _whole(message: Message, count: int | None = None) -> list[bytes]:
    """Return the items of a request.  Raises WireError if one is absent or their number is not ``count``."""
    items = [item for item in message.items if item is not None]
    if len(items) != len(message.items) or (count is not None and len(items) != count):
        raise WireError("the request does not have the items it needs")
    return items
