"""``torch.distributed.elastic.multiprocessing``: processes of one machine, without an agent."""

from __future__ import annotations

from quorate import DefaultLogsSpecs, LogsDest, LogsSpecs, ProcessFailure, SignalException, Std

from ..._processes import MultiprocessContext, PContext, RunProcsResult, SubprocessContext, start_processes, to_map

__all__ = [
    "DefaultLogsSpecs",
    "LogsDest",
    "LogsSpecs",
    "MultiprocessContext",
    "PContext",
    "ProcessFailure",
    "RunProcsResult",
    "SignalException",
    "Std",
    "SubprocessContext",
    "start_processes",
    "to_map",
]
