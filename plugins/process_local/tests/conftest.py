"""What the tests share: a group of real workers driven as the agent drives it, and a way to hear from processes."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quorate.proc import children_of
from quorate.records import WorkerExited, WorkerLaunch, WorkerLogs
from quorate.starter import PreparingStarter, ProcessContext, Starter, StarterRequest
from quorate.testing import open_descriptors
from quorate_process_local import _warm, plugin

DEADLINE_SECONDS = 30.0


class Group:
    """A running group; ``exits`` are the reports so far."""

    def __init__(self, context: ProcessContext) -> None:
        assert isinstance(context, ProcessContext)
        self.context = context
        self.exits: list[WorkerExited] = []
        self.is_closed = False

    def run_until(self, is_enough: Callable[[], bool]) -> list[WorkerExited]:
        """Wait as the agent does, without ever polling, until ``is_enough`` or the deadline."""
        end = time.monotonic() + DEADLINE_SECONDS
        while not is_enough():
            now = time.monotonic()
            assert now < end, f"not within {DEADLINE_SECONDS} s; so far: {self.exits}"
            wake_at = self.context.wake_at()
            until = end if wake_at is None else min(wake_at, end)
            select.select([self.context], [], [], max(0.0, until - now))
            self.exits += self.context.advance(time.monotonic())
        return self.exits

    def run(self) -> list[WorkerExited]:
        """Wait until nothing is left."""
        return self.run_until(self.context.is_gone)

    def stop(self, signal_number: int = signal.SIGTERM, grace_seconds: float = DEADLINE_SECONDS) -> None:
        self.context.stop(signal_number, grace_seconds, time.monotonic())

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.context.close()


Start = Callable[..., Group]


def starter(method: str, term_grace_seconds: float = DEADLINE_SECONDS) -> Starter:
    backends = {backend.name: backend for backend in plugin.quorate_register_starter()}
    return backends[method].create(StarterRequest(method, "token-of-the-agent", term_grace_seconds))


def launch(local_rank: int, entrypoint: Any, *args: Any, **logs: Any) -> WorkerLaunch:
    environment = {**os.environ, **logs.pop("environment", {})}
    error_file = logs.pop("error_file", "")
    return WorkerLaunch(
        local_rank, local_rank, "trainer", entrypoint, args, environment, error_file, WorkerLogs(**logs)
    )


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(method, launches, term_grace_seconds)`` → Group; nothing of it survives the test."""
    groups: list[Group] = []

    def begin(method: str, launches: Sequence[WorkerLaunch], grace_seconds: float = DEADLINE_SECONDS) -> Group:
        group = Group(starter(method, grace_seconds).start(launches))
        groups.append(group)
        return group

    yield begin
    for group in groups:
        group.close()


@pytest.fixture
def sh(start: Start) -> Callable[..., Group]:
    """``sh(script, …)`` starts one shell per script, in the order of their local ranks."""
    return lambda *scripts, **logs: start("exec", [launch(i, "sh", "-c", s, **logs) for i, s in enumerate(scripts)])


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of functions; the workers find it on the path that they inherit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import process_local_functions

    return process_local_functions


Make = Callable[..., _warm.WarmStarter]


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(*modules, **options)`` → a warm starter with these imported ahead; it and its groups end with the test."""
    starters: list[_warm.WarmStarter] = []

    def begin(*modules: str, **options: Any) -> _warm.WarmStarter:
        request = StarterRequest("warm", "token", DEADLINE_SECONDS, {"preload": modules})
        starter = _warm.WarmStarter(request, **options)
        assert isinstance(starter, PreparingStarter)
        starters.append(starter)
        return starter

    yield begin
    for starter in starters:
        starter.close()


class Ear:
    """A named pipe that processes write words to; reading waits for them with a deadline."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._buffer = b""

    def words(self, count: int) -> list[str]:
        end = time.monotonic() + DEADLINE_SECONDS
        while len(words := self._buffer.split()) < count or not self._buffer.endswith(b"\n"):
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"heard only {words}, not {count} words"
            self._buffer += os.read(self._descriptor, 4096)
        self._buffer = b""
        return [word.decode() for word in words]

    def close(self) -> None:
        os.close(self._descriptor)


#: Says that it is ready, waits for SIGTERM, says so, and ends with code 3 once the door is open.  Starts no process:
#: a shell's child may lose a signal between fork and exec.
_POLITE = """
import signal, sys
ear, door = sys.argv[1], sys.argv[2]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
open(ear, "w").write("ready\\n")
signal.sigwait([signal.SIGTERM])
open(ear, "w").write("asked\\n")
if door:
    open(door).read()
sys.exit(3)
"""


def polite(ear: Ear, door: str = "''") -> str:
    """Return the command of a worker that ends by itself, with code 3, when it is asked to."""
    script = ear.path.with_name("polite.py")
    script.write_text(_POLITE)
    return f"{sys.executable} {script} {ear.path} {door}"


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    ear = Ear(tmp_path / "ear")
    yield ear
    ear.close()


def wait_for_end(pids: Sequence[int], seconds: float = DEADLINE_SECONDS) -> None:
    """Fail unless all processes have ended within ``seconds``."""
    poller = select.poll()
    open_ones = {}
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        open_ones[descriptor] = pid
        poller.register(descriptor, select.POLLIN)
    end = time.monotonic() + seconds
    try:
        while open_ones:
            ready = poller.poll(max(0.0, end - time.monotonic()) * 1000)
            assert ready, f"still running after {seconds} s: {sorted(open_ones.values())}"
            for descriptor, _ in ready:
                poller.unregister(descriptor)
                del open_ones[descriptor]
                os.close(descriptor)
    finally:
        for descriptor in open_ones:
            os.close(descriptor)


def children() -> set[int]:
    """Return the children of this process, zombies included."""
    return children_of(os.getpid())


def _stop_fork_server() -> None:
    """A fork server lives as long as its process; the tests' process must not keep one."""
    for name, attribute in (("forkserver", "_forkserver"), ("resource_tracker", "_resource_tracker")):
        module = sys.modules.get(f"multiprocessing.{name}")
        if module is not None:
            getattr(module, attribute)._stop()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test ends with descriptors, threads or children that it did not begin with."""
    _stop_fork_server()  # of tests elsewhere that ran before in this process
    opened, threads, own = open_descriptors(), set(threading.enumerate()), children()
    yield
    _stop_fork_server()
    if not {"capfd", "capfdbinary"} & set(request.fixturenames):  # these open and close descriptors themselves
        assert open_descriptors() <= opened
    # An earlier test's may have ended meanwhile.
    assert set(threading.enumerate()) <= threads
    assert children() <= own
