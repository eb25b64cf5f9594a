"""TLS: the certificates and keys that the settings name, for both backends.

What does not live here: the connections (:mod:`._v3.transport`, :mod:`._v2.transport`).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from quorate.certificates import why_refused, why_unreadable
from quorate.errors import UsageError

from ._settings import Settings


def make_tls_context(settings: Settings, protocols: Sequence[str]) -> ssl.SSLContext | None:
    """Return the TLS context that ``settings`` ask for, ``None`` where they ask for none.

    Arguments:
        protocols: the names (ALPN) of the protocols that are spoken over the connections.

    Raises:
        UsageError: a certificate or key that cannot be used.
    """
    if not settings.secure:
        return None
    for name in ("ca_cert", "cert", "key"):
        _check_file(name, getattr(settings, name))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(list(protocols))
    try:
        if settings.ca_cert:
            context.load_verify_locations(settings.ca_cert)
        else:
            context.load_default_certs()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the rendezvous setting ca_cert={settings.ca_cert!r} holds no certificate that can be used: {error}"
        ) from None
    if not settings.cert:
        return context
    try:
        # Without a password of its own OpenSSL would ask for one at the terminal.
        context.load_cert_chain(settings.cert, settings.key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the rendezvous settings cert={settings.cert!r} and key={settings.key!r} cannot be used together: {error}"
        ) from None
    return context


def check_certificate(settings: Settings, host: str = "") -> str:
    """Return why another node, or etcd, would refuse this node's certificate; ``""`` where it would not.

    Arguments:
        settings: with ``cert`` and ``key``.
        host: what the others call this node, which then is a server as well as a client; empty: it is a client of
            servers whose authority for clients is not known here.

    Raises:
        UsageError: a file cannot be used.
    """
    make_tls_context(settings, [])
    if not settings.cert:
        return ""
    ca_cert = settings.ca_cert if host else ""
    problem = why_refused(settings.cert, settings.key, ca_cert=ca_cert, as_client=True)
    if host and not problem:
        problem = why_refused(settings.cert, settings.key, ca_cert=ca_cert, host=host)
    by = f", and ca_cert is {ca_cert}" if ca_cert else ""
    return problem and f"the rendezvous setting cert={settings.cert!r} would be refused: {problem}{by}"


def _check_file(name: str, path: str) -> None:
    if path and (problem := why_unreadable(path)):
        raise UsageError(f"the rendezvous setting {name}={path!r} cannot be read: {problem}")
