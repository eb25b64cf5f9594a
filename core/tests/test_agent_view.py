"""What an agent shows to its services: heartbeats come back with the worker that they are of."""

from __future__ import annotations

from typing import cast

from quorate import RendezvousHandler
from quorate.agent._services import View
from quorate.clock import monotonic
from quorate.services import AgentSnapshot, WorkerSnapshot


def test_a_heartbeat_is_shown_with_its_worker_and_never_with_its_successor() -> None:
    workers = [WorkerSnapshot(0, 0, pid=100), WorkerSnapshot(1, 1, pid=101)]
    view = View(
        {},
        lambda: AgentSnapshot("run", "node", "host", "role", "running", "", 0, workers=tuple(workers)),
        cast("RendezvousHandler", None),
        lambda event: None,
        lambda sentence: None,
    )
    assert [worker.heartbeat_at for worker in view.snapshot().workers] == [None, None]
    before = monotonic()
    view.note_heartbeat(1, 101)
    silent, beating = view.snapshot().workers
    assert silent.heartbeat_at is None
    assert beating.heartbeat_at is not None
    assert before <= beating.heartbeat_at <= monotonic()
    workers[1] = WorkerSnapshot(1, 1, pid=202)  # the next round's
    assert view.snapshot().workers[1].heartbeat_at is None
