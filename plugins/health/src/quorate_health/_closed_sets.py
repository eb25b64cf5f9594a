"""Names that come from the core and that this plugin compares with: phases, states of workers, events.

Everything else here imports them from this module.
"""

from __future__ import annotations

from enum import Enum
from typing import final

__all__ = ["AgentPhase", "EventName", "WorkerState"]


@final
class AgentPhase(str, Enum):
    """:attr:`quorate.services.AgentSnapshot.phase`."""

    NEW = "new"
    CHECKING = "checking"
    JOINING = "joining"
    RUNNING = "running"
    BARRIER = "barrier"
    STOPPING = "stopping"
    FINISHED = "finished"


@final
class WorkerState(str, Enum):
    """:attr:`quorate.services.WorkerSnapshot.state`."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


@final
class EventName(str, Enum):
    """:attr:`quorate.records.Event.name`, as far as the journal notes them."""

    PHASE = "agent.phase"
    STANDBY = "round.standby"
    JOINED = "round.joined"
    STARTED = "workers.started"
    FAILED = "worker.failed"
    ENDED = "round.ended"
