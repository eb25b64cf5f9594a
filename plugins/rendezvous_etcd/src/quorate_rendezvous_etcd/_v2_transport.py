"""python-etcd without its side effects, and the HTTP connections under it.

What does not live here: requests and what becomes of them (:mod:`._v2_client`).
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from importlib import import_module
from typing import Any, final

from quorate.errors import UsageError

from ._fork import close_in_children, importing
from ._settings import Endpoint, Settings

__all__ = ["Sockets", "close_client", "load_etcd", "make_client", "make_timeout"]

_PYOPENSSL = "urllib3.contrib.pyopenssl"
# A member that vanished without a word is noticed after about half a minute, also by who only waits.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))


def load_etcd() -> Any:
    """Import python-etcd and return its module.

    Raises:
        UsageError: it is not installed, or something else of that name is.
    """
    try:
        with importing:
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
    # It logs each lost connection as an error; here that is ordinary, and told by exceptions.
    logger = logging.getLogger("etcd")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    return etcd


def _import_etcd() -> Any:
    blocked = _PYOPENSSL not in sys.modules
    if blocked:
        # On import python-etcd would put pyOpenSSL in the place of ssl for the whole process.
        sys.modules[_PYOPENSSL] = None  # type: ignore[assignment] # how an import is refused
    try:
        import_module("urllib3.connection")
        return import_module("etcd")
    finally:
        if blocked:
            del sys.modules[_PYOPENSSL]


@final
class Sockets:
    """The open sockets of one caller, so that another thread can break off what it does."""

    def __init__(self) -> None:
        self._state = threading.Lock()
        self._open: list[socket.socket] = []
        self._is_shut = False
        close_in_children(self)
        #: How many there have been.
        self.made = 0

    def add(self, sock: socket.socket) -> None:
        """Take note of a new connection; it is broken at once where :meth:`shut` came first."""
        with self._state:
            self._open = [known for known in self._open if known.fileno() >= 0]
            self._open.append(sock)
            self.made += 1
            if self._is_shut:
                _shut(sock)

    def shut(self) -> None:
        """Break all connections, those to come included; never blocks."""
        with self._state:
            self._is_shut = True
            for sock in self._open:
                _shut(sock)

    def close_after_fork(self) -> None:
        """Close this process's copies, in a forked child, without a word to the other side; takes no lock."""
        for sock in list(self._open):
            sock.close()

    def open(self) -> None:
        """Allow new connections again."""
        with self._state:
            self._is_shut = False


def _shut(sock: socket.socket) -> None:
    try:
        # Not the method of ssl's class: it would forget its state under the thread that reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # it is broken or closed already


def make_timeout(connect: float, read: float) -> Any:
    """Return urllib3's time-out (seconds)."""
    return import_module("urllib3").Timeout(connect=connect, read=read)


def make_client(etcd: Any, settings: Settings, endpoint: Endpoint, sockets: Sockets) -> Any:
    """Return python-etcd's client for one endpoint; connects to nothing yet.  ``sockets`` learns of its connections.

    Its ``expected_cluster_id`` tells which cluster gave the last answer.

    Raises:
        UsageError: a certificate or key that cannot be read.
    """

    class Client(etcd.Client):  # type: ignore[misc] # the package has no types
        def _check_cluster_id(self, response: Any) -> None:
            # Its own way needs what urllib3 is about to remove, and leaks the connection where the cluster is another.
            self.expected_cluster_id = response.headers.get("X-Etcd-Cluster-Id")

    client = Client(
        host=f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host,
        port=endpoint.port,
        protocol=settings.protocol,
        read_timeout=settings.operation_timeout_seconds,
        allow_redirect=False,
        allow_reconnect=False,
        username=settings.user or None,
        password=settings.password or None,
    )
    client.http = _make_pool_manager(settings, sockets)
    return client


def _make_pool_manager(settings: Settings, sockets: Sockets) -> Any:
    """Return what python-etcd shall connect through: no blind retries, trust as told, one connection per endpoint."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                sockets.add(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                sockets.add(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _KEEP_ALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    trust: dict[str, Any] = {}
    if settings.protocol == "https":
        for name in ("ca_cert", "cert", "key"):
            file = getattr(settings, name)
            if file and not os.access(file, os.R_OK):
                raise UsageError(f"the rendezvous setting {name}={file!r} is not a file that can be read")
        trust = {
            "cert_reqs": "CERT_REQUIRED",
            "ca_certs": settings.ca_cert or None,
            "cert_file": settings.cert or None,
            "key_file": settings.key or None,
        }
    manager = PoolManager(retries=False, maxsize=1, block=False, socket_options=options, **trust)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def close_client(client: Any) -> None:
    """Close its idle connections; those in use are closed by who uses them."""
    # By itself it would only forget them, and an error's traceback may hold on to them for long.
    pools = client.http.pools
    for key in list(pools.keys()):
        pool = pools.get(key)
        if pool is not None:
            pool.close()
    client.http.clear()
