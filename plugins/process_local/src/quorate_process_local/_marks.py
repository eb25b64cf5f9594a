"""What a context puts into its workers' environments: who they belong to, and how they are reached.

What does not live here: what these variables are used for (:mod:`._leftovers`, :mod:`._live`, :mod:`._stacks`).
"""

from __future__ import annotations

from quorate.records import WorkerLaunch

from ._leftovers import MARKER_VARIABLE, marker_of
from ._live import ADDRESS_VARIABLE
from ._stack_signal import STACK_SIGNAL, STACK_SIGNAL_VARIABLE


def marked_environment(launch: WorkerLaunch, token: str, context_id: str, address: str) -> dict[str, str]:
    """Return the environment of a worker of the context ``context_id``, whose live workers connect to ``address``."""
    environment = dict(launch.environment)
    environment["QUORATE_AGENT_TOKEN"] = token
    environment[STACK_SIGNAL_VARIABLE] = str(STACK_SIGNAL)
    environment[MARKER_VARIABLE] = marker_of(context_id, launch.local_rank, environment)
    environment[ADDRESS_VARIABLE] = address
    return environment
