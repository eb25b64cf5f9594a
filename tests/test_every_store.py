"""What the faults of a network and the wishes of users do to every store of this repository: lost answers, long times.

Stores that a node hosts are reached through a proxy here, which their own tests of the conformance kit do not need.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from core.tests.memory import MemoryCell, shared_by_run

from quorate import PluginHost
from quorate.catalogue import PluginKind
from quorate.errors import StoreUnavailableError
from quorate.rendezvous import CellStore, RendezvousBackend, RendezvousParameters, Store
from quorate.testing import (
    CuttableProxy,
    FreshPorts,
    ServerProcess,
    StoreConformance,
    Subject,
    Verdict,
    check,
    free_port,
)
from quorate.testing._subject import start
from quorate_rendezvous_etcd import EtcdServer

ROOT = Path(__file__).parent.parent
SECONDS = 30.0
LAW = "lost_answer_is_not_repeated_in_secret"
STORES = ("cell", "file", "redis", "tcp", "c10d", "etcd", "etcd-v2")


class Loses:
    """A server in this process whose answers to writes are lost while the context is open."""

    endpoint = "here"

    def __init__(self, endpoint: str = "here") -> None:
        self.endpoint, self.is_losing = endpoint, False

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        self.is_losing = True
        try:
            yield
        finally:
            self.is_losing = False


def a_cell(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> tuple[RendezvousBackend, Any]:
    server = Loses()

    class Cell(MemoryCell):
        def swap(self, version: str, value: bytes) -> bool:
            answer = super().swap(version, value)
            if server.is_losing:
                raise StoreUnavailableError("the answer was lost")
            return answer

    return RendezvousBackend("cell", "for tests", open_store=shared_by_run(Cell, CellStore)), server


def a_folder(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> tuple[RendezvousBackend, Any]:
    server, replace = Loses(str(folder)), os.replace

    def replace_without_an_answer(source: str, target: str) -> None:  # as on NFS, where the server's reply is lost
        replace(source, target)
        if server.is_losing and str(folder) in target:
            raise OSError(5, "Input/output error")

    patch.setattr(os, "replace", replace_without_an_answer)
    return example("file", patch), server


def example(name: str, patch: pytest.MonkeyPatch) -> RendezvousBackend:
    patch.syspath_prepend(ROOT / f"docs/examples/rendezvous_{name}/src")
    module = __import__(f"quorate_rendezvous_{name}")  # only an example, which is not installed
    (backend,) = module.plugin.quorate_register_rendezvous()
    return backend


def a_redis(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> tuple[RendezvousBackend, Any]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = f"redis-server --port {port} --bind 127.0.0.1 --dir {folder} --save '' --appendonly no".replace("'", "")
    return example("redis", patch), stack.enter_context(ServerProcess(command.split(), port))


class Hosted:
    """Opens stores that a node hosts: the first one of a job hosts it, all others come through a proxy."""

    endpoint = "proxies"

    def __init__(self, backend: RendezvousBackend, stack: ExitStack) -> None:
        assert backend.open_store is not None
        self._open, self._stack = backend.open_store, stack
        self._proxies: dict[str, CuttableProxy] = {}

    def open_store(self, asked: RendezvousParameters) -> Store:
        if asked.run_id not in self._proxies:
            endpoint = f"127.0.0.1:{free_port()}"
            self._stack.callback(self._open(self._parameters(asked, endpoint, True)).close)
            self._proxies[asked.run_id] = self._stack.enter_context(CuttableProxy(endpoint))
        return self._open(self._parameters(asked, self._proxies[asked.run_id].endpoint, False))

    @staticmethod
    def _parameters(asked: RendezvousParameters, endpoint: str, is_host: bool) -> RendezvousParameters:
        settings = {**asked.config, "is_host": is_host, "linger_timeout": 0.0}
        return RendezvousParameters(asked.backend, endpoint, asked.run_id, 1, 8, "127.0.0.1", **settings)

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        with ExitStack() as stack:
            for proxy in self._proxies.values():
                stack.enter_context(proxy.losing_answers())
            yield


def a_host(name: str) -> Callable[[ExitStack, Path, pytest.MonkeyPatch], tuple[RendezvousBackend, Any]]:
    def make(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> tuple[RendezvousBackend, Any]:
        server = Hosted(installed(name), stack)
        return RendezvousBackend(name, "hosted", open_store=server.open_store), server

    return make


def installed(name: str) -> RendezvousBackend:
    backend: RendezvousBackend = PluginHost().choose(PluginKind.RENDEZVOUS, name)
    return backend


def an_etcd(name: str) -> Callable[[ExitStack, Path, pytest.MonkeyPatch], tuple[RendezvousBackend, Any]]:
    def make(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> tuple[RendezvousBackend, Any]:
        etcd = stack.enter_context(EtcdServer(enable_v2=name == "etcd-v2"))
        return installed(name), stack.enter_context(CuttableProxy(etcd.get_endpoint()))

    return make


MAKERS = {
    "cell": a_cell,
    "file": a_folder,
    "redis": a_redis,
    "tcp": a_host("tcp"),
    "c10d": a_host("c10d"),
    "etcd": an_etcd("etcd"),
    "etcd-v2": an_etcd("etcd-v2"),
}


@pytest.fixture(params=STORES)
def subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    with ExitStack() as stack:
        backend, server = MAKERS[request.param](stack, tmp_path, monkeypatch)
        with Subject(backend, server, lenient=True, timeout=SECONDS) as made:
            yield made


def test_an_add_whose_answer_was_lost_is_not_repeated_in_secret(subject: Subject) -> None:
    (outcome,) = check(subject, [LAW])
    assert (outcome.verdict, outcome.text) == (Verdict.KEPT, "")


class Repeats:
    """A store whose client tries again in secret, as many libraries do unless they are told not to."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def add(self, key: str, amount: int) -> int:
        try:
            return self._store.add(key, amount)
        except StoreUnavailableError:
            return self._store.add(key, amount)


@pytest.mark.parametrize("name", ["tcp", "redis"])
def test_a_client_that_tries_again_in_secret_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        backend, server = MAKERS[name](stack, tmp_path, monkeypatch)
        opener = backend.open_store
        assert opener is not None
        mutant = RendezvousBackend(name, "repeats", open_store=lambda asked: cast("Store", Repeats(opener(asked))))
        with Subject(mutant, server, lenient=True, timeout=SECONDS) as subject:
            (outcome,) = check(subject, [LAW])
    assert outcome.verdict is Verdict.BROKEN
    assert "has raised the counter by 2" in outcome.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", STORES)
def test_the_longest_times_that_can_be_asked_for_are_as_good_as_for_ever(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("connect_timeout", "operation_timeout", "close_timeout", "join_timeout", "store_outage_timeout")
    settings = dict.fromkeys(names, 1e300)
    with ExitStack() as stack:
        # torch holds the interpreter's lock during some calls, so that no proxy of this process can pass them on.
        is_hosted = name in ("tcp", "c10d")
        made = (installed(name), FreshPorts()) if is_hosted else MAKERS[name](stack, tmp_path, monkeypatch)
        job = stack.enter_context(Subject(*made, lenient=True, timeout=SECONDS)).job()
        waiter, writer = job.open(**settings), job.open(**settings)
        waiting = start(waiter.wait, "key", 1e300)
        assert writer.create("key", b"value")
        assert waiting.result(SECONDS) == b"value"
        assert waiter.get(["key"]) == [b"value"]


def test_every_store_of_the_repository_is_here() -> None:
    backends = PluginHost().catalogue(PluginKind.RENDEZVOUS)
    offered = {name for name, backend in backends.items() if backend.open_store is not None}
    examples = {path.name.removeprefix("rendezvous_") for path in (ROOT / "docs/examples").glob("rendezvous_*")}
    others = {"static": "tcp with fixed ranks", "etcd-hosted": "etcd, which nodes of the job serve"}
    assert offered | examples <= {*STORES, *others}
    assert f"test_{LAW}" in dir(StoreConformance)
