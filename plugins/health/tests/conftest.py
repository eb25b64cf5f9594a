"""What tests of the server share: an agent that is a stand-in, and the server of it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quorate.errors import StoreUnavailableError
from quorate.records import RoundEnd
from quorate.services import AgentSnapshot, HangReport, WorkerSnapshot
from quorate.testing import open_descriptors, settles
from quorate_health import plugin
from quorate_health._service import HealthService

DEADLINE = 30.0


VARIABLE = "TORCHELASTIC_HEALTH_CHECK_PORT"


class StubAgent:
    """An agent in a state that the test sets; with ``is_stuck`` it takes no turn until the deadline."""

    def __init__(self, environment: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.environment: Mapping[str, str] = environment or {}
        self.settings: Mapping[str, Any] = settings
        self.said: list[str] = []
        self.turns = 0
        self.is_stuck = False
        self.latency: float | None = 0.001
        self.phase, self.reason = "running", ""
        self.workers: tuple[WorkerSnapshot, ...] = ()
        self.ends: tuple[RoundEnd, ...] = ()

    def snapshot(self) -> AgentSnapshot:
        return AgentSnapshot(
            "run", "node", "host", "role", self.phase, self.reason, 3, 0, 0, 0, 1, 1, self.workers, self.ends
        )

    def turn(self, timeout: float) -> float | None:
        self.turns += 1
        return None if self.is_stuck else 0.001

    def store_latency(self, timeout: float) -> float | None:
        if self.latency is not None and self.latency > timeout:
            raise StoreUnavailableError("it is frozen")
        return self.latency

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        raise AssertionError("the server only looks")

    def report_hang(self, report: HangReport) -> None:
        raise AssertionError("the server only looks")

    def report_unhealthy(self, problem: str) -> None:
        raise AssertionError("the server only looks")

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def start(agent: StubAgent) -> HealthService | None:
    """Start what the plugin offers, as an agent does."""
    (backend,) = (backend for backend in plugin.quorate_register_service() if backend.name == "health")
    service = backend.start(agent)
    assert service is None or isinstance(service, HealthService)
    return service


@pytest.fixture
def agent() -> StubAgent:
    return StubAgent(health_port=0)


@pytest.fixture
def service(agent: StubAgent) -> Iterator[HealthService]:
    """A server, of which nothing is left at the end."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    service = start(agent)
    assert service is not None
    yield service
    service.close()
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


def ask(
    service: HealthService, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=DEADLINE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


def metric(service: HealthService, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric's values by those of its labels."""
    families = text_string_to_metric_families(ask(service, "/metrics")[1])
    return {tuple(s.labels.values()): s.value for family in families for s in family.samples if s.name == name}


def wait_until(condition: Callable[[], bool]) -> None:
    assert settles(condition, DEADLINE)
