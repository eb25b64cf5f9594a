"""One node on its own: rounds come at once, ends are first-come, and the port is held for the worker."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from quorate.agent._membership import open_membership
from quorate.errors import RendezvousClosedError, UsageError
from quorate.records import Cause, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import RendezvousParameters
from quorate_rendezvous_static import StandaloneHandler

LONG = 30.0


def parameters(**changes: Any) -> RendezvousParameters:
    values: dict[str, Any] = {"min_nodes": 1, "max_nodes": 1, **changes}
    return RendezvousParameters("standalone", "", "job", **values)


def end(number: int, verdict: Verdict, **changes: Any) -> RoundEnd:
    return RoundEnd(number, Cause.EXCEPTION, verdict, f"it was {verdict.value}", **changes)


@pytest.fixture
def handler() -> Iterator[StandaloneHandler]:
    made = StandaloneHandler(parameters())
    made.prepare(NodeRecord("node", "trainer", 3, host="here"))
    yield made
    assert made.shutdown()
    assert made.shutdown()


def test_a_round_is_there_at_once(handler: StandaloneHandler) -> None:
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size, info.store) == (0, 1, None)
    assignment = info.assignment
    assert assignment is not None
    assert (assignment.round_number, assignment.node_id, assignment.role, assignment.restart_count) == (
        0,
        "node",
        "trainer",
        0,
    )
    assert (assignment.first_rank, assignment.world_size, assignment.first_role_rank, assignment.role_world_size) == (
        0,
        3,
        0,
        3,
    )
    assert (assignment.group_rank, assignment.group_world_size, assignment.local_world_size) == (0, 1, 3)
    bootstrap = info.bootstrap_store_info
    assert (bootstrap.master_addr, bootstrap.master_port) == ("127.0.0.1", assignment.master_port)
    assert assignment.master_addr == "127.0.0.1"
    assert (handler.get_backend(), handler.get_run_id(), handler.num_nodes_waiting()) == ("standalone", "job", 0)
    assert not handler.use_agent_store
    assert not handler.is_closed()


def test_without_a_node_record_the_membership_is_known_all_the_same() -> None:
    handler = StandaloneHandler(parameters(local_addr="127.0.0.2"))
    info = handler.next_rendezvous()
    assert (info.rank, info.world_size, info.assignment) == (0, 1, None)
    assert info.bootstrap_store_info.master_addr == "127.0.0.2"
    handler.shutdown()


def test_the_worker_can_listen_on_the_port_that_is_held(handler: StandaloneHandler) -> None:
    for number in (0, 1):
        info = handler.next_rendezvous().bootstrap_store_info
        with socket.create_server((info.master_addr, info.master_port)) as listener:
            socket.create_connection(listener.getsockname(), LONG).close()
        handler.end_round(end(number, Verdict.RESCALE))


def test_the_restart_count_of_an_end_reaches_the_next_round(handler: StandaloneHandler) -> None:
    handler.next_rendezvous()
    handler.end_round(end(0, Verdict.RESTART, restart_count=1))
    assignment = handler.next_rendezvous().assignment
    assert assignment is not None
    assert (assignment.round_number, assignment.restart_count) == (1, 1)
    handler.end_round(end(1, Verdict.RESCALE, restart_count=1))
    assignment = handler.next_rendezvous().assignment
    assert assignment is not None
    assert (assignment.round_number, assignment.restart_count) == (2, 1)


def test_only_the_first_end_of_a_round_counts(handler: StandaloneHandler) -> None:
    handler.next_rendezvous()
    first = end(0, Verdict.RESTART, restart_count=1)
    handler.end_round(first)
    handler.end_round(end(0, Verdict.FAILED, restart_count=9))
    handler.report_done()
    assert handler.wait_for_change(LONG) == first
    assert not handler.is_closed()
    handler.next_rendezvous()
    handler.end_round(end(0, Verdict.FAILED))  # of the round before: too late
    assert handler.wait_for_change(0.0) is None


def test_wait_for_change_wakes_when_the_round_ends(handler: StandaloneHandler, in_thread: Any) -> None:
    handler.next_rendezvous()
    assert handler.wait_for_change(0.01) is None
    waiter = in_thread(lambda: handler.wait_for_change(LONG))
    restart = end(0, Verdict.RESTART, restart_count=1)
    handler.end_round(restart)
    assert waiter.result() == restart


@pytest.mark.parametrize("verdict", [Verdict.SUCCEEDED, Verdict.FAILED, Verdict.STOPPED])
def test_a_terminal_verdict_closes_the_job_with_its_reason(handler: StandaloneHandler, verdict: Verdict) -> None:
    handler.next_rendezvous()
    handler.end_round(end(0, verdict))
    assert handler.is_closed()
    handler.set_closed()  # the first reason stays
    with pytest.raises(RendezvousClosedError, match=f"it was {verdict.value}") as caught:
        handler.next_rendezvous()
    assert caught.value.succeeded is (verdict is Verdict.SUCCEEDED)


def test_the_end_of_the_only_nodes_workers_is_success(handler: StandaloneHandler) -> None:
    handler.next_rendezvous()
    handler.report_done()
    found = handler.wait_for_change(LONG)
    assert found is not None
    assert (found.verdict, found.cause, found.node_id, found.host) == (
        Verdict.SUCCEEDED,
        Cause.SUCCEEDED,
        "node",
        "here",
    )
    assert handler.is_closed()


def test_another_job_begins_where_the_last_one_has_ended_but_not_where_it_was_closed(
    handler: StandaloneHandler,
) -> None:
    for _ in range(2):
        handler.prepare(NodeRecord("node", "trainer", 2))
        assignment = handler.next_rendezvous().assignment
        assert assignment is not None
        assert (assignment.round_number, assignment.restart_count, handler.is_closed()) == (0, 0, False)
        handler.end_round(end(0, Verdict.FAILED, restart_count=3))
        assert handler.is_closed()
    handler.set_closed()
    handler.prepare(NodeRecord("node", "trainer", 2))
    with pytest.raises(RendezvousClosedError):
        handler.next_rendezvous()


def test_it_can_be_closed_between_two_rounds_and_during_a_delay(handler: StandaloneHandler, in_thread: Any) -> None:
    handler.next_rendezvous()
    handler.end_round(end(0, Verdict.RESTART, delay_seconds=10 * LONG))
    joining = in_thread(handler.next_rendezvous)
    handler.set_closed()
    with pytest.raises(RendezvousClosedError, match="the job was closed"):
        joining.result()


@pytest.mark.parametrize("blocked", ["next_rendezvous", "wait_for_change"])
def test_shutdown_frees_who_is_blocked(handler: StandaloneHandler, in_thread: Any, blocked: str) -> None:
    handler.next_rendezvous()
    if blocked == "next_rendezvous":
        handler.end_round(end(0, Verdict.RESTART, delay_seconds=10 * LONG))
        joining = in_thread(handler.next_rendezvous)
        handler.shutdown()
        with pytest.raises(RendezvousClosedError, match="left"):
            joining.result()
    else:
        waiter = in_thread(lambda: handler.wait_for_change(LONG))
        handler.shutdown()
        assert waiter.result() is None


@pytest.mark.parametrize(("low", "high"), [(1, 2), (2, 2)])
def test_more_than_one_node_is_refused(low: int, high: int) -> None:
    with pytest.raises(UsageError, match=f"--nnodes={low}:{high}"):
        StandaloneHandler(parameters(min_nodes=low, max_nodes=high))


@pytest.mark.parametrize("tells_every_change", [True, False])
def test_the_agent_asks_again_only_where_it_has_to(
    handler: StandaloneHandler, monkeypatch: pytest.MonkeyPatch, tells_every_change: bool
) -> None:
    """Nothing changes on one node but what the agent itself does, so its thread need not wake up in between."""
    asked: queue.SimpleQueue[float] = queue.SimpleQueue()
    heard: queue.SimpleQueue[object] = queue.SimpleQueue()
    wait = handler.wait_for_change

    def noted(timeout: float) -> RoundEnd | None:
        asked.put(timeout)
        return wait(timeout)

    assert handler.tells_every_change
    monkeypatch.setattr(handler, "tells_every_change", tells_every_change)
    monkeypatch.setattr(handler, "wait_for_change", noted)
    membership = open_membership(handler, heard.put)
    membership.join(NodeRecord("node", "trainer", 3, host="here"))
    heard.get(timeout=LONG)
    timeouts = [asked.get(timeout=LONG) for _ in range(1 if tells_every_change else 2)]
    assert all(timeout > 600.0 if tells_every_change else timeout <= 1.0 for timeout in timeouts)
    membership.end_round(end(0, Verdict.FAILED))
    heard.get(timeout=LONG)
    membership.close()
