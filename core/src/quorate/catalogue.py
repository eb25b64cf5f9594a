"""The records that ``quorate_register_…`` hooks answer with (rendezvous backends: :mod:`quorate.rendezvous`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, final

from attrs import field, frozen
from attrs.validators import gt, min_len

from .records import Event, FailureRecord

if TYPE_CHECKING:
    from .services import AgentService, AgentView
    from .starter import Starter

__all__ = [
    "CliOption",
    "ErrorRecorder",
    "EventSink",
    "HealthCheck",
    "ServiceBackend",
    "StarterBackend",
    "StarterRequest",
]


@final
@frozen
class StarterRequest:
    """What a starter's factory is told: the name it was chosen by, the agent's unique token, and the free settings.

    ``token`` is put in every worker's environment as ``QUORATE_AGENT_TOKEN``, so that whatever a worker starts can
    be recognised, and swept, whatever session or process group it moved to.
    """

    start_method: str
    token: str
    term_grace_seconds: float = 30.0
    settings: Mapping[str, Any] = field(factory=dict)


@final
@frozen
class StarterBackend:
    """A way to start workers.  ``kind`` tells what its entrypoints are: ``"command"``, ``"function"`` or ``"any"``.

    A command is started by ``exec`` when the start method asked for takes functions only.
    """

    name: str = field(validator=min_len(1))
    summary: str
    kind: str
    create: Callable[[StarterRequest], Starter]


@final
@frozen
class ErrorRecorder:
    """Records a worker's exception.  The first two are called in the worker, the others in the agent.

    ``initialize(error_file)`` prepares the worker (may be called in a worker that never fails: be quick);
    ``record_exception(exception, error_file)`` writes it; ``read(error_file)`` returns the recorded JSON object,
    ``None`` where there is none or it is torn; ``complete(error_file, failure)`` adds what only the agent knows when
    the worker is gone, and makes the file where there is none.  None of them may raise.
    """

    name: str = field(validator=min_len(1))
    summary: str
    initialize: Callable[[str], None]
    record_exception: Callable[[BaseException, str], None]
    read: Callable[[str], Mapping[str, Any] | None]
    complete: Callable[[str, FailureRecord], object] | None = None


@final
@frozen
class HealthCheck:
    """One check of the node, before each join and, if asked (``--health-interval``), while workers run.

    ``check(agent)`` returns ``None`` if the node is well, else one sentence that names the trouble and the remedy.  It
    runs on a thread that is not the agent's; one that has not answered after ``timeout_seconds`` counts as trouble, and
    no other check waits for it.
    """

    name: str = field(validator=min_len(1))
    summary: str
    check: Callable[[AgentView], str | None]
    timeout_seconds: float = field(default=10.0, validator=gt(0.0))


@final
@frozen
class ServiceBackend:
    """Something that lives beside the agent: a watchdog, a health server.

    ``start(agent)`` returns the running service, or ``None`` if it is not wanted here; it must be quick, because the
    first join waits for it.
    """

    name: str = field(validator=min_len(1))
    summary: str
    start: Callable[[AgentView], AgentService | None]


@final
@frozen
class EventSink:
    """A destination for events; ``emit`` must not block."""

    name: str = field(validator=min_len(1))
    summary: str
    emit: Callable[[Event], None]


@final
@frozen
class CliOption:
    """One more flag of ``quorate run``: ``--name VALUE``, also read from ``PET_NAME``.

    ``apply(value, settings)`` puts it where the plugin looks for it: ``settings`` are the launch's free settings, which
    services and health checks find as ``agent.settings``.  It raises UsageError for a value that cannot be used.
    """

    name: str = field(validator=min_len(1))
    help: str
    default: str | None = None
    apply: Callable[[str, dict[str, Any]], None] = field(default=lambda value, settings: None)
