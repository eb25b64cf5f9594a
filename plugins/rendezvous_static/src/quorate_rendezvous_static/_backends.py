"""The backends ``static`` and ``tcp``: who hosts the store, who joins it, and what settings they take.

What does not live here: the store itself (``_server``, ``_client``) and the backend ``standalone``.
"""

from __future__ import annotations

import errno
from threading import Event
from typing import TYPE_CHECKING

from quorate.clock import monotonic
from quorate.errors import RendezvousConnectionError, RendezvousStateError, StoreUnavailableError, UsageError

from ._client import TcpStore
from ._endpoint import parse_endpoint, spell

if TYPE_CHECKING:
    from quorate.rendezvous import RendezvousParameters

    from ._server import TcpStoreServer

__all__ = ["DEFAULT_PORT", "check_static", "check_tcp", "open_static", "open_tcp"]

DEFAULT_PORT = 29400
_BIND_TIMEOUT_SECONDS = 5.0
_KNOCK_SECONDS = 0.5
_BID_SECONDS = 2.0


def check_static(params: RendezvousParameters) -> None:
    """Refuse settings that the backend ``static`` cannot work with.  No I/O.

    Raises:
        UsageError: the number of nodes is not fixed, the node rank is missing or out of range, or the endpoint is
            not ``host:port``.
    """
    if params.min_nodes != params.max_nodes:
        raise UsageError(
            f"--nnodes={params.min_nodes}:{params.max_nodes} does not go with the rendezvous backend 'static', which "
            "needs a fixed number of nodes; set --nnodes=N, or --rdzv-backend=tcp for a range"
        )
    rank = params.get_as_int("rank")
    if rank is None and params.max_nodes > 1:
        raise UsageError(
            f"the rendezvous backend 'static' needs to know which of the {params.max_nodes} nodes this is; "
            f"set --node-rank to a number from 0 to {params.max_nodes - 1}"
        )
    if rank is not None and not 0 <= rank < params.max_nodes:
        raise UsageError(
            f"node rank {rank} does not exist in a job of {params.max_nodes} node(s); "
            f"set --node-rank to a number from 0 to {params.max_nodes - 1}"
        )
    params.get_as_bool("is_host")
    parse_endpoint(params.endpoint)
    _check_times(params)


def check_tcp(params: RendezvousParameters) -> None:
    """Refuse settings that the backend ``tcp`` cannot work with.  No I/O.  Raises UsageError."""
    parse_endpoint(params.endpoint, DEFAULT_PORT)
    params.get_as_bool("is_host")
    _check_times(params)


def open_static(params: RendezvousParameters) -> TcpStore:
    """Host the store if this is node rank 0 (or ``is_host`` says so), and connect to it.

    Raises:
        UsageError: see :func:`check_static`; or the endpoint cannot be listened on where it must be.
        StoreUnavailableError: the host did not answer within ``connect_timeout`` seconds.
    """
    check_static(params)
    host, port = parse_endpoint(params.endpoint)
    is_host = params.get_as_bool("is_host", (params.get_as_int("rank") or 0) == 0)
    keeper = "the agent with node rank 0"
    return _host(params, host, port, keeper) if is_host else _join(params, host, port, keeper)


def open_tcp(params: RendezvousParameters) -> TcpStore:
    """Host the store if nobody does yet and the endpoint is an address of this machine; connect to it.

    Raises:
        UsageError: see :func:`check_tcp`; or ``is_host`` is true and the endpoint cannot be listened on.
        StoreUnavailableError: no host answered within ``connect_timeout`` seconds.
    """
    check_tcp(params)
    host, port = parse_endpoint(params.endpoint, DEFAULT_PORT)
    keeper = "the agent that hosts the store"
    is_host = params.get_as_bool("is_host")
    if is_host:
        return _host(params, host, port, keeper)
    deadline = monotonic() + params.get_as_float("connect_timeout", 60.0)
    while is_host is None:
        try:
            return _with_server(params, host, port, keeper)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                break  # the endpoint is on another machine, or cannot be listened on: somebody else hosts
        left = deadline - monotonic()
        try:
            return _join(params, host, port, keeper, max(0.1, min(left, _BID_SECONDS)))
        except StoreUnavailableError:
            # Whoever had the port may have gone: then it is free to be taken.
            if left <= _BID_SECONDS:
                raise
    return _join(params, host, port, keeper, max(1.0, deadline - monotonic()))


def _host(params: RendezvousParameters, host: str, port: int, keeper: str) -> TcpStore:
    patience = params.get_as_float("connect_timeout", 60.0)
    started = monotonic()
    while True:
        try:
            return _with_server(params, host, port, keeper)
        except OSError as error:
            # A name may become known only after its machine has started; a system error other than these stays.
            is_name = error.errno is None or error.errno < 0  # as the resolver's errors are
            if error.errno != errno.EADDRINUSE and not is_name:
                raise _cannot_listen(host, port, error) from None
            # Whoever is there may be another agent of this job that claims the same rank: the core can tell only
            # if both meet.  Or a server of an earlier job that is about to leave.
            try:
                if not is_name:
                    return _join(params, host, port, keeper, _KNOCK_SECONDS)
            except (RendezvousConnectionError, RendezvousStateError):
                pass
            if monotonic() - started >= (patience if is_name else min(patience, _BIND_TIMEOUT_SECONDS)):
                raise _cannot_listen(host, port, error) from None
        Event().wait(0.1)


def _cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    where = spell(host, port)
    if error.errno == errno.EADDRINUSE:
        return UsageError(
            f"this node must host the rendezvous store at {where}, but another program listens there; "
            "choose another --master-port or --rdzv-endpoint"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"this node must host the rendezvous store at {where}, but that is not an address of this machine; set "
            "--master-addr (or --rdzv-endpoint) to an address of the node with rank 0, and check --node-rank; where "
            "the address is forwarded to this machine, add --rdzv-conf bind_address=0.0.0.0"
        )
    return UsageError(
        f"this node must host the rendezvous store at {where}, but cannot listen there: {error.strerror or error}"
    )


def _with_server(params: RendezvousParameters, host: str, port: int, keeper: str) -> TcpStore:
    from ._server import TcpStoreServer

    bind = str(params.get("bind_address", "") or host)
    linger = params.get_as_float("linger_timeout", 5.0)
    patience = params.get_as_float("connect_timeout", 60.0)
    server = TcpStoreServer(bind, port, params.run_id, linger_seconds=linger, resolve_timeout=min(patience, 10.0))
    # The host's own way to its server needs no name, no forwarding and no firewall.
    own = server.reachable_host
    try:
        return _join(params, own, port, keeper, server=server)
    except BaseException:
        server.close(0.0)
        raise


def _join(
    params: RendezvousParameters,
    host: str,
    port: int,
    keeper: str,
    timeout: float | None = None,
    server: TcpStoreServer | None = None,
) -> TcpStore:
    patience = params.get_as_float("connect_timeout", 60.0)
    return TcpStore(
        host,
        port,
        params.run_id,
        connect_timeout=patience if timeout is None else min(timeout, patience),
        operation_timeout=params.get_as_float("operation_timeout", 5.0),
        keeper=keeper,
        server=server,
    )


def _check_times(params: RendezvousParameters) -> None:
    for name, default in (("connect_timeout", 60.0), ("operation_timeout", 5.0), ("linger_timeout", 5.0)):
        if params.get_as_float(name, default) == 0.0 and name != "linger_timeout":
            raise UsageError(f"the rendezvous setting {name} must be more than 0 seconds")
