"""The services of an agent, and what they and the node's checks see of it.

What does not live here: the interface of services (:mod:`quorate.services`), how checks are run (``_checks``), and what
follows from reports (the machine).
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any, final

from attrs import evolve

from .._interruption import call_interruptibly, call_within
from .._isolation import call_here, described, raise_if_interrupted, shown
from .._plain import name_of_type, plain_copy, plain_record, plain_text
from ..catalogue import PluginKind
from ..clock import monotonic, wall_time_ns
from ..clusters import grace_before
from ..plugins import PluginHost
from ..records import Event
from ..rendezvous import RendezvousHandler
from ..services import AgentService, AgentSnapshot, HangReport, PreparingService, WorkerSnapshot
from ..text import is_environment, printable_lines
from . import _protocol as protocol
from ._spec import RunSettings
from ._state import State

_LONGEST_SENTENCE = 4096
#: How long a service may take to close where the agent is told to stop: a server has answers under way.
_LONGEST_CLOSE_SECONDS = 10.0


def take_snapshot(
    state: State, settings: RunSettings, node_id: str, workers: tuple[WorkerSnapshot, ...]
) -> AgentSnapshot:
    """Return what services see of the agent in ``state``."""
    assignment, ends = state.assignment, state.ends
    last_count = ends[-1].restart_count if ends else 0
    return AgentSnapshot(
        settings.spec.rdzv_handler.get_run_id(),
        node_id,
        state.settings.host,
        settings.spec.role,
        state.phase,
        state.reason,
        state.max_restarts,
        restart_count=last_count if assignment is None else assignment.restart_count,
        round_number=None if assignment is None else assignment.round_number,
        group_rank=None if assignment is None else assignment.group_rank,
        group_world_size=None if assignment is None else assignment.group_world_size,
        world_size=None if assignment is None else assignment.world_size,
        workers=workers,
        ends=ends,
        log_dir=settings.logs_specs.root_log_dir or "",
        cluster=settings.spec.cluster,
    )


@final
class View:
    """Implements :class:`quorate.services.AgentView` for one agent."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        snapshot: Callable[[], AgentSnapshot],
        handler: RendezvousHandler,
        post: Callable[[protocol.Input | Callable[[], None]], None],
        say: Callable[[str], None],
        min_nodes: int = 0,
    ) -> None:
        self._min_nodes = min_nodes
        self._settings, self._snapshot, self._handler, self._post, self._say = settings, snapshot, handler, post, say
        self._heartbeats: dict[int, tuple[int, float]] = {}  # local rank -> pid, monotonic second
        self._copied: tuple[AgentSnapshot, AgentSnapshot] | None = None  # the agent's own, and its copy
        self._lock = threading.Lock()
        self._questions: set[threading.Event] = set()
        self._is_closed = False

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._settings

    def snapshot(self) -> AgentSnapshot:
        own = self._snapshot()
        copied = self._copied
        if copied is None or copied[0] is not own:
            # The agent's own records are not handed out: a plugin may change what it gets.
            copied = self._copied = own, plain_record(AgentSnapshot, own)
        snapshot = copied[1]
        if not self._heartbeats:
            return snapshot
        return evolve(snapshot, workers=tuple(map(self._with_heartbeat, snapshot.workers)))

    def _with_heartbeat(self, worker: WorkerSnapshot) -> WorkerSnapshot:
        pid, at = self._heartbeats.get(worker.local_rank, (0, 0.0))
        return evolve(worker, heartbeat_at=at) if pid == worker.pid else worker

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        self._heartbeats[int.__int__(local_rank)] = int.__int__(pid), monotonic()

    def turn(self, timeout: float) -> float | None:
        answered = threading.Event()
        asked_at = monotonic()
        with self._lock:
            if not self._is_closed:
                self._questions.add(answered)
                self._post(answered.set)
            else:
                answered.set()
        try:
            return monotonic() - asked_at if answered.wait(min(timeout, threading.TIMEOUT_MAX)) else None
        finally:
            with self._lock:
                self._questions.discard(answered)

    def close(self) -> None:
        """Answer all pending calls of :meth:`turn`: the agent's thread, which calls this, will not do it any more."""
        with self._lock:
            self._is_closed = True
            for question in self._questions:
                question.set()

    def store_latency(self, timeout: float) -> float | None:
        return self._handler.measure_latency(timeout)

    def report_hang(self, report: HangReport) -> None:
        if not isinstance(report, HangReport):
            raise TypeError(f"a hung worker is reported by a HangReport, and not by a {name_of_type(report)}")
        copy = plain_record(HangReport, report)
        self._post(protocol.WorkerHung(copy.local_rank, copy.pid, as_sentence(copy.problem), wall_time_ns()))

    def report_unhealthy(self, problem: str) -> None:
        self._post(protocol.NodeUnhealthy(as_sentence(problem)))

    def report_preemption(self, seconds_left: float, reason: str) -> None:
        seconds = _as_time(seconds_left)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds_left={seconds_left!r:.80} is not a time")
        grace, reason = grace_before(seconds), as_sentence(reason)
        self._post(protocol.PreemptionWarned(int(signal.SIGTERM), grace, reason, min_nodes=self._min_nodes))

    def say(self, sentence: str) -> None:
        self._say(as_sentence(sentence))


def _as_time(seconds: Any) -> float:
    """Return seconds of any kind of number as a plain one: what is too large is infinite.

    Raises:
        TypeError: it is not a number.
    """
    if isinstance(seconds, (str, bytes, bytearray)):
        raise TypeError(f"seconds_left has to be a number, and is a {name_of_type(seconds)}")
    try:
        return float(seconds)
    except OverflowError:
        return math.inf


def as_sentence(text: str) -> str:
    """Return what a plugin says, fit for records and people.  Raises TypeError if it is not a text."""
    if not isinstance(text, str):
        raise TypeError(f"a plugin has to say a sentence, and said a {type(text).__name__}")
    return printable_lines(plain_text(text)[:_LONGEST_SENTENCE])


@final
class Services:
    """The services of one run.  Everything is called on the agent's thread."""

    def __init__(self, view: View, warn: Callable[[str], None]) -> None:
        self._warn, self._view = warn, view
        self._running: dict[str, AgentService] = {}
        self.environment: dict[str, str] = {}

    def start(self, host: PluginHost) -> None:
        """Start every service that plugins offer; one that cannot be started is reported."""
        for kind in (PluginKind.WATCHDOG, PluginKind.SERVICE):
            for name, backend in host.catalogue(kind).items():
                service: AgentService | None = None
                try:
                    service = _checked(call_here(backend.start, self._view))
                    if service is not None:
                        self.environment.update(_environment_of(service))
                        self._running[name] = service
                except BaseException as error:
                    raise_if_interrupted(error)
                    self._warn(f"{kind} {name!r} could not be started: {described(error)}")
                    if service is not None:
                        self._close(name, service)

    def __bool__(self) -> bool:
        return bool(self._running)

    def observe(self, event: Event) -> None:
        """Pass an event to every service; one that raises is closed."""
        for name, service in list(self._running.items()):
            self._call(name, service, _observe, service, event)

    def get_ready(self) -> None:
        """Have the services that can do so load what they will need for workers."""
        for name, service in list(self._running.items()):
            self._call(name, service, _get_ready, service)

    def _call(self, name: str, service: AgentService, method: Callable[..., None], *arguments: Any) -> None:
        try:
            call_interruptibly(method, *arguments)
        except BaseException as error:
            raise_if_interrupted(error)
            self._warn(f"service {name!r} raised {described(error)}; it is stopped")
            del self._running[name]
            self._close(name, service)

    def close(self) -> None:
        """Close all services, the newest first; none of their threads waits for this thread meanwhile."""
        self._view.close()
        while self._running:
            self._close(*self._running.popitem())

    def _close(self, name: str, service: AgentService) -> None:
        try:
            call_within(_LONGEST_CLOSE_SECONDS, service.close)
        except BaseException as error:
            raise_if_interrupted(error)
            self._warn(f"service {name!r} could not be closed: {described(error)}")


def _checked(service: Any) -> Any:
    for name in ("observe", "close") if service is not None else ():
        if not callable(getattr(service, name, None)):
            raise TypeError(f"start answered {shown(service)}, which is not a service: it has no {name}()")
    return service


def _environment_of(service: AgentService) -> Mapping[str, str]:
    environment = service.worker_environment
    # Copied first: a mapping of the plugin's own may answer otherwise, or raise, when it is read again.
    copied = plain_copy(environment) if isinstance(environment, Mapping) else environment
    if not is_environment(copied):
        raise TypeError(f"its worker_environment is {shown(environment)}, not a mapping of strings")
    checked: Mapping[str, str] = copied
    return checked


def _observe(service: AgentService, event: Event) -> None:
    service.observe(event)


def _get_ready(service: AgentService) -> None:
    if isinstance(service, PreparingService):
        service.get_ready()
