"""Every hook of quorate, in the order in which a job calls them.  Bodies are docstrings only.

The verb in a hook's name says how it is called:

* ``quorate_register_…``  collected once per process into a catalogue keyed by name;
* ``quorate_decide_…``    the first answer that is not ``None`` wins; the core's own default answers last;
* ``quorate_observe_…``   all plugins are called, answers are ignored, an observer that raises is not called again.

Implement a hook with ``quorate.hookimpl``.  Plugins are called in the alphabetical order of their entry-point names,
the same on every host.  Parameters are positional, at most three, and an implementation may take fewer.
What does not live here: calling the hooks (:mod:`quorate.plugins`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pluggy

from .catalogue import CliOption, ErrorRecorder, EventSink, HealthCheck, ServiceBackend, StarterBackend
from .clusters import ClusterEnvironment
from .records import (
    Assignment,
    Cause,
    Event,
    FailureRecord,
    NodeRecord,
    RendezvousWaiting,
    RestartBudget,
    RestartDecision,
    RoundSummary,
    WorkerLaunch,
)
from .rendezvous import RendezvousBackend

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "quorate"

#: Marks the functions below as hooks.
hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a plugin's function, which has the hook's name, as its implementation; the options are pluggy's.
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- collected once, before anything else ---------------------------------------------------------------------------


@hookspec
def quorate_register_cli_options() -> Iterable[CliOption]:  # type: ignore[empty-body] # specs have no body
    """Offer more flags for ``quorate run``.  The value of each becomes a setting, whatever the rendezvous backend is.

    Called: once, when the command line is parsed.
    Thread: the main thread.
    Answer: an iterable of CliOption.  It is an error if two plugins offer one flag.
    If it raises: the plugin is reported as broken and its options are missing.
    """


@hookspec
def quorate_register_environment() -> Iterable[ClusterEnvironment]:  # type: ignore[empty-body] # specs have no body
    """Offer cluster schedulers.  The one that started this process is found by its variables, or by ``--cluster NAME``.

    The values that the scheduler knows (the number of nodes, this node's rank, where the nodes meet, the job's name)
    replace the flags' defaults.  Arguments and ``PET_*`` variables take precedence.

    Called: once, after the command line was parsed.
    Thread: the main thread.
    Answer: an iterable of ClusterEnvironment.
    If it raises: the plugin is reported as broken, and the job is formed by the flags alone.
    """


@hookspec
def quorate_register_rendezvous() -> Iterable[RendezvousBackend]:  # type: ignore[empty-body] # specs have no body
    """Offer rendezvous backends, chosen by ``--rdzv-backend NAME``.

    Called: once, when a backend is first looked up.
    Thread: the thread that looks it up.
    Answer: an iterable of RendezvousBackend.  If two distributions offer one name, the error names both.
    If it raises: the plugin is reported as broken.  This ends the launch only if no other plugin offers the chosen
        name.
    """


@hookspec
def quorate_register_starter() -> Iterable[StarterBackend]:  # type: ignore[empty-body] # specs have no body
    """Offer ways to start workers, chosen by ``--start-method NAME``.

    If the chosen start method takes only functions, a command is started by the start method ``exec``.

    Called: once, when a starter is first looked up.
    Thread: the thread that looks it up.
    Answer: an iterable of StarterBackend.
    If it raises: as for rendezvous backends.
    """


@hookspec
def quorate_register_health_check() -> Iterable[HealthCheck]:  # type: ignore[empty-body] # specs have no body
    """Offer health checks of the node.  An unhealthy node does not join, or leaves the job.

    The checks run before each join, and while workers run if ``--health-interval`` is set.

    Called: once, before the first join.
    Thread: the agent's thread.
    Answer: an iterable of HealthCheck; each check has a timeout of its own.
    If it raises: the plugin is reported as broken and its checks do not run.
    """


@hookspec
def quorate_register_watchdog() -> Iterable[ServiceBackend]:  # type: ignore[empty-body] # specs have no body
    """Offer watchdogs: services that live as long as the agent and report hung workers to it.

    A watchdog only reports.  The agent then has every local worker dump its stacks, and ends the round.

    Called: once per run of an agent, before its first join.
    Thread: the agent's thread.
    Answer: an iterable of ServiceBackend, whose ``start(agent)`` is called at once.
    If it raises: the plugin is reported as broken and its watchdog does not run.
    """


@hookspec
def quorate_register_service() -> Iterable[ServiceBackend]:  # type: ignore[empty-body] # specs have no body
    """Offer services that live as long as the agent and show what it does: health servers, dashboards.

    Called: once per run of an agent, before its first join.
    Thread: the agent's thread.
    Answer: an iterable of ServiceBackend, whose ``start(agent)`` is called at once.
    If it raises: the plugin is reported as broken and its service does not run.
    """


@hookspec
def quorate_register_error_recorder() -> Iterable[ErrorRecorder]:  # type: ignore[empty-body] # specs have no body
    """Offer ways to record a worker's exception where the agent can read it (``quorate.record`` uses it).

    Called: once in the agent, and in a worker only when it has failed.
    Thread: the thread that looks it up.
    Answer: an iterable of ErrorRecorder; ``QUORATE_ERROR_RECORDER`` chooses by name, default ``file``.
    If it raises: the plugin is reported as broken, and only the exit code of a failed worker is reported.
    """


@hookspec
def quorate_register_event_sink() -> Iterable[EventSink]:  # type: ignore[empty-body] # specs have no body
    """Offer destinations for events, chosen by ``--event-log-handler NAME``.

    Called: once, when the sink is looked up.
    Thread: the agent's thread.
    Answer: an iterable of EventSink.
    If it raises: the plugin is reported as broken.
    """


# --- decided, round after round -------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def quorate_decide_waiting(waiting: RendezvousWaiting) -> bool | None:
    """Decide whether a node that waits for other nodes, or for the store, goes on waiting.

    The core's default: yes, until the timeout that ``waiting.left_seconds`` counts down to.

    Called: when the node has waited for three seconds, and then at intervals that grow to two minutes.
    Thread: a thread of its own; the implementation may block for a second, not longer.
    Answer: True to go on; False to give up: the agent then ends with an error.
    If it raises: reported once, and the next plugin is asked. The same holds for an answer that is not a bool.
    """


@hookspec(firstresult=True)
def quorate_decide_ranks(nodes: Sequence[NodeRecord], previous: Sequence[str]) -> Sequence[str] | None:
    """Order the nodes of a round: the first is group rank 0 and hosts ``MASTER_ADDR``.

    The core's default (called last):

    1. a node with an explicit ``rank_hint`` gets that group rank, if it is below the number of nodes;
    2. a node keeps its group rank of the previous round, if the rank is free and below the new number of nodes;
    3. the others get the free ranks: first the nodes whose hint or previous rank is not free, in the order of that
       rank, then the new nodes, in the order of their tickets.

    Called: once per round, by the one node that seals it.
    Thread: the rendezvous thread; the implementation may block for a second, not longer.
    Answer: the ``node_id`` of every node in ``nodes``, each once.  ``previous`` has the node ids of the previous
        round by group rank, with an empty string for a node that does not take part again.
    If it raises: reported once, and the next plugin is asked. The same holds for an answer that does not name each
        node once.
    """


@hookspec(firstresult=True)
def quorate_decide_rescale(summary: RoundSummary, waiting: int) -> bool | None:
    """Decide whether to end the running round, so that the nodes that wait can join the next one.

    The core's default: yes, if the round has fewer nodes than ``max_nodes``.

    Called: when nodes wait while a round runs, and no further node has arrived for ``settle_timeout``.
    Thread: the rendezvous thread of a waiting node.
    Answer: True or False; ``waiting`` counts the nodes that wait.
    If it raises: reported once, and the next plugin is asked. The same holds for an answer that is not a bool.
    """


@hookspec(firstresult=True)
def quorate_decide_launch(launch: WorkerLaunch, assignment: Assignment) -> WorkerLaunch | None:
    """Change how one worker is started: argv, environment, wrappers for NUMA, cgroups or containers.

    Called: for each worker of each round, just before the workers start.
    Thread: the agent's thread; the implementation must not block.
    Answer: the launch to use instead (``attrs.evolve(launch, …)``).
    If it raises: reported once, and the next plugin is asked. The same holds for an answer that is not a WorkerLaunch.
    """


@hookspec(firstresult=True)
def quorate_decide_cause(failure: FailureRecord) -> Cause | None:
    """Classify how a worker failed.

    The core's default: exit code 75 is ``preempted``, a negative exit code is ``signal``, a failure with recorded error
    data is ``exception``, and any other failure is ``exit_code``.  ``broken_collective`` is the cause of a victim.  The
    node of the victim waits for 1.25 leases, so that another node can record why the round ended.

    Called: when a worker ended with a non-zero exit code or hangs, before ``quorate_decide_restart``.
    Thread: the agent's thread; the implementation must not block.
    Answer: the cause.
    If it raises: reported once, and the next plugin is asked. The same holds for an answer that is not a Cause.
    """


@hookspec(firstresult=True)
def quorate_decide_restart(failure: FailureRecord, budget: RestartBudget) -> RestartDecision | None:
    """Decide what follows a worker's failure: restart, rescale without this node, or fail the job.

    The core's default:

    1. a worker that could not start fails the job;
    2. a worker that ended with exit code 75 ends the job as preempted;
    3. a worker that ended with exit code 79 fails the job, and the job should not be started again;
    4. any other failure is a restart, as long as restarts are left.  If the same rank failed by the same cause before,
       the restart has a delay that grows and is partly random.

    Called: on the node whose worker failed first, before the round is ended.
    Thread: the agent's thread; the implementation must not block.
    Answer: a RestartDecision.  Its ``delay_seconds`` delays the next round on every node. Its ``exclude_node`` takes
        this node out of the job. With ``is_final``, ``quorate run`` ends with exit code 79: do not start the job
        again.
    If it raises: reported once, and the next plugin is asked. The same holds for an answer that is not a
        RestartDecision, and for a restart when none is left.
    """


# --- observed -------------------------------------------------------------------------------------------------------


@hookspec
def quorate_observe_event(event: Event) -> None:
    """Receive an event (see ``docs/events.md``).

    Called: for every event of this agent, in order.
    Thread: the agent's thread; hand long work to a thread of your own.
    Answer: ignored.
    If it raises: reported once, and not called again.
    """
