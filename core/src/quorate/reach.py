"""Why an endpoint does not answer: looks its names up, tries its addresses, and says in a sentence what came of it.

Used once a node has waited for some seconds, so that the user sees which address was tried.
"""

from __future__ import annotations

import socket

from .errors import UsageError
from .net import Address, is_local_name, parse_endpoint, resolve

__all__ = ["describe_reach", "local_endpoint_hint", "names_local_host", "why_unreachable"]

_MOST_ENTRIES, _MOST_ADDRESSES = 3, 4
_RESOLVE_SECONDS, _CONNECT_SECONDS, _PROBE_SECONDS = 2.0, 1.0, 3.0


def describe_reach(endpoint: str) -> str:
    """Return what trying ``endpoint`` (several with commas between them) showed; ``""`` where it names no host.

    Takes a few seconds at most.
    """
    return "; ".join(filter(None, (_describe(entry) for entry in endpoint.split(",")[:_MOST_ENTRIES])))


def local_endpoint_hint(endpoint: str) -> str:
    """Return that every machine takes ``endpoint`` for itself, where that is so; else ``""``."""
    hosts = [_parse(entry) for entry in endpoint.split(",")]
    local = [found[0] for found in hosts if found is not None and (is_local_name(found[0]) or found[0] in _ANY)]
    if not local:
        return ""
    return (
        f"on every machine {local[0]} is that machine itself, so nodes on other machines cannot join here; if the job "
        "has such nodes, give all nodes the name of one machine (--rdzv-endpoint=HOST:PORT or --master-addr)"
    )


def names_local_host(endpoint: str) -> bool:
    """Return whether every machine takes ``endpoint`` for itself by its name or address, as ``localhost``."""
    hosts = [_parse(entry) for entry in endpoint.split(",")]
    return any(found is not None and is_local_name(found[0]) for found in hosts)


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


def _parse(entry: str) -> tuple[str, int] | None:
    """Return host and port of an endpoint; port 0 where it has none."""
    text = entry.rpartition("://")[2].rpartition("@")[2].partition("/")[0]
    try:
        there = parse_endpoint(text, 0, lowest_port=0, bare_ipv6=True)
    except UsageError:
        return None
    return there.host, there.port


def _describe(entry: str) -> str:
    there = _parse(entry)
    if there is None:
        return ""
    host, port = there
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
