"""The settings of the ``etcd-v2`` backend, validated without any I/O.

What does not live here: reaching the endpoints (:mod:`._v2_client`).
"""

from __future__ import annotations

import os
from typing import final

from attrs import field, frozen

from quorate.errors import UsageError
from quorate.rendezvous import RendezvousParameters

__all__ = ["DEFAULT_PORT", "PASSWORD_VARIABLE", "V2Settings", "parse_endpoints"]

#: The port of an endpoint that names none.
DEFAULT_PORT = 2379
#: Where the password is looked for when the setting is not given; the command line of a process is for all to see.
PASSWORD_VARIABLE = "QUORATE_ETCD_PASSWORD"
_EXAMPLE = "--rdzv-endpoint=HOST:PORT,HOST:PORT"
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@final
@frozen
class V2Settings:
    """What the backend needs to know to open the store.  All times are in seconds.

    ``endpoints`` are pairs of host (an IPv6 address in brackets) and port.  ``prefix`` is a path without a leading or
    trailing slash.  Settings that are not listed here belong to others and are left alone.
    """

    endpoints: tuple[tuple[str, int], ...]
    protocol: str
    run_id: str
    prefix: str
    ca_cert: str | None
    cert: str | None
    key: str | None
    user: str | None
    password: str | None = field(repr=False)
    connect_timeout_seconds: float = 60.0
    dial_timeout_seconds: float = 2.0
    operation_timeout_seconds: float = 5.0
    key_ttl_seconds: int = 600
    member_ttl_seconds: int = 30

    @property
    def where(self) -> str:
        """The endpoints as people write them."""
        return ",".join(f"{self.protocol}://{host}:{port}" for host, port in self.endpoints)

    @classmethod
    def from_parameters(cls, parameters: RendezvousParameters) -> V2Settings:
        """Read ``parameters``.

        Raises:
            UsageError: an endpoint or setting that cannot be used; the message names it and the remedy.
        """
        scheme, endpoints = parse_endpoints(parameters.endpoint)
        # The second names are those that TorchElastic's backend of this name takes.
        ca_cert = _text(parameters, "ca_cert", "cacert")
        cert = _text(parameters, "cert", "ssl_cert")
        key = _text(parameters, "key", "ssl_cert_key")
        if key is not None and cert is None:
            raise UsageError("the rendezvous setting key is given without cert; the two go together")
        user = _text(parameters, "user")
        password = _text(parameters, "password") or os.environ.get(PASSWORD_VARIABLE)
        if user is not None and not password:
            raise UsageError(
                f"the rendezvous setting user={user!r} needs a password; put it into the variable {PASSWORD_VARIABLE}"
            )
        operation_timeout = "operation_timeout" if "operation_timeout" in parameters.config else "read_timeout"
        key_ttl, member_ttl = _times_to_live(parameters)
        return cls(
            endpoints=endpoints,
            protocol=_protocol(parameters, scheme, ca_cert is not None or cert is not None),
            run_id=parameters.run_id,
            prefix=_prefix(parameters),
            ca_cert=ca_cert,
            cert=cert,
            key=key,
            user=user,
            password=password if user is not None else None,
            connect_timeout_seconds=parameters.get_as_float("connect_timeout", 60.0),
            dial_timeout_seconds=_positive(parameters, "dial_timeout", 2.0),
            operation_timeout_seconds=_positive(parameters, operation_timeout, 5.0),
            key_ttl_seconds=key_ttl,
            member_ttl_seconds=member_ttl,
        )


def _text(parameters: RendezvousParameters, *names: str) -> str | None:
    for name in names:
        value = parameters.get(name)
        if value not in (None, ""):
            return str(value)
    return None


def _positive(parameters: RendezvousParameters, name: str, default: float) -> float:
    number = parameters.get_as_float(name, default)
    if number == 0.0:
        raise UsageError(f"the rendezvous setting {name} must be more than 0 seconds")
    return number


def _times_to_live(parameters: RendezvousParameters) -> tuple[int, int]:
    # The directory must outlive an outage of etcd that the job itself is told to outlive.
    outage = parameters.get_as_float("store_outage_timeout", 300.0)
    key_ttl = parameters.get_as_float("key_ttl", max(600.0, 2 * outage))
    member_ttl = parameters.get_as_float("member_ttl", min(30.0, key_ttl))
    if member_ttl < 2.0:
        raise UsageError(f"the rendezvous setting member_ttl={member_ttl:g} is too short; it must be at least 2 s")
    if key_ttl < max(outage, member_ttl):
        raise UsageError(
            f"the rendezvous setting key_ttl={key_ttl:g} must not be below store_outage_timeout={outage:g} and "
            f"member_ttl={member_ttl:g}, or etcd would forget a job that is still there"
        )
    return int(key_ttl), int(member_ttl)


def _protocol(parameters: RendezvousParameters, scheme: str | None, has_certificates: bool) -> str:
    told = _text(parameters, "protocol")
    protocol = told or scheme or ("https" if has_certificates else "http")
    if protocol not in ("http", "https"):
        raise UsageError(f"the rendezvous setting protocol={protocol!r} must be http or https")
    if scheme is not None and scheme != protocol:
        raise UsageError(f"the rendezvous setting protocol={protocol} contradicts the endpoint, which says {scheme}")
    if protocol == "http" and has_certificates:
        raise UsageError("certificates are given, yet the protocol is http; set protocol=https or leave it out")
    return protocol


def _prefix(parameters: RendezvousParameters) -> str:
    prefix = str(parameters.get("prefix", "quorate")).strip("/")
    for part in prefix.split("/"):
        # etcd hides names that begin with an underscore from listings, and "." and ".." are steps, not names.
        if not part or part[0] in "._" or not _NAME.issuperset(part):
            raise UsageError(
                f"the rendezvous setting prefix={prefix!r} cannot be used; write names of letters, digits, '-', '_' "
                "and '.', joined by '/', none of which begins with '_' or '.'"
            )
    return prefix


def parse_endpoints(text: str) -> tuple[str | None, tuple[tuple[str, int], ...]]:
    """Split ``host1:2379,host2:2379`` (each with or without ``http://`` or ``https://``).

    Returns:
        The scheme, ``None`` where none is written, and pairs of host and port.

    Raises:
        UsageError: it is empty, malformed, or mixes schemes.
    """
    schemes: set[str | None] = set()
    endpoints: list[tuple[str, int]] = []
    for part in text.split(","):
        entry = part.strip()
        if not entry:
            continue
        scheme, separator, rest = entry.rpartition("://")
        if separator and scheme not in ("http", "https"):
            raise _malformed(entry, f"the protocol {scheme!r} is neither http nor https")
        schemes.add(scheme or None)
        endpoint = _parse_one(entry, rest.rstrip("/"))
        if endpoint not in endpoints:
            endpoints.append(endpoint)
    if not endpoints:
        raise UsageError(f"the etcd rendezvous has no endpoint; set {_EXAMPLE}, the members of the etcd cluster")
    if len(schemes) > 1:
        raise UsageError(f"the rendezvous endpoint {text!r} mixes protocols; write http:// or https:// for all or none")
    return schemes.pop(), tuple(endpoints)


def _parse_one(entry: str, text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
        well_formed = bool(bracket) and ":" in host and (not rest or rest.startswith(":"))
        port_text = rest[1:] if rest else str(DEFAULT_PORT)
    elif text.count(":") > 1:
        raise _malformed(entry, "an IPv6 address needs brackets")
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else str(DEFAULT_PORT)
        well_formed = bool(host)
    if not well_formed or any(character.isspace() or character in "/@?#" for character in host):
        raise _malformed(entry, "it is not HOST:PORT")
    if not (port_text.isascii() and port_text.isdigit()) or not 0 < int(port_text) <= 65535:
        raise _malformed(entry, f"the port {port_text!r} is not a number from 1 to 65535")
    return host, int(port_text)


def _malformed(entry: str, problem: str) -> UsageError:
    return UsageError(f"the rendezvous endpoint {entry!r} cannot be used: {problem}. Write {_EXAMPLE} or [IPV6]:PORT")
