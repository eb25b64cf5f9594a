"""TLS for the TCP store: what its settings mean, and sockets that speak it without blocking.

Both ends are quorate's, so TLS 1.3 is the only version.  The names of the settings are those of the etcd backend.
This module is imported only where TLS is asked for: ``ssl`` costs every agent a few MiB.  What does not live here: who
may use a store (``_auth``).
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from contextlib import suppress
from typing import Any, cast, final

from attrs import frozen

from quorate.certificates import why_refused, why_unreadable
from quorate.errors import UsageError
from quorate.rendezvous import RendezvousParameters

from ._wire import TlsError


@final
class TlsSocket(ssl.SSLSocket):
    """A connected socket that speaks TLS; what would block raises BlockingIOError, as on every other socket.

    Raises (:meth:`recv`, :meth:`send`, :meth:`shake_hands`):
        TlsError: the other side does not speak TLS, or its certificate is refused; the text says why.
    """

    def shake_hands(self) -> int:
        """Go on with the handshake; returns the event of :mod:`select` to wait for, 0 once it is complete."""
        try:
            self.do_handshake()
        except ssl.SSLWantReadError:
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT
        except ssl.SSLError as error:
            raise TlsError(_sentence(error)) from None
        return 0

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Return what has arrived, also beyond ``buflen``: what OpenSSL holds back makes no descriptor readable."""
        try:
            data: bytes = super().recv(buflen, flags)
            while waiting := self.pending():
                data += super().recv(waiting, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise _would_block() from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except ssl.SSLError as error:
            raise TlsError(_sentence(error)) from None
        return data

    def answer_plain(self, frame: bytes) -> None:
        """Send ``frame`` to a client that does not speak TLS.  Raises OSError."""
        with suppress(BlockingIOError):
            socket.socket.recv(self, 1 << 16)  # closing with unread bytes resets the connection
        socket.socket.send(self, frame)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of ``data``; returns how much.  After BlockingIOError the same bytes must come next."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise _would_block() from None
        except ssl.SSLError as error:
            raise TlsError(_sentence(error)) from None


@final
@frozen
class Tls:
    """How a store's connections are encrypted.

    Arguments:
        host: the name or address that the host's certificate must be made out to.
        ca_cert: file with the certificates that are trusted; empty: the system's.
        cert, key: files with this node's certificate and its key; a node that hosts the store needs them.
        client_cert_auth: the host takes only nodes whose certificate ``ca_cert`` has signed.
    """

    host: str
    ca_cert: str = ""
    cert: str = ""
    key: str = ""
    client_cert_auth: bool = False

    @classmethod
    def from_parameters(cls, parameters: RendezvousParameters, host: str) -> Tls:
        """Read the settings.  No I/O.  Raises UsageError for those that contradict each other."""
        ca_cert, cert, key = (str(parameters.get(name) or "") for name in ("ca_cert", "cert", "key"))
        if bool(cert) != bool(key):
            given, missing = ("cert", "key") if cert else ("key", "cert")
            raise UsageError(f"the rendezvous setting {given} is given without {missing}; the two go together")
        client_cert_auth = bool(parameters.get_as_bool("client_cert_auth", False))
        if client_cert_auth and not (ca_cert and cert):
            raise UsageError("the rendezvous setting client_cert_auth needs ca_cert, cert and key on every node")
        return cls(host.partition("%")[0], ca_cert, cert, key, client_cert_auth)

    def server_context(self) -> ssl.SSLContext:
        """Return what the host's connections are made with.  Raises UsageError for files that cannot be used."""
        if not self.cert:
            raise UsageError(
                "this node hosts the rendezvous store, and TLS needs a certificate there; set cert and key "
                "(--rdzv-conf) on the nodes that may host"
            )
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        if self.client_cert_auth:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return what connections to the host are made with.  Raises UsageError for files that cannot be used."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def check(self, *, hosts: bool) -> None:
        """Check this node's certificate as the others will: only they would see what is wrong, and not in which file.

        Arguments:
            hosts: this node is the host; else it shows its certificate only where ``client_cert_auth`` is set.

        Raises:
            UsageError: they would refuse it.
        """
        if not self.cert or not (hosts or self.client_cert_auth):
            return
        self._check_files()
        try:
            problem = why_refused(
                self.cert, self.key, ca_cert=self.ca_cert, host=self.host if hosts else "", as_client=not hosts
            )
        except OSError:
            return  # making the context names it
        if problem:
            by = f", and ca_cert is {self.ca_cert}" if self.ca_cert else ""
            other = "every other node" if hosts else "the host"
            raise UsageError(f"{other} would refuse the rendezvous setting cert ({self.cert}): {problem}{by}")

    def connect(self, sock: socket.socket, context: ssl.SSLContext) -> TlsSocket:
        """Return a client's end over ``sock``, which it takes over; :meth:`TlsSocket.shake_hands` is still to do."""
        return cast("TlsSocket", context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False))

    def _check_files(self) -> None:
        for name, path in (("ca_cert", self.ca_cert), ("cert", self.cert), ("key", self.key)):
            if path and (problem := why_unreadable(path)):
                raise UsageError(f"the rendezvous setting {name} ({path}) cannot be used: {problem}")

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.sslsocket_class = TlsSocket
        self._check_files()
        names = "ca_cert"
        try:
            if self.ca_cert:
                context.load_verify_locations(self.ca_cert)
            else:
                context.load_default_certs()
            names = "cert and key"
            if self.cert:
                # Without a password of its own OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except (OSError, ValueError) as error:
            files = self.ca_cert if names == "ca_cert" else f"{self.cert}, {self.key}"
            raise UsageError(f"the rendezvous setting {names} ({files}) cannot be used: {_sentence(error)}") from None
        return context


def accept(sock: socket.socket, context: ssl.SSLContext) -> TlsSocket:
    """Return the host's end over ``sock``, which it takes over; the first :meth:`TlsSocket.recv` shakes hands."""
    return cast("TlsSocket", context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False))


def _would_block() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, "TLS waits for the other side")


def _sentence(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "it closed the connection during the TLS handshake; make sure that the host has cert and key set"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS failed: {error.reason.lower().replace('_', ' ')}"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
