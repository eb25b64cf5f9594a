"""Fixtures of the behaviours: a job on a fresh endpoint of each backend, ears, gates, and the check for leftovers."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing import forkserver
from pathlib import Path

import pytest

# The workers' and hosts' functions are found by name in other processes, which are given this path.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from tests.autopsy import describe  # noqa: E402
from tests.backends import BACKENDS, Backend  # noqa: E402
from tests.harness import Ear, Gate, Job, children, processes_with, wait_for_end  # noqa: E402

# Imported once, before the hosts are forked: importing torch takes longer than most tests.
_PRELOAD = ["torch", "torch.distributed", "quorate.agent._runner", "quorate.agent._reports", "tests.harness"]


@pytest.fixture
def _fork_server() -> None:
    """Have the server running that hosts are forked from, so that it is no test's leftover.

    Only tests of jobs pay for it: it imports torch.  Tests elsewhere may have ended it, where they run in the same
    process.
    """
    if forkserver._forkserver._forkserver_pid is not None:  # type: ignore[attr-defined] # there is no public way to ask
        return
    context = multiprocessing.get_context("forkserver")
    usual = list(forkserver._forkserver._preload_modules)  # type: ignore[attr-defined] # nor for these
    context.set_forkserver_preload(_PRELOAD)
    try:
        process = context.Process(target=os.getpid)
        process.start()
        process.join()
        process.close()
    finally:
        context.set_forkserver_preload(usual)  # a server that a later test starts in this process has no torch


@pytest.fixture(scope="session")
def _serve() -> Iterator[Callable[[Backend], None]]:
    """Run what serves a backend's store, from its first test until the last test of all."""
    with ExitStack() as stack:
        served: set[str] = set()

        def serve(backend: Backend) -> None:
            if backend.name not in served:
                stack.enter_context(backend.serve())
                served.add(backend.name)

        yield serve


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, _serve: Callable[[Backend], None]) -> Backend:
    """Each rendezvous backend in turn."""
    _serve(BACKENDS[request.param])
    return BACKENDS[request.param]


@pytest.fixture
def job(backend: Backend, tmp_path: Path, _fork_server: None) -> Iterator[Job]:
    """A job whose agents and workers must all be gone at the end of the test."""
    threads, own = set(threading.enumerate()), children()
    with backend.fresh_endpoint() as endpoint:
        job = Job(backend, endpoint, tmp_path)
        yield job
        unfinished = [host for host in job.hosts if not host.is_killed and host._outcomes is None]
        pids = [host.pid for host in unfinished]
        story = "\n".join([describe(job.token, pids), *(host.console() for host in unfinished)]) if unfinished else ""
        job.close()
    # A killed agent's workers are killed by the kernel, a little later.
    wait_for_end(list(processes_with(job.token)), 10.0)
    assert not unfinished, f"the test did not wait for the agents {pids}\n{story}"
    # An earlier test's may have ended meanwhile.
    assert set(threading.enumerate()) <= threads
    assert children() <= own
    if not any(host.is_killed for host in job.hosts):
        assert not list(job.temporary.iterdir())


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    """Where workers tell what happens to them."""
    ear = Ear(tmp_path / "ear")
    yield ear
    ear.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """What holds workers back until the test opens it."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()
