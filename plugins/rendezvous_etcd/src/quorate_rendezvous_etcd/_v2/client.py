"""Requests to etcd's API v2 through python-etcd: deadlines, other endpoints when one does not answer, interruption.

python-etcd's own retries are switched off.  So the caller knows that a write may have been sent twice, and every
request has one deadline.

What does not live here: what the requests mean (:mod:`.store`, :mod:`.member`, :mod:`.lease`), connections
(:mod:`.transport`) and what answers contain (:mod:`.answers`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import Any, final

from quorate.clock import monotonic
from quorate.errors import (
    QuorateError,
    RendezvousStateError,
    StoreLostError,
    StoreUnavailableError,
    UsageError,
)
from quorate.net import Endpoint

from .._dial import describe
from .._settings import PASSWORD_VARIABLE, Settings
from .answers import CLEARED, CONDITIONS, NOT_FILE, NOT_FOUND, Answer, RefusedError, expecting, read_answer, read_number
from .transport import Sockets, close_etcd_client, load_etcd, make_etcd_client, make_timeout

_INTERNAL, _ELECTION = 300, 301


@final
class InterruptedCallError(Exception):
    """Another thread called :meth:`Client.interrupt`."""


@final
class _Unanswered(Exception):  # noqa: N818 - never leaves this module
    """One request got no usable answer; the next endpoint, or the same one later, may give one."""

    def __init__(self, problem: str, *, is_tls: bool = False) -> None:
        self.problem, self.is_tls = problem, is_tls
        super().__init__(problem)


@final
class Route:
    """The endpoint that is in use; all clients of a store share it, so that one failure moves all of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.etcd = load_etcd()
        self.cluster_id: str | None = None
        #: Whether the last request of any client ended without an answer.
        self.is_away = False
        self._state = threading.Lock()
        # The nodes of a large job spread over the endpoints.
        self._first = random.randrange(len(settings.endpoints))
        self._clients: list[Client] = []

    def add(self, client: Client) -> None:
        """Have ``client`` leave an endpoint that another client has left."""
        self._clients.append(client)

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that is in use."""
        return self.settings.endpoints[self._first]

    def leave(self, endpoint: Endpoint) -> None:
        """Use another endpoint, if ``endpoint`` is still in use."""
        with self._state:
            if len(self.settings.endpoints) == 1 or self.endpoint != endpoint:
                return
            self._first = (self._first + 1) % len(self.settings.endpoints)
        for client in self._clients:
            client.leave(endpoint)


@final
class Client:
    """Sends requests for one thread at a time, over at most one connection to each endpoint.

    :meth:`interrupt` and :meth:`close` may be called from any thread.
    """

    def __init__(self, route: Route) -> None:
        self._route, self._settings = route, route.settings
        self._sockets = Sockets()
        self._clients: dict[Endpoint, Any] = {}
        self._polling: Endpoint | None = None
        self._stop = threading.Event()
        self._closed = False
        route.add(self)

    @property
    def connections(self) -> int:
        """The number of connections so far.  Before a new one, etcd may have been away, and lost the job."""
        return self._sockets.made

    # --- requests -------------------------------------------------------------------------------------------------

    def get(self, path: str, deadline: float) -> Answer:
        """Read a node, by consensus: never from a member that lags behind.  Raises as :meth:`call` does."""
        return self.call("GET", path, deadline, {"quorum": True})

    def put(self, path: str, deadline: float, **options: object) -> Answer:
        """Write a node.  Options are API v2's: ``value``, ``dir``, ``ttl``, ``prevExist``, ``prevIndex``, ..."""
        return self.call("PUT", path, deadline, options)

    def post(self, path: str, deadline: float, **options: object) -> Answer:
        """Write a node in the directory ``path``.  etcd chooses a name that sorts after all others."""
        return self.call("POST", path, deadline, options)

    def delete(self, path: str, deadline: float, **options: object) -> bool:
        """Remove a node; returns whether it was there.  Raises as :meth:`call` does."""
        with expecting(NOT_FOUND):
            self.call("DELETE", path, deadline, options)
            return True
        return False

    def call(self, method: str, path: str, deadline: float, options: Mapping[str, object]) -> Answer:
        """Send a request until it is answered.  An earlier attempt without an answer may have been applied, too.

        Once a request has ended without an answer, the next ones ask each endpoint only once, until one answers: the
        caller retries by itself, and its other operations must not take a deadline each.

        Raises:
            RefusedError: a condition does not hold.
            StoreUnavailableError: no answer by ``deadline`` (monotonic seconds).
            UsageError: wrong credentials or certificates, or a server without the API.
            InterruptedCallError: see :meth:`interrupt`.
        """
        problems: dict[Endpoint, _Unanswered] = {}
        pause = 0.02
        while True:
            self._sockets.open()
            # After open(): an interrupt before this line is seen here, a later one shuts the sockets.
            self._refuse_if_stopped()
            endpoint = self._route.endpoint
            # Enough for each endpoint to be tried, and for one endpoint to be tried twice.
            share = self._settings.operation_timeout_seconds / (len(self._settings.endpoints) + 1)
            left = max(0.05, min(deadline - monotonic(), max(1.0, share)))
            try:
                answer = self._once(endpoint, method, path, options, left)
                self._route.is_away = False
                return answer
            except RefusedError:
                self._route.is_away = False
                raise
            except _Unanswered as unanswered:
                problems[endpoint] = unanswered
                self._route.leave(endpoint)
            self._refuse_if_stopped()
            tried_all = len(problems) == len(self._settings.endpoints)
            if tried_all and self._route.cluster_id is None and all(problem.is_tls for problem in problems.values()):
                raise self._no_trust(problems)
            left = deadline - monotonic()
            if left <= 0 or (tried_all and self._route.is_away):
                self._route.is_away = True
                raise self._unavailable(problems)
            if tried_all:
                self._stop.wait(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(1.0, pause * 2)

    def poll(self, path: str, index: int, timeout: float, *, recursive: bool = False) -> Answer | None:
        """Wait for the next change of ``path`` from ``index`` on, for ``timeout`` seconds; ``None`` without one.

        Also ``None`` where the connection broke: the caller then reads again.
        """
        self._refuse_if_stopped()
        endpoint = self._route.endpoint
        self._polling = endpoint
        try:
            if self._route.endpoint != endpoint:
                return None  # another client has left it just now
            with expecting(CLEARED):
                options = {"wait": True, "waitIndex": index, "recursive": recursive}
                return self._once(endpoint, "GET", path, options, timeout)
        except _Unanswered:
            self._refuse_if_stopped()
        finally:
            self._polling = None
        return None

    def _once(
        self, endpoint: Endpoint, method: str, path: str, options: Mapping[str, object], timeout: float
    ) -> Answer:
        etcd = self._route.etcd
        client = self._etcd_client(endpoint)
        limits = make_timeout(min(timeout, self._settings.dial_timeout_seconds), timeout)
        client.expected_cluster_id = None
        params = {name: _spell(value) for name, value in options.items()}
        try:
            response = client.api_execute(client.key_endpoint + path, method, params=params, timeout=limits)
            answer = read_answer(response.data, response.headers)
        except etcd.EtcdWatchTimedOut as error:
            raise _Unanswered("no change in time") from error
        except etcd.EtcdException as error:
            self._recognise(endpoint, client.expected_cluster_id)
            raise self._explain(endpoint, client, error) from error
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            # python-etcd raises these where an error's text is not what etcd writes.
            raise _Unanswered(f"it does not answer as etcd does ({describe(error)[:100]})") from error
        self._recognise(endpoint, client.expected_cluster_id)
        return answer

    def _recognise(self, endpoint: Endpoint, cluster_id: str | None) -> None:
        """Make sure that the same cluster answers as before."""
        if cluster_id is None:
            return
        if self._route.cluster_id is None:
            self._route.cluster_id = cluster_id
        elif self._route.cluster_id != cluster_id:
            raise StoreLostError(
                f"another etcd cluster answers at {_spell_endpoint(self._settings, endpoint)}; "
                "the one that held the job is gone. Start the job again"
            )

    def _etcd_client(self, endpoint: Endpoint) -> Any:
        client = self._clients.get(endpoint)
        if client is None:
            client = make_etcd_client(self._route.etcd, self._settings, endpoint, self._sockets)
            self._clients[endpoint] = client
        return client

    # --- what went wrong ------------------------------------------------------------------------------------------

    def _explain(self, endpoint: Endpoint, client: Any, error: Exception) -> Exception:
        etcd = self._route.etcd
        where = _spell_endpoint(self._settings, endpoint)
        if isinstance(error, etcd.EtcdConnectionFailed):
            return _describe(error)
        answer: Any = getattr(error, "payload", None)
        answer = answer if isinstance(answer, dict) else {}
        code, cause = answer.get("errorCode"), str(answer.get("cause", ""))
        code = code if isinstance(code, int) else None
        if code in CONDITIONS:
            try:
                return RefusedError(code, read_number(answer.get("index", 0)), f"{where}: {error}")
            except ValueError as problem:
                return _Unanswered(str(problem))
        if code == _INTERNAL and "Not a file" in cause:
            return RefusedError(NOT_FILE, 0, f"{where}: {error}")  # how etcd 3.5 says so
        if isinstance(error, etcd.EtcdInsufficientPermissions):
            return self._no_permission(where, str(answer.get("message", "")))
        if cause.startswith("404 page not found"):
            return self._no_such_api(where, client)
        status = answer.get("status")
        if code is None or code in (_INTERNAL, _ELECTION) or (isinstance(status, int) and status >= 500):
            # Among these: no leader just now, too many requests, a proxy that has lost its server.
            return _Unanswered(f"it answers {str(answer.get('message') or error)[:100]!r} {cause[:100]!r}")
        return RendezvousStateError(f"etcd at {where} refuses the request: {error}")

    def _no_permission(self, where: str, message: str) -> UsageError:
        who = f"user {self._settings.user!r}" if self._settings.user else "access without a user"
        return UsageError(
            f"etcd at {where} refuses {who} ({message}); give a user with the right to read and write "
            f"/{self._settings.prefix}/*: --rdzv-conf user=NAME, and the password in the variable {PASSWORD_VARIABLE}"
        )

    def _no_such_api(self, where: str, client: Any) -> QuorateError:
        try:
            version = str(client.version)
        except Exception:
            return UsageError(f"the server at {where} is not etcd; check --rdzv-endpoint")
        return UsageError(
            f"etcd {version} at {where} does not serve API v2. Start it with --enable-v2=true (etcd 3.5 and older; "
            "etcd 3.6 has removed it), or use API v3 with --rdzv-backend=etcd"
        )

    def _no_trust(self, problems: Mapping[Endpoint, _Unanswered]) -> UsageError:
        return UsageError(
            f"no TLS connection to etcd: {self._list(problems)}. Check --rdzv-conf ca_cert, cert and key, "
            "and that the endpoint is named as its certificate names it"
        )

    def _unavailable(self, problems: Mapping[Endpoint, _Unanswered]) -> StoreUnavailableError:
        advice = "Check --rdzv-endpoint, and that etcd runs"
        if self._settings.protocol == "http" and self._route.cluster_id is None:
            # A server with TLS closes a plain connection without an answer.
            advice += "; if it wants TLS, set --rdzv-conf ca_cert=FILE"
        return StoreUnavailableError(f"etcd does not answer: {self._list(problems)}. {advice}")

    def _list(self, problems: Mapping[Endpoint, _Unanswered]) -> str:
        return "; ".join(
            f"{_spell_endpoint(self._settings, endpoint)}: {problem.problem}" for endpoint, problem in problems.items()
        )

    # --- from other threads ---------------------------------------------------------------------------------------

    def interrupt(self, *, discard: bool = False) -> None:
        """Have the request under way, and every later one, raise InterruptedCallError, until :meth:`resume`.

        With ``discard`` nothing of the request is sent any more, not even what the kernel would send again.
        """
        self._stop.set()
        self._sockets.shut(discard=discard)

    def resume(self) -> None:
        """Allow requests again."""
        if not self._closed:
            self._stop.clear()

    def leave(self, endpoint: Endpoint) -> None:
        """End a poll at ``endpoint``, which does not answer."""
        if self._polling == endpoint:
            self.end_poll()

    def end_poll(self) -> None:
        """Have a poll that is under way, or follows the last :meth:`call`, return ``None`` at once."""
        self._sockets.shut()

    def close(self) -> None:
        """Interrupt the request under way, and close all connections."""
        self._closed = True
        self.interrupt()
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            close_etcd_client(client)

    def _refuse_if_stopped(self) -> None:
        if self._stop.is_set():
            raise InterruptedCallError


def _spell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _spell_endpoint(settings: Settings, endpoint: Endpoint) -> str:
    return f"{settings.protocol}://{endpoint}"


def _describe(error: Exception) -> _Unanswered:
    """Return why a connection failed, and whether TLS was the reason."""
    cause: BaseException = getattr(error, "cause", None) or error
    name = type(cause).__name__
    if name == "SSLError":
        return _Unanswered(f"TLS: {_root(cause)}", is_tls=True)
    if name == "ConnectTimeoutError":
        return _Unanswered("no connection in time")
    if name == "ReadTimeoutError":
        return _Unanswered("no answer in time")
    return _Unanswered(_root(cause))


def _root(error: BaseException) -> str:
    """Return the text of the operating system's or library's error at the bottom of ``error``."""
    seen = error
    for _ in range(8):
        inner = (
            seen.__cause__
            or seen.__context__
            or next((argument for argument in seen.args if isinstance(argument, BaseException)), None)
        )
        if inner is None:
            break
        seen = inner
    return describe(seen)[:200]
