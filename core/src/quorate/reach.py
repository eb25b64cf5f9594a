"""How the nodes of a job reach each other: the address that a node tells, and why an endpoint does not answer.

Once a node has waited for some seconds, the endpoint's names are looked up and its addresses are tried, and a sentence
says what came of it.  What does not live here: this machine's interfaces (:mod:`quorate.addresses`).
"""

from __future__ import annotations

import socket
from contextlib import suppress

from .net import Address, Endpoint, is_local_name, named_endpoints, resolve, source_towards

__all__ = ["advertised_address", "describe_reach", "local_endpoint_hint", "names_local_host", "why_unreachable"]

_MOST_ENTRIES, _MOST_ADDRESSES = 3, 4
_RESOLVE_SECONDS, _CONNECT_SECONDS, _PROBE_SECONDS = 2.0, 1.0, 3.0
#: For this the node waits before it joins: without the name's address it would tell the others a wrong one.
_ROUTE_SECONDS = 60.0
_LOOPBACK = "127.0.0.1"


def advertised_address(local_addr: str | None, endpoint: str) -> str:
    """Return the address at which the other nodes reach this one.

    ``local_addr`` if given; else the source address of the route to ``endpoint``; else the loopback address.
    """
    if local_addr:
        return local_addr
    for there in named_endpoints(endpoint)[:1]:
        with suppress(OSError):
            found = map(source_towards, resolve(there.host, there.port or 1, _ROUTE_SECONDS))
            return next(filter(None, found), _LOOPBACK)
    return _LOOPBACK


def describe_reach(endpoint: str) -> str:
    """Return what trying ``endpoint`` (several with commas between them) showed; ``""`` where it names no host.

    Takes a few seconds at most.
    """
    return "; ".join(filter(None, map(_describe, named_endpoints(endpoint)[:_MOST_ENTRIES])))


def local_endpoint_hint(endpoint: str) -> str:
    """Return that every machine takes ``endpoint`` for itself, where that is so; else ``""``."""
    local = [each.host for each in named_endpoints(endpoint) if is_local_name(each.host) or each.host in _ANY]
    if not local:
        return ""
    return (
        f"On every machine {local[0]} is that machine itself, so nodes on other machines cannot join here. If the job "
        "has such nodes, give all nodes the name of one machine (--rdzv-endpoint=HOST:PORT or --master-addr)"
    )


def names_local_host(endpoint: str) -> bool:
    """Return whether every machine takes ``endpoint`` for itself by its name or address, as ``localhost``."""
    return any(is_local_name(each.host) for each in named_endpoints(endpoint))


def why_unreachable(host: str, port: int) -> str:
    """Return why no packet gets to ``host`` and back, ``""`` where one does: also one that says that nothing listens.

    Takes a few seconds at most.
    """
    try:
        addresses = resolve(host, port, _RESOLVE_SECONDS)
    except OSError as error:
        return f"the name {host!r} cannot be looked up ({error.strerror or error})"
    problems = [_connect(address, _PROBE_SECONDS) for address in addresses[:_MOST_ADDRESSES]]
    reached = any(problem is None or isinstance(problem, ConnectionRefusedError) for problem in problems)
    return "" if reached else "; ".join(str(each) for each in problems) or "the name has no address"


_ANY = frozenset({"0.0.0.0", "::"})


def _describe(endpoint: Endpoint) -> str:
    host, port = endpoint.host, endpoint.port
    try:
        addresses = resolve(host, port, _RESOLVE_SECONDS)
    except OSError as error:
        return f"the name {host!r} cannot be looked up ({error.strerror or error})"
    if port == 0:
        found = ", ".join(address.host for address in addresses[:_MOST_ADDRESSES])
        return "" if found == host else f"{host} is {found}"
    results = ", ".join(f"{address} {_try(address)}" for address in addresses[:_MOST_ADDRESSES])
    named = "" if len(addresses) == 1 and addresses[0].host == host else f"{host}: "
    return f"{named}{results}"


def _connect(address: Address, timeout_seconds: float) -> OSError | None:
    with socket.socket(address.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_seconds)
        try:
            sock.connect(address.sockaddr)
        except TimeoutError:
            return TimeoutError(f"{address} does not answer within {timeout_seconds:g} s")
        except OSError as error:
            return error
    return None


def _try(address: Address) -> str:
    problem = _connect(address, _CONNECT_SECONDS)
    if problem is None:
        return "accepts connections, but this job's store has not answered there yet"
    if isinstance(problem, TimeoutError):
        return f"does not answer within {_CONNECT_SECONDS:g} s (is it the right address? is there a firewall?)"
    if isinstance(problem, ConnectionRefusedError):
        return "refuses connections (nothing listens there)"
    return f"cannot be reached ({problem.strerror or problem})"
