"""Several nodes with is_host=true: on one machine they join; otherwise each says at once why it cannot host."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from quorate.backends import get_rendezvous_handler
from quorate.clock import sleep
from quorate.errors import UsageError
from quorate.plugins import PluginHost
from quorate.records import NodeRecord
from quorate.rendezvous import RendezvousHandler, RendezvousParameters
from quorate_rendezvous_c10d import _connection, _hosting, _opening, plugin

from .c10d_harness import DEADLINE_SECONDS, Member

#: So long that a test which waited for it would fail by its own deadline.
LONG = 600.0
Open = Callable[..., Any]


def _at(host: str, endpoint: str) -> str:
    return f"{host}:{endpoint.rpartition(':')[2]}"


def test_the_second_joins_with_a_warning(endpoint: str, open_store: Open, capfd: pytest.CaptureFixture[str]) -> None:
    first = open_store(endpoint, is_host=True)
    assert capfd.readouterr().err == ""
    second = open_store(endpoint, is_host=True, connect_timeout=LONG)
    assert (first.is_host, second.is_host) == (True, False)
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    for words in ("quorate: warning: ", endpoint, f"process {os.getpid()} on", "is_host=true on one node only"):
        assert words in warning
    assert first.create("key", b"value")
    assert second.get(["key"]) == [b"value"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1", "localhost"),
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "localhost"),
        ("[::1]", "[::1]"),
        ("[::1]", "127.0.0.1"),
        ("localhost", "[::1]"),
        ("0.0.0.0", "[::1]"),
    ],
)
def test_one_place_by_several_names(endpoint: str, open_store: Open, one: str, other: str) -> None:
    if "[::1]" in (one, other):
        _need_ipv6()
    assert open_store(_at(one, endpoint), is_host=True).is_host
    second = open_store(_at(other, endpoint), is_host=True, connect_timeout=LONG)
    assert not second.is_host
    assert second.add("count", 1) == 1


def _need_ipv6() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_of_many_that_start_together_one_hosts(endpoint: str, open_store: Open) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: open_store(endpoint, is_host=True, connect_timeout=LONG), range(6)))
    assert sum(store.is_host for store in stores) == 1
    assert sorted(store.add("count", 1) for store in stores) == [1, 2, 3, 4, 5, 6]
    for store in sorted(stores, key=lambda store: bool(store.is_host)):
        store.close()


def test_who_connects_does_not_keep_the_one_that_is_about_to_serve(
    endpoint: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port accepts connections as soon as it is listened on, before there is a server to answer them."""
    connecting = threading.Event()

    def connect(*arguments: Any) -> Any:
        connecting.set()
        return _connection.connect(*arguments)

    def look_beside(*arguments: Any) -> None:
        """Between listening and serving: have another thread take the lock, if it can."""
        assert connecting.wait(DEADLINE_SECONDS)
        for _ in range(50):  # nothing tells that a thread does not take it
            if _connection._constructing.locked():
                break
            sleep(0.01)

    monkeypatch.setattr(_hosting, "connect", connect)
    monkeypatch.setattr(_opening, "look_beside", look_beside)
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda _: open_store(endpoint, is_host=True, connect_timeout=LONG), range(2)))
    assert sorted(bool(store.is_host) for store in stores) == [False, True]
    for store in sorted(stores, key=lambda store: bool(store.is_host)):
        store.close()


def test_processes_that_start_together(endpoint: str, member: Callable[..., Member]) -> None:
    members = [member(endpoint, is_host=True) for _ in range(2)]
    assert sorted(one.opened() for one in members) == [False, True]
    assert sorted(one.call("add", "count", 1) for one in members) == [1, 2]


def test_another_jobs_store_is_named_at_once(endpoint: str, open_store: Open) -> None:
    host = open_store(endpoint, run_id="first/job", is_host=True)
    with pytest.raises(UsageError, match=rf"{endpoint}.*process {os.getpid()} on .*'first/job'.*another port"):
        open_store(endpoint, run_id="second", is_host=True, connect_timeout=LONG)
    assert host.get(["key"]) == [None]


def test_a_tcpstore_of_another_program_is_left_alone(endpoint: str, open_store: Open) -> None:
    from torch.distributed import TCPStore

    port = int(endpoint.rpartition(":")[2])
    theirs = TCPStore("127.0.0.1", port, None, True, timedelta(seconds=30), wait_for_workers=False)
    before = theirs.num_keys()
    with pytest.raises(UsageError, match=rf"{endpoint}.*not one that quorate hosts.*another port"):
        open_store(endpoint, is_host=True, connect_timeout=LONG)
    assert theirs.num_keys() == before


def _answer(server: socket.socket, text: bytes) -> None:
    """Serve connections until the listener is shut down."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(DEADLINE_SECONDS)
            with suppress(OSError):  # it was not curious
                if text:
                    connection.recv(1)
                    connection.sendall(text)


@pytest.fixture(params=[b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["web-server", "drops"])
def other_program(request: pytest.FixtureRequest) -> Iterator[str]:
    """A program that is not a TCPStore; gives its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer, args=(server, request.param))
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_SECONDS)


def test_another_program_on_the_port_is_named(other_program: str, open_store: Open) -> None:
    with pytest.raises(UsageError, match=rf"{other_program}.*in use on this node.*not a TCPStore.*another port"):
        open_store(other_program, is_host=True, connect_timeout=LONG)


def test_a_frozen_host_is_named(endpoint: str, open_store: Open, member: Callable[..., Member]) -> None:
    host = member(endpoint, is_host=True)
    assert host.opened()
    host.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, host.process.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(UsageError, match=rf"{endpoint}.*accepts connections and does not answer"):
        open_store(endpoint, is_host=True, connect_timeout=LONG)


def test_after_an_earlier_job_of_the_same_name_the_next_one_hosts(endpoint: str, open_store: Open) -> None:
    """The first job has ended, and its host still serves nodes that read how: a new host must not join it."""
    host = PluginHost(paths=[], extra=[("c10d", plugin)])
    parameters = RendezvousParameters("c10d", endpoint, "job", 1, 2, is_host=True, last_call_timeout=0.1)
    handler = get_rendezvous_handler(parameters, host)
    handler.prepare(NodeRecord("node-0", "trainer", 1, host="host-0"))
    try:
        handler.next_rendezvous()
        handler.report_done()  # type: ignore[attr-defined] # the handler over a store has it
        assert handler.wait_for_change(DEADLINE_SECONDS) is not None
        with pytest.raises(UsageError, match=r"'job', which has ended, is still there"):
            open_store(endpoint, is_host=True, connect_timeout=0.3)
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(open_store, endpoint, is_host=True, connect_timeout=LONG)
            handler.shutdown()
            assert opening.result(DEADLINE_SECONDS).is_host
    finally:
        handler.shutdown()


@contextlib.contextmanager
def _ended_job(endpoint: str, **config: Any) -> Iterator[RendezvousHandler]:
    """A handler of a job of one node that has ended; it is shut down at the end of the block, not before."""
    host = PluginHost(paths=[], extra=[("c10d", plugin)])
    handler = get_rendezvous_handler(
        RendezvousParameters("c10d", endpoint, "job", 1, 2, last_call_timeout=0.1, **config), host
    )
    handler.prepare(NodeRecord("node-0", "trainer", 1, host="host-0"))
    try:
        handler.next_rendezvous()
        handler.report_done()  # type: ignore[attr-defined] # the handler over a store has it
        assert handler.wait_for_change(DEADLINE_SECONDS) is not None
        yield handler
    finally:
        handler.shutdown()


@pytest.mark.parametrize("config", [{}, {"is_host": True}], ids=["any node", "is_host"])
def test_a_handler_that_is_never_shut_down_leaves_the_port_to_the_next_job_of_its_process(
    endpoint: str, open_store: Open, config: dict[str, Any]
) -> None:
    with _ended_job(endpoint, **config):
        store = open_store(endpoint, connect_timeout=LONG, **config)
        assert store.is_host
        assert store.create("key", b"value")


def test_a_node_that_may_host_does_not_join_a_job_that_has_just_ended(endpoint: str, open_store: Open) -> None:
    with ThreadPoolExecutor(1) as pool, _ended_job(endpoint) as handler:
        opening = pool.submit(open_store, endpoint, connect_timeout=LONG)
        handler.shutdown()
        assert opening.result(DEADLINE_SECONDS).is_host


def test_a_node_that_cannot_host_learns_how_the_job_ended(endpoint: str, open_store: Open) -> None:
    with _ended_job(endpoint):
        store = open_store(endpoint, is_host=False, connect_timeout=LONG)
        assert not store.is_host
        store.close()
