"""A job with a token on a store that a stranger writes to: what he writes is refused by name, and the job goes on.

The stranger here has more than a stranger has: he writes to the store below the signatures.  On ``tcp`` nobody without
the token gets that far, which the tests of that store show.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import RendezvousError
from quorate.job_token import STORE_PURPOSE, load_job_token
from quorate.records import Cause, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import Store, sign_store
from quorate.rendezvous._protocol import Key
from quorate.rendezvous._wire import encode, encode_object
from quorate.testing import FreshPorts, settles
from quorate.testing._subject import Job, Member, Subject, join_all, start
from quorate_rendezvous_etcd import EtcdServer

SECONDS = 30.0
ROOT = Path(__file__).parent.parent
END = encode(RoundEnd(0, Cause.STOPPED, Verdict.STOPPED, "ended by a stranger", "stranger", "elsewhere"))
RECORD = encode(NodeRecord("stranger", "default", 1, host="elsewhere"))


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(params=["tcp", "c10d", "etcd", "file"])
def subject(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """A backend whose jobs have a token."""
    backend, server = request.param, FreshPorts()
    if backend == "etcd":
        server = request.getfixturevalue("etcd").get_endpoint()
    elif backend == "file":
        monkeypatch.syspath_prepend(ROOT / "docs/examples/rendezvous_file/src")
        import quorate_rendezvous_file  # only an example, which is not installed

        (backend,) = quorate_rendezvous_file.plugin.quorate_register_rendezvous()
        server = str(tmp_path)
    with Subject(backend, server, signed=True, lenient=True, timeout=SECONDS) as made, made.token_in_environment():
        yield made


class Stranger:
    """Reads and writes what a job keeps in the store, below the signatures."""

    def __init__(self, job: Job, min_nodes: int = 2) -> None:
        opener = job.subject.backend.open_store
        assert opener is not None
        job.open(min_nodes=min_nodes, max_nodes=2)  # hosts the store, where a node has to
        self.store: Store = opener(job.parameters(min_nodes, 2))
        job.subject.cleanup(self.store.close)
        token = load_job_token()
        assert token is not None
        self._signed = sign_store(self.store, token.key(job.run_id, STORE_PURPOSE), lambda sentence: None)

    def name_of(self, key: str) -> str:
        """Return the name under which the job keeps ``key``."""
        return self._signed._name(key)

    def read(self, key: str) -> bytes | None:
        return self.store.get([self.name_of(key)])[0]


def await_warning(capsys: pytest.CaptureFixture[str], *words: str, times: int = 1) -> None:
    """Wait until each of ``words`` was written at least ``times`` times since the last look."""
    seen: list[str] = []

    def is_there() -> bool:
        seen.append(capsys.readouterr().err)
        return all("".join(seen).count(word) >= times for word in words)

    assert settles(is_there, SECONDS), "".join(seen)


def end_well(members: list[Member]) -> None:
    """Have all nodes report that they are done, and see the job end as one that has succeeded."""
    for member in members:
        member.handler.report_done()
    ends = [member.await_change() for member in members]
    assert [end.verdict for end in ends if end is not None] == [Verdict.SUCCEEDED] * len(members)


def test_a_forged_end_seal_and_ticket_are_refused_by_name_and_the_job_is_unharmed(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    job = subject.job()
    stranger = Stranger(job)
    stranger.store.create(Key.sealed(0), encode_object("seal", {"sealer": 1, "tickets": 2}))
    stranger.store.create(Key.ended(0), END)
    assert stranger.store.add(Key.tickets(0), 1) == 1
    stranger.store.create(Key.node(0, 1), RECORD)
    stranger.store.add(Key.ROUND, 7)
    members = job.members(2, 2, 2)
    assert [info.world_size for info in join_all(members, SECONDS)] == [2, 2]
    await_warning(capsys, f"'{Key.ended(0)}'", f"'{Key.sealed(0)}'", f"'{Key.node(0, 1)}'", "was not written with this")
    end_well(members)


def test_a_forged_heartbeat_is_refused_by_name_and_the_job_is_unharmed(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    job = subject.job()
    stranger, members = Stranger(job), job.members(2, 2, 2)
    join_all(members, SECONDS)
    key = Key.rank_heartbeat(0, 1)
    assert settles(lambda: stranger.read(key) is not None, SECONDS)
    forged = 0

    def is_reported() -> bool:
        nonlocal forged
        forged += 1
        stranger.store.put(stranger.name_of(key), b"999 left elsewhere" if forged % 2 else b"999")
        text.append(capsys.readouterr().err)
        return f"the value of {key!r} in the rendezvous store is ignored: it is not signed" in "".join(text)

    text: list[str] = []
    assert settles(is_reported, SECONDS)
    end_well(members)


def test_an_old_heartbeat_that_is_written_again_keeps_no_lost_node_alive(subject: Subject) -> None:
    job = subject.job()
    stranger = Stranger(job, 1)
    members = job.members(2, 1, 2)
    (first, _), infos = members, join_all(members, SECONDS)
    (staying,) = [member for member, info in zip(members, infos, strict=True) if info.rank == 0]
    (leaving,) = [member for member in members if member is not staying]
    assert first in members
    key, old = Key.rank_heartbeat(0, 1), set[bytes]()

    def collect() -> bool:
        value = stranger.read(key)
        if value is not None:
            old.add(value)
        return len(old) >= 3

    assert settles(collect, SECONDS)
    stop_heartbeats(leaving)
    change = start(staying.await_change)
    values = sorted(old)
    turn = 0

    def is_over() -> bool:
        nonlocal turn
        turn += 1
        stranger.store.put(stranger.name_of(key), values[turn % len(values)])
        return change.done()

    assert settles(is_over, SECONDS)
    end = change.result(0.0)
    assert end is not None
    assert end.cause is Cause.NODE_LOST


def stop_heartbeats(member: Member) -> None:
    """Have a node go silent as one does whose machine has stopped: its store calls are not carried out any more."""
    driver: Any = member.handler._driver  # type: ignore[attr-defined] # the core's own handler
    driver.call = lambda call: None


def test_an_overwritten_end_ends_the_job_with_a_sentence(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may write below the prefix of a store can stop a job, but not make it believe anything."""
    job = subject.job()
    stranger, members = Stranger(job), job.members(2, 2, 2)
    join_all(members, SECONDS)
    stranger.store.create(stranger.name_of(Key.ended(0)), END)
    for member in members:
        with pytest.raises(RendezvousError, match=rf"'{Key.ended(0)}'.*not signed with this job's token"):
            start(member.await_change).result(SECONDS)


@pytest.mark.parametrize("late_one_has", ["none", "another"])
def test_nodes_with_and_without_the_token_do_not_wait_for_each_other_in_silence(
    subject: Subject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, late_one_has: str
) -> None:
    if subject.is_hosted and subject.backend.name == "tcp":
        pytest.skip("the store tcp refuses a node without the token before the rendezvous begins")
    job = subject.job()
    job.open(min_nodes=2, max_nodes=2)
    one = job.member(2, 2)
    first = one.joining()
    with monkeypatch.context() as late_ones:  # undone here, while the subject's own token is there to go back to
        if late_one_has == "none":
            late_ones.delenv("QUORATE_JOB_TOKEN")
        else:
            late_ones.setenv("QUORATE_JOB_TOKEN", os.urandom(16).hex())
        other = job.member(2, 2)
        second = other.joining()
        if late_one_has == "none":
            await_warning(capsys, "and this node has none", f"'{Key.node(0, 1)}' in the rendezvous store of the job")
        else:
            await_warning(capsys, "uses another job token", times=2)  # the one that came first says so, too
    assert not first.done()
    assert not second.done()


def test_the_end_of_an_earlier_job_is_not_the_end_of_this_one(subject: Subject) -> None:
    """Both jobs have one token; their names are their own."""
    earlier, job = subject.job(), subject.job()
    old = Stranger(earlier)
    members = earlier.members(2, 2, 2)
    join_all(members, SECONDS)
    end_well(members)
    end = old.read(Key.ended(0))
    assert end is not None
    stranger, members = Stranger(job), job.members(2, 2, 2)
    stranger.store.create(old.name_of(Key.ended(0)), end)  # under the name that it had there: nobody looks at it
    assert [info.world_size for info in join_all(members, SECONDS)] == [2, 2]
    stranger.store.create(stranger.name_of(Key.ended(0)), end)
    for member in members:
        with pytest.raises(RendezvousError, match=rf"'{Key.ended(0)}'.*not signed with this job's token"):
            start(member.await_change).result(SECONDS)
