"""What an agent shows to its services: each heartbeat with its worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quorate import RendezvousHandler
from quorate.agent._services import View
from quorate.clock import monotonic
from quorate.records import AgentPhase, Cause, RoundEnd, Verdict
from quorate.services import AgentSnapshot, HangReport, WorkerSnapshot

END = RoundEnd(0, Cause.EXIT_CODE, Verdict.RESTART, "because")


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
        lambda view: view.report_preemption(10**400, "notice"),
        lambda view: view.report_preemption("5", "notice"),
        lambda view: view.report_preemption(Decimal("NaN"), "notice"),
        lambda view: view.say(b"x"),
        lambda view: view.report_hang(_changed(HangReport(0, 7, "p"), local_rank=None)),
        lambda view: view.report_hang(SimpleNamespace(local_rank=0, pid=7, problem="p")),
        lambda view: view.note_heartbeat(0, "7"),
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


def _changed(record: Any, **fields: Any) -> Any:
    """Return a frozen record after a plugin has changed it nevertheless."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)
    return record


class _Odd(int):
    """Raises when it is compared or shown, which no check of an attrs class does."""

    def _raise(self, *arguments: object) -> Any:
        raise SystemExit(9)

    __eq__ = __hash__ = __repr__ = _raise


def test_what_a_service_reports_is_posted_as_plain_values() -> None:
    posted: list[Any] = []
    view = View({}, lambda: None, cast("RendezvousHandler", None), posted.append, posted.append)  # type: ignore[arg-type, return-value]
    for seconds in (Decimal(8), Fraction(8), True, 1e308):
        view.report_preemption(seconds, "notice")  # type: ignore[arg-type]
    view.report_hang(_changed(HangReport(0, 7, "p"), local_rank=_Odd(0), pid=_Odd(7)))
    assert {type(each.grace_seconds) for each in posted[:-1]} == {float}
    assert (posted[-1].local_rank, posted[-1].pid) == (0, 7)


def test_the_agents_own_records_are_not_handed_out() -> None:
    own = AgentSnapshot("run", "node", "host", "role", AgentPhase.RUNNING, "", 0, ends=(END,))
    view = View({}, lambda: own, cast("RendezvousHandler", None), lambda event: None, lambda sentence: None)
    seen = view.snapshot()
    assert seen == own
    assert seen is view.snapshot(), "it is copied once"
    _changed(seen.ends[0], verdict=3)
    assert own.ends[0].verdict is Verdict.RESTART


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
