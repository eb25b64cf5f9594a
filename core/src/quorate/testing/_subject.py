"""The backend under test, jobs on it, and members of those jobs; all are closed when the law is over.

What does not live here: the laws (``_…_laws``), and servers that authors of tests use (``_servers``).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, TypeVar, final

from ..catalogue import PluginKind
from ..errors import UsageError
from ..job_token import STORE_PURPOSE, TOKEN_VARIABLE, TOKEN_VARIABLES, job_token_of
from ..notices import warn
from ..plugins import PluginHost, get_host
from ..records import NodeRecord, RoundEnd
from ..rendezvous import (
    BatchStore,
    HostedStore,
    InterruptibleStore,
    RendezvousBackend,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    Store,
    StoreRendezvousHandler,
    sign_store,
)
from ._abilities import Ability, LawBrokenError
from ._gate import Gate, gated
from ._servers import FreshPorts
from ._waiting import someone_waits

_T = TypeVar("_T")
#: No server listens here, and a connection is refused at once.
_DEAD_ENDPOINT = "127.0.0.1:1"
_BAD_ENDPOINT = "[no endpoint:x"
_SWEEP_SECONDS = 2.0


class Server(Protocol):
    """What the author's fixture yields.  A backend without a server of its own also gives an endpoint.

    Optional methods, each of which switches laws on: ``partition()`` and ``pause()``, context managers that cut the
    server off or stop it while they are open, and ``restart()``.  ``endpoint`` is read once per job: where a node hosts
    the store, it may differ each time.
    """

    @property
    def endpoint(self) -> str:
        """The endpoint at which the members of a job meet."""
        ...


@final
class _Endpoint:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint


def require(condition: object, problem: str) -> None:
    """Raise LawBrokenError with ``problem`` unless ``condition`` holds."""
    if not condition:
        raise LawBrokenError(problem)


def start(function: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """Run ``function`` on a daemon thread of its own."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"kit {getattr(function, '__name__', 'call')}", daemon=True).start()
    return future


def result_of(future: Future[_T], seconds: float, what: str) -> _T:
    """Return the result of ``future``; the law is broken if it takes longer than ``seconds``."""
    try:
        return future.result(seconds)
    except (TimeoutError, FutureTimeoutError):
        if future.done():
            raise  # the function itself raised it
        raise LawBrokenError(f"{what} did not return within {seconds:g} s") from None


def settle(future: Future[Any], seconds: float) -> None:
    """Wait until ``future`` is done, for at most ``seconds``; its result does not matter."""
    # A law reports that such a call does not return; here it is left behind.
    with suppress(TimeoutError, FutureTimeoutError):
        future.exception(seconds)


def race(functions: Sequence[Callable[[], _T]], seconds: float) -> list[_T]:
    """Run all ``functions`` at the same moment and return their results in order."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], _T]) -> _T:
        barrier.wait(seconds)
        return function()

    futures = [start(run, function) for function in functions]
    return [result_of(future, seconds, "one of several calls made at once") for future in futures]


@final
class Subject:
    """A backend under test.  As a context manager, it closes all that a law has opened.

    Arguments:
        backend: the name of an installed backend, or a record of one that is not installed.
        server: its endpoint, or what serves it (:class:`Server`).
        settings: rendezvous settings for every member, such as timeouts that make failures quick.
        absent: ability -> why the backend does not have it.
        dead_endpoint: a well-formed endpoint where no server answers; empty: a port of this machine.
        bad_endpoint: one that the backend must refuse as malformed; empty: one that no backend takes.
        timeout: seconds within which everything that a law expects must have happened.
        lenient: an ability that is missing need not be declared absent.
        signed: all members have a job token, so that the store's values are signed.

    Raises:
        UsageError: an unknown ability is declared absent, or one without a reason.
        UnknownBackendError: no backend of that name is installed.
    """

    def __init__(
        self,
        backend: str | RendezvousBackend,
        server: Server | str,
        *,
        settings: Mapping[str, Any] | None = None,
        absent: Mapping[str, str] | None = None,
        dead_endpoint: str = "",
        bad_endpoint: str = "",
        timeout: float = 30.0,
        lenient: bool = False,
        signed: bool = False,
        host: PluginHost | None = None,
    ) -> None:
        if host is None:
            host = get_host() if isinstance(backend, str) else PluginHost(paths=[])
        self.host = host
        self.is_installed = isinstance(backend, str)
        self.backend: RendezvousBackend = (
            host.choose(PluginKind.RENDEZVOUS, backend) if isinstance(backend, str) else backend
        )
        self.server: Any = _Endpoint(server) if isinstance(server, str) else server
        self.settings = dict(settings or {})
        self.absent = check_absent(absent or {})
        self.dead_endpoint, self.bad_endpoint = dead_endpoint or _DEAD_ENDPOINT, bad_endpoint or _BAD_ENDPOINT
        self.timeout, self.lenient, self.signed = timeout, lenient, signed
        self._methods: frozenset[str] | None = None
        self._jobs: list[Job] = []
        self._closers: list[Callable[[], object]] = []

    @contextmanager
    def token_in_environment(self) -> Iterator[None]:
        """Give this process, and those that it starts, a job token if the values are to be signed."""
        if not self.signed:
            yield
            return
        before = {name: os.environ.pop(name) for name in TOKEN_VARIABLES if name in os.environ}
        os.environ[TOKEN_VARIABLE] = os.urandom(16).hex()
        try:
            yield
        finally:
            os.environ.pop(TOKEN_VARIABLE, None)
            os.environ.update(before)

    # --- abilities ----------------------------------------------------------------------------------------------------

    def why_absent(self, ability: Ability) -> str | None:
        """Return why the backend lacks ``ability``; ``None`` if it has it.

        Raises:
            LawBrokenError: it is neither there nor declared absent, or both.
        """
        if ability is Ability.STORE and self.backend.open_store is None:
            return "the backend opens a handler of its own"
        if ability in (Ability.ENDPOINT, Ability.SEVERAL_NODES):
            return self.absent.get(ability)
        has, reason = self._has(ability), self.absent.get(ability)
        if ability is Ability.LOSING_ANSWERS and not has:
            # Newer than the others: a server that cannot be cut off cannot do this either, and need not say so.
            return reason or self.absent.get(Ability.PARTITION) or f"missing: {ability.remedy}"
        if has and reason is not None:
            raise LawBrokenError(f"the ability {ability.value} is declared absent ({reason}), but the backend has it")
        if has:
            return None
        if reason is None and not self.lenient:
            raise LawBrokenError(
                f"the ability {ability.value} is missing and not declared absent: {ability.remedy}, "
                f'or declare absent = {{"{ability.value}": "why"}}'
            )
        return reason or f"missing: {ability.remedy}"

    def _has(self, ability: Ability) -> bool:
        if ability is Ability.STORE:
            return True
        if ability is Ability.ENTRY_POINT:
            return self.is_installed
        if ability in (Ability.PARTITION, Ability.LOSING_ANSWERS, Ability.PAUSE, Ability.RESTART):
            return hasattr(self.server, ability.value)
        return {Ability.BATCH: "put_many", Ability.INTERRUPT: "interrupt"}[ability] in self._optional_methods()

    def probe(self) -> None:
        """Open the store once, if the backend has one; raises what opening it raises."""
        if self.backend.open_store is not None:
            self._optional_methods()

    def _optional_methods(self) -> frozenset[str]:
        if self._methods is None:
            probe = self._make_job()  # not the job of a law that may be running
            try:
                store = probe.open()
                kinds = {"put_many": BatchStore, "interrupt": InterruptibleStore, "is_host": HostedStore}
                self._methods = frozenset(name for name, kind in kinds.items() if isinstance(store, kind))
            finally:
                probe.close()
        return self._methods

    @property
    def is_hosted(self) -> bool:
        """Whether one of the nodes serves the store; false for a backend without one."""
        if self.backend.open_store is None:
            return False
        return self.has_fresh_endpoints or "is_host" in self._optional_methods()

    @property
    def has_fresh_endpoints(self) -> bool:
        """Whether each job has an endpoint of its own, so that jobs of a hosted store may run at the same time."""
        return isinstance(self.server, FreshPorts)

    # --- what laws open -----------------------------------------------------------------------------------------------

    def job(self, run_id: str = "", endpoint: str = "") -> Job:
        """Return a new job; ``run_id`` and ``endpoint`` are given where two jobs must have them in common."""
        made = self._make_job(run_id, endpoint)
        self._jobs.append(made)
        return made

    def _make_job(self, run_id: str = "", endpoint: str = "") -> Job:
        return Job(self, run_id or f"conformance-{os.urandom(6).hex()}", endpoint or self.server.endpoint)

    def cleanup(self, close: Callable[[], object]) -> None:
        """Have ``close`` called when the law is over, before the jobs end."""
        self._closers.append(close)

    def __enter__(self) -> Subject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Close all that the law has opened; what does not close in time is left behind."""
        closers, self._closers = self._closers, []
        jobs, self._jobs = self._jobs, []
        for close in reversed(closers):
            close()
        ending = [start(job.close) for job in jobs]
        for future in ending:
            settle(future, self.timeout)


def check_absent(absent: Mapping[str, str]) -> dict[Ability, str]:
    """Return ``absent`` by ability.  Raises UsageError for an unknown one, or one without a reason."""
    found: dict[Ability, str] = {}
    for name, reason in absent.items():
        try:
            ability = Ability(name)
        except ValueError:
            known = ", ".join(ability.value for ability in Ability)
            raise UsageError(f"{name!r} is declared absent, but is not an ability; the abilities are {known}") from None
        if not reason.strip():
            raise UsageError(f"the ability {name} is declared absent without a reason; write why")
        found[ability] = reason
    return found


@final
class Job:
    """One job of the subject: its stores and its members."""

    def __init__(self, subject: Subject, run_id: str, endpoint: str) -> None:
        self.subject, self.run_id, self.endpoint = subject, run_id, endpoint
        self._stores: list[Store] = []
        self._members: list[Member] = []

    def parameters(self, min_nodes: int = 1, max_nodes: int = 8, **settings: Any) -> RendezvousParameters:
        """Return the parameters with which a member opens the backend."""
        merged = {"connect_timeout": self.subject.timeout, **self.subject.settings, **settings}
        name = self.subject.backend.name
        return RendezvousParameters(name, self.endpoint, self.run_id, min_nodes, max_nodes, **merged)

    def open(self, **settings: Any) -> Store:
        """Open the store as another node would."""
        opener = self.subject.backend.open_store
        assert opener is not None, "this law needs a store"
        parameters = self.parameters(**settings)
        self._check(parameters)
        store, token = opener(parameters), job_token_of(parameters.config)
        if token is not None:  # unlike the rendezvous' own store, this one has counters under any key
            store = sign_store(store, token.key(self.run_id, STORE_PURPOSE), warn)
        self._stores.append(store)
        return store

    def _check(self, parameters: RendezvousParameters) -> None:
        if self.subject.backend.check is not None:
            self.subject.backend.check(parameters)

    def member(
        self,
        min_nodes: int = 1,
        max_nodes: int = 8,
        *,
        role: str = "default",
        local_world_size: int = 1,
        gate: Gate | None = None,
        **settings: Any,
    ) -> Member:
        """Return a new node of the job; it has not joined yet.

        Arguments:
            gate: its store calls pass through this gate; only for backends that open a store.
        """
        times = dict.fromkeys(("join_timeout", "store_outage_timeout"), 2 * self.subject.timeout)
        parameters = self.parameters(min_nodes, max_nodes, **{**_MEMBER_SETTINGS, **times, **settings})
        self._check(parameters)
        if self.subject.is_hosted and not self._stores:
            self.open()  # the kit itself is the host, so that every member may leave
        backend = self.subject.backend
        node = NodeRecord(os.urandom(8).hex(), role, local_world_size, host=f"node{len(self._members)}")
        if backend.open_handler is not None:
            handler = backend.open_handler(parameters)
        else:
            handler = StoreRendezvousHandler(
                parameters, backend if gate is None else gated(backend, gate), self.subject.host
            )
        handler.prepare(node)
        made = Member(handler, node, gate, self.subject.timeout)
        self._members.append(made)
        return made

    def members(self, count: int, min_nodes: int, max_nodes: int, **settings: Any) -> list[Member]:
        """Return several new nodes."""
        return [self.member(min_nodes, max_nodes, **settings) for _ in range(count)]

    def close(self) -> None:
        """End the members, delete what the job has left in the backend, and close the stores."""
        for member in self._members:
            member.is_over = True
            if member.gate is not None:
                member.gate.open()
        for ending in [start(member.handler.shutdown) for member in self._members]:
            settle(ending, self.subject.timeout)
        self._sweep()
        for store in reversed(self._stores):
            settle(start(store.close), self.subject.timeout)

    def _sweep(self) -> None:
        opener = self.subject.backend.open_store
        if self._stores:
            settle(start(self._stores[0].delete, ""), _SWEEP_SECONDS)
        elif self._members and opener is not None and not self.subject.is_hosted:

            def sweep() -> None:
                store = opener(self.parameters(connect_timeout=_SWEEP_SECONDS))
                store.delete("")
                store.close()

            settle(start(sweep), 2 * _SWEEP_SECONDS)


#: Short, so that laws are quick, but long enough for a busy machine.
_MEMBER_SETTINGS: Mapping[str, Any] = {
    "last_call_timeout": 0.3,
    "lease_timeout": 1.0,
    "settle_timeout": 0.05,
    "close_timeout": 2.0,
    "linger_timeout": 2.0,
}


@final
class Member:
    """One node of a job: a handler whose blocking methods run on threads."""

    def __init__(self, handler: RendezvousHandler, node: NodeRecord, gate: Gate | None, timeout: float) -> None:
        self.handler, self.node, self.gate, self._timeout = handler, node, gate, timeout
        self.is_over = False  # the law is over, and its threads should end

    def joining(self) -> Future[RendezvousInfo]:
        """Begin to join the next round."""
        return start(self.handler.next_rendezvous)

    def join(self) -> RendezvousInfo:
        """Join the next round."""
        return result_of(self.joining(), self._timeout, "next_rendezvous")

    def await_change(self) -> RoundEnd | None:
        """Block until this node's round should end; returns why, if the handler reports it."""

        def wait() -> tuple[RoundEnd | None]:
            while True:
                end = self.handler.wait_for_change(0.2)
                if self.is_over or end is not None or self.handler.is_closed() or someone_waits(self.handler):
                    return (end,)

        return result_of(start(wait), self._timeout, "waiting for the end of a round")[0]


def join_all(members: Sequence[Member], timeout: float) -> list[RendezvousInfo]:
    """Have all ``members`` join the same round at once."""
    joining = [member.joining() for member in members]
    return [result_of(future, timeout, "next_rendezvous") for future in joining]
