"""One connection to a TCPStore, and what torch does not offer on it: a deadline, a keep-alive, an interruption.

torch opens the connection in C++ and does not show its descriptor.  It is found as the one new socket whose peer has
the store's port, and duplicated: options set and a shutdown made on the duplicate act on the connection itself.  Where
it cannot be found the connection works without those three.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, final

from quorate.clock import monotonic
from quorate.forks import no_fork
from quorate.net import close_in_children, set_keep_alive, set_linear_retransmission, shut_down

from ._guarded_store import GuardedStore

_Wanted = Callable[[socket.socket], bool]

_LEVEL = "TORCH_CPP_LOG_LEVEL"
_START_TIMEOUT_SECONDS = 30.0
# One construction at a time, so that the one new socket is the one just made.
_constructing = threading.Lock()
# Threads that are about to serve a store -> the port.  From their first listening on they need the lock to go on.
_starting: dict[int, int] = {}
_has_started = threading.Condition()


def _forget_the_parents_threads() -> None:
    """Reset a forked child: the threads that may have held the locks exist in the parent alone."""
    global _constructing, _has_started
    _constructing, _has_started = threading.Lock(), threading.Condition()
    _starting.clear()


os.register_at_fork(after_in_child=_forget_the_parents_threads)


def load_tcp_store() -> Any:
    """Import torch and return its TCPStore class.

    torch logs every timed-out wait and every closed connection, with a C++ stack trace, both of which are ordinary
    here.  The level is read once, when torch is loaded, so it is set around the import, where the user set none.  It
    goes into the C environment only: ``os.environ`` never has it, so no worker inherits it.
    """
    quiet = "torch" not in sys.modules and _LEVEL not in os.environ
    if quiet:
        os.putenv(_LEVEL, "FATAL")
    try:
        from torch.distributed import TCPStore  # torch: only once the backend is opened
    finally:
        if quiet:
            os.unsetenv(_LEVEL)
    return TCPStore


@contextmanager
def starting(port: int) -> Iterator[None]:
    """While this thread listens on ``port`` and does not serve it yet, no other thread connects to it.

    One that did would wait for the server's first answer with the lock that the server needs to start.
    """
    with _has_started:
        _starting[threading.get_ident()] = port
    try:
        yield
    finally:
        with _has_started:
            del _starting[threading.get_ident()]
            _has_started.notify_all()


def _await_start(port: int, deadline: float) -> None:
    own = threading.get_ident()

    def is_free() -> bool:
        return all(thread == own or starting_port != port for thread, starting_port in _starting.items())

    with _has_started:
        _has_started.wait_for(is_free, max(0.0, deadline - monotonic()))


@final
class Connection:
    """A TCPStore client and, where it was found, a duplicate of its socket.

    ``server_port`` is set where the store has its server in this process.
    """

    def __init__(self, store: Any, sock: socket.socket | None, server_port: int | None = None) -> None:
        self.store: Any = GuardedStore(store)
        self.sock = sock
        self.server_port = server_port
        close_in_children(self)

    def shut(self) -> None:
        """Break the connection under a blocked call; never blocks."""
        if self.sock is not None:
            shut_down(self.sock)

    def local_port(self) -> int | None:
        """Return the connection's own port number, where known."""
        try:
            return None if self.sock is None else int(self.sock.getsockname()[1])
        except OSError:
            return None

    def close(self) -> None:
        """Drop it.  The C++ side closes its descriptor once no call is under way on it."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.store = None

    def close_after_fork(self) -> Any:
        """Close a forked child's copies: of the connection, of the server's listener and of what it has accepted.

        Returns the store: its threads exist in the parent only, and ending it would wait for them.
        """
        inode = os.fstat(self.sock.fileno()).st_ino if self.sock is not None else None
        port = self.server_port if self.store is not None else None

        def is_ours(sock: socket.socket) -> bool:
            return os.fstat(sock.fileno()).st_ino == inode or (port is not None and sock.getsockname()[1] == port)

        store = self.store
        self.close()
        _close(is_ours)
        return store


def connect(address: str, port: int, deadline: float, operation_timeout: float) -> Connection:
    """Connect to the TCPStore at ``address`` by ``deadline`` (monotonic seconds).

    ``operation_timeout`` (seconds) bounds each operation on it, where the socket was found.

    Raises:
        RuntimeError: the peer is not a TCPStore, or it did not answer in time.
    """
    _await_start(port, deadline)
    tcp_store = load_tcp_store()
    # torch tries again until its own timeout; one try is enough, the caller knows better when to stop.
    timeout = timedelta(seconds=1)
    connection = _construct(
        lambda: tcp_store(address, port, None, False, timeout, wait_for_workers=False),
        port,
        deadline,
        operation_timeout,
    )
    connection.store.set_timeout(timedelta(seconds=max(1.0, operation_timeout)))
    return connection


def host(listening: socket.socket, address: str, operation_timeout: float) -> Connection:
    """Start a TCPStore server on ``listening`` and connect to it at ``address``.

    The server owns the descriptor from here on, and closes it when the returned store is collected.

    Raises:
        RuntimeError: it could not be started; the descriptor is closed.
    """
    tcp_store = load_tcp_store()
    port = listening.getsockname()[1]
    set_linear_retransmission(listening)
    descriptor = listening.detach()
    timeout = timedelta(seconds=max(1.0, operation_timeout))
    try:
        connection = _construct(
            lambda: tcp_store(address, port, None, True, timeout, wait_for_workers=False, master_listen_fd=descriptor),
            port,
            monotonic() + _START_TIMEOUT_SECONDS,
            operation_timeout,
        )
    except RuntimeError:
        # Torch may have closed it already, and another file may have its number by now.
        _close(lambda sock: sock.getsockname()[1] == port, [descriptor])
        raise
    connection.server_port = port
    return connection


def _construct(make: Callable[[], Any], port: int, deadline: float, operation_timeout: float) -> Connection:
    with _constructing:
        before = set()
        for sock in _with_peer_port(port):
            before.add(os.fstat(sock.fileno()).st_ino)
            sock.close()

        def find() -> list[socket.socket]:
            found = []
            for sock in _with_peer_port(port):
                if os.fstat(sock.fileno()).st_ino in before:
                    sock.close()
                else:
                    found.append(sock)
            return found

        done = threading.Event()

        def cut() -> None:
            # A server that accepts and says nothing would hold torch's constructor for ever.  Once its connection is
            # cut it opens another, until its own timeout has passed: cut these as well.
            pause = max(0.05, deadline - monotonic())
            while not done.wait(pause):
                pause = 0.05
                for sock in find():
                    shut_down(sock)
                    sock.close()

        watchdog = threading.Thread(target=cut, name="quorate-c10d-connect", daemon=True)
        watchdog.start()
        try:
            with no_fork():
                store = make()
        finally:
            done.set()
            watchdog.join()
        found = find()
    if len(found) != 1:
        # Another thread of this process connected to the same port meanwhile; the two cannot be distinguished.
        for sock in found:
            sock.close()
        return Connection(store, None)
    _prepare(found[0], operation_timeout)
    return Connection(store, found[0])


def _prepare(sock: socket.socket, operation_timeout: float) -> None:
    """Bound every send and receive, and notice a host that vanished without a word within about half a minute."""
    seconds = int(operation_timeout)
    interval = struct.pack("ll", seconds, int((operation_timeout - seconds) * 1_000_000))
    set_keep_alive(sock, idle_seconds=10, interval_seconds=5, probes=4, bound_sends=False)
    set_linear_retransmission(sock)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        with suppress(OSError):  # an improvement only; the connection works without
            sock.setsockopt(socket.SOL_SOCKET, option, interval)


def _with_peer_port(port: int) -> list[socket.socket]:
    return _sockets(lambda sock: sock.getpeername()[1] == port)


def accepted_sockets(port: int) -> list[socket.socket]:
    """Return duplicates of the connections that this process has accepted on ``port``; the caller closes them."""
    return _sockets(lambda sock: sock.getsockname()[1] == port and bool(sock.getpeername()))


def _sockets(wanted: _Wanted) -> list[socket.socket]:
    """Return duplicates of this process's TCP sockets for which ``wanted`` is true."""
    # By inode: a number that was listed may by now be that of a duplicate of our own.
    result: dict[int, socket.socket] = {}
    for _, duplicate in _find(wanted, _open_descriptors()):
        if result.setdefault(os.fstat(duplicate.fileno()).st_ino, duplicate) is not duplicate:
            duplicate.close()
    return list(result.values())


def _close(wanted: _Wanted, descriptors: Sequence[int] | None = None) -> None:
    """Close those of ``descriptors`` (all of this process) that are TCP sockets for which ``wanted`` is true."""
    for descriptor, duplicate in _find(wanted, _open_descriptors() if descriptors is None else descriptors):
        duplicate.close()
        os.close(descriptor)


def _find(wanted: _Wanted, descriptors: Sequence[int]) -> Iterator[tuple[int, socket.socket]]:
    """Yield each descriptor of a TCP socket for which ``wanted`` is true, and a duplicate (an OSError: it is not)."""
    if socket.getdefaulttimeout() is not None:
        return  # to wrap a descriptor would make the connection itself non-blocking, also for its owner
    for descriptor in descriptors:
        duplicate = _duplicate(descriptor)
        if duplicate is None:
            continue
        try:
            is_wanted = duplicate.family in (socket.AF_INET, socket.AF_INET6) and wanted(duplicate)
        except OSError:
            is_wanted = False
        if is_wanted:
            yield descriptor, duplicate
        else:
            duplicate.close()


def _open_descriptors() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return []


def _duplicate(descriptor: int) -> socket.socket | None:
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        duplicate = os.dup(descriptor)
    except OSError:
        return None  # closed by another thread meanwhile
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None
