"""``torch.distributed.elastic.agent.server``: the agent, its workers and its result."""

from __future__ import annotations

from quorate import RunResult, Worker, WorkerGroup, WorkerState

from ...._agent import DEFAULT_ROLE, ElasticAgent, LocalElasticAgent, WorkerSpec
from ...._simple_agent import SimpleElasticAgent

__all__ = [
    "DEFAULT_ROLE",
    "TORCHELASTIC_ENABLE_FILE_TIMER",
    "TORCHELASTIC_HEALTH_CHECK_PORT",
    "TORCHELASTIC_TIMER_FILE",
    "TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT",
    "ElasticAgent",
    "LocalElasticAgent",
    "RunResult",
    "SimpleElasticAgent",
    "Worker",
    "WorkerGroup",
    "WorkerSpec",
    "WorkerState",
]

#: Names of variables.  The workers find that of the timer file set.  quorate's watchdog needs no switch, and
#: ``quorate-health`` has flags of its own.
TORCHELASTIC_ENABLE_FILE_TIMER = "TORCHELASTIC_ENABLE_FILE_TIMER"
TORCHELASTIC_HEALTH_CHECK_PORT = "TORCHELASTIC_HEALTH_CHECK_PORT"
TORCHELASTIC_TIMER_FILE = "TORCHELASTIC_TIMER_FILE"
TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT = "TORCHELASTIC_UNINTERRUPTIBLE_STATE_TIMEOUT"
