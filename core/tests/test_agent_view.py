"""What an agent shows to its services: each heartbeat with its worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import pytest

from quorate import RendezvousHandler
from quorate.agent._services import View
from quorate.clock import monotonic
from quorate.records import AgentPhase
from quorate.services import AgentSnapshot, HangReport, WorkerSnapshot


def view_of(workers: list[WorkerSnapshot]) -> View:
    """Return the view of an agent whose thread takes no transition."""
    return View(
        {},
        lambda: AgentSnapshot("run", "node", "host", "role", AgentPhase.RUNNING, "", 0, workers=tuple(workers)),
        cast("RendezvousHandler", None),
        lambda event: None,
        lambda sentence: None,
    )


def test_an_agent_that_does_not_answer_is_waited_for_until_the_deadline_or_its_end() -> None:
    view = view_of([])
    assert view.turn(0.01) is None
    answers: list[float | None] = []
    waiting = threading.Thread(target=lambda: answers.append(view.turn(60.0)))
    waiting.start()
    while not view._questions:
        waiting.join(0.001)
    view.close()
    waiting.join(30.0)
    assert not waiting.is_alive(), "an agent that ends must not be held up by a call"
    assert answers != [None]
    assert view.turn(60.0) is not None, "there is no agent left to wait for"


@pytest.mark.parametrize(
    "report",
    [
        lambda view: view.report_unhealthy(5),
        lambda view: view.report_preemption(5.0, None),
        lambda view: view.say(b"x"),
        lambda view: view.report_hang(HangReport("0", 7, "p")),
        lambda view: view.report_hang(HangReport(0, -1, "p")),
        lambda view: view.report_hang(HangReport(0, 7, None)),
        lambda view: view.report_hang(HangReport(0, 7, "p", overdue_seconds=float("nan"))),
    ],
)
def test_a_report_that_cannot_be_used_is_refused_where_it_is_made(report: Callable[[View], None]) -> None:
    posted: list[object] = []
    view = View({}, lambda: None, cast("RendezvousHandler", None), posted.append, posted.append)  # type: ignore[arg-type, return-value]
    with pytest.raises((TypeError, ValueError)):
        report(view)
    assert not posted


def test_a_heartbeat_is_shown_with_its_worker_and_never_with_its_successor() -> None:
    workers = [WorkerSnapshot(0, 0, pid=100), WorkerSnapshot(1, 1, pid=101)]
    view = view_of(workers)
    assert [worker.heartbeat_at for worker in view.snapshot().workers] == [None, None]
    before = monotonic()
    view.note_heartbeat(1, 101)
    silent, alive = view.snapshot().workers
    assert silent.heartbeat_at is None
    assert alive.heartbeat_at is not None
    assert before <= alive.heartbeat_at <= monotonic()
    workers[1] = WorkerSnapshot(1, 1, pid=202)  # the next round's
    assert view.snapshot().workers[1].heartbeat_at is None
