"""Stores that live in this process, opened by run id as a real backend opens them.  No tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from quorate.rendezvous import RendezvousParameters, Store

_T = TypeVar("_T")


class MemoryCell:
    """A compare-and-swap cell shared by the threads of this process."""

    def __init__(self) -> None:
        self.value, self.number, self.changed = b"", 0, threading.Condition()

    def read(self) -> tuple[bytes, str]:
        with self.changed:
            return self.value, str(self.number)

    def swap(self, version: str, value: bytes) -> bool:
        with self.changed:
            if version != str(self.number):
                return False
            self.value, self.number = value, self.number + 1
            self.changed.notify_all()
            return True

    def wait_for_change(self, version: str, timeout: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: str(self.number) != version, timeout)

    def close(self) -> None:
        pass


def shared_by_run(make: Callable[[], _T], open_one: Callable[[_T], Store]) -> Callable[[RendezvousParameters], Store]:
    """Return an ``open_store``: what ``make`` returns is made once per run id, and ``open_one`` opens it for a node."""
    shared: dict[str, _T] = {}
    lock = threading.Lock()

    def open_store(parameters: RendezvousParameters) -> Store:
        with lock:
            if parameters.run_id not in shared:
                shared[parameters.run_id] = make()
        return open_one(shared[parameters.run_id])

    return open_store
