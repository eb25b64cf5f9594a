"""The agent's metrics, in a registry of their own.  Everything is read when a client asks."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from quorate import __version__
from quorate.clock import monotonic
from quorate.records import AgentPhase, Verdict
from quorate.services import AgentSnapshot, AgentView

from ._journal import Journal
from ._pulse import StoreProbe

#: Seconds: from a rendezvous on one machine to one that waits for a cluster's scheduler.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


def metrics_application(agent: AgentView, journal: Journal, store: StoreProbe) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application that serves the metrics, in the format that the client asks for."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_AgentCollector(agent, journal, store))
    application: Callable[..., Iterable[bytes]] = make_wsgi_app(registry, disable_compression=True)
    return application


@final
class _AgentCollector(Collector):
    def __init__(self, agent: AgentView, journal: Journal, store: StoreProbe) -> None:
        self._agent, self._journal, self._store = agent, journal, store
        self._rendezvous = _histogram(
            "quorate_rendezvous_seconds", "From the start of joining until the node's assignment in a sealed round."
        )
        self._recovery = _histogram(
            "quorate_recovery_seconds", "From a failure or a round's end until the next round's workers were started."
        )

    def collect(self) -> Iterator[Metric]:
        snapshot = self._agent.snapshot()
        yield from self._of_the_agent(snapshot)
        yield from self._of_the_round(snapshot)
        yield from self._of_the_workers(snapshot)
        yield from self._of_the_store()
        for histogram, durations in (
            (self._rendezvous, self._journal.rendezvous_seconds),
            (self._recovery, self._journal.recovery_seconds),
        ):
            _observe_all(durations, histogram)
            yield from histogram.collect()

    def _of_the_agent(self, snapshot: AgentSnapshot) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "quorate_build",
            "The agent's versions.",
            {"version": __version__, "python": platform.python_version()},
        )
        agent = {
            "run_id": snapshot.run_id,
            "node_id": snapshot.node_id,
            "host": snapshot.host,
            "role": snapshot.role,
        }
        yield InfoMetricFamily("quorate_agent", "Which agent this is.", agent)
        if snapshot.cluster is not None:
            yield InfoMetricFamily(
                "quorate_cluster_job", "The scheduler's job that this agent belongs to.", snapshot.cluster.to_json()
            )
        phases = GaugeMetricFamily("quorate_phase", "1 for the phase that the agent is in.", labels=["phase"])
        for phase in AgentPhase:
            phases.add_metric([phase.value], float(phase == snapshot.phase))
        yield phases

    def _of_the_round(self, snapshot: AgentSnapshot) -> Iterator[Metric]:
        yield _gauge("quorate_ready", "1 while this node's workers run in a sealed round.", snapshot.is_running)
        yield _gauge("quorate_restart_count", "Restarts of the whole job so far.", snapshot.restart_count)
        yield _gauge("quorate_max_restarts", "Restarts that the whole job may use.", snapshot.max_restarts)
        for name, text, value in (
            ("quorate_round", "The round in which this node has an assignment.", snapshot.round_number),
            ("quorate_group_rank", "This node's rank among the round's nodes.", snapshot.group_rank),
            ("quorate_group_world_size", "The round's nodes.", snapshot.group_world_size),
            ("quorate_world_size", "The round's workers, on all nodes.", snapshot.world_size),
        ):
            if value is not None:
                yield _gauge(name, text, value)
        restarts = CounterMetricFamily(
            "quorate_restarts", "Rounds that ended with a restart, as seen by this agent.", labels=["cause"]
        )
        rescales = CounterMetricFamily(
            "quorate_rescales", "Rounds that ended for a new world, as seen by this agent.", labels=["cause"]
        )
        families: dict[str, CounterMetricFamily] = {Verdict.RESTART: restarts, Verdict.RESCALE: rescales}
        for (verdict, cause), count in sorted(self._journal.ends().items()):
            if verdict in families:
                families[verdict].add_metric([cause], count)
        yield from families.values()

    def _of_the_workers(self, snapshot: AgentSnapshot) -> Iterator[Metric]:
        running = sum(worker.exit_code is None for worker in snapshot.workers)
        yield _gauge("quorate_workers_up", "Running workers of this node.", running)
        ages = GaugeMetricFamily(
            "quorate_worker_heartbeat_age_seconds",
            "Time since a running worker's last heartbeat.",
            labels=["local_rank"],
        )
        now = monotonic()
        for worker in snapshot.workers:
            if worker.heartbeat_at is not None and worker.is_working:
                ages.add_metric([str(worker.local_rank)], max(0.0, now - worker.heartbeat_at))
        yield ages

    def _of_the_store(self) -> Iterator[Metric]:
        state = self._store.measure()
        if not state.is_known:
            return
        yield _gauge("quorate_store_up", "1 if the rendezvous store answered.", state.latency_seconds is not None)
        if state.latency_seconds is not None:
            yield _gauge("quorate_store_latency_seconds", "One read of the store.", state.latency_seconds)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _histogram(name: str, text: str) -> Histogram:
    return Histogram(name, text, buckets=_BUCKETS, registry=None)


def _observe_all(durations: deque[float], histogram: Histogram) -> None:
    while True:
        try:
            histogram.observe(durations.popleft())
        except IndexError:
            return  # all observed, for this client or for another one
