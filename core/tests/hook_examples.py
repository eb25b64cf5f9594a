"""One implementation of each hook; ``docs/hooks.md`` shows them, and ``test_hook_docs`` calls them.  No tests."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import evolve

from quorate import (
    CliOption,
    ClusterEnvironment,
    ClusterJob,
    ErrorRecorder,
    EventSink,
    HealthCheck,
    RendezvousBackend,
    RendezvousParameters,
    ServiceBackend,
    StarterBackend,
    Store,
    hookimpl,
)
from quorate.clusters import Machine
from quorate.events import RoundEndedDetails
from quorate.records import (
    Assignment,
    Cause,
    Event,
    FailureRecord,
    NodeRecord,
    RendezvousWaiting,
    RestartBudget,
    RestartDecision,
    RoundSummary,
    Verdict,
    WorkerLaunch,
)
from quorate.services import AgentService, AgentView
from quorate.starter import Starter, StarterRequest


def open_example_store(parameters: RendezvousParameters) -> Store:
    raise NotImplementedError


def make_example_starter(request: StarterRequest) -> Starter:
    raise NotImplementedError


def find_example(environment: Mapping[str, str], machine: Machine) -> ClusterJob | None:
    if "EXAMPLE_JOB" not in environment:
        return None
    nodes, rank = int(environment["EXAMPLE_NODES"]), int(environment["EXAMPLE_RANK"])
    return ClusterJob(scheduler="Example", job_id=environment["EXAMPLE_JOB"], max_nodes=nodes, node_rank=rank)


def watch_nothing(agent: AgentView) -> AgentService | None:
    return None


def serve_nothing(agent: AgentView) -> AgentService | None:
    return None


def write_error(error: BaseException, path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": str(error)}, file)


def read_error(path: str) -> Mapping[str, Any] | None:
    return None


@hookimpl
def quorate_register_cli_options() -> Iterable[CliOption]:
    def apply(value: str, settings: dict[str, Any]) -> None:
        settings["site"] = value

    return [CliOption("site", "name of the site", apply=apply)]


@hookimpl
def quorate_register_environment() -> Iterable[ClusterEnvironment]:
    return [ClusterEnvironment("example", "the scheduler Example", find_example)]


@hookimpl
def quorate_register_rendezvous() -> Iterable[RendezvousBackend]:
    return [RendezvousBackend(name="example", summary="one sentence", open_store=open_example_store)]


@hookimpl
def quorate_register_starter() -> Iterable[StarterBackend]:
    return [StarterBackend("example", "one sentence", kind="command", create=make_example_starter)]


@hookimpl
def quorate_register_health_check() -> Iterable[HealthCheck]:
    def check(agent: AgentView) -> str | None:
        return None if shutil.disk_usage("/").free > 1 << 30 else "the disk is full; make room on /"

    return [HealthCheck("disk", "1 GiB free on /", check, timeout_seconds=5.0)]


@hookimpl
def quorate_register_watchdog() -> Iterable[ServiceBackend]:
    # What start(agent) returns watches the workers and calls agent.report_hang(HangReport(...)).
    return [ServiceBackend("example", "reports hung workers", start=watch_nothing)]


@hookimpl
def quorate_register_service() -> Iterable[ServiceBackend]:
    return [ServiceBackend("dashboard", "shows what the agent does", start=serve_nothing)]


@hookimpl
def quorate_register_error_recorder() -> Iterable[ErrorRecorder]:
    return [ErrorRecorder("example", "one sentence", lambda path: None, write_error, read_error)]


@hookimpl
def quorate_register_event_sink() -> Iterable[EventSink]:
    return [EventSink("stderr", "one line per event", lambda event: print(event.name, file=sys.stderr))]


@hookimpl
def quorate_decide_waiting(waiting: RendezvousWaiting) -> bool | None:
    # Half of the nodes at least must be here after ten minutes.
    return waiting.waited_seconds < 600 or waiting.nodes >= waiting.missing


@hookimpl
def quorate_decide_ranks(nodes: Sequence[NodeRecord], previous: Sequence[str]) -> Sequence[str] | None:
    by_rack = sorted(nodes, key=lambda node: node.host.partition("-")[0])
    return [node.node_id for node in by_rack]


@hookimpl
def quorate_decide_rescale(summary: RoundSummary, waiting: int) -> bool | None:
    return waiting >= 2 and summary.group_world_size + waiting <= summary.max_nodes


@hookimpl
def quorate_decide_launch(launch: WorkerLaunch, assignment: Assignment) -> WorkerLaunch | None:
    environment = {**launch.environment, "GLOO_SOCKET_IFNAME": f"eth{launch.local_rank}"}
    return evolve(launch, environment=environment)


@hookimpl
def quorate_decide_cause(failure: FailureRecord) -> Cause | None:
    out_of_memory = any("CUDA out of memory" in line for line in failure.stderr_tail)
    return Cause.OUT_OF_MEMORY if out_of_memory else None


@hookimpl
def quorate_decide_restart(failure: FailureRecord, budget: RestartBudget) -> RestartDecision | None:
    if failure.cause is Cause.OUT_OF_MEMORY:
        return RestartDecision(Verdict.FAILED, "a restart does not help against too little memory")
    return None


@hookimpl
def quorate_observe_event(event: Event) -> None:
    if isinstance(event.details, RoundEndedDetails):
        print(f"round {event.details.round} ended by {event.details.cause}", file=sys.stderr)
