"""quorate launches distributed training and keeps it running while workers and machines come and go.

Everything public is imported from here; nothing is imported until it is used, so that ``import quorate`` costs next
to nothing in a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__ as __version__
from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .agent import (
        LocalElasticAgent as LocalElasticAgent,
        RunResult as RunResult,
        Worker as Worker,
        WorkerGroup as WorkerGroup,
        WorkerSpec as WorkerSpec,
        WorkerState as WorkerState,
    )
    from .backends import get_rendezvous_handler as get_rendezvous_handler
    from .catalogue import (
        CliOption as CliOption,
        ErrorRecorder as ErrorRecorder,
        EventSink as EventSink,
        HealthCheck as HealthCheck,
        PluginKind as PluginKind,
        ServiceBackend as ServiceBackend,
        StarterBackend as StarterBackend,
    )
    from .clusters import ClusterEnvironment as ClusterEnvironment, ClusterJob as ClusterJob
    from .config import LaunchConfig as LaunchConfig
    from .errors import (
        PluginError as PluginError,
        PreemptedError as PreemptedError,
        QuorateError as QuorateError,
        RendezvousClosedError as RendezvousClosedError,
        RendezvousConnectionError as RendezvousConnectionError,
        RendezvousError as RendezvousError,
        RendezvousStateError as RendezvousStateError,
        RendezvousTimeoutError as RendezvousTimeoutError,
        SignalException as SignalException,
        StartError as StartError,
        StoreCorruptError as StoreCorruptError,
        StoreLostError as StoreLostError,
        StoreUnavailableError as StoreUnavailableError,
        UnhealthyNodeError as UnhealthyNodeError,
        UnknownBackendError as UnknownBackendError,
        UsageError as UsageError,
    )
    from .failures import ChildFailedError as ChildFailedError, ProcessFailure as ProcessFailure
    from .hookspecs import hookimpl as hookimpl
    from .launcher import elastic_launch as elastic_launch, launch as launch
    from .logs_specs import (
        DefaultLogsSpecs as DefaultLogsSpecs,
        LogsDest as LogsDest,
        LogsSpecs as LogsSpecs,
        Std as Std,
    )
    from .plugins import PluginHost as PluginHost
    from .preemption import Deadline as Deadline, deadline as deadline
    from .recording import record as record
    from .rendezvous import (
        Bootstrap as Bootstrap,
        RendezvousBackend as RendezvousBackend,
        RendezvousHandler as RendezvousHandler,
        RendezvousInfo as RendezvousInfo,
        RendezvousParameters as RendezvousParameters,
        RendezvousStoreInfo as RendezvousStoreInfo,
        Store as Store,
    )
    from .services import (
        AgentService as AgentService,
        AgentSnapshot as AgentSnapshot,
        AgentView as AgentView,
        HangReport as HangReport,
        WorkerSnapshot as WorkerSnapshot,
    )

_HOMES = {
    "agent": "LocalElasticAgent RunResult Worker WorkerGroup WorkerSpec WorkerState",
    "backends": "get_rendezvous_handler",
    "catalogue": "CliOption ErrorRecorder EventSink HealthCheck PluginKind ServiceBackend StarterBackend",
    "clusters": "ClusterEnvironment ClusterJob",
    "config": "LaunchConfig",
    "errors": "PluginError PreemptedError QuorateError RendezvousClosedError RendezvousConnectionError RendezvousError "
    "RendezvousStateError RendezvousTimeoutError SignalException StartError StoreCorruptError StoreLostError "
    "StoreUnavailableError UnhealthyNodeError UnknownBackendError UsageError",
    "failures": "ChildFailedError ProcessFailure",
    "hookspecs": "hookimpl",
    "launcher": "elastic_launch launch",
    "logs_specs": "DefaultLogsSpecs LogsDest LogsSpecs Std",
    "plugins": "PluginHost",
    "preemption": "Deadline deadline",
    "recording": "record",
    "rendezvous": "Bootstrap RendezvousBackend RendezvousHandler RendezvousInfo RendezvousParameters "
    "RendezvousStoreInfo Store",
    "services": "AgentService AgentSnapshot AgentView HangReport WorkerSnapshot",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)  # noqa: PLE0605 - derived, so that no list is kept twice


__getattr__ = lazy_exports(globals(), _HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
