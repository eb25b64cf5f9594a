"""Which member of the cluster this agent runs: the endpoint's names, this machine's addresses, and one claim for each.

Several agents may find one name to be theirs: two agents of a machine, or several on loopback addresses.  Each takes
the first that no other agent has claimed; the one that its node rank stands for comes first.  A claim is an abstract
socket address of the kernel, which is unique within a network namespace, as addresses are, and ends with its process.

What does not live here: the member (:mod:`.member`).  Nothing heavy is imported: every launch checks its settings.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import final

from attrs import evolve, frozen

from quorate.errors import UsageError
from quorate.net import Address, Endpoint, bind_addresses, close_in_children
from quorate.rendezvous import RendezvousParameters

from .._settings import DEFAULT_PORT, Settings, parse_endpoints

DEFAULT_ELECTION_SECONDS = 0.5
_COUNTS = (1, 3, 5)
_RESOLVE_SECONDS = 10.0


@final
@frozen
class Names:
    """The members' endpoints for clients, in the order in which the user wrote them, and where their peers listen."""

    endpoints: tuple[Endpoint, ...]
    peers: tuple[Endpoint, ...]


def parse_names(parameters: RendezvousParameters) -> Names:
    """Return what ``hostA,hostB,hostC[:port]`` means: a port after the last name is that of all without one.

    Raises:
        UsageError: another number of names than 1, 3 or 5, a name twice, or a port that cannot be used.
    """
    text = parameters.endpoint
    last = [entry for entry in text.split(",") if entry.strip()][-1:]
    _, (final_endpoint,) = parse_endpoints(last[0]) if last else parse_endpoints(text)
    _, endpoints = parse_endpoints(text, final_endpoint.port)
    count = len([entry for entry in text.split(",") if entry.strip()])
    if count not in _COUNTS or len(endpoints) != count:
        what = "names a machine twice" if len(endpoints) != count else f"has {count} names"
        raise UsageError(
            f"the rendezvous endpoint {text!r} {what}; 'etcd-hosted' needs 1, 3 or 5 machines of the job: "
            f"--rdzv-endpoint=HOST,HOST,HOST[:PORT] (without a port {DEFAULT_PORT})"
        )
    peer_port = parameters.get_as_int("peer_port")
    ports = [endpoint.port + 1 if peer_port is None else peer_port for endpoint in endpoints]
    peers = tuple(evolve(endpoint, port=port) for endpoint, port in zip(endpoints, ports, strict=True))
    if any(not 1 <= port <= 65535 for port in ports) or set(peers) & set(endpoints) or len(set(peers)) < count:
        raise UsageError(
            f"the members at {text!r} need a second port each, for each other ({', '.join(map(str, peers))}), which "
            "is taken; leave a port free behind each, or set --rdzv-conf peer_port=…"
        )
    return Names(endpoints, peers)


def settings_of(parameters: RendezvousParameters, names: Names) -> Settings:
    """Return the settings of the store.  Raises UsageError."""
    settings = evolve(Settings.from_parameters(parameters), endpoints=names.endpoints)
    if settings.secure and not (settings.ca_cert and settings.cert):
        raise UsageError(
            "the members of 'etcd-hosted' use TLS among themselves, too: set --rdzv-conf ca_cert=…, cert=… and key=…, "
            "or none of them"
        )
    return settings


def check(parameters: RendezvousParameters) -> None:
    """Refuse settings that cannot be used.  No I/O.  Raises UsageError."""
    settings_of(parameters, parse_names(parameters))
    parameters.get_as_bool("is_host")
    for name, default in (("election_timeout", DEFAULT_ELECTION_SECONDS), ("member_lost_timeout", 30.0)):
        if parameters.get_as_float(name, default) <= 0:
            raise UsageError(f"the rendezvous setting {name} must be more than 0 seconds")


@final
class Claim:
    """The right to run the member ``index``; ``addresses`` are what it binds.  Ends with :meth:`close`."""

    def __init__(self, index: int, addresses: Sequence[Address], sock: socket.socket) -> None:
        self.index, self.addresses, self._socket = index, tuple(addresses), sock
        close_in_children(self)

    def close(self) -> None:
        """Let another agent of this machine have it."""
        self._socket.close()

    close_after_fork = close


def claim_name(names: Names, preferred: int | None, bind_address: str) -> Claim | None:
    """Return the claim of the first name that is this machine's and free, ``preferred`` before the others.

    ``bind_address``: what to bind instead of the addresses of the name, where those are forwarded to this machine.

    Raises:
        UsageError: two of the names are the same address of this machine.
    """
    order = sorted(range(len(names.endpoints)), key=lambda index: index != preferred)
    own = {index: own_addresses(names.endpoints[index], bind_address) for index in order}
    if not bind_address:
        _check_spellings(names, own)
    for index, addresses in own.items():
        sock = _claim(names.endpoints[index]) if addresses else None
        if sock is not None:
            return Claim(index, addresses, sock)
    return None


def _check_spellings(names: Names, own: Mapping[int, Sequence[Address]]) -> None:
    owners: dict[object, int] = {}
    for index, addresses in own.items():
        for address in addresses:
            other = owners.setdefault(address.sockaddr, index)
            if other != index:
                raise UsageError(
                    f"{names.endpoints[other]} and {names.endpoints[index]} in --rdzv-endpoint are the same address of "
                    "this machine; 'etcd-hosted' needs each machine once"
                )


def own_addresses(endpoint: Endpoint, bind_address: str = "") -> list[Address]:
    """Return the addresses of ``endpoint`` that are this machine's; none for a name that is not known (yet)."""
    try:
        found = bind_addresses(bind_address or endpoint.host, endpoint.port, _RESOLVE_SECONDS)
    except OSError:
        return []
    return [address for address in found if _is_own(address)]


def _is_own(address: Address) -> bool:
    try:
        with socket.socket(address.family, socket.SOCK_STREAM) as sock:
            sock.bind((address.sockaddr[0], 0, *address.sockaddr[2:]))
        return True
    except OSError:
        return False


def _claim(endpoint: Endpoint) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(f"\0quorate-etcd-hosted/{endpoint}")
        return sock
    except OSError:
        sock.close()
        return None
