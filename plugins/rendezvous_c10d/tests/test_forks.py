"""A process may be forked at any moment of its threads' use of a store: no child inherits a lock that nobody releases.

What does not live here: what a child does with its parent's stores (``test_lost``).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from quorate.clock import monotonic
from quorate.net import parse_endpoint
from quorate.testing import settles
from quorate_rendezvous_c10d import _forks
from quorate_rendezvous_c10d._connection import connect

from .c10d_harness import DEADLINE_SECONDS, HERE

AGENTS = 5
#: How long what a thread does takes at least, so that a fork that does not wait is made meanwhile.
SHORT_SECONDS = 0.3


@pytest.mark.slow(reason="a fresh process imports torch, and about half of its agents lose the race without the guard")
def test_a_worker_that_is_forked_as_the_first_wait_begins_can_wait_as_well(endpoint: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "c10d_forker.py"), endpoint, str(AGENTS), str(DEADLINE_SECONDS / AGENTS)],
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_SECONDS,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["ok"] * AGENTS), done.stderr


@pytest.fixture
def fork_once_busy() -> Callable[[Callable[[], object]], None]:
    """``fork_once_busy(act)`` forks while a thread is in ``act``, and fails unless the fork has waited for it."""

    def fork(act: Callable[[], object]) -> None:
        thread = threading.Thread(target=act)
        thread.start()
        try:
            assert settles(lambda: thread.ident in _forks._busy, DEADLINE_SECONDS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
                pid = os.fork()
            if pid == 0:
                with _forks.no_fork():
                    os._exit(0)
            has_waited = thread.ident not in _forks._busy
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert has_waited
        finally:
            thread.join()

    return fork


def test_a_fork_waits_until_a_connection_is_made(fork_once_busy: Callable[[Callable[[], object]], None]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]

        def try_to_connect() -> None:
            with suppress(RuntimeError):  # it is cut off
                connect("127.0.0.1", port, monotonic() + SHORT_SECONDS, 5.0)

        fork_once_busy(try_to_connect)


def test_a_fork_waits_for_the_first_call_of_a_method(
    endpoint: str,
    open_store: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    fork_once_busy: Callable[[Callable[[], object]], None],
) -> None:
    store = open_store(endpoint)
    where = parse_endpoint(store.endpoint)
    connection = connect(where.host, where.port, monotonic() + DEADLINE_SECONDS, DEADLINE_SECONDS)
    monkeypatch.setattr(_forks, "_known", {"set"})  # other tests of this process have called the rest
    setter = threading.Timer(SHORT_SECONDS, store._work.store.set, ("later", "value"))
    setter.start()
    try:
        fork_once_busy(lambda: connection.store.get("later"))  # which is answered once the key is there
        assert _forks.GuardedStore.has_called("get")
    finally:
        setter.join()
        connection.close()


def test_a_fork_does_not_wait_for_its_own_thread() -> None:
    """A handler of a signal may fork in the midst of anything."""
    started = monotonic()
    with _forks.no_fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert monotonic() - started < _forks._LONGEST_SECONDS
