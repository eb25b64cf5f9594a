"""The three backends as a job meets them: chosen by name, checked early, and run by the core's own protocol."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from quorate.backends import get_rendezvous_handler
from quorate.errors import RendezvousClosedError, RendezvousStateError, StoreUnavailableError, UsageError
from quorate.net import resolve
from quorate.plugins import PluginHost
from quorate.records import Cause, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import RendezvousBackend, RendezvousHandler, RendezvousParameters
from quorate_rendezvous_static import TcpStore, plugin

LONG = 30.0


def backend(name: str) -> RendezvousBackend:
    return {found.name: found for found in plugin.quorate_register_rendezvous()}[name]


def parameters(name: str, endpoint: str, nodes: str = "2", **config: Any) -> RendezvousParameters:
    low, _, high = nodes.partition(":")
    run_id = config.pop("run_id", "job")
    return RendezvousParameters(name, endpoint, run_id, int(low), int(high or low), "127.0.0.1", **config)


def open_store(name: str, endpoint: str, nodes: str = "2", **config: Any) -> TcpStore:
    opener = backend(name).open_store
    assert opener is not None
    store = opener(parameters(name, endpoint, nodes, **{"connect_timeout": 5, "linger_timeout": 0, **config}))
    assert isinstance(store, TcpStore)
    return store


@pytest.fixture
def plugins() -> PluginHost:
    return PluginHost(paths=[], extra=[("static", plugin)])


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("static", "host:1", "1:2"), "--nnodes=1:2"),
        (("static", "host:1"), "--node-rank"),
        (("static", "host:1", "2", {"rank": 2}), "node rank 2 does not exist"),
        (("static", "host:1", "2", {"rank": -1}), "0 to 1"),
        (("static", "host:1", "2", {"rank": "first"}), "rank='first'"),
        (("static", "", "1"), "endpoint is empty"),
        (("static", "host", "1"), "no port"),
        (("static", "host:0", "1"), "no port"),
        (("static", "host:65536", "1"), "no port"),
        (("static", "host:http", "1"), "no port"),
        (("static", ":29400", "1"), "no host"),
        (("static", "::1:29400", "1"), "brackets"),
        (("static", "[::1:29400", "1"), "brackets"),
        (("static", "[::1]29400", "1"), "brackets"),
        (("static", "host:1", "1", {"connect_timeout": "soon"}), "connect_timeout"),
        (("static", "host:1", "1", {"operation_timeout": 0}), "operation_timeout"),
        (("static", "host:1", "1", {"is_host": "maybe"}), "is_host"),
        (("tcp", "", "1:4"), "endpoint is empty"),
        (("standalone", "", "2"), "--nnodes=2:2"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_opened(plugins: PluginHost, values: Any, named: str) -> None:
    name, endpoint, *rest = values
    config = rest.pop() if len(rest) == 2 else {}
    with pytest.raises(UsageError, match=named):
        get_rendezvous_handler(parameters(name, endpoint, *rest, **config), plugins)


# --- who hosts ------------------------------------------------------------------------------------------------------


def test_node_rank_0_hosts_and_the_others_join(free_port: int) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    host = open_store("static", endpoint, rank=0)
    client = open_store("static", endpoint, rank="1")
    assert host.server is not None
    assert host.server.addresses == [endpoint]
    assert client.server is None
    host.put("key", b"value")
    assert client.wait("key", LONG) == b"value"
    client.close()
    host.close()


def test_only_the_endpoints_own_address_is_listened_on(free_port: int) -> None:
    host = open_store("static", f"127.0.0.2:{free_port}", "1")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port), LONG)
    host.close()


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "localhost"])
def test_another_address_to_listen_on_can_be_given(free_port: int, bound: str) -> None:
    # 192.0.2.1 is reserved for examples: no machine has it, as with an address that is forwarded to this one.
    host = open_store("static", f"192.0.2.1:{free_port}", "1", bind_address=bound)
    client = open_store("static", f"127.0.0.1:{free_port}", "2", rank=1)
    assert client.create("key", b"")
    client.close()
    host.close()


def test_an_ipv6_endpoint(free_port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    host = open_store("static", f"[::1]:{free_port}", rank=0)
    client = open_store("static", f"[::1]:{free_port}", rank=1)
    assert client.endpoint == f"[::1]:{free_port}"
    assert client.create("key", b"")
    client.close()
    host.close()


def test_this_machines_own_name_is_reachable_from_others(free_port: int) -> None:
    name = socket.gethostname()
    try:
        addresses = {address.sockaddr[0] for address in resolve(name, 1, LONG)}
    except OSError:
        pytest.skip("this machine does not know its own name")
    host = open_store("static", f"{name}:{free_port}", "1")
    assert host.server is not None
    if all(str(address).startswith("127.") for address in addresses):
        assert f"0.0.0.0:{free_port}" in host.server.addresses
    host.close()


def test_a_host_that_must_listen_elsewhere_says_so(free_port: int) -> None:
    with pytest.raises(UsageError, match=rf"192.0.2.1:{free_port}.*not an address of this machine.*--master-addr"):
        open_store("static", f"192.0.2.1:{free_port}", "1")


def test_a_port_that_another_program_has_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=rf"127.0.0.1:{port}.*another program listens.*--master-port"):
            open_store("static", f"127.0.0.1:{port}", "1", connect_timeout=0.2)


def test_a_node_that_only_joins_gives_up_in_time(free_port: int) -> None:
    for name, config in (("static", {"rank": 1}), ("tcp", {"is_host": "false"})):
        with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{free_port}"):
            open_store(name, f"127.0.0.1:{free_port}", connect_timeout=0.2, **config)


def test_tcp_the_first_one_hosts(free_port: int, in_thread: Any) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    opening = [in_thread(lambda: open_store("tcp", endpoint, "1:8")) for _ in range(6)]
    stores = [part.result() for part in opening]
    assert sum(store.server is not None for store in stores) == 1
    assert sorted(store.add("n", 1) for store in stores) == [1, 2, 3, 4, 5, 6]
    for store in sorted(stores, key=lambda store: store.server is not None):
        store.close()


def test_tcp_another_job_on_the_endpoint_is_not_joined(free_port: int) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    host = open_store("tcp", endpoint, "1:8", run_id="first")
    with pytest.raises(RendezvousStateError, match="another job"):
        open_store("tcp", endpoint, "1:8", run_id="second", connect_timeout=0.2)
    host.close()


# --- several with is_host=true ---------------------------------------------------------------------------------------


def test_tcp_the_second_host_joins_with_a_warning(free_port: int, capfd: pytest.CaptureFixture[str]) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    first = open_store("tcp", endpoint, is_host=True)
    assert capfd.readouterr().err == ""
    second = open_store("tcp", endpoint, is_host=True, connect_timeout=600)
    warning = capfd.readouterr().err
    assert warning.startswith("quorate: warning: ")
    assert endpoint in warning
    assert "is_host=true on one node only" in warning
    assert (first.server is None, second.server is None) == (False, True)
    assert first.create("key", b"value")
    assert second.get(["key"]) == [b"value"]
    second.close()
    first.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1", "localhost"),
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "localhost"),
        ("[::1]", "127.0.0.1"),
        ("localhost", "[::1]"),
        ("0.0.0.0", "[::1]"),
    ],
)
def test_tcp_one_place_by_several_names(free_port: int, one: str, other: str) -> None:
    if "[::1]" in (one, other):
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    first = open_store("tcp", f"{one}:{free_port}", is_host=True)
    second = open_store("tcp", f"{other}:{free_port}", is_host=True, connect_timeout=600)
    assert second.server is None
    assert second.add("count", 1) == 1
    second.close()
    first.close()


def test_tcp_of_many_hosts_that_start_together_one_hosts(free_port: int, in_thread: Any) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    opening = [in_thread(lambda: open_store("tcp", endpoint, is_host=True, connect_timeout=600)) for _ in range(6)]
    stores = [part.result() for part in opening]
    assert sum(store.server is not None for store in stores) == 1
    assert sorted(store.add("n", 1) for store in stores) == [1, 2, 3, 4, 5, 6]
    for store in sorted(stores, key=lambda store: store.server is not None):
        store.close()


def test_tcp_a_host_that_meets_another_job_says_so_at_once(free_port: int) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    host = open_store("tcp", endpoint, run_id="first")
    with pytest.raises(UsageError, match=rf"must host.*{endpoint}.*another job.*--rdzv-endpoint"):
        open_store("tcp", endpoint, run_id="second", is_host=True, connect_timeout=600)
    host.close()


def test_tcp_a_host_that_meets_silence_says_so_at_once() -> None:
    # As with a frozen process: the kernel accepts connections for it, and no answer comes.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UsageError, match=rf"must host.*{endpoint}.*another program listens.*--rdzv-endpoint"):
            open_store("tcp", endpoint, is_host=True, connect_timeout=600)


def test_tcp_a_host_elsewhere_says_so_at_once() -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1:29400.*not an address of this machine.*is_host"):
        open_store("tcp", "192.0.2.1:29400", is_host=True, connect_timeout=600)


def test_tcp_after_an_earlier_job_of_the_same_name_the_next_one_hosts(
    plugins: PluginHost, free_port: int, in_thread: Any
) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    with job(plugins, "tcp", endpoint, "1:2", [None], is_host=True) as (handler,):
        handler.next_rendezvous()
        handler.report_done()  # type: ignore[attr-defined] # the handler over a store has it
        assert handler.wait_for_change(LONG) is not None
        with pytest.raises(UsageError, match=r"'job', which has ended, is still there"):
            open_store("tcp", endpoint, "1:2", is_host=True, connect_timeout=0.3)
        opening = in_thread(lambda: open_store("tcp", endpoint, "1:2", is_host=True, connect_timeout=600))
        handler.shutdown()
        store = opening.result()
        assert store.server is not None
        store.close()


@pytest.mark.parametrize("config", [{}, {"is_host": True}], ids=["any node", "is_host"])
def test_tcp_a_handler_that_is_never_shut_down_leaves_the_port_to_the_next_job_of_its_process(
    plugins: PluginHost, free_port: int, config: dict[str, Any]
) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    with job(plugins, "tcp", endpoint, "1:2", [None], linger_timeout=0.5, **config) as (handler,):
        handler.next_rendezvous()
        handler.report_done()
        assert handler.wait_for_change(LONG) is not None
        store = open_store("tcp", endpoint, "1:2", connect_timeout=600, linger_timeout=0.5, **config)
        assert store.server is not None
        assert store.create("key", b"value")
        store.close()


def test_tcp_a_node_that_may_host_does_not_join_a_job_that_has_just_ended(
    plugins: PluginHost, free_port: int, in_thread: Any
) -> None:
    endpoint = f"127.0.0.1:{free_port}"
    with job(plugins, "tcp", endpoint, "1:2", [None]) as (handler,):
        handler.next_rendezvous()
        handler.report_done()
        assert handler.wait_for_change(LONG) is not None
        opening = in_thread(lambda: open_store("tcp", endpoint, "1:2", connect_timeout=600, linger_timeout=LONG))
        handler.shutdown()
        store = opening.result()
        assert store.server is not None
        store.close()


# --- whole jobs -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def job(
    plugins: PluginHost, name: str, endpoint: str, nodes: str, ranks: list[int | None], **config: Any
) -> Iterator[list[RendezvousHandler]]:
    """One handler for each of ``ranks``, as on as many machines; shut down together at the end."""
    handlers = []
    for index, rank in enumerate(ranks):
        own = {} if rank is None else {"rank": rank}
        values = {"last_call_timeout": 0.3, "connect_timeout": 5, "join_timeout": LONG, **own, **config}
        handlers.append(get_rendezvous_handler(parameters(name, endpoint, nodes, **values), plugins))
        handlers[-1].prepare(NodeRecord(f"node-{index}", "trainer", index + 1, host=f"host-{index}", rank_hint=rank))
    try:
        yield handlers
    finally:
        threads = [threading.Thread(target=handler.shutdown) for handler in handlers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)


def test_static_fixed_ranks_and_unequal_nodes(plugins: PluginHost, free_port: int, in_thread: Any) -> None:
    with job(plugins, "static", f"127.0.0.1:{free_port}", "3", [2, 0, 1]) as handlers:
        infos = [part.result() for part in [in_thread(handler.next_rendezvous) for handler in handlers]]
        assert [info.rank for info in infos] == [2, 0, 1]
        assert [info.assignment.first_rank for info in infos] == [5, 0, 2]
        assert {info.assignment.world_size for info in infos} == {6}
        handlers[0].end_round(RoundEnd(1, Cause.EXCEPTION, Verdict.FAILED, "node 2 failed", "node-0"))
        for handler in handlers:
            ended = handler.wait_for_change(LONG)
            assert ended is not None
            assert (ended.verdict, ended.reason) == (Verdict.FAILED, "node 2 failed")


@pytest.mark.parametrize("ranks", [[0, 1, 1], [0, 0, 1]])
def test_static_a_node_rank_claimed_twice_is_named(
    plugins: PluginHost, free_port: int, in_thread: Any, ranks: list[int | None]
) -> None:
    with job(plugins, "static", f"127.0.0.1:{free_port}", "3", ranks) as handlers:
        joining = [in_thread(handler.next_rendezvous) for handler in handlers]
        for part in joining:
            with pytest.raises((RendezvousStateError, RendezvousClosedError), match="claimed twice"):
                part.result()


def test_tcp_an_elastic_job_without_torch(plugins: PluginHost, free_port: int, in_thread: Any) -> None:
    with job(plugins, "tcp", f"127.0.0.1:{free_port}", "1:4", [None, None]) as handlers:
        infos = [part.result() for part in [in_thread(handler.next_rendezvous) for handler in handlers]]
        assert sorted(info.rank for info in infos) == [0, 1]
        assert {info.world_size for info in infos} == {2}
        for handler in handlers:
            handler.report_done()
        for handler in handlers:
            ended = handler.wait_for_change(LONG)
            assert ended is not None
            assert ended.verdict is Verdict.SUCCEEDED


NO_TORCH = """
import sys
import quorate_rendezvous_static
from quorate.backends import get_rendezvous_handler
from quorate.catalogue import PluginKind
from quorate.plugins import PluginHost
from quorate.rendezvous import RendezvousParameters
plugins = PluginHost(paths=[], extra=[("static", quorate_rendezvous_static.plugin)])
names = sorted(plugins.catalogue(PluginKind.RENDEZVOUS))
handler = get_rendezvous_handler(RendezvousParameters("standalone", "", "job", 1, 1), plugins)
handler.next_rendezvous()
handler.shutdown()
store = quorate_rendezvous_static.TcpStoreServer("127.0.0.1", 0, "job")
client = quorate_rendezvous_static.TcpStore("127.0.0.1", store.port, "job", server=store)
client.put("key", b"")
client.close()
heavy = {"torch", "numpy", "grpc", "asyncio", "subprocess", "multiprocessing", "pickle"} & set(sys.modules)
print(names, sorted(heavy), flush=True)
sys.stdin.read()
"""


def test_neither_torch_nor_anything_heavy_is_imported(start_process: Any) -> None:
    names = ["standalone", "static", "tcp"]
    assert start_process(NO_TORCH).read_line() == f"{names} []"
