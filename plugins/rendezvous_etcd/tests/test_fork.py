"""Children that are forked while the store is at work come to a good end, though they inherit gRPC in mid-flight."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any


def test_forked_children_end_well_while_other_threads_use_the_store(open_store: Callable[..., Any]) -> None:
    """gRPC's own fork handlers crashed 30 of 400 such children; the plugin loads it without them."""
    store = open_store()
    ends = threading.Event()

    def work() -> None:
        while not ends.is_set():
            store.add("counter", 1)

    def wait() -> None:
        while not ends.is_set():
            store.wait("never", 0.2)

    threads = [threading.Thread(target=work), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    try:
        codes = [_fork_once() for _ in range(120)]
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {0}
    assert "GRPC_ENABLE_FORK_SUPPORT" not in os.environ


def _fork_once() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is tested here
        pid = os.fork()
    if pid == 0:
        try:
            sum(range(1000))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
