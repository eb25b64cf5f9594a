"""Says why the console shows no output where the flags that choose ranks hide every worker, or choose none.

What does not live here: which workers are shown (``_environment``), and where their output goes
(:mod:`quorate.logs_specs`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import final

from ..logs_specs import ranks_named_by
from ..records import Assignment, WorkerLaunch, WorkerLogs
from ._spec import RunSettings


@final
class ConsoleCheck:
    """Warns at most once in the life of an agent.

    How many workers the job has is not known before a round is sealed.

    Arguments:
        settings: of the run, with both choices.
        warn: called with a sentence.
    """

    def __init__(self, settings: RunSettings, warn: Callable[[str], None]) -> None:
        self._settings, self._warn = settings, warn
        self._has_warned = False

    def look(self, assignment: Assignment, launches: Sequence[WorkerLaunch]) -> None:
        """Look at the workers that are about to start."""
        if self._has_warned:
            return
        specs, console_ranks = self._settings.logs_specs, self._settings.spec.console_ranks
        why = why_nothing_is_chosen(assignment, ranks_named_by(specs)) or why_nothing_is_shown(
            assignment, launches, specs.local_ranks_filter, console_ranks
        )
        if why:
            self._has_warned = True
            self._warn(why)


def why_nothing_is_chosen(assignment: Assignment, named: Mapping[str, Collection[int]]) -> str:
    """Return a sentence if flags choose streams of local ranks of which this node has none; else nothing.

    Arguments:
        assignment: of this node.
        named: the local ranks that a flag names, by flag; a flag that chooses for all of them is not there.
    """
    names = [
        f"{flag} names no worker of this node ({', '.join(map(str, sorted(ranks)))})"
        for flag, ranks in named.items()
        if ranks and min(ranks) >= assignment.local_world_size
    ]
    return f"{' and '.join(names)}: {_have('local rank', assignment.local_world_size)}" if names else ""


def why_nothing_is_shown(
    assignment: Assignment,
    launches: Sequence[WorkerLaunch],
    local_ranks: Collection[int] | None,
    console_ranks: Collection[int] | None,
) -> str:
    """Return a sentence if the two choices hide all workers of this node, or of the job; else nothing.

    Arguments:
        assignment: of this node.
        launches: of all workers of this node.
        local_ranks: those that ``--local-ranks-filter`` names; ``None``: all.
        console_ranks: the global ranks that ``--console-ranks`` names; ``None``: all.

    It is expected, and so not reported, that a node shows nothing because ``console_ranks`` names workers of other
    nodes.  That ``console_ranks`` names no worker at all is reported by the node with group rank 0.
    """
    if any(launch.logs.console for launch in launches) or not any(_has_output(launch.logs) for launch in launches):
        return ""
    if console_ranks is not None and not any(rank < assignment.world_size for rank in console_ranks):
        if assignment.group_rank > 0:
            return ""
        return (
            f"the console shows no output of this job: {_flag('--console-ranks', console_ranks)}, but "
            f"{_have('rank', assignment.world_size)}"
        )
    chosen = [launch for launch in launches if console_ranks is None or launch.rank in console_ranks]
    if not chosen or local_ranks is None or any(launch.local_rank in local_ranks for launch in chosen):
        return ""
    nothing = f"the console shows no output of this node: {_flag('--local-ranks-filter', local_ranks)}"
    if console_ranks is None or not any(launch.local_rank in local_ranks for launch in launches):
        return f"{nothing}, but {_have('local rank', assignment.local_world_size)}"
    return f"{nothing} and {_flag('--console-ranks', console_ranks)} name different workers"


def _has_output(logs: WorkerLogs) -> bool:
    """Return whether the console would show a stream of this worker if nothing hid it."""
    return logs.stdout is None or logs.tee_stdout or logs.stderr is None or logs.tee_stderr


def _flag(name: str, ranks: Collection[int]) -> str:
    return f"{name}={','.join(map(str, sorted(ranks)))}"


def _have(name: str, count: int) -> str:
    return f"its only worker has {name} 0" if count == 1 else f"its workers have {name}s 0 to {count - 1}"
