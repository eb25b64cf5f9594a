"""``WorkerSettings``: how one node's workers are run, from the command line to the agent.

:class:`quorate.LaunchConfig` and :class:`quorate.WorkerSpec` are both made of it, so a setting is declared, checked and
given its default here and nowhere else.  What does not live here: timeouts of the rendezvous
(:mod:`quorate.timeouts`), and how flags are read (:mod:`quorate.cli`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import Attribute, field, fields, frozen

from .clusters import ClusterJob
from .errors import UsageError
from .text import is_environment, is_passable
from .timeouts import parse_seconds

__all__ = [
    "WorkerSettings",
    "at_least",
    "by_position",
    "copied",
    "flag_of",
    "not_empty",
    "seconds_or_variable",
    "text",
    "words_of",
]

_UNCATCHABLE = ("SIGKILL", "SIGSTOP")
_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
_FORWARDED = "USR1,USR2"
_LARGEST = (1 << 31) - 1

Validator = Callable[[Any, "Attribute[Any]", Any], None]


def flag_of(name: str) -> str:
    """Return the flag that sets a field."""
    return "--rdzv-id" if name == "run_id" else "--" + name.replace("_", "-")


def at_least(minimum: int, flag: str = "", *, most: int = _LARGEST, optional: bool = False) -> Validator:
    """Return a validator for whole numbers from ``minimum`` to ``most``, which other nodes take from this one too.

    ``flag`` (default: the field's own) is the remedy.
    """

    def check(record: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is None and optional:
            return
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= most:
            return
        limit = f"of at least {minimum}" if not isinstance(value, int) or value < minimum else f"of at most {most}"
        raise UsageError(
            f"{attribute.name} is {value!r:.80}; it must be a whole number {limit} ({flag or flag_of(attribute.name)})"
        )

    return check


def not_empty(record: Any, attribute: Attribute[Any], value: Any) -> None:
    """Refuse an empty name."""
    if not value:
        raise UsageError(f"{attribute.name} is empty; set {flag_of(attribute.name)} to a name")


def text(record: Any, attribute: Attribute[Any], value: Any) -> None:
    """Refuse a value that cannot be passed to a worker; ``None`` (not set) is accepted."""
    if value is not None and not is_passable(value):
        raise UsageError(
            f"{attribute.name} is {value!r:.80}; it must be a text without a NUL or half a character "
            f"({flag_of(attribute.name)})"
        )


def _word(record: Any, attribute: Attribute[Any], value: Any) -> None:
    text(record, attribute, value)
    if value and not value.isprintable():
        raise UsageError(f"{attribute.name} is {value!r:.80}, which is not a name ({flag_of(attribute.name)})")


def _variables(record: Any, attribute: Attribute[Any], value: Mapping[Any, Any]) -> None:
    for name, content in value.items():
        if not is_environment({name: content}):  # the content may be secret
            kind = type(content).__name__
            raise UsageError(f"{attribute.name} has {name!r:.80} of type {kind}, which no process can be given")


def _monitor_interval(value: Any) -> float:
    return parse_seconds("monitor_interval (--monitor-interval)", value)


def _health_interval(value: Any) -> float:
    return parse_seconds("health_interval (--health-interval)", value)


def _above_zero(record: Any, attribute: Attribute[Any], value: float) -> None:
    if value <= 0:
        raise UsageError(f"{attribute.name} is 0; set {flag_of(attribute.name)} to seconds above 0")


def _port(record: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535):
        raise UsageError(
            f"{attribute.name} is {value!r}; it must be a port from 1 to 65535 ({flag_of(attribute.name)})"
        )


def _signals(record: Any, attribute: Attribute[Any], names: Sequence[str]) -> None:
    if not names:
        flag = flag_of(attribute.name)
        raise UsageError(f"{attribute.name} is empty; name at least one signal ({flag}=SIGTERM)")
    _any_signals(record, attribute, names)


def _any_signals(record: Any, attribute: Attribute[Any], names: Sequence[str]) -> None:
    flag = flag_of(attribute.name)
    for name in names:
        if name in _UNCATCHABLE:
            raise UsageError(f"{name} cannot be handled by any process; remove it from {flag}")
        if name not in signal.Signals.__members__:
            raise UsageError(f"{name!r} is not a signal of this system; {flag} takes names such as SIGTERM")


def _names(value: str | Sequence[str]) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(isinstance(part, str) for part in parts):
        raise UsageError(f"{value!r:.80} does not name signals; name them as in 'SIGTERM,SIGINT'")
    words = (part.strip().upper() for part in parts if part.strip())
    return tuple(dict.fromkeys(word if word.startswith("SIG") else f"SIG{word}" for word in words))


def _signal_names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        value = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE") or _SIGNALS
    return _names(value)


def _forwarded_names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return _names(_FORWARDED if value is None else value)


def _ranks(value: Iterable[int] | None) -> frozenset[int] | None:
    try:
        return None if value is None else frozenset(value)
    except TypeError:
        raise UsageError(f"console_ranks is {value!r:.80}; it must be a set of ranks (--console-ranks)") from None


def seconds_or_variable(name: str, value: float | None, variable: str, default: float) -> float:
    """Return the seconds of the field ``name``: ``value``, else those of an environment variable, else ``default``.

    Raises:
        UsageError: it is not a number of seconds.
    """
    if value is not None:
        return parse_seconds(f"{name} ({flag_of(name)})", value)
    return parse_seconds(f"the environment variable {variable}", os.environ.get(variable) or default)


def _shutdown_timeout(value: float | None) -> float:
    return seconds_or_variable("shutdown_timeout", value, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30.0)


def copied(name: str, value: Any) -> dict[str, Any]:
    """Return a copy of the mapping that is given for a field; ``None`` is an empty one.

    Raises:
        UsageError: it is not a mapping.
    """
    try:
        return dict(value or {})
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r:.80}; it must be a mapping of names to values") from None


def _environment(value: Mapping[str, str] | None) -> Mapping[str, str]:
    return copied("environment", value)


def _free_settings(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return copied("settings", value)


@frozen(kw_only=True, eq=False)
class WorkerSettings:
    """How one node's workers are run.  Made to be subclassed; all arguments are keywords.

    Arguments:
        max_restarts: maximum number of restarts after failures, of the whole job.
        monitor_interval: seconds, the maximum polling interval where no event is available.
        master_addr, master_port: what workers get as ``MASTER_ADDR``/``MASTER_PORT``, whatever the rendezvous says.
        local_addr: the address at which other nodes reach this one.
        node_rank: the group rank that this node asks for.
        shutdown_timeout: seconds that workers get to stop; ``None``: ``TORCH_ELASTIC_SHUTDOWN_TIMEOUT``, else 30.
        signals_to_handle: names of the signals that stop the job, comma-separated or a sequence; ``None``:
            ``TORCHELASTIC_SIGNALS_TO_HANDLE``, else SIGTERM, SIGINT, SIGHUP and SIGQUIT.
        forward_signals: names of the signals that are passed on to the workers and stop nothing; ``None``: SIGUSR1 and
            SIGUSR2.  One that is in ``signals_to_handle`` too stops the job.
        console_ranks: the global ranks whose output the console shows; ``None``: all.
        virtual_local_rank: each worker sees one device, as local rank 0.
        environment: more variables for the workers.
        share_job_token: the workers get the variables of the job token, which are kept from them otherwise.
        event_log_handler: name of an installed event sink; ``null`` for none.
        health_interval: seconds between checks of the node while workers run; 0: only before each join.
        settings: what flags of plugins have set, and whatever else plugins read.
        cluster: what the scheduler says of the job; ``None``: no scheduler started it.

    Raises:
        UsageError: a value is out of range; the message names it, its flag and the remedy.
    """

    max_restarts: int = field(default=3, validator=at_least(0))
    monitor_interval: float = field(default=0.1, converter=_monitor_interval, validator=_above_zero)
    master_addr: str | None = field(default=None, validator=_word)
    master_port: int | None = field(default=None, validator=_port)
    local_addr: str | None = field(default=None, validator=_word)
    node_rank: int | None = field(default=None, validator=at_least(0, optional=True))
    shutdown_timeout: float = field(default=None, converter=_shutdown_timeout)
    signals_to_handle: tuple[str, ...] = field(default=None, converter=_signal_names, validator=_signals)
    forward_signals: tuple[str, ...] = field(default=None, converter=_forwarded_names, validator=_any_signals)
    console_ranks: frozenset[int] | None = field(default=None, converter=_ranks)
    virtual_local_rank: bool = False
    environment: Mapping[str, str] = field(factory=dict, converter=_environment, validator=_variables)
    share_job_token: bool = False
    event_log_handler: str = "null"
    health_interval: float = field(default=0.0, converter=_health_interval)
    settings: Mapping[str, Any] = field(factory=dict, converter=_free_settings)
    cluster: ClusterJob | None = None

    def worker_settings(self) -> dict[str, Any]:
        """Return these settings alone, as keyword arguments for another record that is made of them."""
        return {each.name: getattr(self, each.name) for each in fields(WorkerSettings)}


def words_of(args: Iterable[Any]) -> tuple[str, ...]:
    """Return the arguments of a command as text: paths and bytes as the file system's encoding has them."""
    return tuple(os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value) for value in args)


def by_position(name: str) -> Any:
    """Return the field ``name`` of :class:`WorkerSettings` for a subclass in which it may also be given by position."""
    declared: Attribute[Any] = getattr(fields(WorkerSettings), name)
    return field(default=declared.default, validator=declared.validator, converter=declared.converter)
