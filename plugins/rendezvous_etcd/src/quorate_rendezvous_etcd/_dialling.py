"""Opening a connection to a member within a deadline: its name, its addresses, TLS.

What does not live here: what is said over it (:mod:`._http2`).
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import UsageError

from ._http2 import CallError, describe
from ._settings import Endpoint, Settings

__all__ = ["Resolver", "dial", "make_trust"]

_Address = tuple[socket.AddressFamily, Any]


@final
class Resolver:
    """Looks names up.  A resolver that does not answer takes its own time, so it is asked on a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._searches: dict[str, _Search] = {}

    def resolve(self, endpoint: Endpoint, deadline: float) -> list[_Address]:
        """Return the addresses of ``endpoint``, at least one, in the system's order of preference.

        Raises:
            CallError: it has none, or nobody has said so by ``deadline`` (monotonic seconds).
        """
        try:
            return _look_up(endpoint, socket.AI_NUMERICHOST)
        except OSError:
            pass  # it is a name
        with self._lock:
            search = self._searches.get(endpoint.host)
            if search is None or search.is_over:
                search = self._searches[endpoint.host] = _Search(endpoint)
        return search.result(deadline)


@final
class _Search:
    """One question to the system's resolver, for everybody who wants to know just now."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._over = threading.Event()
        self._found: list[_Address] = []
        self._problem = ""
        threading.Thread(target=self._search, name="quorate-etcd-resolver", daemon=True).start()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def _search(self) -> None:
        try:
            self._found = _look_up(self._endpoint, 0)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that is too long
            self._problem = describe(error)
        finally:
            self._over.set()

    def result(self, deadline: float) -> list[_Address]:
        host = self._endpoint.host
        if not self._over.wait(max(0.0, deadline - monotonic())):
            raise CallError("UNAVAILABLE", f"the name {host!r} cannot be resolved: the resolver does not answer")
        if not self._found:
            raise CallError("UNAVAILABLE", f"the name {host!r} cannot be resolved: {self._problem or 'no address'}")
        return self._found


def _look_up(endpoint: Endpoint, flags: int) -> list[_Address]:
    # Text would be turned into bytes by Python's IDNA codec, which takes milliseconds to load.
    host = endpoint.host.encode() if endpoint.host.isascii() else endpoint.host
    found = socket.getaddrinfo(host, endpoint.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def dial(
    endpoint: Endpoint,
    trust: ssl.SSLContext | None,
    resolver: Resolver,
    deadline: float,
    register: Callable[[socket.socket, socket.socket | None], None],
) -> socket.socket:
    """Connect to ``endpoint``, with TLS if there is a ``trust``.

    ``register(new, old)`` is told of each socket before it is used, and which one it takes the place of; what it
    raises ends the attempt.  Closing those sockets is up to whoever registers them.

    Raises:
        CallError: nobody answers there as it should, or not by ``deadline`` (monotonic seconds).
    """
    addresses = resolver.resolve(endpoint, deadline)
    problem = ""
    for index, (family, address) in enumerate(addresses):
        # An address that swallows everything must leave time for the others.
        share = (deadline - monotonic()) / (len(addresses) - index)
        if share <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        register(sock, None)
        try:
            sock.settimeout(share)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock if trust is None else _secure(sock, trust, endpoint.host, deadline, register)
        except TimeoutError:
            problem = "the connection was not made in time"
        except OSError as error:
            problem = describe(error)
    raise CallError("UNAVAILABLE", f"cannot connect: {problem or 'there was no time left'}")


def _secure(
    plain: socket.socket,
    trust: ssl.SSLContext,
    host: str,
    deadline: float,
    register: Callable[[socket.socket, socket.socket | None], None],
) -> ssl.SSLSocket:
    secure = trust.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=host)
    register(secure, plain)
    secure.settimeout(max(0.001, deadline - monotonic()))
    secure.do_handshake()
    if secure.selected_alpn_protocol() != "h2":
        raise OSError("it speaks TLS, but not HTTP/2")
    return secure


def make_trust(settings: Settings) -> ssl.SSLContext | None:
    """Return how to use TLS, ``None`` for not at all.

    Raises:
        UsageError: a certificate or key that cannot be used.
    """
    if not settings.secure:
        return None
    for name in ("ca_cert", "cert", "key"):
        _check_file(name, getattr(settings, name))
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.set_alpn_protocols(["h2"])
    try:
        if settings.ca_cert:
            trust.load_verify_locations(settings.ca_cert)
        else:
            trust.load_default_certs()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the rendezvous setting ca_cert={settings.ca_cert!r} holds no certificate that can be used: "
            f"{describe(error)}"
        ) from None
    if not settings.cert:
        return trust

    def refuse_to_ask() -> str:
        raise UsageError(f"the rendezvous setting key={settings.key!r} is encrypted; give one without a passphrase")

    try:
        trust.load_cert_chain(settings.cert, settings.key, refuse_to_ask)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the rendezvous settings cert={settings.cert!r} and key={settings.key!r} cannot be used together: "
            f"{describe(error)}"
        ) from None
    return trust


def _check_file(name: str, path: str) -> None:
    if not path:
        return
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"the rendezvous setting {name}={path!r} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise UsageError(f"the rendezvous setting {name}={path!r} is no PEM file")
