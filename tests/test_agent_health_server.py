"""The health server of real agents: what it answers, for how long, and that nobody can harm the job through it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quorate import Std
from tests import health_workers
from tests.backends import BACKENDS, Backend, loopback_port
from tests.harness import DEADLINE, Ear, Gate, Job
from tests.health_workers import PORT_VARIABLE

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "health.md"
CONNECTION_TIMEOUT = 20.0
#: An agent that takes that long for one turn has been slowed; a loaded machine alone does not do it.
LONGEST_TURN_SECONDS = 2.0
#: Long enough for idle connections to be sent away for others.
ATTACK_SECONDS = 2.5


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CONNECTION_TIMEOUT)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def get_json(port: int, path: str) -> Any:
    return json.loads(get(port, path)[1])


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is free for the whole test."""
    with loopback_port() as endpoint:
        yield int(endpoint.rpartition(":")[2])


# --- on every backend -----------------------------------------------------------------------------------------------


def test_the_server_answers_for_as_long_as_the_agent_runs(job: Job, ear: Ear, gate: Gate, port: int) -> None:
    """With the variable set, the worker sees it and a health server answers on that port."""
    host = job.start(job.plan(health_workers.wait, ear.path, gate.path), **{PORT_VARIABLE: str(port)})
    ear.hear(1, event="started")
    assert get(port, "/livez") == (200, "ok\n")
    assert get(port, "/readyz") == (200, "ok\n")
    status, body = get(port, "/healthz")
    health = json.loads(body)
    assert (status, health["is_healthy"], health["reasons"], health["phase"]) == (200, True, [], "running")
    gate.open()
    assert host.outcome().values == {0: str(port)}
    with pytest.raises(ConnectionRefusedError):
        get(port, "/livez")


@pytest.mark.parametrize("text", [None, "eighty"], ids=["unset", "not a number"])
def test_without_a_usable_port_the_job_runs_without_a_server(job: Job, ear: Ear, gate: Gate, text: str | None) -> None:
    """Unset: absent from the worker, and no server; a non-number: logged, the job runs."""
    given = {} if text is None else {PORT_VARIABLE: text}
    host = job.start(job.plan(health_workers.wait, ear.path, gate.path), **given)
    gate.open()
    assert host.outcome().values == {0: text}
    assert "health server at" not in host.console()
    assert (f"warning: {PORT_VARIABLE}={text} is not a port" in host.console()) == (text is not None)


# --- on one backend -------------------------------------------------------------------------------------------------


class TestOnOneBackend:
    """What has nothing to do with rendezvous."""

    @pytest.fixture(params=["tcp"])
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return BACKENDS[request.param]

    def test_a_port_that_is_taken_costs_the_server_and_not_the_job(self, job: Job, ear: Ear, gate: Gate) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            host = job.start(job.plan(health_workers.wait, ear.path, gate.path), **{PORT_VARIABLE: str(port)})
            gate.open()
            assert host.outcome().values == {0: str(port)}
        assert f"no health server at 127.0.0.1 port {port}: Address already in use; the job runs" in host.console()

    def test_a_node_that_waits_lives_and_is_not_ready(self, job: Job, ear: Ear, gate: Gate, port: int) -> None:
        plan = job.plan(health_workers.wait, ear.path, gate.path, nodes=(2, 2))
        waiting = job.start(plan, **{PORT_VARIABLE: str(port)})
        wait_for_server(port)
        assert get(port, "/livez")[0] == 200
        status, body = get(port, "/readyz")
        assert status == 503
        assert "no workers run in a sealed round" in body
        health = get_json(port, "/healthz")
        assert (health["is_live"], health["is_ready"], health["is_healthy"]) == (True, False, False)
        other = job.start(plan)
        ear.hear(2, event="started")
        assert get(port, "/readyz")[0] == 200
        gate.open()
        assert waiting.outcome().values | other.outcome().values == {0: str(port), 1: None}

    def test_metrics_and_status_tell_what_the_job_went_through(
        self, job: Job, ear: Ear, tmp_path: Path, port: int
    ) -> None:
        gates = [Gate(tmp_path / f"gate-{attempt}") for attempt in (0, 1)]
        with ExitStack() as stack:
            for gate in gates:
                stack.callback(gate.close)
            arguments = (ear.path, [gate.path for gate in gates], ["word"], "told to")
            plan = job.plan(
                health_workers.print_and_fail_once,
                *arguments,
                workers=2,
                max_restarts=1,
                logs={"redirects": Std.ALL},
                spec={"settings": {"health_port": port}},
            )
            host = job.start(plan)
            ear.hear(2, event="started", restart_count=0)
            metrics = samples(port)
            assert metrics["quorate_workers_up", ()] == 2
            assert metrics["quorate_ready", ()] == 1
            assert metrics["quorate_store_up", ()] == 1
            assert 0 < metrics["quorate_store_latency_seconds", ()] < 10
            assert metrics["quorate_rendezvous_seconds_count", ()] == 1
            assert metrics["quorate_recovery_seconds_count", ()] == 0
            assert metrics["quorate_phase", (("phase", "running"),)] == 1
            gates[0].open()
            again = ear.hear(2, event="started", restart_count=1)
            metrics = samples(port)
            assert metrics["quorate_restarts_total", (("cause", "exception"),)] == 1
            assert metrics["quorate_restart_count", ()] == 1
            assert metrics["quorate_round", ()] == 1
            assert metrics["quorate_world_size", ()] == 2
            assert metrics["quorate_rendezvous_seconds_count", ()] == 2
            assert metrics["quorate_recovery_seconds_count", ()] == 1
            assert 0 < metrics["quorate_recovery_seconds_sum", ()] < DEADLINE
            assert ("quorate_agent_info", "run_id", plan.run_id) in {
                (name, key, value) for name, labels in metrics for key, value in labels
            }
            check_metrics_are_documented(port)
            check_status(get_json(port, "/status.json"), plan.run_id, again)
            gates[1].open()
            assert host.outcome().values == {0: 1, 1: 1}

    def test_a_heartbeat_of_a_worker_is_seen_in_the_metrics(self, job: Job, ear: Ear, gate: Gate, port: int) -> None:
        host = job.start(job.plan(health_workers.beat, ear.path, gate.path), **{PORT_VARIABLE: str(port)})
        ear.hear(1, event="started")
        end, pause = time.monotonic() + DEADLINE, threading.Event()
        sample = "quorate_worker_heartbeat_age_seconds", (("local_rank", "0"),)
        while (age := samples(port).get(sample)) is None:  # it comes through a pipe of its own
            assert time.monotonic() < end, "no heartbeat was seen"
            pause.wait(0.02)
        assert 0 <= age < DEADLINE
        assert samples(port)[sample] > age
        gate.open()
        assert host.outcome().values == {0: None}

    @pytest.mark.parametrize("method", ["fork", "forkserver"])
    def test_the_server_is_no_trouble_to_workers_that_are_forked(
        self, job: Job, ear: Ear, gate: Gate, port: int, method: str
    ) -> None:
        plan = job.plan(health_workers.wait, ear.path, gate.path, workers=2, agent={"start_method": method})
        host = job.start(plan, **{PORT_VARIABLE: str(port)})
        ear.hear(2, event="started")
        for path in ("/livez", "/metrics", "/status"):
            assert get(port, path)[0] == 200
        gate.open()
        assert host.outcome().values == {0: str(port), 1: str(port)}
        with pytest.raises(ConnectionRefusedError):
            get(port, "/livez")

    def test_hostile_clients_slow_neither_the_agent_nor_the_job(
        self, job: Job, ear: Ear, gate: Gate, port: int, tmp_path: Path
    ) -> None:
        """500 idle connections, clients that dawdle or read nothing, 10 MB of headers, garbage: all at once."""
        turns = tmp_path / "turns"
        plan = job.plan(health_workers.wait, ear.path, gate.path, plugins=("tests.health_workers:turn_meter",))
        host = job.start(plan, **{PORT_VARIABLE: str(port), "TURNS": str(turns)})
        ear.hear(1, event="started")
        with attack(port):
            end = time.monotonic() + ATTACK_SECONDS
            while time.monotonic() < end:
                assert get(port, "/livez") == (200, "ok\n")
                assert get(port, "/status.json")[0] == 200
        gate.open()
        assert host.outcome().values == {0: str(port)}
        measured = sorted(json.loads(turns.read_text()))
        print(f"{len(measured)} turns: median {measured[len(measured) // 2] * 1e3:.2f} ms, max {measured[-1]:.3f} s")
        assert measured[-1] < LONGEST_TURN_SECONDS
        assert "Traceback" not in host.console()
        assert "waitress" not in host.console()


def wait_for_server(port: int) -> None:
    """Wait until something listens; its agent is about to start it."""
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while True:
        try:
            get(port, "/livez")
            return
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            pause.wait(0.02)


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample of the metrics, as a scraper reads them."""
    status, text = get(port, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def check_metrics_are_documented(port: int) -> None:
    """Every metric of ours has its row in the guide; those that only some agents have may be absent here."""
    rows = {tuple(row) for row in re.findall(r"^\| `(quorate_\w+)` \| (\w+) \|", GUIDE.read_text(), re.MULTILINE)}
    told = set(re.findall(r"^# TYPE (quorate_\w+) (\w+)$", get(port, "/metrics")[1], re.MULTILINE))
    assert {name.removesuffix("_created") for name, _ in told - rows} <= {name for name, _ in rows}
    rows.discard(("quorate_cluster_job_info", "gauge"))  # of agents that a scheduler has started
    assert rows <= told, "documented, but not there"


def check_status(status: dict[str, Any], run_id: str, running: list[dict[str, Any]]) -> None:
    """The second round of the job that failed once."""
    assert (status["run_id"], status["phase"], status["round"]) == (run_id, "running", 1)
    assert [worker["pid"] for worker in status["workers"]] == [
        fact["pid"] for fact in sorted(running, key=lambda fact: fact["rank"])
    ]
    for worker in status["workers"]:
        assert worker["state"] == "running"
        assert worker["memory_bytes"] > 1_000_000
        assert worker["stdout"] == worker["stderr"] == ["word", "attempt 1"]
    first, second = status["rounds"]
    assert (first["cause"], first["verdict"], second["verdict"]) == ("exception", "restart", "")
    assert first["joined_at"] <= first["ended_at"] <= second["joined_at"]
    failure = status["last_failure"]
    assert (failure["rank"], failure["cause"], failure["exit_code"]) == (1, "exception", 1)
    assert "told to" in failure["message"]
    assert any("print_and_fail_once" in line for line in failure["traceback"])


@contextmanager
def attack(port: int) -> Iterator[None]:
    """Harm as much as a client can, until the block ends."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=target, args=(port, stop)) for target in (_idle, _dawdle, _flood, _garble, _ignore)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=CONNECTION_TIMEOUT)


def _idle(port: int, stop: threading.Event) -> None:
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(_connect(port))
        stop.wait()


def _dawdle(port: int, stop: threading.Event) -> None:
    """Send a request's header byte by byte, over many connections; those that were closed are opened anew."""
    clients: dict[int, socket.socket] = {}
    try:
        while not stop.wait(0.05):
            for index in range(50):
                try:
                    if index not in clients:
                        clients[index] = _connect(port)
                        clients[index].sendall(b"GET /status HTTP/1.1\r\nX-Slow: ")
                    clients[index].sendall(b"a")
                except OSError:
                    clients.pop(index).close() if index in clients else None
    finally:
        for client in clients.values():
            client.close()


def _flood(port: int, stop: threading.Event) -> None:
    _send_until(port, stop, b"GET / HTTP/1.1\r\nX-Big: " + b"a" * 10_000_000 + b"\r\n\r\n")


def _garble(port: int, stop: threading.Event) -> None:
    request = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
    _send_until(port, stop, request * 200 + b"\x16\x03\x01\x00\xff\r\n\r\nPOST / HTTP/9.9\r\n\r\n" * 200)


def _ignore(port: int, stop: threading.Event) -> None:
    """Ask for the page again and again, and read no answer; every other client says that it will send no more."""
    with ExitStack() as stack:
        for number in range(300):
            if stop.wait(0.005):
                return
            client = stack.enter_context(_connect(port))
            with suppress(OSError):
                client.sendall(b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if number % 2:
                    client.shutdown(socket.SHUT_WR)
        stop.wait()


def _send_until(port: int, stop: threading.Event, data: bytes) -> None:
    while not stop.wait(0.02):
        with _connect(port) as client:
            try:
                client.sendall(data)
                client.recv(65536)
            except OSError:
                pass  # cut off, as it should be


# --- by the command line --------------------------------------------------------------------------------------------


def test_nothing_of_the_server_is_loaded_unless_it_is_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "quorate", "run", "--standalone", "--no-python", "true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "quorate_health._plugin" in loaded
    assert not loaded & {"quorate_health._app", "quorate_health._server", "waitress", "prometheus_client"}


def test_a_free_port_is_said_and_a_wrong_one_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quorate", "run", "--standalone", "--no-python"]
    done = subprocess.run(
        [*command, "--health-port=0", "true"], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0
    assert "health server at http://127.0.0.1:" in done.stderr
    for wrong in ("x", "-1", "65536", "٣"):
        done = subprocess.run(
            [*command, f"--health-port={wrong}", "true"], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == 2
        assert f"--health-port={wrong} is not a port" in done.stderr
        assert "Traceback" not in done.stderr
