"""What plugins can offer: the kinds, and the records that ``quorate_register_…`` hooks answer with.

What does not live here: the record of a rendezvous backend (:mod:`quorate.rendezvous`) and the interfaces that the
records' functions return (:mod:`quorate.starter`, :mod:`quorate.services`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, final

from attrs import field, frozen
from attrs.validators import gt, instance_of, is_callable, optional

from ._bounded import is_word
from .clusters import ClusterEnvironment
from .records import Event, FailureRecord, TextEnum
from .rendezvous import RendezvousBackend
from .services import AgentService, AgentView
from .starter import Starter, StarterRequest
from .timeouts import LONGEST_SECONDS

__all__ = [
    "CliOption",
    "EntrypointKind",
    "ErrorRecorder",
    "EventSink",
    "HealthCheck",
    "PluginKind",
    "RunRequest",
    "ServiceBackend",
    "StarterBackend",
    "StarterRequest",
]


def _within_a_year(seconds: Any) -> Any:
    """Return seconds that can be added to a time; what is not a number is left to the validators."""
    return min(seconds, LONGEST_SECONDS) if isinstance(seconds, (int, float)) else seconds


@final
class EntrypointKind(str, Enum):
    """What a starter can start."""

    COMMAND = "command"
    FUNCTION = "function"
    ANY = "any"


@final
@frozen
class StarterBackend:
    """A way to start workers; ``kind`` is what it can start.

    A command is started by ``exec`` when the start method asked for takes functions only.
    """

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    kind: EntrypointKind = field(converter=EntrypointKind)
    create: Callable[[StarterRequest], Starter] = field(validator=is_callable())


@final
@frozen
class ErrorRecorder:
    """Records a worker's exception.  No function may raise; the first two run in the worker, the others in the agent.

    * ``initialize(error_file)`` prepares the worker; every worker pays for it, also one that never fails.
    * ``record_exception(exception, error_file)`` writes the file.
    * ``read(error_file)`` returns the recorded JSON object, ``None`` where the file is absent or torn.
    * ``complete(error_file, failure)`` adds what only the agent knows when the worker is gone, and makes the file where
      it is absent.
    * ``begin()`` is called once, when the agent's first workers have started.
    """

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    initialize: Callable[[str], None] = field(validator=is_callable())
    record_exception: Callable[[BaseException, str], None] = field(validator=is_callable())
    read: Callable[[str], Mapping[str, Any] | None] = field(validator=is_callable())
    complete: Callable[[str, FailureRecord], object] | None = field(default=None, validator=optional(is_callable()))
    begin: Callable[[], object] | None = field(default=None, validator=optional(is_callable()))


@final
@frozen
class HealthCheck:
    """One check of the node, before each join and, if asked (``--health-interval``), while workers run.

    ``check(agent)`` returns ``None`` if the node is well, else one sentence that names the problem and the remedy.  It
    runs on a thread that is not the agent's.  A check that has not returned after ``timeout_seconds`` has failed, and
    no other check waits for it.
    """

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    check: Callable[[AgentView], str | None] = field(validator=is_callable())
    timeout_seconds: float = field(
        default=10.0, converter=_within_a_year, validator=[instance_of((int, float)), gt(0.0)]
    )


@final
@frozen
class ServiceBackend:
    """Something that runs beside the agent: a watchdog, a health server.

    ``start(agent)`` returns the running service, or ``None`` if it is not wanted here; it must be quick, because the
    first join waits for it.
    """

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    start: Callable[[AgentView], AgentService | None] = field(validator=is_callable())


@final
@frozen
class EventSink:
    """A destination for events; ``emit`` must not block."""

    name: str = field(validator=is_word)
    summary: str = field(validator=instance_of(str))
    emit: Callable[[Event], None] = field(validator=is_callable())


@final
@frozen
class RunRequest:
    """A command line of ``quorate run`` that an option takes over.

    ``texts`` are the values of the flags that were set, by argument or by variable, under the flags' names.  ``script``
    is ``None`` where none was given.
    """

    texts: Mapping[str, str]
    script: str | None
    arguments: tuple[str, ...] = ()


@final
@frozen
class CliOption:
    """One more flag of ``quorate run``: ``--name VALUE``, also read from ``PET_NAME``.

    ``apply(value, settings)`` puts it where the plugin looks for it: ``settings`` are the launch's free settings, which
    services and health checks find as ``agent.settings``.  It raises UsageError for a value that cannot be used.
    ``metavar`` stands for the value in ``--help``; a flag with ``SECONDS`` is listed in ``docs/timeouts.md``.

    An option with ``run`` takes the whole launch over where it is set: ``run(request)`` returns the exit code, and no
    agent runs in this process.
    """

    name: str = field(validator=is_word)
    help: str = field(validator=instance_of(str))
    default: str | None = field(default=None, validator=optional(instance_of(str)))
    apply: Callable[[str, dict[str, Any]], None] = field(default=lambda value, settings: None, validator=is_callable())
    metavar: str = field(default="VALUE", validator=is_word)
    run: Callable[[RunRequest], int] | None = field(default=None, validator=optional(is_callable()))


@final
class PluginKind(TextEnum):
    """What a plugin can offer by name; the value is how messages call it."""

    CLI_OPTION = "flag"
    ENVIRONMENT = "cluster"
    RENDEZVOUS = "rendezvous backend"
    STARTER = "start method"
    HEALTH_CHECK = "health check"
    WATCHDOG = "watchdog"
    SERVICE = "service"
    ERROR_RECORDER = "error recorder"
    EVENT_SINK = "event log handler"

    @property
    def hook(self) -> str:
        """The hook that collects the offers of this kind."""
        return f"quorate_register_{_HOOKS[self][0]}"

    @property
    def record(self) -> type:
        """The class of the records that the hook answers with."""
        return _HOOKS[self][1]


_HOOKS: Mapping[PluginKind, tuple[str, type]] = {
    PluginKind.CLI_OPTION: ("cli_options", CliOption),
    PluginKind.ENVIRONMENT: ("environment", ClusterEnvironment),
    PluginKind.RENDEZVOUS: ("rendezvous", RendezvousBackend),
    PluginKind.STARTER: ("starter", StarterBackend),
    PluginKind.HEALTH_CHECK: ("health_check", HealthCheck),
    PluginKind.WATCHDOG: ("watchdog", ServiceBackend),
    PluginKind.SERVICE: ("service", ServiceBackend),
    PluginKind.ERROR_RECORDER: ("error_recorder", ErrorRecorder),
    PluginKind.EVENT_SINK: ("event_sink", EventSink),
}
