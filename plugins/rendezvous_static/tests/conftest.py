"""What the tests share: stores that are closed again, real processes to talk to, and a check that nothing leaks."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quorate import testing
from quorate.testing import open_descriptors
from quorate_rendezvous_static import TcpStore, TcpStoreServer

DEADLINE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a thread or a descriptor behind."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), f"{thread.name} is left"
    assert open_descriptors() <= descriptors


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "server(**arguments): what the fixture ``server`` gives to TcpStoreServer")


@pytest.fixture
def server(nothing_left: None, request: pytest.FixtureRequest) -> Iterator[TcpStoreServer]:
    """A server of the job ``job`` on a free port of 127.0.0.1; see the mark ``server``."""
    mark = request.node.get_closest_marker("server")
    made = TcpStoreServer("127.0.0.1", 0, "job", **(mark.kwargs if mark is not None else {}))
    yield made
    made.close(0.0)


Connect = Callable[..., TcpStore]


@pytest.fixture
def connect(server: TcpStoreServer) -> Iterator[Connect]:
    """``connect(**changes)`` → a client of ``server``."""
    stores: list[TcpStore] = []

    def make(**changes: Any) -> TcpStore:
        values: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "run_id": "job", **changes}
        stores.append(TcpStore(values.pop("host"), values.pop("port"), values.pop("run_id"), **values))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


class Child:
    """A Python process that runs ``code``; it talks in lines, and ends when its standard input is closed."""

    def __init__(self, code: str, *arguments: object) -> None:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._held = b""

    def read_line(self) -> str:
        """Return the next line it prints."""
        assert self.process.stdout is not None
        end = time.monotonic() + DEADLINE_SECONDS
        while b"\n" not in self._held:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no line within {DEADLINE_SECONDS} s; so far {self._held!r}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended after {self._held!r}"
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line.decode()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


StartProcess = Callable[..., Child]


@pytest.fixture
def start_process(nothing_left: None) -> Iterator[StartProcess]:
    """``start_process(code, *arguments)`` → Child."""
    children: list[Child] = []

    def make(code: str, *arguments: object) -> Child:
        children.append(Child(code, *arguments))
        return children[-1]

    yield make
    for child in children:
        child.close()


SERVER = """
import sys
from quorate_rendezvous_static import TcpStoreServer
server = TcpStoreServer("127.0.0.1", int(sys.argv[1]), "job")
print(server.port, flush=True)
sys.stdin.read()
server.close(0.0)
"""


@pytest.fixture
def start_server(start_process: StartProcess) -> Callable[..., tuple[Child, int]]:
    """``start_server()`` → a process that hosts a server, and the server's port."""

    def start(port: int = 0) -> tuple[Child, int]:
        child = start_process(SERVER, port)
        return child, int(child.read_line())

    return start


@pytest.fixture
def free_port() -> int:
    """A port without a listener, which the system gives to no connection."""
    return testing.free_port()


class InThread:
    """Runs a function on a thread; :meth:`result` hands out what it returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._outcome: list[tuple[bool, Any]] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append((True, self._function()))
        except BaseException as error:
            self._outcome.append((False, error))

    @property
    def is_running(self) -> bool:
        return not self._outcome

    def result(self) -> Any:
        self._thread.join(DEADLINE_SECONDS)
        assert self._outcome, f"no result within {DEADLINE_SECONDS} s"
        good, value = self._outcome[0]
        if not good:
            raise value
        return value


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], InThread]:
    """``in_thread(function)`` → InThread."""
    return InThread
