"""Nodes, rounds and heartbeats of jobs that share a run id.  No tests."""

from __future__ import annotations

import threading

from attrs import evolve

from quorate.records import Cause, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import Store
from quorate.rendezvous._incarnation import JobEntry
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState
from quorate.rendezvous._protocol import Key
from quorate.rendezvous._wire import encode_object

LEASE = 3.0


ALICE = NodeRecord(
    "a",
    "default",
    1,
    host="h1",
    min_nodes=2,
    max_nodes=2,
    max_restarts=0,
    version="1",
    user="alice",
    command="alice.py",
    arguments="none",
)


BOB = evolve(ALICE, node_id="b", host="h9", user="bob", command="bob.py")


SUCCEEDED = RoundEnd(0, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers of all nodes have succeeded")


def entry(store: Store, *, is_named: bool = True, lease: float = 0.3, keeps: bool = False) -> JobEntry:
    pause = threading.Event().wait
    return JobEntry("job", is_named, lease, keeps, pause, lambda sentence: None)


def seal(store: Store, size: int, number: int = 0) -> None:
    counts = {"nodes": size, "world_size": size, "min_nodes": size, "max_nodes": size, "restart_count": 0}
    store.create(Key.sealed(number), encode_object("sealed", {"sealer": 1, **counts}))


def beat(store: Store, rank: int, count: int, host: str, state: HeartbeatState = HeartbeatState.RUNNING) -> None:
    store.put(Key.rank_heartbeat(0, rank), Heartbeat(count, state, host).encode())
