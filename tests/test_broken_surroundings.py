"""When the surroundings of an agent fail: one clear error within its deadline, and nothing left behind."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import pytest

from quorate import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
    UnknownBackendError,
    UsageError,
    get_rendezvous_handler,
)
from quorate.catalogue import PluginKind
from quorate.plugins import get_host
from tests import workers
from tests.backends import Backend, loopback_port
from tests.harness import DEADLINE, Job, as_store_client, as_store_host


def test_too_few_nodes_is_a_time_out_that_counts_them(job: Job) -> None:
    """One node of two; the message says how many of how many came.

    On a busy machine the store may not have answered within a second.  That is told, too, and tried with more time.
    """
    for seconds in (1.0, 5.0, 25.0):
        (outcome,) = job.run(job.plan(workers.give, 1, nodes=(2, 2), rdzv={"join_timeout": seconds}))
        assert isinstance(outcome.error, RendezvousTimeoutError)
        if "the store did not answer" not in str(outcome.error):
            break
    assert "1 of 2" in str(outcome.error)


def test_an_endpoint_where_nobody_listens(job: Job) -> None:
    """The error names the endpoint, within the time that connecting may take."""
    plan = as_store_client(job.plan(workers.give, 1, rdzv={"connect_timeout": 1.0, "join_timeout": 2.0}))
    began = time.monotonic()
    with loopback_port() as endpoint:
        (outcome,) = job.run(replace(plan, endpoint=endpoint))
    assert isinstance(outcome.error, (RendezvousConnectionError, RendezvousTimeoutError)), outcome.error
    assert endpoint in str(outcome.error)
    assert outcome.ended_at - began < DEADLINE / 2


def test_an_endpoint_where_somebody_else_listens(job: Job) -> None:
    """A program that is no store at all holds the port; the error names the endpoint, nothing hangs."""
    plan = as_store_host(job.plan(workers.give, 1, rdzv={"connect_timeout": 1.0, "join_timeout": 3.0}))
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        endpoint = f"127.0.0.1:{stranger.getsockname()[1]}"
        (outcome,) = job.run(replace(plan, endpoint=endpoint))
    assert outcome.error is not None
    assert endpoint in str(outcome.error)


def test_an_endpoint_that_is_none(backend: Backend) -> None:
    """A wrong spelling is refused before anything is tried."""
    for endpoint in ("", ":", "host:99999999", "host:name"):
        parameters = RendezvousParameters(backend.name, endpoint, "job", 1, 1)
        with pytest.raises(UsageError, match="endpoint"):
            get_rendezvous_handler(parameters)


def test_bounds_that_contradict_each_other(backend: Backend) -> None:
    """``min > max`` names the flag."""
    with pytest.raises(UsageError, match="--nnodes"):
        RendezvousParameters(backend.name, "localhost:1", "job", 3, 2)


def test_a_backend_that_is_not_installed() -> None:
    """An unknown backend lists those that are installed."""
    with pytest.raises(UnknownBackendError, match=r"installed: .*tcp"):
        get_rendezvous_handler(RendezvousParameters("carrier-pigeon", "roof:1", "job", 1, 1))


def test_nodes_with_different_bounds(job: Job) -> None:
    """Two nodes that were started with different ``--nnodes`` do not run two different jobs."""
    first = job.plan(workers.give, 1, nodes=(2, 2), rdzv={"join_timeout": 10.0})
    second = job.plan(workers.give, 1, nodes=(2, 3), rdzv={"join_timeout": 10.0})
    outcomes = job.run(first, second)
    kinds = {type(outcome.error).__name__ for outcome in outcomes}
    assert kinds == {"NoneType"} or "RendezvousStateError" in kinds, outcomes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("0/ended", b"\x80\x04\x95pickled?"),
        ("0/ended", b"[" * 9999),
        ("0/sealed", b'{"v":1,"kind":"sealed","sealer":"x'),
    ],
    ids=["binary", "deep", "torn"],
)
def test_what_somebody_else_wrote_is_refused_by_name(job: Job, key: str, value: bytes) -> None:
    """Garbage in the place of a record is one error that names it; nothing is unpickled, nothing hangs."""
    parameters = RendezvousParameters(job.backend.name, job.endpoint, f"job-{job.token}", 1, 1, is_host=True)
    open_store = get_host().choose(PluginKind.RENDEZVOUS, job.backend.name).open_store
    store = open_store(parameters)
    try:
        assert store.create(key, value)
        plan = job.plan(workers.give, 1, rdzv={"join_timeout": 5.0})
        (outcome,) = job.run(as_store_client(plan))
    finally:
        store.close()
    assert isinstance(outcome.error, RendezvousStateError), outcome.error
    assert key in str(outcome.error)
    assert "another run id" in str(outcome.error)


def test_a_log_folder_that_cannot_be_made(job: Job) -> None:
    """The error names the folder and the flag; no restart is spent on it."""
    file = job.folder / "file"
    file.write_text("no folder")
    plan = job.plan(workers.give, 1, logs={"log_dir": str(file / "logs")}, max_restarts=3)
    (outcome,) = job.run(plan)
    assert outcome.failed.is_failed()
    assert str(file) in outcome.failed.reason
    assert "--log-dir" in outcome.failed.reason
    assert outcome.remaining_restarts == 3


def test_a_result_that_cannot_come_back(job: Job) -> None:
    """A return value that cannot be pickled is the worker's error, and says so."""
    (outcome,) = job.run(job.plan(workers.give_lambda))
    assert "cannot be pickled" in outcome.failed.failures[0].message


def test_two_jobs_at_one_endpoint_do_not_mix(job: Job) -> None:
    """Run ids keep jobs apart, or the second is refused with a clear error."""
    plans = [replace(job.plan(workers.give, name), run_id=f"{job.token}-{name}") for name in ("a", "b")]
    outcomes = job.run(*plans)
    good = [outcome for outcome in outcomes if outcome.error is None]
    assert good
    assert all(outcome.values in ({0: "a"}, {0: "b"}) for outcome in good)
    assert all("job" in str(outcome.error) for outcome in outcomes if outcome.error is not None)
