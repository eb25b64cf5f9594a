"""The TCP store's server: one thread, one table of keys, many connections.

Every request is carried out whole before the next one is looked at, so all clients see one order of writes.  No client
is trusted: connections, buffered bytes, keys and times are bounded (``_limits``), and a client that does not read its
answers is not read from.

What does not live here: the frames (``_wire``), the connections (``_peers``), the keys and values (``_table``), and who
hosts a server (``_backends``).
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, final

from quorate.clock import monotonic
from quorate.job_token import TOKEN_FILE_VARIABLE
from quorate.net import Address, bind_addresses, close_in_children, listen, reachable_host
from quorate.notices import warn

from ._clients import LONGEST_CLIENT, Clients
from ._greeting import Greeter, address_of, refuse_at_once
from ._limits import Limits
from ._peers import Peer, Peers
from ._table import RefusedRequestError, Table
from ._wire import (
    HELLO_ITEMS,
    LARGEST_KEY,
    MOST_ITEMS,
    Code,
    Message,
    Problem,
    TlsError,
    WireError,
    decode,
    encode,
    present_items,
)

if TYPE_CHECKING:
    from ._tls import Tls  # a type here: the module imports ssl, which few jobs need

_ACCEPTS_AT_ONCE = 64
_ACCEPT_PAUSE_SECONDS = 0.2
_LONGEST_SELECT_SECONDS = 3600.0
#: The connection that was to be accepted has failed; the listener has not.
_GONE_BEFORE_ACCEPT = frozenset({errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.ECONNRESET})

_servers: weakref.WeakSet[TcpStoreServer] = weakref.WeakSet()


def find_server(incarnation: bytes | None) -> TcpStoreServer | None:
    """Return the server of this process with that incarnation."""
    return next((server for server in list(_servers) if server.incarnation == incarnation), None)


@final
class TcpStoreServer:
    """Serves one job's store on an address of this machine, until it is closed.

    Arguments:
        host: a name or address of this machine; only its own addresses are bound (a name that resolves to nothing
            but loopback, as a machine's own name often does, binds all).
        port: TCP port; 0 takes a free one, see :attr:`port`.
        run_id: the job; clients of another are refused.
        linger_timeout: seconds that :meth:`close` waits at most for the clients to leave first.
        resolve_timeout: seconds that looking up ``host`` may take.
        limits: what clients may take.
        key: what clients must prove to have, 32 bytes that come from the job's token; ``None``: nothing.
        tls: how connections are encrypted; ``None``: they are not.

    Raises:
        UsageError: the files that ``tls`` names cannot be used.
        OSError: ``EADDRINUSE`` where something listens already, ``EADDRNOTAVAIL`` where no address of ``host``
            belongs to this machine, or whatever else the system says.
    """

    def __init__(
        self,
        host: str,
        port: int,
        run_id: str,
        *,
        linger_timeout: float = 5.0,
        resolve_timeout: float = 10.0,
        limits: Limits | None = None,
        key: bytes | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.run_id = run_id
        self._context = None if tls is None else tls.server_context()
        self.host = host
        self.linger_timeout = linger_timeout
        self.incarnation = os.urandom(16)
        self._limits = limits or Limits()
        self._table = Table(self._limits.store_bytes, self._limits.key_overhead_bytes)
        self._given: deque[socket.socket] = deque()
        self._waiters: dict[bytes, dict[Peer, None]] = {}
        self._resume_at: float | None = None
        self._leave_at: float | None = None
        self._requested_linger: float | None = None
        self._warned: set[str] = set()
        self._answers: dict[int, Callable[[Peer, Message], None]] = {
            Code.CREATE: self._create,
            Code.PUT: self._put,
            Code.ADD: self._add,
            Code.GET: self._get,
            Code.WAIT: self._wait,
            Code.DELETE: self._delete,
            Code.NO_TOKEN: self._leave_without_token,
            Code.IDENTIFY: self._identify,
            Code.LAST_WORDS: self._set_last_words,
        }
        self._listeners = listen(bind_addresses(host, port, resolve_timeout))
        self.port: int = self._listeners[0].getsockname()[1]
        #: What is listened on; asked for now, since another thread may read it while the server's closes the listeners.
        self.bound = [Address(sock.family, sock.getsockname()) for sock in self._listeners]
        self._where = ", ".join(map(str, self.bound))
        #: An address at which this machine itself reaches the server.
        self.reachable_host = reachable_host(self._listeners[0])
        self._selector = selectors.DefaultSelector()
        self._clients = Clients(self._limits)
        self._peers = Peers(self._selector, self._limits, self._warn_once, self._forget_peer)
        self._greeter = Greeter(run_id, self.incarnation, key, self._peers, self._warn_once)
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._resume_accepting()
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"quorate-store-{self.port}", daemon=True)
        close_in_children(self)
        _servers.add(self)
        self._thread.start()

    @property
    def addresses(self) -> list[str]:
        """What is listened on, each as ``host:port``; empty once the server is closed."""
        return list(map(str, self.bound)) if self._listeners else []

    @property
    def client_count(self) -> int:
        """How many connections clients have; each store has two."""
        return self._peers.client_count

    def take(self, sock: socket.socket) -> None:
        """Serve a connection that was accepted elsewhere, as :class:`SharedPort` does; it is closed with the server."""
        with self._closing:
            if self._requested_linger is not None:
                sock.close()
                return
            self._given.append(sock)
            self._wake()

    def leave(self, linger_timeout: float | None = None) -> None:
        """Take no new connections, and end once the clients have left.  Does not wait; may be called twice.

        Arguments:
            linger_timeout: seconds after which the server ends in any case; default is what it was made with.
        """
        with self._closing:
            if self._requested_linger is not None:
                return
            self._requested_linger = self.linger_timeout if linger_timeout is None else linger_timeout
            self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # the server has ended already
            self._wake_in.send(b"x")

    def close(self, linger_timeout: float | None = None) -> None:
        """As :meth:`leave`, and wait for the end.  May be called twice."""
        self.leave(linger_timeout)
        self._thread.join(min((self._requested_linger or 0.0) + 10.0, threading.TIMEOUT_MAX))

    def close_after_fork(self) -> None:
        """Close this process's copies of all descriptors; for a child that was forked off."""
        # The selector first: through its descriptor the child would change what its parent listens to.
        self._selector.close()
        for sock in [*self._listeners, *self._given, *self._peers.sockets, self._wake_out, self._wake_in]:
            sock.close()

    # --- the loop -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            warn(
                f"the rendezvous store at {self._where} has ended, and the job cannot go on without it: "
                f"{type(error).__name__}: {error}. This is a bug in quorate"
            )
        finally:
            self._release()

    def _serve(self) -> None:
        while not self._may_leave():
            for key, events in self._selector.select(self._seconds_to_deadline()):
                if isinstance(key.data, Peer):
                    self._serve_peer(key.data, events)
                elif key.data is None:
                    self._wake_out.recv(64)
                    while self._given:
                        self._admit(self._given.popleft())
                    self._start_to_leave()
                else:
                    self._accept(key.data)
            self._meet_deadlines()

    def _may_leave(self) -> bool:
        if self._leave_at is None:
            return False
        return self._peers.client_count == 0 or monotonic() >= self._leave_at

    def _start_to_leave(self) -> None:
        if self._requested_linger is None or self._leave_at is not None:
            return
        self._leave_at = monotonic() + self._requested_linger
        # A new server of the next job may listen here from now on, while this one still serves its clients.
        for listener in self._listeners:
            if self._resume_at is None:
                self._selector.unregister(listener)
            listener.close()
        self._listeners, self._resume_at = [], None

    def _seconds_to_deadline(self) -> float:
        moments = (self._leave_at, self._resume_at, self._peers.next_deadline(), self._clients.next_deadline())
        seconds = min(
            (moment - monotonic() for moment in moments if moment is not None), default=_LONGEST_SELECT_SECONDS
        )
        return max(0.0, min(seconds, _LONGEST_SELECT_SECONDS))

    def _meet_deadlines(self) -> None:
        now = monotonic()
        self._peers.drop_late(now)
        self._wake_waiters(self._clients.write_for_lost(self._table, now))
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_accepting()

    def _release(self) -> None:
        listeners, self._listeners = self._listeners, []
        for sock in [*listeners, *self._given, *self._peers.sockets, self._wake_out, self._wake_in]:
            sock.close()
        self._selector.close()

    # --- connections ----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_BEFORE_ACCEPT:
                    continue
                self._pause_accepting(error)
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        try:
            self._take_in(sock)
        except OSError:
            sock.close()  # does nothing if TLS has taken it over, and has closed it

    def _take_in(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        own = len(self._listeners) + 4  # the selector, both ends of the wake-up pair, and this one
        most = max(2, self._limits.most_descriptors() - own)
        if len(self._peers) >= most:
            self._warn_once(
                "connections",
                f"has {len(self._peers)} connections and takes no more, a {self._limits.descriptor_share}th of the "
                "files that this process may open (ulimit -n)",
            )
            if not self._peers.drop_oldest_unauthenticated():
                refuse_at_once(sock, most, is_plain=self._context is None)
                return
        if self._context is None:
            self._peers.add(sock)
            return
        from ._tls import accept  # imports ssl, which was imported with the context

        encrypted = accept(sock, self._context)
        try:
            self._peers.add(encrypted)
        except OSError:
            encrypted.close()

    def _pause_accepting(self, error: OSError) -> None:
        # Out of descriptors the listener stays readable: without a pause the loop would spin.
        self._warn_once("accept", f"cannot accept connections for now: {error.strerror or error}")
        self._resume_at = monotonic() + _ACCEPT_PAUSE_SECONDS
        for listener in self._listeners:
            self._selector.unregister(listener)

    def _resume_accepting(self) -> None:
        self._resume_at = None
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, listener)

    def _warn_once(self, kind: str, problem: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn(f"the rendezvous store at {self._where} {problem}")

    def _serve_peer(self, peer: Peer, events: int) -> None:
        if peer not in self._peers:
            return  # dropped earlier in this very turn
        try:
            if events & selectors.EVENT_WRITE:
                self._peers.flush(peer)
            if events & selectors.EVENT_READ and not self._peers.receive(peer):
                return
            while not peer.out and peer in self._peers and (body := peer.frames.next()) is not None:
                self._peers.transfer_is_complete(peer)
                if peer.session is not None:
                    body = peer.session.check(body)
                self._handle(peer, decode(body, MOST_ITEMS if peer.authenticated else HELLO_ITEMS))
        except BlockingIOError:
            pass
        except TlsError as error:
            self._warn_once("tls", f"refuses {address_of(peer)}: {error}")
            self._drop_without_tls(peer)
        except Exception:
            # Whatever a client manages to provoke ends its own connection, never the others'.
            self._peers.drop(peer)
        self._peers.count(peer)

    def _drop_without_tls(self, peer: Peer) -> None:
        from ._tls import TlsSocket  # imports ssl, which was imported with the context

        sentence = "it takes connections with TLS only; set ca_cert (--rdzv-conf) on this node"
        if isinstance(peer.socket, TlsSocket) and peer.socket.version() is None:
            with suppress(OSError):
                peer.socket.answer_plain(encode(Code.PROBLEM, 0, Problem.TLS, [sentence.encode()]))
        self._peers.drop(peer)

    def _handle(self, peer: Peer, message: Message) -> None:
        if not peer.authenticated:
            self._greeter.answer(peer, message)
            return
        answer = self._answers.get(message.code)
        if answer is None:
            raise WireError(f"unknown request {message.code}")
        try:
            answer(peer, message)
        except RefusedRequestError as error:
            self._peers.send(peer, encode(Code.PROBLEM, message.request, error.problem, [str(error).encode()]))

    def _leave_without_token(self, peer: Peer, message: Message) -> None:
        self._warn_once(
            "token",
            f"has no job token, and {address_of(peer)} has one and does not join; set {TOKEN_FILE_VARIABLE} on this "
            "node",
        )
        self._peers.drop(peer)

    # --- requests -------------------------------------------------------------------------------------------------

    def _create(self, peer: Peer, message: Message) -> None:
        key, value = present_items(message, 2)
        created = self._table.create(key, value)
        if created:
            self._wake_waiters([key])
        self._peers.send(peer, encode(Code.OK, message.request, int(created)))

    def _put(self, peer: Peer, message: Message) -> None:
        items = present_items(message)
        self._table.put(items[::2], items[1::2])
        self._wake_waiters(items[::2])
        self._peers.send(peer, encode(Code.OK, message.request))

    def _add(self, peer: Peer, message: Message) -> None:
        (key,) = present_items(message, 1)
        count = self._table.add(key, message.number)
        self._wake_waiters([key])
        self._peers.send(peer, encode(Code.OK, message.request, count))

    def _get(self, peer: Peer, message: Message) -> None:
        found = self._table.get_many(present_items(message))
        # The client sees how many values came, and asks for the rest.
        self._peers.send(peer, encode(Code.OK, message.request, len(found), found))

    def _wait(self, peer: Peer, message: Message) -> None:
        (key,) = present_items(message, 1)
        if len(key) > LARGEST_KEY:
            raise WireError("a key is too long")
        self._forget_wait(peer)
        value = self._table.get(key)
        if value is not None:
            self._peers.send(peer, encode(Code.OK, message.request, 0, [value]))
            return
        peer.waits_for, peer.request = key, message.request
        self._waiters.setdefault(key, {})[peer] = None
        self._peers.send(peer, encode(Code.PENDING, message.request))

    def _delete(self, peer: Peer, message: Message) -> None:
        (prefix,) = present_items(message, 1)
        self._table.delete(prefix)
        self._peers.send(peer, encode(Code.OK, message.request))

    def _identify(self, peer: Peer, message: Message) -> None:
        (name,) = present_items(message, 1)
        if peer.client or not 0 < len(name) <= LONGEST_CLIENT:
            raise WireError("a connection belongs to one client")
        peer.client = name
        self._clients.connected(name)

    def _set_last_words(self, peer: Peer, message: Message) -> None:
        self._clients.set_words(peer.client, message.number / 1000, present_items(message))
        self._peers.send(peer, encode(Code.OK, message.request))

    def _forget_peer(self, peer: Peer) -> None:
        self._forget_wait(peer)
        if peer.client:
            self._clients.disconnected(peer.client)

    def _wake_waiters(self, keys: list[bytes]) -> None:
        for key in keys:
            waiters = self._waiters.pop(key, {})
            for waiter in waiters:
                waiter.waits_for = None
            for waiter in waiters:
                self._peers.send(waiter, encode(Code.OK, waiter.request, 0, [self._table.get(key)]))
                self._peers.count(waiter)

    def _forget_wait(self, peer: Peer) -> None:
        if peer.waits_for is None:
            return
        waiters = self._waiters[peer.waits_for]
        del waiters[peer]
        if not waiters:
            del self._waiters[peer.waits_for]
        peer.waits_for = None
