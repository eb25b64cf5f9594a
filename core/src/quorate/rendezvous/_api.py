"""The rendezvous interface that agents use: parameters, the handler, and its result.

What does not live here: the protocol and its driver, and any backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol, final, runtime_checkable

from attrs import field, frozen
from attrs.validators import instance_of, is_callable, optional

from .._bounded import MOST_NODES, is_word
from ..clock import sleep
from ..cut_off import WhenCutOff
from ..errors import UsageError
from ..job_token import HIDDEN, is_secret
from ..records import Assignment, NodeRecord, RoundEnd
from ..text import without_passwords
from ..timeouts import parse_seconds
from ._port import Bootstrap
from ._store import Store

#: A setting that says that the run id was not given by a person, but comes from the endpoint.
DERIVED_SETTING = "run_id_is_derived"
_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
#: In bytes.  It is a part of the first message to a store.
_LONGEST_RUN_ID = 1024
_MAY_CALL = optional(is_callable())


def _ignore(sentence: str) -> None:
    """Do not tell why opening the store takes longer: the caller has not asked for it."""


def _check_types(**values: Any) -> None:
    """Refuse numbers that are not whole ones and names that are not texts.  Raises UsageError."""
    for name, value in values.items():
        kind, what = (int, "a whole number") if name.endswith("_nodes") else (str, "a text")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{name} is {value!r:.80}; it must be {what}")


def _check_run_id(run_id: str) -> None:
    """Refuse a name that keys, messages or a worker's environment cannot hold.  Raises UsageError."""
    try:
        size = len(run_id.encode())
    except UnicodeEncodeError:
        raise UsageError(f"the run id {run_id!r:.80} is not UTF-8 text; set --rdzv-id to one that is") from None
    if size > _LONGEST_RUN_ID:
        raise UsageError(f"the run id has {size} bytes, more than {_LONGEST_RUN_ID}; set --rdzv-id to a shorter name")
    if "\0" in run_id:
        raise UsageError(f"the run id {run_id!r:.80} has a NUL in it; set --rdzv-id to a name without it")


@final
class RendezvousParameters:
    """How to reach the others: backend name, endpoint, job, bounds on the number of nodes, backend settings.

    Arguments:
        backend: name of an installed rendezvous backend.
        endpoint: ``host:port`` (``[v6]:port``), or whatever the backend documents; may be empty.
        run_id: the job's name; nodes with equal run ids at one endpoint form one job.
        min_nodes, max_nodes: how many agents a round needs and takes at most.
        local_addr: the address that other nodes should use to reach this one.
        config: settings, strings or numbers, see ``docs/timeouts.md``.

    A backend whose ``open_store`` waits for something else than an answer calls ``on_waiting`` with a sentence that
    says for what: it is told to people at once, and in each report of this node until the store is open.

    Raises:
        UsageError: empty run id or backend, a run id that is not UTF-8 text of at most 1024 bytes, or not 1 <=
            ``min_nodes`` <= ``max_nodes`` <= 65536.
    """

    __slots__ = ("backend", "config", "endpoint", "local_addr", "max_nodes", "min_nodes", "on_waiting", "run_id")

    def __init__(
        self,
        backend: str,
        endpoint: str,
        run_id: str,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        **config: Any,
    ) -> None:
        _check_types(backend=backend, endpoint=endpoint, run_id=run_id, min_nodes=min_nodes, max_nodes=max_nodes)
        if not backend:
            raise UsageError("the rendezvous backend has no name; set --rdzv-backend")
        if not run_id:
            raise UsageError("the run id is empty; set --rdzv-id to a name that all nodes of the job share")
        _check_run_id(run_id)
        if min_nodes < 1:
            raise UsageError(f"the minimum number of nodes is {min_nodes}, it must be at least 1; set --nnodes")
        if max_nodes > MOST_NODES:
            raise UsageError(f"the maximum number of nodes is {max_nodes!r:.80}, above {MOST_NODES}; set --nnodes")
        if max_nodes < min_nodes:
            raise UsageError(
                f"the maximum number of nodes ({max_nodes}) is below the minimum ({min_nodes}); set --nnodes=MIN:MAX"
            )
        self.backend = backend
        self.endpoint = endpoint
        self.run_id = run_id
        self.min_nodes = min_nodes
        self.max_nodes = max_nodes
        self.local_addr = local_addr
        self.config = config
        self.on_waiting: Callable[[str], None] = _ignore

    def get(self, key: str, default: Any = None) -> Any:
        """Return the setting ``key``, or ``default``."""
        return self.config.get(key, default)

    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None:
        """Return the setting ``key`` as a bool.  Raises UsageError for anything but yes/no words, 0 and 1."""
        value = self.get(key, default)
        if value is None or isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise UsageError(f"the rendezvous setting {key}={value!r} is not a boolean; write true or false")

    def get_as_int(self, key: str, default: int | None = None) -> int | None:
        """Return the setting ``key`` as an int.  Raises UsageError if it is not one."""
        value = self.get(key, default)
        if value is None:
            return None
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"the rendezvous setting {key}={value!r} is not a whole number") from None

    def get_as_float(self, key: str, default: float) -> float:
        """Return the setting ``key`` (seconds) as a float.  Raises UsageError if it is not a finite number >= 0."""
        return parse_seconds(f"the rendezvous setting {key}", self.get(key, default))

    def __repr__(self) -> str:
        shown = {name: HIDDEN if is_secret(name) else value for name, value in self.config.items()}
        return (
            f"RendezvousParameters(backend={self.backend!r}, endpoint={without_passwords(self.endpoint)!r}, "
            f"run_id={self.run_id!r}, min_nodes={self.min_nodes}, max_nodes={self.max_nodes}, "
            f"local_addr={self.local_addr!r}, config={shown!r})"
        )


@final
@frozen
class RendezvousStoreInfo:
    """Where the workers of a round meet."""

    master_addr: str
    master_port: int


@final
@frozen
class RendezvousInfo:
    """A sealed round from one node's side: its group rank, the number of agents, and where the workers meet.

    ``assignment`` also holds the global and role ranks.  A handler that only knows membership leaves it ``None``; the
    agent then derives it through ``store`` (see ``docs/hooks.md``).
    """

    store: Store | None
    rank: int
    world_size: int
    bootstrap_store_info: RendezvousStoreInfo
    assignment: Assignment | None = None


class RendezvousHandler(ABC):
    """The full rendezvous interface, for systems that already know membership.

    Blocking methods are called on a thread of their own, never on the agent's.  :meth:`shutdown` may be called from
    another thread while one of them blocks, and must make it return or raise soon.
    """

    #: Whether :meth:`wait_for_change` returns for every change, waiting nodes and ``end_round``, ``report_done`` and
    #: ``shutdown`` of this node included.  Otherwise the agent looks at :meth:`num_nodes_waiting` once a second.
    tells_every_change = False

    @abstractmethod
    def get_backend(self) -> str:
        """Return the backend's name."""

    @abstractmethod
    def next_rendezvous(self) -> RendezvousInfo:
        """Block until the next round is sealed with this node in it.  If it is in a round, that round ends first.

        Raises:
            RendezvousClosedError: the job has ended.
            RendezvousTimeoutError: too few nodes came in time.
            RendezvousConnectionError: the backend could not be reached.
        """

    @abstractmethod
    def is_closed(self) -> bool:
        """Return whether the job has ended for good."""

    @abstractmethod
    def set_closed(self) -> None:
        """End the job for all nodes; the first reason stays."""

    @abstractmethod
    def num_nodes_waiting(self) -> int:
        """Return how many nodes wait to get in while a round runs."""

    @abstractmethod
    def get_run_id(self) -> str:
        """Return the job's id."""

    @abstractmethod
    def shutdown(self) -> bool:
        """Release everything.  Returns whether it went well; may be called twice."""

    @property
    def use_agent_store(self) -> bool:
        """Whether workers may use the store at ``MASTER_ADDR:MASTER_PORT`` as clients only."""
        return False

    @property
    def loss_timeout(self) -> float:
        """Seconds within which the other nodes learn that a node was lost; 0 where they never do."""
        return 0.0

    @property
    def when_cut_off(self) -> WhenCutOff:
        """What becomes of the workers once the other nodes may go on without this one."""
        return WhenCutOff.RUN

    def is_cut_off(self) -> bool:
        """Return whether the other nodes may have gone on without this one by now."""
        return False

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        """Block until the current round should end, and return why; ``None`` after ``timeout`` seconds.

        The default only sleeps; the agent then looks at :meth:`num_nodes_waiting`.
        """
        sleep(timeout)
        return None

    def end_round(self, end: RoundEnd) -> None:  # noqa: B027 - optional
        """Record for all nodes why the round ends; the first reason wins.  Must not block for long."""

    def report_done(self) -> None:  # noqa: B027 - optional
        """Report that all workers of this node have succeeded (the exit barrier)."""

    def measure_latency(self, timeout: float) -> float | None:
        """Return the seconds that one small read of the backend took; ``None`` where that is not known.

        Raises:
            StoreUnavailableError: no answer within ``timeout`` seconds.
        """
        return None

    def prepare(self, node: NodeRecord) -> None:  # noqa: B027 - optional
        """Called once in each run of an agent, before the first :meth:`next_rendezvous`, with what this node is.

        An agent may be run again, or another agent with the same handler: once the job has ended, the next call begins
        another job of the same name, unless this handler was closed or shut down.
        """


class Decisions(Protocol):
    """What plugins decide for the protocol; :class:`quorate.PluginHost` is one."""

    def decide(self, question: str, *arguments: Any) -> Any:
        """Return the answer to ``quorate_decide_<question>``."""
        ...

    def decide_or(self, default: Any, question: str, *arguments: Any) -> Any:
        """As :meth:`decide`, with ``default`` where nothing answers or an answer raises."""
        ...

    def digest(self) -> str:
        """Return names and versions of the plugins."""
        ...


@runtime_checkable
class EventDrivenHandler(Protocol):
    """What a handler over the core's protocol can do besides: nothing blocks, and every change is reported.

    :class:`quorate.rendezvous.StoreRendezvousHandler` alone is one; what it reports is private to the core.
    """

    def subscribe(self, callback: Callable[[Any], None]) -> None: ...

    def request_join(self, node: NodeRecord) -> None: ...

    def request_decline(self, node: NodeRecord) -> None: ...

    def request_leave(self) -> None: ...

    def end_round(self, end: RoundEnd) -> None: ...

    def report_done(self) -> None: ...

    def end_run(self) -> None: ...


@final
@frozen
class RendezvousBackend:
    """What a rendezvous plugin registers: a name, one sentence, and how to open it.

    Give ``open_store`` (tier 1: the core supplies the protocol) or ``open_handler`` (tier 2), not both.
    ``open_store`` is called on a helper thread, never while ``quorate`` is being imported, and may block up to the
    setting ``connect_timeout``; it is retried on StoreUnavailableError until the join deadline.  ``check`` may refuse
    unusable parameters early (UsageError) on the calling thread, without any I/O.  ``bootstrap`` makes a
    :class:`Bootstrap` where the default (a reserved port) is not wanted.  ``hosted_by_job`` tells that one of the job's
    own nodes serves the store: its endpoint then tells jobs apart, and a run id is not needed.  ``settings`` describes
    the settings (``--rdzv-conf``) that only this backend reads, by name, in a sentence each that names the default.
    ``reads_other_settings`` is false for a backend that reads no others: a name that nothing reads is then refused.
    Otherwise it is refused only if it looks like one that is read.
    """

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    open_store: Callable[[RendezvousParameters], Store] | None = field(default=None, validator=_MAY_CALL)
    open_handler: Callable[[RendezvousParameters], RendezvousHandler] | None = field(default=None, validator=_MAY_CALL)
    bootstrap: Callable[[], Bootstrap] | None = field(default=None, validator=_MAY_CALL)
    check: Callable[[RendezvousParameters], None] | None = field(default=None, validator=_MAY_CALL)
    hosted_by_job: bool = field(default=False, validator=instance_of(bool))
    settings: Mapping[str, str] = field(factory=dict)
    reads_other_settings: bool = True

    def __attrs_post_init__(self) -> None:
        if (self.open_store is None) == (self.open_handler is None):
            raise UsageError(f"rendezvous backend {self.name!r} must give open_store or open_handler, and only one")
