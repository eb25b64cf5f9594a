"""Children that are forked while the store is at work come to a good end, though they inherit gRPC in mid-flight."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quorate_rendezvous_etcd import _fork


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


def test_two_agents_of_one_process_load_grpc_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the variable unset, and the one that was done later fell over the other's cleaning up."""
    both_are_loading = threading.Barrier(2, timeout=30)
    first_is_done = threading.Event()

    def slowly(name: str) -> ModuleType:
        both_are_loading.wait()
        if threading.current_thread().name == "second":
            assert first_is_done.wait(30)
        return import_module(name)

    class Unset(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            return False

    environment = Unset()
    monkeypatch.setattr(_fork, "import_module", slowly)
    monkeypatch.setattr(_fork, "os", SimpleNamespace(environ=environment))
    with ThreadPoolExecutor(2) as pool:

        def load(name: str) -> ModuleType:
            threading.current_thread().name = name
            loaded: ModuleType = _fork.load_grpc()
            first_is_done.set()
            return loaded

        loads = [pool.submit(load, name) for name in ("first", "second")]
        assert {load.result(60).__name__ for load in loads} == {"grpc"}
    assert not environment


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
