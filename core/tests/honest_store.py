"""A server and a store that keep every law, from which the mutants are made.  No tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quorate.clock import monotonic
from quorate.errors import StoreUnavailableError
from quorate.rendezvous import RendezvousParameters

# --- a correct store, to be spoilt ----------------------------------------------------------------------------------


class FakeServer:
    """Holds every job's values; can be away, and can forget."""

    endpoint = "127.0.0.1:1"

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, bytes]] = {}
        self.changed = threading.Condition()
        self.is_away = self.loses_answers = False
        self.restarts = 0

    @contextmanager
    def partition(self) -> Iterator[None]:
        with self.changed:
            self.is_away = True
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.is_away = False
                self.changed.notify_all()

    pause = partition

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        with self.changed:
            self.loses_answers = True
        try:
            yield
        finally:
            with self.changed:
                self.loses_answers = False

    def restart(self) -> None:
        with self.changed:
            self.restarts += 1
            self.changed.notify_all()


class Honest:
    """A store that keeps every law.  Mutants override what they spoil."""

    def __init__(self, server: FakeServer, parameters: RendezvousParameters) -> None:
        self.server, self.parameters = server, parameters
        self.changed = server.changed
        self.values = server.jobs.setdefault(self.job_of(parameters), {})
        self.interrupted = self.closed = False

    def job_of(self, parameters: RendezvousParameters) -> str:
        return parameters.run_id

    def reach(self) -> None:
        """Ask the server; called with the lock held."""
        if self.server.is_away:
            raise StoreUnavailableError("the server is away")

    def create(self, key: str, value: bytes) -> bool:
        with self.changed:
            self.reach()
            if key in self.values:
                return False
            self.write(key, value)
            return True

    def put(self, key: str, value: bytes) -> None:
        with self.changed:
            self.reach()
            self.write(key, value)

    def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        for key, value in items:
            self.put(key, value)

    def write(self, key: str, value: bytes) -> None:
        self.values[key] = value
        self.changed.notify_all()

    def add(self, key: str, amount: int) -> int:
        with self.changed:
            self.reach()
            count = int(self.values.get(key, b"0")) + amount
            if amount:
                self.write(key, b"%d" % count)
            if self.server.loses_answers:
                raise StoreUnavailableError("the answer was lost")
            return count

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        with self.changed:
            self.reach()
            return [self.values.get(key) for key in keys]

    def wait(self, key: str, timeout: float) -> bytes | None:
        deadline = monotonic() + timeout
        with self.changed:
            while key not in self.values or self.server.is_away:
                left = deadline - monotonic()
                if left <= 0 or self.interrupted or self.closed:
                    self.interrupted = False
                    return None
                self.changed.wait(left)
            return self.values[key]

    def interrupt(self) -> None:
        with self.changed:
            self.interrupted = True
            self.changed.notify_all()

    def delete(self, prefix: str) -> None:
        with self.changed:
            self.reach()
            for key in [key for key in self.values if key.startswith(prefix)]:
                del self.values[key]

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
