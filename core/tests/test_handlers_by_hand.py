"""A rendezvous handler that a program calls itself, without an agent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from quorate import PluginHost, RendezvousClosedError
from quorate.records import Cause, NodeRecord, Verdict
from quorate.rendezvous import InMemoryStore, RendezvousBackend, RendezvousParameters, StoreRendezvousHandler

SECONDS = 60.0


@pytest.fixture
def handlers() -> Iterator[list[StoreRendezvousHandler]]:
    """Return the handlers of two nodes that meet in one store."""
    store, host = InMemoryStore(), PluginHost(paths=[])
    backend = RendezvousBackend("memory", "in this process", open_store=lambda parameters: store)
    made = [
        StoreRendezvousHandler(
            RendezvousParameters("memory", "localhost:1", "job", 2, 2, timeout=SECONDS), backend, host
        )
        for _ in "ab"
    ]
    for name, handler in zip("ab", made, strict=True):
        handler.prepare(NodeRecord(name, "default", 1, host=name))
    yield made
    for handler in made:
        handler.shutdown()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_each_further_rendezvous_is_a_further_round(
    handlers: list[StoreRendezvousHandler], threads: ThreadPoolExecutor
) -> None:
    """As with TorchElastic's handlers, whose program calls nothing else; a rank stays with its node."""
    rounds = [
        [call.result(SECONDS) for call in [threads.submit(handler.next_rendezvous) for handler in handlers]]
        for _ in range(4)
    ]
    assert all(sorted(info.rank for info in infos) == [0, 1] for infos in rounds)
    assert len({tuple(info.rank for info in infos) for infos in rounds}) == 1
    numbers = [[info.assignment.round_number for info in infos if info.assignment is not None] for infos in rounds]
    assert all(first == second for first, second in numbers)
    assert [first for first, _ in numbers] == sorted({first for first, _ in numbers})


def test_the_other_nodes_are_told_that_one_joins_again(
    handlers: list[StoreRendezvousHandler], threads: ThreadPoolExecutor
) -> None:
    first, second = handlers
    for call in [threads.submit(handler.next_rendezvous) for handler in handlers]:
        call.result(SECONDS)
    again = threads.submit(first.next_rendezvous)
    end = second.wait_for_change(SECONDS)
    assert end is not None
    assert (end.cause, end.verdict, end.reason) == (Cause.NODE_LEFT, Verdict.RESCALE, "a joins again")
    assert second.next_rendezvous().world_size == again.result(SECONDS).world_size == 2


def test_a_job_that_was_closed_has_no_further_round(
    handlers: list[StoreRendezvousHandler], threads: ThreadPoolExecutor
) -> None:
    first, second = handlers
    for call in [threads.submit(handler.next_rendezvous) for handler in handlers]:
        call.result(SECONDS)
    first.set_closed()
    for handler in handlers:
        with pytest.raises(RendezvousClosedError):
            handler.next_rendezvous()
    assert second.is_closed()
