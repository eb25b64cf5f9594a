"""What lives beside an agent: its services, and what they and the node's checks see of it.  The agent decides.

What does not live here: what services are (:mod:`quorate.services`), how checks are run (``_checks``), and what is
done about reports (the machine).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from attrs import evolve

from ..catalogue import PluginKind
from ..clock import monotonic, wall_time_ns
from ..records import Event
from ..services import AgentService, AgentSnapshot, HangReport, WorkerSnapshot
from ._protocol import Input, NodeUnhealthy, WorkerHung

if TYPE_CHECKING:
    from ..plugins import PluginHost
    from ..rendezvous import RendezvousHandler

__all__ = ["Services", "View"]


@final
class View:
    """What one agent shows to its services and checks (:class:`quorate.services.AgentView`)."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        snapshot: Callable[[], AgentSnapshot],
        handler: RendezvousHandler,
        post: Callable[[Input | Callable[[], None]], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._snapshot, self._handler, self._post, self._say = settings, snapshot, handler, post, say
        self._heartbeats: dict[int, tuple[int, float]] = {}  # local rank -> pid, monotonic second
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
        snapshot = self._snapshot()
        if not self._heartbeats:
            return snapshot
        return evolve(snapshot, workers=tuple(map(self._with_heartbeat, snapshot.workers)))

    def _with_heartbeat(self, worker: WorkerSnapshot) -> WorkerSnapshot:
        pid, at = self._heartbeats.get(worker.local_rank, (0, 0.0))
        return evolve(worker, heartbeat_at=at) if pid == worker.pid else worker

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        self._heartbeats[local_rank] = pid, monotonic()

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
            return monotonic() - asked_at if answered.wait(timeout) else None
        finally:
            with self._lock:
                self._questions.discard(answered)

    def close(self) -> None:
        """Answer whoever asks for a turn: the agent's thread, which calls this, has made its last one."""
        with self._lock:
            self._is_closed = True
            for question in self._questions:
                question.set()

    def store_latency(self, timeout: float) -> float | None:
        return self._handler.measure_latency(timeout)

    def report_hang(self, report: HangReport) -> None:
        self._post(WorkerHung(report.local_rank, report.pid, report.problem, wall_time_ns()))

    def report_unhealthy(self, problem: str) -> None:
        self._post(NodeUnhealthy(problem))

    def say(self, sentence: str) -> None:
        self._say(sentence)


@final
class Services:
    """The services of one run.  Everything is called on the agent's thread."""

    def __init__(self, host: PluginHost, view: View, warn: Callable[[str], None]) -> None:
        self._warn, self._view = warn, view
        self._running: dict[str, AgentService] = {}
        self.environment: dict[str, str] = {}
        for kind in (PluginKind.WATCHDOG, PluginKind.SERVICE):
            for name, backend in host.catalogue(kind).items():
                try:
                    service = backend.start(view)
                except Exception as error:
                    warn(f"{kind} {name!r} could not be started: {error or type(error).__name__}")
                    continue
                if service is not None:
                    self._running[name] = service
                    self.environment.update(service.worker_environment)

    def __bool__(self) -> bool:
        return bool(self._running)

    def observe(self, event: Event) -> None:
        """Tell every service; one that raises is closed, and not told again."""
        for name, service in list(self._running.items()):
            self._call(name, service, service.observe, event)

    def get_ready(self) -> None:
        """Let those that can load what they will need for workers."""
        for name, service in list(self._running.items()):
            get_ready = getattr(service, "get_ready", None)  # the ability PreparingService
            if get_ready is not None:
                self._call(name, service, get_ready)

    def _call(self, name: str, service: AgentService, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception as error:
            self._warn(f"service {name!r} raised {type(error).__name__}: {error}; it is stopped")
            del self._running[name]
            self._close(name, service)

    def close(self) -> None:
        """Close them all, the newest first; none of their threads waits for this one meanwhile."""
        self._view.close()
        while self._running:
            self._close(*self._running.popitem())

    def _close(self, name: str, service: AgentService) -> None:
        try:
            service.close()
        except Exception as error:
            self._warn(f"service {name!r} could not be closed: {error or type(error).__name__}")
