"""The health server by itself: what it answers about an agent in every state, and how it begins and ends.

The agent is a stand-in here, so that it can be stuck at will.  Real agents are in the repository's own tests.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.events import (
    AgentPhaseDetails,
    EventDetails,
    RoundEndedDetails,
    RoundJoinedDetails,
    RoundStandbyDetails,
    WorkerFailedDetails,
    WorkersStartedDetails,
)
from quorate.records import AgentPhase, Cause, Event, RoundEnd, Verdict
from quorate.services import WorkerSnapshot
from quorate_health._pulse import FRESH_SECONDS
from quorate_health._service import HealthService

from .conftest import DEADLINE, VARIABLE, StubAgent, ask, metric, start, wait_until

# --- answers --------------------------------------------------------------------------------------------------------


def test_an_agent_that_does_not_turn_is_not_live(service: HealthService, agent: StubAgent) -> None:
    agent.is_stuck = True
    status, body, _ = ask(service, "/livez")
    assert (status, body) == (503, "the agent has not taken a turn within 5 s\n")
    assert ask(service, "/readyz")[0] == 200, "its last snapshot says that its workers run"
    health = json.loads(ask(service, "/healthz")[1])
    assert (health["is_live"], health["is_ready"], health["is_healthy"]) == (False, True, False)
    assert health["reasons"] == ["the agent has not taken a turn within 5 s"]
    assert "stuck while running" in ask(service, "/status")[1]


def test_an_agent_without_workers_is_not_ready_and_says_why(service: HealthService, agent: StubAgent) -> None:
    agent.phase, agent.reason = "joining", "1 of 2 nodes joined"
    assert ask(service, "/livez")[0] == 200
    status, body, _ = ask(service, "/readyz")
    assert status == 503
    assert body == "no workers run in a sealed round; the agent is joining: 1 of 2 nodes joined\n"
    status, body, _ = ask(service, "/healthz")
    assert (status, json.loads(body)["reasons"]) == (503, [body_line(ask(service, "/readyz")[1])])


def body_line(body: str) -> str:
    return body.removesuffix("\n")


def test_many_requests_cost_the_agent_few_turns(service: HealthService, agent: StubAgent) -> None:
    begun_at = monotonic()
    for _ in range(50):
        assert ask(service, "/livez")[0] == 200
    assert agent.turns <= 1 + (monotonic() - begun_at) / FRESH_SECONDS


def test_what_is_not_there_and_what_is_not_allowed(service: HealthService) -> None:
    status, body, headers = ask(service, "/nothing")
    assert status == 404
    for path in ("/livez", "/readyz", "/healthz", "/metrics", "/status", "/status.json"):
        assert path in body
        status, _, headers = ask(service, path, "POST")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        status, body_of_head, headers = ask(service, path, "HEAD")
        assert (status, body_of_head) == (200, "")
    status, _, headers = ask(service, "/")
    assert (status, headers["Location"]) == (302, "status")


def test_every_answer_forbids_what_a_browser_should_not_do(service: HealthService) -> None:
    _, page, headers = ask(service, "/status")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Connection"] == "close"
    assert headers["Server"] is None
    assert " style=" not in page, "the policy would ignore it"
    assert "http://" not in page, "it needs nothing from elsewhere"
    assert "https://" not in page


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("status.localhost:1", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("10.1.2.3", 200),
        ("rebound.example", 421),
        ("rebound.example:8080", 421),
        ("127.0.0.1.example", 421),
    ],
)
def test_a_foreign_name_with_this_address_is_refused(service: HealthService, name: str, status: int) -> None:
    assert ask(service, "/status.json", Host=name)[0] == status


# --- content --------------------------------------------------------------------------------------------------------


def test_heartbeats_have_an_age_for_each_running_worker(service: HealthService, agent: StubAgent) -> None:
    agent.workers = (
        WorkerSnapshot(0, 4, os.getpid(), heartbeat_at=monotonic() - 100.0),
        WorkerSnapshot(1, 5, os.getpid()),
        WorkerSnapshot(2, 6, 1, "failed", 1, heartbeat_at=monotonic()),
    )
    ages = metric(service, "quorate_worker_heartbeat_age_seconds")
    assert list(ages) == [("0",)]
    assert 100.0 <= ages[("0",)] < 100.0 + DEADLINE
    assert metric(service, "quorate_workers_up") == {(): 2.0}
    workers = json.loads(ask(service, "/status.json")[1])["workers"]
    assert [worker["seconds_since_heartbeat"] is None for worker in workers] == [False, True, False]


@pytest.mark.parametrize(
    ("latency", "up", "seconds"), [(0.25, {(): 1.0}, {(): 0.25}), (99.0, {(): 0.0}, {}), (None, {}, {})]
)
def test_the_store_is_up_down_or_not_there_yet(
    service: HealthService, agent: StubAgent, latency: float | None, up: dict[Any, float], seconds: dict[Any, float]
) -> None:
    agent.latency = latency
    assert metric(service, "quorate_store_up") == up
    assert metric(service, "quorate_store_latency_seconds") == seconds


def test_the_cpus_that_a_worker_is_bound_to_are_shown(service: HealthService, agent: StubAgent) -> None:
    agent.workers = (WorkerSnapshot(0, 4, os.getpid(), cpus="0-27,56-83"), WorkerSnapshot(1, 5, os.getpid()))
    assert [worker["cpus"] for worker in json.loads(ask(service, "/status.json")[1])["workers"]] == ["0-27,56-83", ""]
    page = ask(service, "/status")[1]
    assert page.count("CPUs") == 1
    assert "0-27,56-83" in page


def emit(service: HealthService, details: EventDetails) -> None:
    service.observe(Event(details.name, "", details=details))


def test_who_lives_on_into_a_round_is_shown(service: HealthService, agent: StubAgent) -> None:
    agent.workers = (WorkerSnapshot(0, 0, os.getpid(), rounds=2), WorkerSnapshot(1, 1, os.getpid()))
    first, second = WorkersStartedDetails((7, 8)), WorkersStartedDetails((7, 9), kept=(7,), pause_seconds=0.083)
    for number, started in enumerate((first, second)):
        emit(service, RoundJoinedDetails(number, 0, 1, 2, 0))
        emit(service, started)
    status = json.loads(ask(service, "/status.json")[1])
    assert [worker["rounds"] for worker in status["workers"]] == [2, 1]
    assert [(entry["kept_pids"], entry["new_pids"], entry["pause_seconds"]) for entry in status["rounds"]] == [
        ([], [7, 8], 0.0),
        ([7], [9], 0.083),
    ]
    page = ask(service, "/status")[1]
    assert page.count("1 lived on, 1 new, after 83 ms") == 1
    assert page.count("Lived through") == 1


def test_events_become_rounds_and_durations(service: HealthService, agent: StubAgent) -> None:
    joining, started = AgentPhaseDetails(AgentPhase.JOINING, AgentPhase.CHECKING), WorkersStartedDetails((7,))
    agent.ends = (RoundEnd(1, Cause.HANG, Verdict.RESTART, "it hangs"),)
    for details in (
        *(joining, RoundJoinedDetails(0, 0, 1, 1, 0), started),
        RoundEndedDetails(0, Cause.NODE_JOINED, Verdict.RESCALE, None, "", 0),
        *(joining, RoundJoinedDetails(1, 0, 1, 1, 1), started),
        WorkerFailedDetails(0, 0, 7, Cause.HANG, 1, 1),
        RoundEndedDetails(1, Cause.HANG, Verdict.RESTART, 0, "", 1),
        *(joining, RoundStandbyDetails(), RoundJoinedDetails(2, 0, 1, 1, 1), started),
    ):
        emit(service, details)
    rounds = json.loads(ask(service, "/status.json")[1])["rounds"]
    assert [(entry["cause"], entry["verdict"], entry["reason"]) for entry in rounds] == [
        ("node_joined", "rescale", ""),
        ("hang", "restart", "it hangs"),
        ("", "", ""),
    ]
    assert metric(service, "quorate_restarts_total") == {("hang",): 1.0}
    assert metric(service, "quorate_rescales_total") == {("node_joined",): 1.0}
    assert metric(service, "quorate_rendezvous_seconds_count") == {(): 2.0}, "the time of a standby does not count"
    assert metric(service, "quorate_recovery_seconds_count") == {(): 2.0}
    assert metric(service, "quorate_recovery_seconds_count") == {(): 2.0}, "nothing is counted twice"


# --- start and end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["x", "-1", "65536", "8080 ", "٣"])
def test_a_value_that_is_not_a_port_is_reported(text: str) -> None:
    agent = StubAgent({VARIABLE: text})
    assert start(agent) is None
    assert agent.said == [f"warning: {VARIABLE}={text} is not a port; the health server is not started"]


def test_a_host_of_another_machine_is_reported() -> None:
    agent = StubAgent(health_port=0, health_host="192.0.2.1")
    assert start(agent) is None
    assert agent.said == [
        "warning: no health server at 192.0.2.1 port 0: Cannot assign requested address; the job runs without one"
    ]


def test_a_host_without_a_port_is_reported() -> None:
    agent = StubAgent(health_host="0.0.0.0")
    assert start(agent) is None
    assert agent.said == ["--health-host has no effect without --health-port"]


@pytest.mark.parametrize("host", ["::1", "::", "0.0.0.0", "localhost"])
def test_it_listens_at_the_host_of_the_flag(host: str) -> None:
    agent = StubAgent(health_port=0, health_host=host)
    service = start(agent)
    assert service is not None
    try:
        for address in {"::1": ("::1",), "::": ("::1", "127.0.0.1")}.get(host, ("127.0.0.1",)):
            with socket.create_connection((address, service.port), timeout=DEADLINE) as client:
                client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.0 200 OK")
        shown = f"[{host}]" if ":" in host else host
        assert agent.said == [f"health server at http://{shown}:{service.port}/status"]
    finally:
        service.close()


def test_it_can_be_closed_before_it_is_loaded_and_its_port_taken_at_once(agent: StubAgent) -> None:
    service = start(agent)
    assert service is not None
    service.close()
    again = StubAgent(health_port=service.port)
    successor = start(again)
    assert successor is not None, again.said
    assert ask(successor, "/livez")[0] == 200
    successor.close()


def test_its_end_closes_all_connections(agent: StubAgent) -> None:
    service = start(agent)
    assert service is not None
    ask(service, "/livez")
    with socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE) as client:
        client.sendall(b"GET /li")
        service.close()
        with suppress(ConnectionResetError):  # it had not been read yet
            assert client.recv(1) == b""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_copy_keeps_no_client_waiting(service: HealthService) -> None:
    """A worker that is forked while a request is answered holds the connection too, and must not keep it open."""
    ask(service, "/livez")
    with socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE) as client:
        wait_until(lambda: len(os.listdir("/proc/self/fd")) > 0 and _has_peer(client))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent is done
            os._exit(0)
        os.close(reader)
        try:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while data := client.recv(4096):
                received += data
            assert received.endswith(b"ok\n")
        finally:
            os.close(writer)
            os.waitpid(pid, 0)


def _has_peer(client: socket.socket) -> bool:
    """Whether this process holds the other end of a connection, not only the kernel's queue."""
    address = client.getsockname()
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as other:
                if other.getpeername() == address:
                    return True
        except OSError:
            continue
    return False
