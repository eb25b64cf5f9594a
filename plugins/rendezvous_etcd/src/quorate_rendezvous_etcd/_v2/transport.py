"""python-etcd without its side effects, and the HTTP connections under it.

What does not live here: requests and retries (:mod:`.client`).
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import struct
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import Any, final

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProtocolError

from quorate.clock import LONGEST_WAIT_SECONDS, monotonic
from quorate.errors import UsageError
from quorate.import_lock import import_lock
from quorate.net import Endpoint, close_in_children, set_keep_alive, shut_down

from .._dial import describe, dial
from .._settings import Settings
from .._tls import make_tls_context

#: The largest answer that is accepted, in bytes.
LARGEST_BODY = 256 << 20
_READ_BYTES = 1 << 20
_GIVE_UP = struct.pack("ii", 1, 0)  # linger for no time
_PYOPENSSL = "urllib3.contrib.pyopenssl"


def load_etcd() -> Any:
    """Import python-etcd and return its module.

    Raises:
        UsageError: it is not installed, or another package of that name is.
    """
    try:
        with import_lock:
            etcd = _import_etcd()
    except ImportError as error:
        raise UsageError(
            f"the backend etcd-v2 needs the package python-etcd ({error}); run pip install python-etcd"
        ) from error
    if not hasattr(etcd, "EtcdWatchTimedOut"):
        raise UsageError(
            f"the module 'etcd' of {getattr(etcd, '__file__', 'this environment')} is not python-etcd; remove it and "
            "run pip install python-etcd"
        )
    # It logs each lost connection as an error.  Here lost connections are ordinary, and reported by exceptions.
    logger = logging.getLogger("etcd")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    return etcd


def _import_etcd() -> Any:
    is_blocked = _PYOPENSSL not in sys.modules
    if is_blocked:
        # On import python-etcd would replace ssl by pyOpenSSL for the whole process.
        sys.modules[_PYOPENSSL] = None  # type: ignore[assignment] # this is how an import is refused
    try:
        return import_module("etcd")
    finally:
        if is_blocked:
            del sys.modules[_PYOPENSSL]


@final
class Sockets:
    """The open sockets of one client, so that another thread can interrupt it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._is_shut = False
        close_in_children(self)
        #: How many sockets there have been.
        self.made = 0

    def add(self, sock: socket.socket) -> None:
        """Add a new socket; it is shut down at once after :meth:`shut`."""
        with self._lock:
            self._open = [known for known in self._open if known.fileno() >= 0]
            self._open.append(sock)
            if self._is_shut:
                shut_down(sock)

    def shut(self, *, discard: bool = False) -> None:
        """Shut down all sockets, and those that are added later; never blocks.

        With ``discard`` what was not acknowledged is given up when their user closes them.
        """
        with self._lock:
            self._is_shut = True
            for sock in self._open:
                if discard:
                    with suppress(OSError):  # closed already
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _GIVE_UP)
                shut_down(sock)

    def close_after_fork(self) -> None:
        """Close this process's copies in a forked child; the connections stay up.  Takes no lock."""
        for sock in list(self._open):
            sock.close()

    def open(self) -> None:
        """Allow new connections again."""
        with self._lock:
            self._is_shut = False


def make_timeout(connect: float, read: float) -> Any:
    """Return urllib3's timeout (seconds); no socket waits longer than a day."""
    return Timeout(connect=min(connect, LONGEST_WAIT_SECONDS), read=min(read, LONGEST_WAIT_SECONDS))


def make_etcd_client(etcd: Any, settings: Settings, endpoint: Endpoint, sockets: Sockets) -> Any:
    """Return python-etcd's client for one endpoint; connects to nothing yet.  Its sockets are added to ``sockets``.

    Its ``expected_cluster_id`` says which cluster gave the last answer.

    Raises:
        UsageError: a certificate or key that cannot be used.
    """

    class EtcdClient(etcd.Client):  # type: ignore[misc] # the package has no types
        def _check_cluster_id(self, response: Any) -> None:
            # The original uses what urllib3 is about to remove, and leaks the connection where the cluster differs.
            self.expected_cluster_id = response.headers.get("X-Etcd-Cluster-Id")

    client = EtcdClient(
        host=f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host,
        port=endpoint.port,
        protocol=settings.protocol,
        read_timeout=min(settings.operation_timeout_seconds, LONGEST_WAIT_SECONDS),
        allow_redirect=False,
        allow_reconnect=False,
        username=settings.user or None,
        password=settings.password or None,
    )
    client.http = _make_pool_manager(settings, endpoint, sockets)
    return client


def close_etcd_client(client: Any) -> None:
    """Close its idle connections; those in use are closed by their users."""
    # urllib3 would only drop them, and an error's traceback can keep them open for long.
    pools = client.http.pools
    for key in list(pools.keys()):
        pool = pools.get(key)
        if pool is not None:
            pool.close()
    client.http.clear()


def _make_pool_manager(settings: Settings, endpoint: Endpoint, sockets: Sockets) -> Any:
    """Return what python-etcd connects through: no retries, a deadline for names, a limit for answers."""

    def make_socket(connection: Any) -> socket.socket:
        """Do what urllib3's ``_new_conn`` does, with :func:`dial`."""
        try:
            sock = dial(endpoint, monotonic() + connection.timeout, sockets.add, lambda sock: sock.close())
        except TimeoutError as error:
            raise ConnectTimeoutError(connection, str(error)) from None
        except OSError as error:
            raise NewConnectionError(connection, describe(error)) from error
        set_keep_alive(sock, 10, 5, 4)
        sock.settimeout(connection.timeout)
        return sock

    # urllib3's own SOCKS connections replace the same method.
    class Plain(HTTPConnection):
        response_class = _TimedResponse
        _new_conn = make_socket

        def connect(self) -> None:
            super().connect()
            sockets.made += 1

    class Secure(HTTPSConnection):
        response_class = _TimedResponse
        _new_conn = make_socket

        def connect(self) -> None:
            super().connect()
            sockets.made += 1
            sockets.add(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    class Pools(PoolManager):
        def urlopen(  # type: ignore[override] # urllib3's own subclass differs from its base
            self, method: str, url: str, redirect: bool = True, **options: Any
        ) -> Any:
            return _read_whole(
                super().urlopen(method, url, redirect, **{**options, "preload_content": False, "decode_content": False})
            )

    tls = make_tls_context(settings, ["http/1.1"])
    options: dict[str, Any] = {} if tls is None else {"ssl_context": tls}
    manager = Pools(retries=False, maxsize=1, block=False, **options)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


@final
class _TimedSource(io.RawIOBase):
    """Reads from a socket until a deadline: its own timeout begins anew with each byte that a slow member sends."""

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        self._deadline = None if timeout is None else monotonic() + timeout
        self._sock, self._source = sock, sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - monotonic()
            if left <= 0:
                raise TimeoutError("the whole answer did not come in time")
            self._sock.settimeout(left)
        return self._source.readinto(buffer)

    def close(self) -> None:
        self._source.close()
        super().close()


@final
class _TimedResponse(http.client.HTTPResponse):
    """An answer that has to be there, to its last byte, within the connection's timeout."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedSource(sock))


def _read_whole(response: Any) -> HTTPResponse:
    """Return ``response`` with its body in memory.

    Raises:
        ProtocolError: the body is larger than LARGEST_BODY.
    """
    body = bytearray()
    while data := response.read(_READ_BYTES):
        body += data
        if len(body) > LARGEST_BODY:
            response.close()
            raise ProtocolError(f"the answer is larger than {LARGEST_BODY} bytes")
    response.release_conn()
    return HTTPResponse(bytes(body), response.headers, response.status, reason=response.reason)
