"""Certificates and keys that a user names: whether they can be read, and whether the other side would accept them.

Backends ask before they connect or listen: afterwards only the other side sees what is wrong, and it does not know the
file.  This module imports ``ssl``, which costs an agent a few MiB: import it only where TLS is asked for.

What does not live here: connections, and which settings name the files.
"""

from __future__ import annotations

import os
import ssl
import stat

__all__ = ["why_refused", "why_unreadable"]

_MOST_BYTES = 16 << 20  # all authorities that a system knows take less than 1 MiB


def why_unreadable(path: str) -> str:
    """Return why ``path`` is not a file of certificates or a key in PEM form, ``""`` if it is.  Never waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError:
        return "its name has a NUL"
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return "it is not a file"
    try:
        with open(descriptor, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        return error.strerror or str(error)
    if len(content) > _MOST_BYTES:
        return f"it has more than {_MOST_BYTES >> 20} MiB"
    if b"-----BEGIN" not in content:
        return "it is not a PEM file"
    if b"ENCRYPTED" in content:
        return "it is encrypted; give a key without a passphrase"
    return ""


def why_refused(cert: str, key: str, *, ca_cert: str = "", host: str = "", as_client: bool = False) -> str:
    """Return why the other side of a connection would refuse a certificate, ``""`` where it would not.

    Both sides shake hands in memory.

    Arguments:
        cert, key: files with the certificate (and those between it and its authority) and its key.
        ca_cert: file with the authorities that the other side trusts; empty: who has signed is not checked.
        host: the name or address that a server's certificate must be made out to; empty: any.
        as_client: the certificate is shown by the client of a connection.

    Raises:
        OSError: a file cannot be used at all.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        # Without a password of its own OpenSSL would ask for one at the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    client.check_hostname = bool(host) and not as_client
    client.verify_mode = ssl.CERT_NONE if as_client else ssl.CERT_REQUIRED
    server.verify_mode = ssl.CERT_REQUIRED if as_client else ssl.CERT_NONE
    judge = server if as_client else client
    judge.load_verify_locations(ca_cert or cert)
    if not ca_cert:
        judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(one, two, server_hostname=host or None),
        server.wrap_bio(two, one, server_side=True),
    ]
    try:
        while sides:
            for side in tuple(sides):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                sides.remove(side)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message or str(error)
    except ssl.SSLError as error:
        return (error.reason or str(error)).lower().replace("_", " ")
    return ""
