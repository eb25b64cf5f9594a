"""The settings of both backends, validated without any I/O.

What does not live here: connections to the endpoints (:mod:`._v3.transport`, :mod:`._v2.transport`).
"""

from __future__ import annotations

import os
from typing import final

from attrs import field, frozen

from quorate.errors import UsageError
from quorate.net import Endpoint, parse_endpoint
from quorate.rendezvous import RendezvousParameters

#: The port of an endpoint without one.
DEFAULT_PORT = 2379
#: The variable that holds the password where the setting is not given: all users can read command lines.
PASSWORD_VARIABLE = "QUORATE_ETCD_PASSWORD"
_EXAMPLE = "--rdzv-endpoint=HOST:PORT,HOST:PORT"
# etcd's shortest lease, with its default election timeout.
_SHORTEST_TTL_SECONDS = 2
_V2_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@final
@frozen
class Settings:
    """The settings of a store.  All times are in seconds.

    ``secure`` says whether to use TLS; ``ca_cert``, ``cert`` and ``key`` are paths of PEM files, empty if not given.
    Settings that are not listed here belong to other modules and are ignored.
    """

    endpoints: tuple[Endpoint, ...]
    run_id: str
    min_nodes: int
    max_nodes: int
    prefix: str = "quorate"
    secure: bool = False
    ca_cert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    connect_timeout_seconds: float = 60.0
    dial_timeout_seconds: float = 1.0
    operation_timeout_seconds: float = 5.0
    key_ttl_seconds: int = 600
    member_ttl_seconds: int = 30
    keep: bool = False
    close_timeout_seconds: float = 5.0
    #: Whether to begin with the first endpoint; the nodes of a large job spread over the members otherwise.
    begins_with_first: bool = False
    #: Where the first endpoint is this node's own member: after how long without an answer it is asked again, until
    #: ``dial_timeout`` is over.  A request to a leader that is gone gets no answer; the next leader answers at once.
    own_member_seconds: float = 0.0

    @property
    def leave_seconds(self) -> float:
        """How long leaving may take at etcd.  The core's part comes before; both fit into ``close_timeout``."""
        return min(self.operation_timeout_seconds, 0.4 * self.close_timeout_seconds)

    @property
    def where(self) -> str:
        """The endpoints as text, with commas between them."""
        return ",".join(map(str, self.endpoints))

    @property
    def protocol(self) -> str:
        """``http`` or ``https``."""
        return "https" if self.secure else "http"

    @classmethod
    def from_parameters(cls, parameters: RendezvousParameters, *, is_v2: bool = False) -> Settings:
        """Read ``parameters``; ``is_v2``: they are for API v2, where a prefix is a path of plain names.

        Raises:
            UsageError: an endpoint or setting that cannot be used; the message names it and the remedy.
        """
        is_https, endpoints = parse_endpoints(parameters.endpoint)
        # The second names, and ``protocol``, are those of TorchElastic's etcd backends.
        ca_cert = _text(parameters, "ca_cert", "cacert")
        cert = _text(parameters, "cert", "ssl_cert")
        key = _text(parameters, "key", "ssl_cert_key")
        if bool(cert) != bool(key):
            given, missing = ("cert", "key") if cert else ("key", "cert")
            raise UsageError(f"the rendezvous setting {given} is given without {missing}; the two go together")
        user = _text(parameters, "user")
        password = _text(parameters, "password") or os.environ.get(PASSWORD_VARIABLE, "")
        if user and not password:
            raise UsageError(
                f"the rendezvous setting user={user!r} needs a password; put it into the variable {PASSWORD_VARIABLE}"
            )
        if _text(parameters, "password") and not user:
            raise UsageError("the rendezvous setting password is given without user; the two go together")
        operation_timeout = "operation_timeout" if "operation_timeout" in parameters.config else "read_timeout"
        key_ttl, member_ttl = _times_to_live(parameters)
        return cls(
            endpoints=endpoints,
            run_id=parameters.run_id,
            min_nodes=parameters.min_nodes,
            max_nodes=parameters.max_nodes,
            prefix=_v2_prefix(parameters) if is_v2 else _prefix(parameters),
            secure=_is_secure(parameters, is_https, bool(ca_cert or cert)),
            ca_cert=ca_cert,
            cert=cert,
            key=key,
            user=user,
            password=password if user else "",
            connect_timeout_seconds=_positive(parameters, "connect_timeout", 60.0),
            dial_timeout_seconds=_positive(parameters, "dial_timeout", 2.0 if is_v2 else 1.0),
            operation_timeout_seconds=_positive(parameters, operation_timeout, 5.0),
            key_ttl_seconds=key_ttl,
            member_ttl_seconds=member_ttl,
            keep=bool(parameters.get_as_bool("keep", False)),
            close_timeout_seconds=_positive(parameters, "close_timeout", 5.0),
        )


def _text(parameters: RendezvousParameters, *names: str) -> str:
    return next((str(value) for value in map(parameters.get, names) if value not in (None, "")), "")


def _positive(parameters: RendezvousParameters, name: str, default: float) -> float:
    number = parameters.get_as_float(name, default)
    if number == 0.0:
        raise UsageError(f"the rendezvous setting {name} must be more than 0 seconds")
    return number


def _times_to_live(parameters: RendezvousParameters) -> tuple[int, int]:
    # etcd must keep the job's keys for longer than the job tolerates an outage.
    outage = parameters.get_as_float("store_outage_timeout", 300.0)
    key_ttl = parameters.get_as_float("key_ttl", max(600.0, 2 * outage))
    member_ttl = parameters.get_as_float("member_ttl", min(30.0, key_ttl))
    if member_ttl < _SHORTEST_TTL_SECONDS:
        raise UsageError(
            f"the rendezvous setting member_ttl={member_ttl:g} is too short; etcd grants no lease below "
            f"{_SHORTEST_TTL_SECONDS} s"
        )
    if key_ttl < max(outage, member_ttl):
        raise UsageError(
            f"the rendezvous setting key_ttl={key_ttl:g} must not be below store_outage_timeout={outage:g} and "
            f"member_ttl={member_ttl:g}, or etcd would remove a job that still runs"
        )
    return int(key_ttl), int(member_ttl)


def _is_secure(parameters: RendezvousParameters, is_https: bool | None, has_certificates: bool) -> bool:
    protocol = _text(parameters, "protocol")
    if protocol not in ("", "http", "https"):
        raise UsageError(f"the rendezvous setting protocol={protocol!r} must be http or https")
    if protocol and is_https is not None and (protocol == "https") is not is_https:
        raise UsageError(
            f"the rendezvous setting protocol={protocol} contradicts the endpoint, which says "
            f"{'https' if is_https else 'http'}://"
        )
    says_http = protocol == "http" or is_https is False
    if says_http and has_certificates:
        raise UsageError("certificates are given, yet the protocol is http://; write https:// or leave it out")
    return has_certificates or protocol == "https" or bool(is_https)


def _prefix(parameters: RendezvousParameters) -> str:
    prefix = str(parameters.get("prefix", "quorate"))
    if not prefix.strip("/") or not prefix.isprintable() or any(character.isspace() for character in prefix):
        raise UsageError(f"the rendezvous setting prefix={prefix!r} cannot be used; write a name such as quorate")
    return prefix.rstrip("/")


def _v2_prefix(parameters: RendezvousParameters) -> str:
    prefix = str(parameters.get("prefix", "quorate")).strip("/")
    for part in prefix.split("/"):
        # etcd hides names that begin with an underscore from listings; "." and ".." have a meaning in paths.
        if not part or part[0] in "._" or not _V2_NAME.issuperset(part):
            raise UsageError(
                f"the rendezvous setting prefix={prefix!r} cannot be used; write names of letters, digits, '-', '_' "
                "and '.', joined by '/', none of which begins with '_' or '.'"
            )
    return prefix


def parse_endpoints(text: str, default_port: int = DEFAULT_PORT) -> tuple[bool | None, tuple[Endpoint, ...]]:
    """Split ``host1:2379,host2:2379`` (each with or without ``http://`` or ``https://``).

    ``default_port`` is the port of those without one.

    Returns:
        Whether the protocol is https (``None`` where none is written), and the endpoints, each once.

    Raises:
        UsageError: it is empty, malformed, or mixes protocols.
    """
    schemes: set[str] = set()
    endpoints: dict[Endpoint, None] = {}
    for part in text.split(","):
        entry = part.strip()
        if not entry:
            continue
        scheme, separator, rest = entry.rpartition("://")
        if separator and scheme not in ("http", "https"):
            raise UsageError(
                f"the rendezvous endpoint {entry!r} cannot be used: the protocol {scheme!r} is neither http nor https. "
                f"Write {_EXAMPLE} or [IPV6]:PORT"
            )
        schemes.add(scheme)
        endpoints[parse_endpoint(rest.rstrip("/"), default_port)] = None
    if not endpoints:
        raise UsageError(f"the etcd rendezvous has no endpoint; set {_EXAMPLE}, the members of the etcd cluster")
    if len(schemes) > 1:
        raise UsageError(f"the rendezvous endpoint {text!r} mixes protocols; write the same for all members, or none")
    scheme = schemes.pop()
    return (scheme == "https") if scheme else None, tuple(endpoints)
