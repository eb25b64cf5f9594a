"""The backends ``static`` and ``tcp``: which node hosts the store, which ones join it, and what settings they take.

What does not live here: the store itself (``_server``, ``_client``) and the backend ``standalone``.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, final

from attrs import frozen

from quorate.clock import monotonic, sleep
from quorate.cut_off import WhenCutOff, parse_when_cut_off
from quorate.errors import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    StoreUnavailableError,
    UsageError,
)
from quorate.job_token import STORE_PURPOSE, job_token_of
from quorate.net import Endpoint, is_local_name, parse_endpoint
from quorate.notices import warn
from quorate.rendezvous import RendezvousParameters, job_is_over
from quorate.timeouts import Timeouts

from ._client import RETURN_TIMEOUT_SECONDS, TcpStore
from ._limits import raise_descriptor_limit
from ._server import TcpStoreServer, find_server
from ._shared_port import SharedPort
from ._tls_settings import TLS_SETTINGS

if TYPE_CHECKING:
    from ._tls import Tls  # a type here: the module imports ssl, which few jobs need

DEFAULT_PORT = 29400
_SHARED_PORT = "shared_port"
_CONNECT_TIMEOUT_SECONDS = 60.0
_OPERATION_TIMEOUT_SECONDS = 5.0
_LINGER_TIMEOUT_SECONDS = 5.0
_RESOLVE_TIMEOUT_SECONDS = 10.0
#: For one look at what listens on the endpoint.
_HELLO_SECONDS = 0.5
#: For one attempt to join, between two offers to host.
_OFFER_SECONDS = 2.0
#: How long a host waits for another program to free the port; longer where none answers: a busy server may be late.
_TAKEN_SECONDS = 2.0
_SILENT_SECONDS = 5.0
_RETRY_PAUSE_SECONDS = 0.1


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
    endpoint = parse_endpoint(params.endpoint)
    shared_port = params.get_as_int(_SHARED_PORT) or None
    if shared_port is not None and (not 1 <= shared_port <= 65535 or shared_port == endpoint.port):
        raise UsageError(
            f"the rendezvous setting {_SHARED_PORT}={shared_port} must be a port other than that of the endpoint "
            f"({params.endpoint}); 0 for none"
        )
    _tls_of(params, endpoint.host)
    _check_times(params)


def check_tcp(params: RendezvousParameters) -> None:
    """Refuse settings that the backend ``tcp`` cannot work with.  No I/O.  Raises UsageError."""
    _tls_of(params, parse_endpoint(params.endpoint, DEFAULT_PORT).host)
    params.get_as_bool("is_host")
    _check_times(params)


def open_static(params: RendezvousParameters) -> TcpStore:
    """Host the store if this is node rank 0 (or ``is_host`` says so), and connect to it.

    Raises:
        UsageError: see :func:`check_static`; or the endpoint cannot be listened on where it must be.
        StoreUnavailableError: the host did not answer within ``connect_timeout`` seconds.
    """
    check_static(params)
    opening = _Opening(params, parse_endpoint(params.endpoint), "the agent with node rank 0")
    is_host = params.get_as_bool("is_host", (params.get_as_int("rank") or 0) == 0)
    return opening.host() if is_host else opening.join()


def open_tcp(params: RendezvousParameters) -> TcpStore:
    """Host the store if it has no host yet and the endpoint is an address of this machine; connect to it.

    Raises:
        UsageError: see :func:`check_tcp`; or ``is_host`` is true and the endpoint cannot be listened on.
        StoreUnavailableError: no host answered within ``connect_timeout`` seconds.
        RendezvousStateError: the store of another job, or of one that has ended, was there all the time.
    """
    check_tcp(params)
    opening = _Opening(params, parse_endpoint(params.endpoint, DEFAULT_PORT), "the agent that hosts the store")
    is_host = params.get_as_bool("is_host")
    if is_host is None:
        return opening.host_or_join()
    return opening.host() if is_host else opening.join()


@final
@frozen
class _Opening:
    """One node's way to the store; ``hosted_by`` names the process that hosts it, for messages."""

    params: RendezvousParameters
    endpoint: Endpoint
    hosted_by: str

    @property
    def connect_timeout(self) -> float:
        return self.params.get_as_float("connect_timeout", _CONNECT_TIMEOUT_SECONDS)

    @property
    def shared_port(self) -> int | None:
        return self.params.get_as_int(_SHARED_PORT) or None

    def _key(self, purpose: str) -> bytes | None:
        token = job_token_of(self.params.config)
        return None if token is None else token.key(self.params.run_id, purpose)

    def host(self) -> TcpStore:
        """Host the store; join it where another agent of this machine hosts it for this job already.

        What listens there may also be the server of an earlier job, which ends soon.  That one is waited for until
        ``connect_timeout``, anything else for a few seconds.
        """
        started = monotonic()
        while True:
            problem: RendezvousError | None = None
            try:
                return self._join_beside() or self._serve()
            except OSError as error:
                # A name may become known only after its machine has started; a system error other than these stays.
                is_name = error.errno is None or error.errno < 0  # as the resolver's errors are
                if error.errno != errno.EADDRINUSE and not is_name:
                    raise self._cannot_listen(error, None) from None
                limit = self.connect_timeout
                if not is_name:
                    store, problem = self._try_join(self.endpoint.host)
                    if store is not None:
                        return self._warn_joined(store)
                    if isinstance(problem, _JobOverError):
                        problem.free_port(monotonic() - started)
                    else:
                        is_taken = isinstance(problem, RendezvousStateError)
                        limit = min(limit, _TAKEN_SECONDS if is_taken else _SILENT_SECONDS)
                if monotonic() - started >= limit:
                    raise self._cannot_listen(error, problem) from None
            sleep(_RETRY_PAUSE_SECONDS)

    def host_or_join(self) -> TcpStore:
        """Host the store if the endpoint is an address of this machine and its port is free; join it otherwise.

        The store of a job that has ended is waited for, so that a new job does not join it.  A store that stays longer
        than ``linger_timeout`` is joined: this node then learns how the job ended.
        """
        started = monotonic()
        deadline = started + self.connect_timeout
        linger = min(self.params.get_as_float("linger_timeout", _LINGER_TIMEOUT_SECONDS), self.connect_timeout)
        while True:
            try:
                return self._serve()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    break  # the endpoint is on another machine, or cannot be listened on: another node hosts
            left = deadline - monotonic()
            try:
                return self._running(self.join(max(0.1, min(left, _OFFER_SECONDS))))
            except StoreUnavailableError:
                # The host that had the port may have gone: then it is free to be taken.
                if left <= _OFFER_SECONDS:
                    raise
            except _JobOverError as error:
                seconds = monotonic() - started
                if not error.free_port(seconds) and seconds >= linger:
                    break
                sleep(_RETRY_PAUSE_SECONDS)
        return self.join(max(1.0, deadline - monotonic()))

    def join(
        self,
        timeout: float | None = None,
        host: str | None = None,
        server: TcpStoreServer | None = None,
        lendable: SharedPort | None = None,
    ) -> TcpStore:
        """Connect to the store.  Raises what TcpStore raises."""
        return TcpStore(
            host or self.endpoint.host,
            self.endpoint.port,
            self.params.run_id,
            connect_timeout=self.connect_timeout if timeout is None else min(timeout, self.connect_timeout),
            operation_timeout=self.params.get_as_float("operation_timeout", _OPERATION_TIMEOUT_SECONDS),
            hosted_by=self.hosted_by,
            server=server,
            key=self._key("tcp"),
            tls=self._checked_tls(hosts=server is not None),
            shared_port=None if server is not None else self.shared_port,
            lendable=lendable,
            return_timeout=_return_timeout(self.params),
        )

    def _checked_tls(self, *, hosts: bool) -> Tls | None:
        tls = _tls_of(self.params, self.endpoint.host)
        if tls is not None:
            tls.check(hosts=hosts)
        return tls

    def _serve(self) -> TcpStore:
        """Start a server and connect to it.  Raises OSError where the endpoint cannot be listened on."""
        raise_descriptor_limit()
        server = TcpStoreServer(
            str(self.params.get("bind_address", "") or self.endpoint.host),
            self.endpoint.port,
            self.params.run_id,
            linger_timeout=self.params.get_as_float("linger_timeout", _LINGER_TIMEOUT_SECONDS),
            resolve_timeout=min(self.connect_timeout, _RESOLVE_TIMEOUT_SECONDS),
            key=self._key("tcp"),
            tls=self._checked_tls(hosts=True),
        )
        lendable: SharedPort | None = None
        try:
            if self.shared_port is not None:
                lendable = SharedPort(server, self.shared_port)
            # The host's own way to its server needs no name, no forwarding and no firewall.
            return self.join(host=server.reachable_host, server=server, lendable=lendable)
        except BaseException:
            if lendable is not None:
                lendable.close()
            server.close(0.0)
            raise

    def _running(self, store: TcpStore) -> TcpStore:
        """Return ``store`` if its job goes on.

        Raises:
            _JobOverError: it has ended.
        """
        try:
            if not job_is_over(store, self._key(STORE_PURPOSE)):
                return store
        except BaseException:
            store.close()
            raise
        server = find_server(store.incarnation)
        # Two connections are this store's own, two those of the host.
        is_left = server is not None and server.client_count <= 4
        store.close()
        raise _JobOverError(self.params.run_id, server if is_left else None)

    def _try_join(self, host: str) -> tuple[TcpStore | None, RendezvousError | None]:
        """Return the store that answers at ``host``, or why none can be used."""
        try:
            return self._running(self.join(_HELLO_SECONDS, host)), None
        except (RendezvousConnectionError, RendezvousStateError) as error:
            return None, error

    def _join_beside(self) -> TcpStore | None:
        """Return this job's store where it is on the loopback address of the other family: ``::1``, ``127.0.0.1``."""
        if not is_local_name(self.endpoint.host):
            return None
        for address in ("127.0.0.1", "::1"):
            if _accepts(address, self.endpoint.port):
                store, _ = self._try_join(address)
                if store is not None:
                    return self._warn_joined(store)
        return None

    def _warn_joined(self, store: TcpStore) -> TcpStore:
        # Where the node rank alone decides, the core reports two nodes with one rank.
        if self.params.get_as_bool("is_host"):
            warn(
                f"is_host is true on this node, but another agent of this machine hosts the rendezvous store at "
                f"{self.params.endpoint} for this job already; this one joins it. Set is_host=true on one node only"
            )
        return store

    def _cannot_listen(self, error: OSError, problem: RendezvousError | None) -> UsageError:
        where = self.endpoint
        if error.errno == errno.EADDRINUSE:
            what = f" ({problem})" if problem is not None else ""
            return UsageError(
                f"this node must host the rendezvous store at {where}, but another program listens there{what}; "
                "stop it, or choose another --master-port or --rdzv-endpoint"
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


@final
class _JobOverError(RendezvousStateError):
    """The store that was found is the one of a job that has ended.

    ``server`` is its server, if this process hosts it and all other nodes have left.  Its handler may never be shut
    down.
    """

    def __init__(self, run_id: str, server: TcpStoreServer | None) -> None:
        self._server = server
        super().__init__(f"the store of an earlier job with the run id {run_id!r}, which has ended, is still there")

    def free_port(self, seconds: float) -> bool:
        """Have this process's own server leave the port, ``seconds`` after it was found; returns whether it has one."""
        if self._server is not None and seconds >= self._server.linger_timeout:
            self._server.leave()
        return self._server is not None


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _HELLO_SECONDS):
            return True
    except OSError:
        return False


def _tls_of(params: RendezvousParameters, host: str) -> Tls | None:
    """Return how the connections are encrypted; ``None`` if they are not.  Raises UsageError."""
    if not any(params.get(name) for name in TLS_SETTINGS):
        return None
    from ._tls import Tls  # imports ssl, a few MiB that a job without TLS does not need

    return Tls.from_parameters(params, host)


def _return_timeout(params: RendezvousParameters) -> float:
    """Return how long a node has to come back; not less than its lease where it may use that to freeze its workers."""
    seconds = params.get_as_float("return_timeout", RETURN_TIMEOUT_SECONDS)
    if parse_when_cut_off(params.get("when_cut_off", WhenCutOff.RUN)) is WhenCutOff.RUN:
        return seconds
    return max(seconds, Timeouts.from_settings(params.config).silence_limit)


def _check_times(params: RendezvousParameters) -> None:
    for name, default in (
        ("connect_timeout", _CONNECT_TIMEOUT_SECONDS),
        ("operation_timeout", _OPERATION_TIMEOUT_SECONDS),
        ("linger_timeout", _LINGER_TIMEOUT_SECONDS),
        ("return_timeout", RETURN_TIMEOUT_SECONDS),
    ):
        if params.get_as_float(name, default) == 0.0 and name in ("connect_timeout", "operation_timeout"):
            raise UsageError(f"the rendezvous setting {name} must be more than 0 seconds")
