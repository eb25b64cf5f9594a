"""quorate launches distributed training and keeps it running while workers and machines come and go.

Everything public is imported from here; nothing is imported until it is used, so that ``import quorate`` costs next
to nothing in a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__ as __version__
from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .agent import LocalElasticAgent as LocalElasticAgent
    from .agent import RunResult as RunResult
    from .agent import Worker as Worker
    from .agent import WorkerGroup as WorkerGroup
    from .agent import WorkerSpec as WorkerSpec
    from .agent import WorkerState as WorkerState
    from .backends import get_rendezvous_handler as get_rendezvous_handler
    from .catalogue import CliOption as CliOption
    from .catalogue import ErrorRecorder as ErrorRecorder
    from .catalogue import EventSink as EventSink
    from .catalogue import HealthCheck as HealthCheck
    from .catalogue import PluginKind as PluginKind
    from .catalogue import ServiceBackend as ServiceBackend
    from .catalogue import StarterBackend as StarterBackend
    from .clusters import ClusterEnvironment as ClusterEnvironment
    from .clusters import ClusterJob as ClusterJob
    from .config import LaunchConfig as LaunchConfig
    from .errors import PluginError as PluginError
    from .errors import PreemptedError as PreemptedError
    from .errors import QuorateError as QuorateError
    from .errors import RendezvousClosedError as RendezvousClosedError
    from .errors import RendezvousConnectionError as RendezvousConnectionError
    from .errors import RendezvousError as RendezvousError
    from .errors import RendezvousStateError as RendezvousStateError
    from .errors import RendezvousTimeoutError as RendezvousTimeoutError
    from .errors import SignalException as SignalException
    from .errors import StartError as StartError
    from .errors import StoreCorruptError as StoreCorruptError
    from .errors import StoreLostError as StoreLostError
    from .errors import StoreUnavailableError as StoreUnavailableError
    from .errors import UnhealthyNodeError as UnhealthyNodeError
    from .errors import UnknownBackendError as UnknownBackendError
    from .errors import UsageError as UsageError
    from .failures import ChildFailedError as ChildFailedError
    from .failures import ProcessFailure as ProcessFailure
    from .hookspecs import hookimpl as hookimpl
    from .launcher import elastic_launch as elastic_launch
    from .launcher import launch as launch
    from .logs_specs import DefaultLogsSpecs as DefaultLogsSpecs
    from .logs_specs import LogsDest as LogsDest
    from .logs_specs import LogsSpecs as LogsSpecs
    from .logs_specs import Std as Std
    from .plugins import PluginHost as PluginHost
    from .preemption import Deadline as Deadline
    from .preemption import deadline as deadline
    from .recording import record as record
    from .rendezvous import Bootstrap as Bootstrap
    from .rendezvous import RendezvousBackend as RendezvousBackend
    from .rendezvous import RendezvousHandler as RendezvousHandler
    from .rendezvous import RendezvousInfo as RendezvousInfo
    from .rendezvous import RendezvousParameters as RendezvousParameters
    from .rendezvous import RendezvousStoreInfo as RendezvousStoreInfo
    from .rendezvous import Store as Store
    from .services import AgentService as AgentService
    from .services import AgentSnapshot as AgentSnapshot
    from .services import AgentView as AgentView
    from .services import HangReport as HangReport
    from .services import WorkerSnapshot as WorkerSnapshot

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
