"""The backends ``static`` and ``tcp``: who hosts the store, who joins it, and what settings they take.

What does not live here: the store itself (``_server``, ``_client``) and the backend ``standalone``.
"""

from __future__ import annotations

import errno
import socket
from threading import Event
from typing import TYPE_CHECKING

from quorate.clock import monotonic
from quorate.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    StoreUnavailableError,
    UsageError,
)
from quorate.notices import warn
from quorate.rendezvous import job_is_over

from ._client import TcpStore
from ._endpoint import is_loopback_name, parse_endpoint, spell

if TYPE_CHECKING:
    from quorate.rendezvous import RendezvousParameters

    from ._server import TcpStoreServer

__all__ = ["DEFAULT_PORT", "check_static", "check_tcp", "open_static", "open_tcp"]

DEFAULT_PORT = 29400
_TAKEN_SECONDS = 2.0
_KNOCK_SECONDS = 0.5
_SILENT_SECONDS = 5.0  # longer: a busy machine's server may answer late
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
    """Host the store; join it where another agent of this machine hosts it for this job already.

    Whoever is there may be an agent that was told to host, too, or a server of an earlier job that is about to leave.
    Only that one is worth waiting for longer than for a moment.
    """
    patience = params.get_as_float("connect_timeout", 60.0)
    started = monotonic()
    problem: RendezvousError | None = None
    while True:
        try:
            there = _beside(params, host, port, keeper)
            return there or _with_server(params, host, port, keeper)
        except OSError as error:
            # A name may become known only after its machine has started; a system error other than these stays.
            is_name = error.errno is None or error.errno < 0  # as the resolver's errors are
            if error.errno != errno.EADDRINUSE and not is_name:
                raise _cannot_listen(host, port, error, None) from None
            limit = patience
            if not is_name:
                store, problem = _knock(params, host, port, keeper)
                if store is not None and not job_is_over(store):
                    return _joined(params, store)
                if store is not None:
                    store.close()
                    problem = RendezvousStateError(_OVER.format(params.run_id))
                elif isinstance(problem, RendezvousStateError):
                    limit = min(patience, _TAKEN_SECONDS)
                else:
                    limit = min(patience, _SILENT_SECONDS)
            if monotonic() - started >= limit:
                raise _cannot_listen(host, port, error, problem) from None
        Event().wait(0.1)


_OVER = "the store of an earlier job with the run id {!r}, which has ended, is still there"


def _knock(
    params: RendezvousParameters, host: str, port: int, keeper: str
) -> tuple[TcpStore | None, RendezvousError | None]:
    """Return the store that answers at the endpoint, or why none can be used."""
    try:
        return _join(params, host, port, keeper, _KNOCK_SECONDS), None
    except (RendezvousConnectionError, RendezvousStateError) as error:
        return None, error


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _KNOCK_SECONDS):
            return True
    except OSError:
        return False


def _beside(params: RendezvousParameters, host: str, port: int, keeper: str) -> TcpStore | None:
    """Return this job's store where it is on the loopback address of the other family: ``::1``, ``127.0.0.1``."""
    if not is_loopback_name(host):
        return None
    for address in ("127.0.0.1", "::1"):
        if _accepts(address, port):
            store, _ = _knock(params, address, port, keeper)
            if store is not None and not job_is_over(store):
                return _joined(params, store)
            if store is not None:
                store.close()
    return None


def _joined(params: RendezvousParameters, store: TcpStore) -> TcpStore:
    # Where the node rank alone says who hosts, the core tells of two nodes with one rank.
    if params.get_as_bool("is_host"):
        warn(
            f"this node was told to host the rendezvous store at {params.endpoint}, but another agent of this machine "
            "hosts it for this job already; this one joins it. Set is_host=true on one node only"
        )
    return store


def _cannot_listen(host: str, port: int, error: OSError, problem: RendezvousError | None) -> UsageError:
    where = spell(host, port)
    if error.errno == errno.EADDRINUSE:
        what = f" ({problem})" if problem is not None else ""
        return UsageError(
            f"this node must host the rendezvous store at {where}, but another program listens there{what}; stop it, "
            "or choose another --master-port or --rdzv-endpoint"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(
            f"this node must host the rendezvous store at {where}, but that is not an address of this machine; set "
            "--master-addr (or --rdzv-endpoint) to an address of the node with rank 0, and check --node-rank and "
            "is_host; where the address is forwarded to this machine, add --rdzv-conf bind_address=0.0.0.0"
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
