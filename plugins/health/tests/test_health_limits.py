"""The bounds of the health server: requests, connections, threads, and looks that are stuck."""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from quorate.clock import monotonic
from quorate.services import AgentSnapshot, WorkerSnapshot
from quorate.testing import settles
from quorate_health._journal import Journal
from quorate_health._pulse import Pulse
from quorate_health._server import LIFETIME_SECONDS, MOST_UNSENT_BYTES, THREADS
from quorate_health._service import HealthService
from quorate_health._status import Status

from .conftest import DEADLINE, StubAgent, ask, start, wait_until

PATHS = (
    *(b"/../../etc/passwd", b"/status/../../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/livez/", b"/livez%00"),
    *(b"/livez\0.txt", b"/.", b"/LIVEZ", b"/" + b"../" * 2000, b"/%ff%fe", b"*", b"/;/livez"),
)


# --- clients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"POST /livez HTTP/1.1\r\nContent-Length: 10000000\r\n\r\n", b"413"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        *((b"GET " + path + b" HTTP/1.1\r\n\r\n", b"404") for path in PATHS),
        *((method + b" /livez HTTP/1.1\r\n\r\n", b"405") for method in (b"BREW", b"CONNECT", b"DELETE", b"OPTIONS")),
        (b"GET //livez HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"400"),
        (b"get /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"G\0T /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n\r\nGET /readyz HTTP/1.1\r\n\r\n", b"200"),
    ],
)
def test_a_request_that_is_out_of_bounds_is_refused(
    service: HealthService, request_bytes: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE) as client:
        client.sendall(request_bytes)
        received = b""
        with suppress(ConnectionResetError):  # what it had not read is thrown away
            while data := client.recv(4096):
                received += data
    assert received.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status))
    assert received.count(b"HTTP/1.") == 1, "a connection is good for one request"


def test_idle_connections_are_closed_for_those_with_requests(agent: StubAgent) -> None:
    """With few descriptors to spend, and all taken by silent clients, the next one is still answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        service = start(agent)
        assert service is not None
        ask(service, "/livez")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE))
            assert ask(service, "/livez")[0] == 200
    finally:
        service.close()


@pytest.mark.parametrize("sent", [b"", b"GET /li", b"GET /livez HTTP/1.1\r\nX: y\r\n", b"GET /livez HTTP/1.1\r\n\r\n"])
def test_a_connection_that_its_client_closes_halfway_is_closed(service: HealthService, sent: bytes) -> None:
    """A client that will say no more, but would still listen, holds nothing."""
    ask(service, "/livez")
    with socket.create_connection(("127.0.0.1", service.port), timeout=DEADLINE) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while client.recv(4096):
                pass
        wait_until(lambda: not _has_clients(service))


def test_clients_that_do_not_read_their_answers_fill_no_memory(
    service: HealthService, agent: StubAgent, tmp_path: Path
) -> None:
    log = tmp_path / "stderr.log"
    log.write_text(("\u00e9" * 390 + "\n") * 20)
    agent.workers = tuple(
        WorkerSnapshot(index, index, os.getpid(), stdout=str(log), stderr=str(log)) for index in range(16)
    )
    assert 60 * len(ask(service, "/status.json")[1]) > 1.5 * MOST_UNSENT_BYTES
    with ExitStack() as stack:
        clients = []
        for _ in range(60):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(DEADLINE)
            client.connect(("127.0.0.1", service.port))
            client.sendall(b"GET /status.json HTTP/1.1\r\n\r\n")
            clients.append(client)
        for client in clients:
            with suppress(ConnectionResetError):
                client.recv(1, socket.MSG_PEEK)  # its answer has begun, or it was sent away
        # Within the life of a connection, whose end would free it in any case.
        assert settles(lambda: _unsent_bytes(service) <= MOST_UNSENT_BYTES, LIFETIME_SECONDS / 2)
        assert ask(service, "/livez")[0] == 200


def _unsent_bytes(service: HealthService) -> int:
    assert service._server is not None
    return sum(channel.total_outbufs_len for channel in list(service._server._listener.active_channels.values()))


def test_ten_thousand_connections_cost_a_bounded_share_of_threads_descriptors_and_memory(
    service: HealthService, agent: StubAgent
) -> None:
    """They come from another process and stay; the kernel keeps those for which the server has no place."""
    ask(service, "/status")
    assert service._server is not None
    most = service._server._listener.most_connections
    before, turns = _memory_bytes(), agent.turns
    script = (
        "import errno, resource, socket, sys\n"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n"
        "held = []\n"
        "for number in range(min(10_000, most - 50)):\n"
        "    client = socket.socket()\n"
        "    client.setblocking(False)\n"
        "    client.connect_ex(('127.0.0.1', int(sys.argv[1])))\n"
        "    held.append(client)\n"
        "print(len(held), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(service.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as crowd:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        assert int(crowd.stdout.readline()) > most
        wait_until(lambda: _connections(service) >= most * 7 // 8)
        assert _connections(service) <= most
        assert len(os.listdir("/proc/self/fd")) < most + 200
        assert sum(thread.name.startswith("quorate-health") for thread in threading.enumerate()) == THREADS + 1
        assert _memory_bytes() - before < 64 << 20
        assert agent.turns == turns, "a connection alone is no work for the agent"
        crowd.stdin.close()


def _memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _connections(service: HealthService) -> int:
    assert service._server is not None
    return len(service._server._listener.active_channels)


def test_no_thread_wakes_without_clients(service: HealthService) -> None:
    """No polling: the server's threads do not run at all between requests."""
    ask(service, "/livez")
    tasks = {int(name) for name in os.listdir("/proc/self/task")} - {threading.get_native_id()}
    own = {thread.native_id for thread in threading.enumerate() if thread.name.startswith("quorate-health")}
    assert own <= tasks
    assert len(own) == 4
    wait_until(lambda: not _has_clients(service))
    # At most two chances to have gone to sleep only just now; the window is longer than a poll's period would be.
    assert any(_switches_within(1.2, own) == 0 for _ in range(3))


def _switches_within(seconds: float, threads: set[int | None]) -> int:
    before = _switches(threads)
    select.select([], [], [], seconds)
    return _switches(threads) - before


def _has_clients(service: HealthService) -> bool:
    return _connections(service) > 0


def _switches(threads: set[int | None]) -> int:
    total = 0
    for thread in threads:
        for line in Path(f"/proc/self/task/{thread}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def test_a_log_that_cannot_be_read_delays_no_answer(service: HealthService, agent: StubAgent, tmp_path: Path) -> None:
    """A worker can put anything in its log's place: a pipe without a writer, a link, a folder."""
    pipe, link, secret = tmp_path / "pipe", tmp_path / "link", tmp_path / "secret"
    os.mkfifo(pipe)
    secret.write_text("secret\n")
    link.symlink_to(secret)
    agent.workers = tuple(
        WorkerSnapshot(index, index, os.getpid(), stdout=str(path)) for index, path in enumerate((pipe, link, tmp_path))
    )
    begun_at = time.monotonic()
    workers = json.loads(ask(service, "/status.json")[1])["workers"]
    assert [worker["stdout"] for worker in workers] == [None, None, None]
    assert "cannot be read" in ask(service, "/status")[1]
    assert time.monotonic() - begun_at < DEADLINE


def test_a_look_that_is_stuck_delays_no_other(agent: StubAgent) -> None:
    """As on a file system that does not answer: others get the last look that came to its end."""
    stuck, freed = threading.Event(), threading.Event()

    class Stuck(StubAgent):
        def snapshot(self) -> AgentSnapshot:
            if threading.current_thread() is looking:
                stuck.set()
                assert freed.wait(DEADLINE)
            return super().snapshot()

    stuck_agent = Stuck()
    status = Status(stuck_agent, Journal(), Pulse(stuck_agent))
    looking = threading.Thread(target=status.look)
    first = status.look()
    wait_until(lambda: monotonic() >= status._fresh_until)
    looking.start()
    assert stuck.wait(DEADLINE)
    assert status.look() is first
    freed.set()
    looking.join(DEADLINE)
    assert status.look() is not first
