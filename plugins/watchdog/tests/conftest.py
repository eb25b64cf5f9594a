"""What the tests share: an agent's view that keeps what is reported, real workers, and the check for leftovers."""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from quorate.records import Event
from quorate.services import AgentSnapshot, AgentView, HangReport, WorkerSnapshot
from quorate.testing import open_descriptors, settles
from quorate_watchdog._service import WatchdogService
from quorate_watchdog._timers import Timers

DEADLINE_SECONDS = 30.0
NODE = "node-of-the-test"


class View:
    """A :class:`quorate.services.AgentView` of workers that the test has started."""

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = {}
        self.settings: Mapping[str, Any] = {}
        self.reports: queue.SimpleQueue[HangReport] = queue.SimpleQueue()
        self.sentences: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.heartbeats: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._snapshot = AgentSnapshot("run", NODE, "host", "trainer", "running", "", 3, round_number=0)

    def snapshot(self) -> AgentSnapshot:
        return self._snapshot

    def has(self, *pids: int, round_number: int = 0, **worker: Any) -> None:
        """Set the workers: these processes, by local rank; global ranks are ten higher."""
        workers = tuple(WorkerSnapshot(rank, 10 + rank, pid, **worker) for rank, pid in enumerate(pids))
        self._snapshot = attrs.evolve(self._snapshot, workers=workers, round_number=round_number)

    def turn(self, timeout: float) -> float | None:
        return 0.0

    def store_latency(self, timeout: float) -> float | None:
        return None

    def note_heartbeat(self, local_rank: int, pid: int) -> None:
        self.heartbeats.put((local_rank, pid))

    def report_hang(self, report: HangReport) -> None:
        self.reports.put(report)

    def report_unhealthy(self, problem: str) -> None:
        raise AssertionError(problem)

    def say(self, sentence: str) -> None:
        self.sentences.put(sentence)

    def report(self) -> HangReport:
        """Wait for the next report."""
        return self.reports.get(timeout=DEADLINE_SECONDS)


class Worker:
    """A real Python process that runs lines of code: say(word) is read by next_word(), wait() waits for go_on()."""

    def __init__(self, code: str, environment: Mapping[str, str]) -> None:
        prelude = (
            "import os, sys, time\n"
            # In one write: its forked children print into the same pipe.
            "def say(word): os.write(1, f'{word}\\n'.encode())\n"
            "def wait(): assert sys.stdin.readline(), 'the test has ended'\n"
        )
        usual = {**os.environ, "RANK": "10", "QUORATE_ROUND": "0", "QUORATE_AGENT_TOKEN": NODE}
        self.process = subprocess.Popen(
            [sys.executable, "-c", prelude + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**usual, **environment},
            start_new_session=True,
            text=True,
        )
        self.pid = self.process.pid
        self._received = b""

    def next_word(self) -> str:
        """Wait for its next word."""
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_SECONDS)
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, f"it printed nothing but {self._received!r}"
            self._received += data
        word, _, self._received = self._received.partition(b"\n")
        return word.decode()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


def timers_of(service: Any) -> Timers:
    """Return the timers that a service knows of by now."""
    timers: Timers = service._server._timekeeper.timers
    return timers


Watch = Callable[..., Any]
Work = Callable[..., Worker]


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
def watch(view: View) -> Iterator[Callable[..., WatchdogService]]:
    """``watch(environment, **settings)`` starts the watchdog as the agent does; it ends with the test."""
    services: list[WatchdogService] = []

    def start(environment: Mapping[str, str] | None = None, **settings: Any) -> WatchdogService:
        view.environment, view.settings = environment or {}, settings
        as_agent: AgentView = view
        service = WatchdogService(as_agent)
        services.append(service)
        service.observe(Event("workers.started", "", NODE, 0, {}))
        return service

    yield start
    for service in services:
        service.close()


@pytest.fixture
def work(view: View) -> Iterator[Callable[..., Worker]]:
    """``work(service, code)`` starts a worker of that service and makes it the view's only one."""
    workers: list[Worker] = []

    def start(service: WatchdogService | None, code: str, **environment: str) -> Worker:
        own = {} if service is None else dict(service.worker_environment)
        worker = Worker(code, {**own, **environment})
        workers.append(worker)
        view.has(worker.pid)
        return worker

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No test ends with descriptors or threads that it did not begin with; an earlier test's may end meanwhile."""
    opened, threads = open_descriptors(), set(threading.enumerate())
    yield
    assert open_descriptors() <= opened
    assert set(threading.enumerate()) <= threads


def wait_until(is_so: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Fail unless it is so within ``seconds``; only for what gives nothing to wait for."""
    assert settles(is_so, seconds), f"not so within {seconds} s"


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    return str(tmp_path / "timers")
