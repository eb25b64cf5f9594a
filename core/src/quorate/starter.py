"""The interface of process starters.  The usual implementation is ``quorate-process-local``.

What does not live here: the record by which plugins offer starters (:mod:`quorate.catalogue`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, final, runtime_checkable

from attrs import field, frozen

from .records import WorkerExited, WorkerLaunch

__all__ = [
    "DeliversResults",
    "ForwardsSignals",
    "LeavesBehind",
    "PreparingStarter",
    "ProcessContext",
    "ReleasesWorkers",
    "StackDumper",
    "Starter",
    "StarterRequest",
    "SuspendsWorkers",
]


@final
@frozen
class StarterRequest:
    """The arguments of a starter's factory: the name it was chosen by, the agent's unique token, and the free settings.

    ``token`` is put in every worker's environment as ``QUORATE_AGENT_TOKEN``.  Processes that a worker started are
    found and ended by it, in whichever session or process group they are.  ``loss_timeout`` is within how many seconds
    this node learns that another one is lost, 0 if it does not learn it.
    """

    start_method: str
    token: str
    term_grace_seconds: float = 30.0
    settings: Mapping[str, Any] = field(factory=dict)
    loss_timeout: float = 0.0


@runtime_checkable
class ProcessContext(Protocol):
    """The running workers of one node in one round.

    Every method is called by the agent's one owner thread and returns at once; nothing here blocks.
    """

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`advance` has something to return."""
        ...

    def wake_at(self) -> float | None:
        """Return the monotonic second at which :meth:`advance` wants to be called next, ready or not."""
        ...

    def advance(self, now: float) -> Sequence[WorkerExited]:
        """Reap what has ended and carry a stop forward; return the workers that ended since the last call."""
        ...

    def is_gone(self) -> bool:
        """Return whether every worker **and everything it started** has ended and all its output is written."""
        ...

    def pids(self) -> Mapping[int, int]:
        """Return local rank -> process id of the workers that were started."""
        ...

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        """Ask all workers to stop; what is left ``grace_seconds`` later is killed.

        A second call may shorten the grace, never lengthen it; 0 kills at once.  Leftovers of workers that have
        already ended (their children) are swept as well.
        """
        ...

    def close(self) -> None:
        """Kill what is left and release every descriptor, thread and temporary file.  Called exactly once."""
        ...


@runtime_checkable
class DeliversResults(Protocol):
    """An ability of a process context: to have a function's result before its process ends.

    Such a worker stays, its connections open, until all workers of the node that still run have delivered theirs, or
    until it is stopped.  What it has delivered counts: :meth:`ProcessContext.advance` reports it with exit code 0 and
    that value, however its process ends, which it must do within the grace of an ordinary stop.
    """

    def delivered(self) -> Sequence[int]:
        """Return the local ranks of the workers that have delivered and still run."""
        ...


@runtime_checkable
class LeavesBehind(Protocol):
    """An ability of a process context: to name the processes that it could not end."""

    def left_behind(self) -> Sequence[str]:
        """Return, once the context is closed, a sentence for each process that lives on in spite of SIGKILL.

        Such a process holds its devices and ports, so the agent takes its node out of the job.
        """
        ...


@runtime_checkable
class ReleasesWorkers(Protocol):
    """An ability of a process context: to keep live workers for the next round.

    A worker is *live* once it has said so to its starter, by whatever way the two have.  Where a context lacks this
    ability, all its workers are stopped at the end of a round.
    """

    def release(
        self, signal_number: int, grace_seconds: float, release_seconds: float, given_up: Collection[int], now: float
    ) -> None:
        """Ask live workers to leave their world, and stop the others as by :meth:`ProcessContext.stop`.

        A live worker that has not acknowledged ``release_seconds`` later is stopped, too, and so is one whose local
        rank is in ``given_up``.  Nothing that a stopped worker has started may be left.
        """
        ...

    def released(self) -> Sequence[int] | None:
        """Return the local ranks of the workers that have left their world; ``None`` while :meth:`release` goes on.

        ``None`` also where none was asked to leave.  A worker that ends while it waits is not among them any more.
        """
        ...

    def assign(self, launch: WorkerLaunch) -> None:
        """Let a released worker go on, with the environment of ``launch``; its streams stay as they are."""
        ...


@runtime_checkable
class ForwardsSignals(Protocol):
    """An ability of a process context: to pass on a signal that stops no worker (``--forward-signals``)."""

    def forward(self, signal_number: int) -> Sequence[int]:
        """Send a signal to the workers that have a handler for it; return their local ranks."""
        ...


@runtime_checkable
class SuspendsWorkers(Protocol):
    """An ability of a process context: to suspend workers and let them go on, as Ctrl-Z suspends a program.

    Without it, workers are killed where ``when_cut_off=freeze`` would have them stand still.
    """

    def suspend(self) -> None:
        """Stop all workers and what they started, without their doing."""
        ...

    def resume(self) -> None:
        """Have them go on."""
        ...


@runtime_checkable
class StackDumper(Protocol):
    """An ability of a process context: to have the stacks of hung workers written."""

    def dump_stacks(self, hung_local_rank: int, timeout: float) -> Sequence[str]:
        """Have every running worker write the stacks of all its threads into its log; return the hung one's last lines.

        Called on a thread of its own, while the other methods go on being called; blocks for at most ``timeout``
        seconds.  It need not leave the workers alive: they are stopped next, and ``hung_local_rank`` names the one
        that is given up already, while the others may still have something to save when they are asked to stop.
        """
        ...


@runtime_checkable
class Starter(Protocol):
    """Starts the workers of one node.  Chosen by name (``--start-method``)."""

    def start(self, launches: Sequence[WorkerLaunch]) -> ProcessContext:
        """Start all workers and return at once.

        Raises:
            StartError: one of them cannot be started; those already started are gone when this raises.
        """
        ...


@runtime_checkable
class PreparingStarter(Starter, Protocol):
    """An ability of a starter: to get ready while the nodes of the job still find each other.

    All methods are called by the agent's one owner thread, and none but :meth:`close` may block.
    """

    def prepare(
        self, entrypoint: str | Callable[..., Any], args: Sequence[Any], environment: Mapping[str, str]
    ) -> None:
        """Begin; called once, before the first join.  ``environment`` is what all workers will have in common.

        Raises:
            UsageError: this starter can never start such an entrypoint.
        """
        ...

    def fileno(self) -> int:
        """Return a descriptor, from :meth:`prepare` on, that is readable whenever :meth:`is_ready` should be called."""
        ...

    def is_ready(self) -> bool:
        """Carry the preparation forward; return whether ``start`` need not wait (even if only to raise)."""
        ...

    def close(self) -> None:
        """End what was prepared; its workers are gone by then.  Called once, when the agent's run is over."""
        ...
