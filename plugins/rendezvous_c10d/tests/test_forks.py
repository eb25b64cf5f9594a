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

from quorate import forks
from quorate.clock import monotonic
from quorate.net import parse_endpoint
from quorate.testing import settles
from quorate_rendezvous_c10d import _guarded_store
from quorate_rendezvous_c10d._connection import connect

from .c10d_harness import DEADLINE_SECONDS, HERE

AGENTS = 5
#: Within this time after a thread was seen to be busy, a fork that does not wait for it is made.
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


def fork_while_busy(act: Callable[[], object], end: Callable[[], object]) -> None:
    """Fork while a thread is in ``act``, which ``end`` ends a moment later; fail unless the fork has waited for it."""
    thread, ender = threading.Thread(target=act), threading.Timer(SHORT_SECONDS, end)

    def is_busy() -> bool:
        return thread.ident in [busy for busy, _ in forks._busy]

    thread.start()
    try:
        assert settles(is_busy, DEADLINE_SECONDS)
        ender.start()
        pid = fork()
        if pid == 0:
            os._exit(0)
        has_waited = not is_busy()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert has_waited
    finally:
        ender.join()
        thread.join()


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
        return os.fork()


def test_a_fork_waits_until_a_connection_is_made() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]

        def try_to_connect() -> None:
            with suppress(RuntimeError):
                connect("127.0.0.1", port, monotonic() + DEADLINE_SECONDS, DEADLINE_SECONDS)

        fork_while_busy(try_to_connect, silent.close)  # with it the kernel closes what was not accepted


def test_a_fork_waits_for_the_first_call_of_a_method(
    endpoint: str, open_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(endpoint)
    where = parse_endpoint(store.endpoint)
    connection = connect(where.host, where.port, monotonic() + DEADLINE_SECONDS, DEADLINE_SECONDS)
    monkeypatch.setattr(_guarded_store, "_called", {"put"})  # other tests of this process have called the rest
    try:
        # It is answered once the key is there.
        fork_while_busy(lambda: connection.store.get("later"), lambda: store._work.store.set("later", "value"))
        assert connection.store.has_called("get")
    finally:
        connection.close()
