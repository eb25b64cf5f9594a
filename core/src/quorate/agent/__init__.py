"""The agent: what runs on each node, one per role."""

from __future__ import annotations

from ._local import LocalElasticAgent
from ._spec import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState

__all__ = ["LocalElasticAgent", "RunResult", "Worker", "WorkerGroup", "WorkerSpec", "WorkerState"]
