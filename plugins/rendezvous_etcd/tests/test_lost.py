"""When etcd loses members, leaders, its past, or everybody: what the store does, and what a job of two nodes sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quorate import PluginHost, RendezvousHandler, RendezvousParameters, get_rendezvous_handler
from quorate.clock import monotonic
from quorate.errors import StoreLostError, StoreUnavailableError
from quorate.records import Cause, Verdict
from quorate.testing import answered, settles
from quorate_rendezvous_etcd import EtcdServer
from quorate_rendezvous_etcd._settings import Settings
from quorate_rendezvous_etcd._v3.answers import Refused, RefusedError, Trouble, judge

from .etcd_harness import DEADLINE_SECONDS, Admin, InThread

Open = Callable[..., Any]
Start = Callable[..., EtcdServer]


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_dead_etcd_is_unavailable_and_then_there_again(start_etcd: Start, open_store: Open) -> None:
    server = start_etcd()
    store = open_store(endpoint=server.get_endpoint(), operation_timeout=0.5)
    answered(lambda: store.put("key", b"value"))
    server.kill()
    for call in (lambda: store.get(["key"]), lambda: store.create("other", b""), lambda: store.wait("absent", 60.0)):
        with pytest.raises(StoreUnavailableError, match=r"no answer from etcd in time \(127.*refused") as caught:
            call()
        assert not isinstance(caught.value, StoreLostError)
    server.restart()
    assert answered(lambda: store.get(["key"])) == [b"value"]
    assert answered(lambda: store.create("other", b""))


def test_a_frozen_etcd_is_unavailable_and_then_there_again(start_etcd: Start, open_store: Open) -> None:
    server = start_etcd()
    store = open_store(endpoint=server.get_endpoint(), operation_timeout=0.5)
    answered(lambda: store.put("key", b"value"))
    server.pause()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="no answer"):
            store.add("count", 1)
    server.resume()
    assert answered(lambda: store.get(["key"])) == [b"value"]
    assert answered(lambda: store.add("count", 1)) == 1, "what was asked for thrice has happened once"


def test_closing_does_not_wait_for_a_dead_etcd(start_etcd: Start, open_store: Open) -> None:
    server = start_etcd()
    store = open_store(endpoint=server.get_endpoint())
    server.pause()
    InThread(store.close).result(8.0)
    server.resume()


def test_the_loss_of_the_member_that_is_talked_to(start_etcd: Start, open_store: Open) -> None:
    """Killed or frozen: another one is asked, and no wait is lost."""
    server = start_etcd(members=3)
    endpoints = server.get_endpoint().split(",")
    store, other = (open_store(endpoint=server.get_endpoint(), operation_timeout=20) for _ in range(2))
    for number, (harm, mend) in enumerate(((server.kill, server.restart), (server.pause, server.resume))):
        waiting = InThread(store.wait, f"awaited/{number}", 3600.0)
        assert settles(lambda: bool(store._client._watching))
        victim = endpoints.index(store._client._connect().endpoint)
        harm(victim)
        assert [store.add("count", 1), other.add("count", 1)] == [2 * number + 1, 2 * number + 2]
        other.put(f"awaited/{number}", b"come")
        assert waiting.result() == b"come"
        mend(victim)
        server.leader()


def test_counting_goes_on_while_leaders_die(start_etcd: Start, open_store: Open) -> None:
    server = start_etcd(members=3)
    stores = [open_store(endpoint=server.get_endpoint(), operation_timeout=30) for _ in range(3)]
    threads = [InThread(lambda store=store: [store.add("count", 1) for _ in range(150)]) for store in stores]
    for _ in range(2):
        victim = server.leader()
        server.kill(victim)
        server.leader()
        server.restart(victim)
    counts = [number for thread in threads for number in thread.result()]
    assert sorted(counts) == list(range(1, 451))


def test_compaction_does_not_end_a_wait(start_etcd: Start, open_store: Open, admin: Callable[..., Admin]) -> None:
    server = start_etcd()
    operator = admin(server)
    store, other = (open_store(endpoint=server.get_endpoint()) for _ in range(2))
    waiting = InThread(store.wait, "key", 3600.0)
    assert settles(lambda: bool(store._client._watching))
    other.put_many([(f"noise/{number}", b"") for number in range(200)])
    operator.compact()
    # The watch has to begin anew, at a revision that is gone.
    server.kill()
    server.restart()
    other.put("key", b"value")
    assert waiting.result() == b"value"


def test_a_key_that_is_written_between_the_reading_and_the_watch_is_found(
    start_etcd: Start, open_store: Open, admin: Callable[..., Admin], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_etcd()
    operator = admin(server)
    store, other = (open_store(endpoint=server.get_endpoint()) for _ in range(2))
    begin_watch = store._client.begin_watch

    def begin_late() -> Any:
        """The key is written, and etcd forgets that it was."""
        other.put("key", b"value")
        other.put("noise", b"")
        operator.compact()
        return begin_watch()

    monkeypatch.setattr(store._client, "begin_watch", begin_late)
    assert store.wait("key", 60.0) == b"value"


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Trouble.BUSY),
        ("UNAVAILABLE", "etcdserver: leader changed", Trouble.BUSY),
        ("UNAVAILABLE", "etcdserver: request timed out", Trouble.BUSY),
        ("UNAVAILABLE", "etcdserver: no leader", Trouble.AWAY),
        ("UNAVAILABLE", "etcdserver: server stopped", Trouble.AWAY),
        ("UNAVAILABLE", "failed to connect to all addresses", Trouble.AWAY),
        ("UNKNOWN", "Stream removed", Trouble.AWAY),
        ("NOT_FOUND", "etcdserver: requested lease not found", Refused.LEASE_GONE),
        ("FAILED_PRECONDITION", "etcdserver: lease already exists", Refused.LEASE_EXISTS),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Refused.COMPACTED),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreUnavailableError),
    ],
)
def test_what_answers_mean(code: str, details: str, verdict: object) -> None:
    """Those that a test cannot provoke at will; the texts are etcd's own."""
    settings = Settings.from_parameters(RendezvousParameters("etcd", "h:1", "job", 1, 1))
    answer = judge(code, details, settings)
    if isinstance(verdict, Trouble):
        assert answer is verdict
    elif isinstance(verdict, Refused):
        assert isinstance(answer, RefusedError)
        assert answer.kind is verdict
    else:
        assert type(answer) is verdict


def test_a_full_database_is_told_with_the_remedy(start_etcd: Start, open_store: Open) -> None:
    server = start_etcd(arguments=["--quota-backend-bytes=200000"])
    store = open_store(endpoint=server.get_endpoint())

    def fill() -> None:
        for number in range(100):
            store.put(f"key/{number}", bytes(100_000))

    with pytest.raises(StoreUnavailableError, match=r"its database is full.*etcdctl alarm disarm"):
        fill()


@pytest.mark.slow(reason="etcd is kept busy for some seconds")
@pytest.mark.timeout(400)
def test_too_many_requests_are_borne(start_etcd: Start, open_store: Open, admin: Callable[..., Admin]) -> None:
    """etcd refuses writes while 5,000 taken ones wait to be applied; here they wait for one that counts for seconds."""
    server = start_etcd()
    operator = admin(server)
    hasty = open_store(endpoint=server.get_endpoint(), operation_timeout=0.5)
    # How long etcd counts is the machine's affair: what is seconds there alone may be a minute beside other work.
    patient = open_store(endpoint=server.get_endpoint(), operation_timeout=300.0)
    counts = 2 * operator.fill(48_000)
    rush = operator.rush(counts, 5_200)
    waiting = InThread(patient.put, "key", b"value")
    said = set()
    while not any("etcdserver: too many requests" in words for words in said):
        if rush.done():  # before the others were sent
            counts *= 2
            assert counts < 50_000, f"etcd is never busy for long enough; the last time: {rush.exception()}"
            rush = operator.rush(counts, 5_200)
        try:
            hasty.put("other", b"value")
        except StoreUnavailableError as error:
            said.add(str(error))
    waiting.result(seconds=300.0)
    assert patient.get(["key"]) == [b"value"]

    def is_answered() -> bool:
        try:
            return bool(hasty.get(["key"]) == [b"value"])
        except StoreUnavailableError:
            return False

    assert settles(is_answered), "and it is well again"


# --- a job of two nodes ---------------------------------------------------------------------------------------------

Handlers = Callable[..., list[RendezvousHandler]]


@pytest.fixture
def make_handlers(nothing_left: None, run_id: str) -> Iterator[Handlers]:
    """``make_handlers(server, count)`` → that many nodes of one job that needs them all; shut down after the test.

    Settings are added to the parameters, ``min_nodes`` lets fewer do.
    """
    made: list[RendezvousHandler] = []
    host = PluginHost()

    def make(server: EtcdServer, count: int, **settings: Any) -> list[RendezvousHandler]:
        bounds = settings.pop("min_nodes", count), count
        settings = {"lease_timeout": 5, **settings}
        for _ in range(count):
            parameters = RendezvousParameters("etcd", server.get_endpoint(), run_id, *bounds, "127.0.0.1", **settings)
            made.append(get_rendezvous_handler(parameters, host))
        return made

    yield make
    with ThreadPoolExecutor(len(made) or 1) as pool:
        assert all(pool.map(lambda handler: handler.shutdown(), made))


def _succeed(handlers: list[RendezvousHandler]) -> None:
    """Report that all workers are done; the job must end well, in the very round that runs."""
    for handler in handlers:
        handler.report_done()
    for handler in handlers:
        end = handler.wait_for_change(DEADLINE_SECONDS)
        assert end is not None
        assert (end.verdict, end.round_number) == (Verdict.SUCCEEDED, 0)


def test_the_leader_is_killed_while_nodes_gather(start_etcd: Start, make_handlers: Handlers) -> None:
    server = start_etcd(members=3)
    first, second = make_handlers(server, 2)
    early = InThread(first.next_rendezvous)
    assert settles(lambda: first._driver.state.ticket == 1)  # type: ignore[attr-defined] # looks inside
    server.kill(server.leader())
    ranks = [second.next_rendezvous().rank, early.result().rank]
    assert sorted(ranks) == [0, 1]
    _succeed([first, second])


def test_the_leader_is_killed_at_the_seal(start_etcd: Start, make_handlers: Handlers) -> None:
    """All come at once, and the leader dies while their tickets, records and assignments are being written."""
    server = start_etcd(members=3)
    handlers = make_handlers(server, 6)
    leader = server.leader()
    joining = [InThread(handler.next_rendezvous) for handler in handlers]
    assert settles(lambda: any(handler._driver.state.ticket for handler in handlers))  # type: ignore[attr-defined] # looks inside
    server.kill(leader)
    assert sorted(thread.result().rank for thread in joining) == list(range(6))
    _succeed(handlers)


def test_the_leader_is_killed_while_workers_run(start_etcd: Start, make_handlers: Handlers) -> None:
    server = start_etcd(members=3)
    handlers = make_handlers(server, 2)
    for thread in [InThread(handler.next_rendezvous) for handler in handlers]:
        thread.result()
    for _ in range(2):
        victim = server.leader()
        server.kill(victim)
        server.leader()
        server.restart(victim)
        assert handlers[0].wait_for_change(0.5) is None
    _succeed(handlers)


def test_all_members_are_stopped_for_longer_than_the_lease(start_etcd: Start, make_handlers: Handlers) -> None:
    """No node is declared lost for what was etcd's silence, not its own."""
    server = start_etcd(members=3)
    handlers = make_handlers(server, 2)
    for thread in [InThread(handler.next_rendezvous) for handler in handlers]:
        thread.result()
    for index in range(3):
        server.kill(index)
    # Time itself is the subject: more than the lease of 5 s has to pass.
    assert handlers[0].wait_for_change(7.0) is None
    for index in range(3):
        server.restart(index, wait=False)
    server.await_ready()
    assert handlers[1].wait_for_change(1.0) is None
    _succeed(handlers)


def test_etcds_shortest_lease_does_not_make_a_loss_be_noticed_later(
    start_etcd: Start, make_handlers: Handlers, admin: Callable[..., Admin]
) -> None:
    """With slow elections etcd grants no lease below some seconds; a node's own is a counter, and may be shorter."""
    server = start_etcd(arguments=["--heartbeat-interval=400", "--election-timeout=4000"])
    granted = admin(server).call("Lease", "LeaseGrant", ID=7, TTL=2).TTL
    assert granted >= 6, "etcd's minimum is one and a half elections"
    keeper, lost = make_handlers(server, 2, lease_timeout=1.0, min_nodes=1, member_ttl=2)
    for thread in [InThread(handler.next_rendezvous) for handler in (keeper, lost)]:
        thread.result()
    began = monotonic()
    lost._driver._store.below._client.close()  # type: ignore[attr-defined]  # as if its machine were gone
    end = keeper.wait_for_change(DEADLINE_SECONDS)
    assert end is not None
    assert end.cause is Cause.NODE_LOST
    assert 1.0 <= monotonic() - began < granted
