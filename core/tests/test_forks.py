"""Forks wait for threads that hold locks which no child could release."""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from quorate import forks, net
from quorate.clock import monotonic
from quorate.forks import no_fork
from quorate.testing import settles

SECONDS = 60.0
#: Within this time after a thread was seen to be busy, a fork that does not wait for it is made.
SHORT_SECONDS = 0.3


def fork(in_child: Callable[[], object] = lambda: None) -> None:
    """Fork a child, and wait for its good end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            in_child()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def busy_thread(act: Callable[[threading.Event], object]) -> Iterator[threading.Event]:
    """Run ``act`` on a thread, and yield the event that ends it once it is busy."""
    ends = threading.Event()
    thread = threading.Thread(target=act, args=(ends,))
    thread.start()
    try:
        assert settles(lambda: thread.ident in [busy for busy, _ in forks._busy], SECONDS)
        yield ends
    finally:
        ends.set()
        thread.join()


@contextmanager
def set_soon(event: threading.Event) -> Iterator[None]:
    """Set ``event`` a moment later."""
    timer = threading.Timer(SHORT_SECONDS, event.set)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def hold(ends: threading.Event) -> None:
    with no_fork(SECONDS):
        ends.wait()


def enter_and_leave() -> None:
    with no_fork():
        pass


def test_a_fork_waits_for_another_thread() -> None:
    with busy_thread(hold) as ends, set_soon(ends):
        fork(enter_and_leave)
        assert ends.is_set()


def test_a_fork_does_not_wait_for_longer_than_a_thread_allows() -> None:
    def hold_briefly(ends: threading.Event) -> None:
        with no_fork(SHORT_SECONDS):
            ends.wait()

    with busy_thread(hold_briefly) as ends:
        fork()
        assert not ends.is_set()


def test_a_fork_does_not_wait_for_its_own_thread() -> None:
    """A handler of a signal may fork in the midst of anything."""
    started = monotonic()
    with no_fork(SECONDS):
        fork()
    assert monotonic() - started < SECONDS


def test_a_lookup_keeps_forks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library's resolver locks itself for moments: of 300 children that were forked beside lookups three hung."""
    look_up = socket.getaddrinfo

    def resolve(ends: threading.Event) -> None:
        def look_up_slowly(*arguments: Any, **options: Any) -> Any:
            ends.wait()
            return look_up(*arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up_slowly)
        net.resolve("127.0.0.1", 80, SECONDS)

    monkeypatch.setattr(net, "_LOCKED_SECONDS", SECONDS)
    with busy_thread(resolve) as ends, set_soon(ends):
        fork()
        assert ends.is_set()
