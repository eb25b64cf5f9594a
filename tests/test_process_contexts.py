"""The starter's process context is closed exactly once, whatever way the agent ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from quorate.catalogue import PluginKind, StarterBackend
from quorate.hookspecs import hookimpl
from quorate.records import WorkerExited, WorkerLaunch
from quorate.starter import ProcessContext, Starter, StarterRequest
from tests import workers
from tests.harness import Ear, Gate, Job, Plan

#: Where the counting start method writes one byte per event.
COUNTS = "QUORATE_TEST_COUNTS"


class CountedContext:
    """A real context that tells when it is opened (``o``) and closed (``c``)."""

    def __init__(self, context: ProcessContext) -> None:
        self._context = context
        _count("o")

    def fileno(self) -> int:
        return self._context.fileno()

    def wake_at(self) -> float | None:
        return self._context.wake_at()

    def advance(self, now: float) -> Sequence[WorkerExited]:
        if os.environ.get("QUORATE_TEST_BREAK"):
            raise RuntimeError("this starter is broken")
        return self._context.advance(now)

    def is_gone(self) -> bool:
        return self._context.is_gone()

    def pids(self) -> Mapping[int, int]:
        return self._context.pids()

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        self._context.stop(signal_number, grace_seconds, now)

    def close(self) -> None:
        _count("c")
        self._context.close()


def _count(letter: str) -> None:
    descriptor = os.open(os.environ[COUNTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, letter.encode())
    os.close(descriptor)


class CountingStarter:
    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    def start(self, launches: Sequence[WorkerLaunch]) -> ProcessContext:
        return CountedContext(self._starter.start(launches))


class counting:  # noqa: N801 - a plugin, as entry points name them
    """Offers ``counted``: the usual start method with a count."""

    @staticmethod
    @hookimpl
    def quorate_register_starter() -> Iterable[StarterBackend]:
        from quorate.plugins import get_host

        def create(request: StarterRequest) -> Starter:
            usual: StarterBackend = get_host().choose(PluginKind.STARTER, "spawn")
            return CountingStarter(usual.create(StarterRequest("spawn", request.token, request.term_grace_seconds)))

        return [StarterBackend("counted", "counts its contexts", "function", create)]


CountedPlan = Callable[..., Plan]


@pytest.fixture
def counted(job: Job) -> CountedPlan:
    """A plan whose contexts are counted."""
    job.environment[COUNTS] = str(job.folder / "counts")

    def plan(entrypoint: Callable[..., Any], *args: Any, **changes: Any) -> Plan:
        agent = {"start_method": "counted"}
        return job.plan(entrypoint, *args, agent=agent, plugins=("tests.test_process_contexts:counting",), **changes)

    return plan


def counts(job: Job) -> str:
    return (job.folder / "counts").read_text()


def test_after_success(job: Job, counted: CountedPlan) -> None:
    """The workers have ended well."""
    (outcome,) = job.run(counted(workers.give, 1, workers=2))
    assert outcome.values == {0: 1, 1: 1}
    assert counts(job) == "oc"


def test_after_failures_and_restarts(job: Job, counted: CountedPlan) -> None:
    """Once per attempt, each closed before the next is opened."""
    (outcome,) = job.run(counted(workers.raise_on, [0], 99, max_restarts=2))
    assert outcome.failed.is_failed()
    assert counts(job) == "ococ" + "oc"


def test_after_a_signal(job: Job, counted: CountedPlan, ear: Ear) -> None:
    """The agent was told to stop."""
    host = job.start(counted(workers.trap, ear.path, True))
    ear.hear(1, event="started")
    host.send_signal(signal.SIGTERM)
    assert host.outcome().error is not None
    assert counts(job) == "oc"


def test_after_a_second_signal(job: Job, counted: CountedPlan, ear: Ear) -> None:
    """The agent was told to stop twice."""
    host = job.start(counted(workers.trap, ear.path, False, spec={"shutdown_timeout": 0.5}))
    ear.hear(1, event="started")
    host.send_signal(signal.SIGTERM)
    ear.hear(1, event="signalled")
    host.send_signal(signal.SIGTERM)
    assert host.outcome().error is not None
    assert counts(job) == "oc"


def test_after_an_error_of_the_agent_itself(job: Job, counted: CountedPlan) -> None:
    """The agent's own loop was left by an exception; the workers are gone all the same."""
    (outcome,) = job.run(counted(workers.hold), QUORATE_TEST_BREAK="1")
    assert "this starter is broken" in str(outcome.error)
    assert counts(job) == "oc"


def test_after_another_node_has_failed(job: Job, counted: CountedPlan, ear: Ear, gate: Gate) -> None:
    """On both nodes, when a worker of one of them fails."""
    plan = counted(workers.raise_or_hold, 0, ear.path, gate.path, nodes=(2, 2))
    host = job.start(plan, plan)
    ear.hear(2, event="started")
    gate.open()
    assert all(outcome.failed.is_failed() for outcome in host.outcomes())
    assert sorted(counts(job)) == ["c", "c", "o", "o"]
