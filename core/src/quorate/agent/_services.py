"""What lives beside an agent: its services and its node's checks.  They look and report; the agent decides.

What does not live here: what services are (:mod:`quorate.services`), and what is done about their reports (the
machine).
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from .._record import evolve
from ..clock import monotonic, wall_time_ns
from ..records import Event
from ..services import AgentService, AgentSnapshot, HangReport, WorkerSnapshot
from ._protocol import Input, NodeChecked, NodeUnhealthy, WorkerHung

if TYPE_CHECKING:
    from ..catalogue import HealthCheck
    from ..plugins import PluginHost
    from ..rendezvous import RendezvousHandler

__all__ = ["Checks", "Services", "View"]


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
        self._post(answered.set)
        return monotonic() - asked_at if answered.wait(timeout) else None

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
        self._warn = warn
        self._running: dict[str, AgentService] = {}
        self.environment: dict[str, str] = {}
        for kind in ("watchdog", "service"):
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
            try:
                service.observe(event)
            except Exception as error:
                self._warn(f"service {name!r} raised {type(error).__name__}: {error}; it is stopped")
                del self._running[name]
                self._close(name, service)

    def close(self) -> None:
        """Close them all, the newest first."""
        while self._running:
            self._close(*self._running.popitem())

    def _close(self, name: str, service: AgentService) -> None:
        try:
            service.close()
        except Exception as error:
            self._warn(f"service {name!r} could not be closed: {error or type(error).__name__}")


@final
class Checks:
    """The checks of one node: all at once, each on a thread of its own and under its own time-out.

    Arguments:
        checks: what to check.
        view: given to each.
        post: takes the result, from another thread.
        interval: seconds between rounds of checks while workers run; 0 for never.
    """

    def __init__(
        self, checks: Sequence[HealthCheck], view: View, post: Callable[[Input], None], interval: float
    ) -> None:
        self._checks, self._view, self._post, self._interval = tuple(checks), view, post, interval
        self._closed = threading.Event()
        if self._checks and interval > 0:
            threading.Thread(target=self._watch, name="quorate-health-checks", daemon=True).start()

    def begin(self) -> Input | None:
        """Check once and post the answer; returns it at once where there is nothing to check."""
        if not self._checks:
            return NodeChecked()
        threading.Thread(target=self._check_once, name="quorate-health-checks", daemon=True).start()
        return None

    def close(self) -> None:
        """Stop checking.  A check that is stuck keeps its thread until it answers or the process ends."""
        self._closed.set()

    def _check_once(self) -> None:
        self._post(NodeChecked(self.problems()))

    def _watch(self) -> None:
        while not self._closed.wait(self._interval):
            problems = self.problems()
            if problems and not self._closed.is_set():
                self._post(NodeUnhealthy("; ".join(problems)))
                return  # it leaves; checks before a join of its own would tell again

    def problems(self) -> tuple[str, ...]:
        """Run every check and return what is wrong, in the order of the checks."""
        answers: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
        begun_at = monotonic()
        for number, check in enumerate(self._checks):
            threading.Thread(
                target=_answer,
                args=(check, self._view, number, answers),
                name=f"quorate-check-{check.name}",
                daemon=True,
            ).start()
        found: dict[int, str | None] = {}
        waiting = dict(enumerate(self._checks))
        while waiting:
            deadline = begun_at + min(check.timeout_seconds for check in waiting.values())
            try:
                number, problem = answers.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                for number, check in list(waiting.items()):
                    if begun_at + check.timeout_seconds <= monotonic():
                        found[number] = f"{check.name}: no answer within {check.timeout_seconds:g} s"
                        del waiting[number]
                continue
            if waiting.pop(number, None) is not None:
                found[number] = problem
        return tuple(problem for _, problem in sorted(found.items()) if problem)


def _answer(check: HealthCheck, view: View, number: int, answers: queue.SimpleQueue[tuple[int, str | None]]) -> None:
    try:
        problem = check.check(view)
    except Exception as error:
        problem = f"the check raised {type(error).__name__}: {error}"
    answers.put((number, f"{check.name}: {problem}" if problem else None))
