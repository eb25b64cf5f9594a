"""Which job a node joins: jobs of one run id follow one another, and never merge.

A seeded simulation runs several nodes into the job of one store, one call at a time, in virtual time.  The laws are
checked after each call.  Mutants prove that they catch something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from attrs import evolve
from core.tests.incarnation_parts import ALICE, BOB, LEASE, SUCCEEDED, beat, entry, seal

from quorate.errors import RendezvousStateError, StoreCorruptError, StoreLostError
from quorate.records import NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import (
    AttentiveStore,
    InMemoryStore,
    LastWordStore,
    Store,
    Write,
    _incarnation_store as incarnation_store,
    sign_store,
)
from quorate.rendezvous._incarnation import JobEntry, Next, judge
from quorate.rendezvous._incarnation_store import IncarnationStore
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState
from quorate.rendezvous._observed_job import ObservedJob, observe_job
from quorate.rendezvous._protocol import Call, Key, Operation, Phase, Purpose, Settings
from quorate.rendezvous._refusals import RefusalReader, tell_refusal
from quorate.rendezvous._same_job import difference_warnings, differences
from quorate.rendezvous._state import State
from quorate.rendezvous._wire import encode

# --- who is told of a refused node -----------------------------------------------------------------------------------


def told_of(store: Store, reader: RefusalReader, state: State) -> None:
    """Read once, as the driver does with each of the machine's reads."""
    call = Call(Purpose.HEARTBEATS, Operation.GET, ("0/heartbeat/r0",))
    reader.take(store.get(list(reader.keys(call, state))))


def running(number: int) -> State:
    return evolve(State(Settings(2, 2)), phase=Phase.RUNNING, round_number=number)


def test_members_of_a_round_are_told_each_sentence_once_and_eight_at_most() -> None:
    store, said = InMemoryStore(), []
    reader = RefusalReader(said.append)
    for attempt in range(3):
        for each in range(12):
            tell_refusal(store, 0, f"bob {each} \x1b[31m{'x' * 5000 * attempt}")
            told_of(store, reader, running(0))
    assert len(said) == 8
    assert said[:3] == ["bob 0 ", "bob 1 ", "bob 2 "]
    tell_refusal(store, 1, "bob again")
    told_of(store, reader, running(1))
    assert said[8:] == ["bob again"]
    told_of(store, reader, running(1))
    assert len(said) == 9


def test_nothing_is_read_along_where_no_round_runs() -> None:
    reader = RefusalReader(lambda sentence: None)
    get, add = (Call(Purpose.HEARTBEATS, each, ("k",)) for each in (Operation.GET, Operation.ADD))
    assert list(reader.keys(get, State(Settings(2, 2)))) == []
    assert list(reader.keys(add, running(3))) == []
    assert list(reader.keys(get, running(3))) == ["3/refused/1"]


@pytest.mark.parametrize("number", [0, 4])
def test_a_refused_node_tells_those_who_run(number: int) -> None:
    data = InMemoryStore()
    inside = entry(data).enter(data, ALICE)
    for each in range(number):
        inside.create(Key.ended(each), encode(evolve(SUCCEEDED, verdict=Verdict.RESTART, round_number=each)))
    inside.add(Key.ROUND, number)
    seal(inside, 2, number)
    refused = threading.Event()

    def beat_on() -> None:
        for count in range(1, 10_000):
            inside.put(Key.rank_heartbeat(number, 0), Heartbeat(count, HeartbeatState.RUNNING, "h1").encode())
            if refused.wait(0.01):
                return

    beats = threading.Thread(target=beat_on)
    beats.start()
    try:
        with pytest.raises(RendezvousStateError, match=r"the command is bob\.py on h9 and alice\.py on h1"):
            entry(data).enter(data, BOB)
    finally:
        refused.set()
        beats.join()
    (told,) = inside.get([Key.refused(number, 1)])
    assert told is not None
    assert told.decode().startswith("a node of bob on h9 wanted to join and was refused: the job 'job', begun by alice")


# --- one node after the other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", [2**40, 2**62, -5])
def test_a_counter_of_jobs_that_no_job_has_written_is_refused_and_not_walked_back(hint: int) -> None:
    data = InMemoryStore()
    data.add("incarnations", hint)
    with pytest.raises(StoreCorruptError, match="incarnations"):
        entry(data).enter(data, ALICE)


def test_a_counter_of_jobs_that_is_too_high_leads_to_the_newest_job() -> None:
    data = InMemoryStore()
    data.create("incarnation/1/job", encode(ALICE))
    data.add("incarnations", 3000)
    store = entry(data).enter(data, evolve(ALICE, node_id="c", rank_hint=None))
    assert isinstance(store, IncarnationStore)
    assert store.number == 1


def test_twenty_jobs_follow_one_another_in_a_store_that_stays_small() -> None:
    data = InMemoryStore()
    for number in range(20):
        store = entry(data).enter(data, evolve(ALICE, command=f"script{number}.py"))
        assert isinstance(store, IncarnationStore)
        assert store.number == number
        assert observe_job(store) == ObservedJob(0)
        seal(store, 1)
        store.create(Key.ended(0), encode(SUCCEEDED))
        store.add(Key.ROUND, 1)
        store.end()
    assert len(data._values) <= 6


def test_the_keys_are_kept_if_that_is_asked_for() -> None:
    data = InMemoryStore()
    store = entry(data, keeps=True).enter(data, ALICE)
    store.put("0/heartbeat/r0", b"1 run")
    assert isinstance(store, IncarnationStore)
    store.end()
    assert data.get(["0/heartbeat/r0"]) == [b"1 run"]
    again = entry(data).enter(data, ALICE)
    assert again.get(["0/heartbeat/r0"]) == [None]


def test_a_hint_that_was_counted_twice_is_only_a_hint() -> None:
    data = InMemoryStore()
    for _ in range(3):
        store = entry(data).enter(data, ALICE)
        assert isinstance(store, IncarnationStore)
        store.end()
    data.add("incarnations", 2)
    store = entry(data).enter(data, ALICE)
    assert isinstance(store, IncarnationStore)
    assert store.number == 3
    other = entry(data).enter(data, evolve(ALICE, node_id="a2"))
    assert isinstance(other, IncarnationStore)
    assert other.number == 3


def test_signed_stores_have_incarnations_too() -> None:
    data, key = InMemoryStore(), bytes(32)
    for number in range(3):
        signed = sign_store(data, key, lambda sentence: None, Key.is_counter)
        store = entry(signed).enter(signed, ALICE)
        assert isinstance(store, IncarnationStore)
        assert store.number == number
        assert store.add(Key.tickets(0), 1) == 1
        assert store.get([Key.tickets(0)]) == [b"1"]
        store.end()


def test_a_node_of_the_last_job_reads_that_its_job_is_gone_and_writes_nothing_into_the_next() -> None:
    data = InMemoryStore()
    old = entry(data).enter(data, ALICE)
    seal(old, 1)
    old.create(Key.ended(0), encode(SUCCEEDED))
    beat(old, 0, 1, "h1")
    new = entry(data, lease=0.2).enter(data, evolve(ALICE, node_id="a2"))
    assert isinstance(new, IncarnationStore)
    assert new.number == 1
    assert old.create(Key.sealed(0), b"old")
    assert new.get([Key.sealed(0)]) == [None]
    with pytest.raises(StoreLostError, match="'job' went on without this node"):
        old.get([Key.sealed(0)])


def test_another_job_is_refused_while_one_goes_on_and_the_gathering_nodes_are_told() -> None:
    data = InMemoryStore()
    store = entry(data, is_named=False).enter(data, ALICE)
    store.add(Key.tickets(0), 1)
    stop = threading.Event()

    def live() -> None:
        count = 0
        while not stop.wait(0.02):
            count += 1
            store.put(Key.ticket_heartbeat(0, 1), Heartbeat(count, HeartbeatState.RUNNING, "h1").encode())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RendezvousStateError, match=r"the command is bob\.py on h9 and alice\.py on h1.*the user"):
            entry(data, is_named=False).enter(data, BOB)
    finally:
        stop.set()
        thread.join()
    (record,) = store.get([Key.node(0, 2)])
    assert record is not None
    assert b"bob.py" in record
    assert b'"declined"' in record


def test_another_job_begins_once_nothing_of_the_one_before_has_changed_for_a_lease() -> None:
    data = InMemoryStore()
    store = entry(data).enter(data, ALICE)
    store.add(Key.tickets(0), 1)
    other = entry(data, lease=0.2).enter(data, BOB)
    assert isinstance(other, IncarnationStore)
    assert other.number == 1


def test_a_node_that_claims_a_rank_of_the_running_round_gets_in_line_at_once() -> None:
    """Whether the node of that rank lives is found out while it stands by (``test_claimed_ranks``)."""
    data = InMemoryStore()
    store = entry(data).enter(data, ALICE)
    seal(store, 2)
    beat(store, 1, 1, "h2")

    def pause(seconds: float) -> bool:
        raise AssertionError("it waits")

    quick = JobEntry("job", True, 0.2, False, pause, lambda sentence: None)
    assert quick.enter(data, evolve(ALICE, node_id="c", host="h3", rank_hint=1)) is not None


@pytest.mark.parametrize(
    ("end", "host", "changes", "still", "is_other", "expected"),
    [
        (None, "h1", True, 0.0, False, Next.JOIN),  # the job goes on
        (None, "h1", False, 9.0, False, Next.JOIN),  # all its nodes are lost: the protocol goes on from there
        (None, "h9", False, 0.0, True, Next.WAIT),
        (None, "h9", True, 0.0, True, Next.REFUSE),
        (None, "h9", False, 3.0, True, Next.BEGIN),
        (SUCCEEDED, "h9", False, 0.0, False, Next.WAIT),  # is anybody there?
        (SUCCEEDED, "h9", True, 0.0, False, Next.JOIN),  # a latecomer hears the verdict
        (SUCCEEDED, "h1", True, 0.0, False, Next.WAIT),  # this host was in it, and has started anew
        (SUCCEEDED, "h1", True, 3.0, False, Next.BEGIN),
        (SUCCEEDED, "h9", True, 0.0, True, Next.WAIT),
    ],
)
def test_what_a_node_does_about_the_job_that_it_finds(
    end: RoundEnd | None, host: str, changes: bool, still: float, is_other: bool, expected: Next
) -> None:
    first = ObservedJob(0, 1, 0, end, {Key.rank_heartbeat(0, 0): b"1 run h1"})
    now = evolve(first, heartbeats={Key.rank_heartbeat(0, 0): b"2 run h1"}) if changes else first
    assert judge(evolve(ALICE, host=host), first, now, still, LEASE, is_other) is expected


# --- what differs -----------------------------------------------------------------------------------------------------


def matters(node: NodeRecord, is_named: bool) -> list[str]:
    return [each.what for each in differences(node, ALICE, is_named) if each.matters]


def test_a_name_that_was_given_allows_other_users_and_arguments() -> None:
    other = evolve(ALICE, user="bob", arguments="abc", max_restarts=3, version="2")
    assert matters(other, is_named=True) == []
    assert matters(other, is_named=False) == ["the command line", "the user"]
    assert matters(evolve(ALICE, command="bob.py"), is_named=True) == ["the command"]
    assert matters(evolve(ALICE, command="bob.py", role="ps"), is_named=True) == []
    assert matters(evolve(ALICE, max_nodes=3), is_named=True) == ["--nnodes"]
    assert matters(NodeRecord("x", "default", 1), is_named=False) == []
    warnings = difference_warnings([ALICE, other, other])
    assert len(warnings) == 4
    assert "nodes of this job differ: --max-restarts is 0 on h1 and 3 on h1" in warnings


# --- what others write for a node -------------------------------------------------------------------------------------


class ListeningStore(InMemoryStore):
    """Has the abilities ``last word`` and ``attentive``."""

    return_timeout = 1.0
    words: Sequence[Write] = ()

    def last_word_writer(self) -> Callable[[Sequence[Write]], None]:
        return print

    def set_last_words(self, writes: Sequence[Write]) -> None:
        self.words = writes


@pytest.mark.parametrize("number", [0, 3])
def test_last_words_are_written_into_the_incarnation_and_signed(number: int) -> None:
    below = ListeningStore()
    signed = sign_store(below, bytes(32), lambda sentence: None)
    store = incarnation_store.incarnation_store(signed, number, "job", False)
    assert isinstance(store, AttentiveStore)
    assert isinstance(store, LastWordStore)
    store.set_last_words([Write("0/ended", b"end", True)])
    assert store.writes_below([Write("0/ended", b"end", True)]) == below.words
    for write in below.words:
        below.create(write.key, write.value)
    assert store.get(["0/ended"]) == [b"end"]
