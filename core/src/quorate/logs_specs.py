"""Where workers' output goes: ``Std``, ``LogsSpecs`` and the default.  Opens nothing; starters do.

What does not live here: the prefix of a line on the console, and which workers it shows (``agent/_environment``).
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from copy import copy
from enum import IntFlag
from typing import Any, final

from attrs import field, fields, frozen

from .errors import UsageError, remedy_for
from .files import temporary_folder
from .notices import warn
from .text import is_passable

__all__ = [
    "DefaultLogsSpecs",
    "LogsDest",
    "LogsSpecs",
    "Std",
    "StdChoice",
    "adopt_logs_specs",
    "adopt_logs_specs_class",
]


_LONGEST_NAME = 200


@final
class Std(IntFlag):
    """Which standard streams are meant."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = 3

    @classmethod
    def from_str(cls, text: str) -> Std | dict[int, Std]:
        """Parse ``"3"``, or a map from local rank such as ``"0:1,12:2"`` (ranks not named: NONE).

        Raises:
            UsageError: anything else.
        """
        try:
            if ":" not in text:
                return _std(text)
            result: dict[int, Std] = {}
            for part in text.split(","):
                rank, _, value = part.partition(":")
                if not rank.strip().isdigit() or int(rank) in result:
                    raise ValueError(text)
                result[int(rank)] = _std(value)
            return result
        except ValueError:
            raise UsageError(
                f"{text!r} does not say which streams: write 0 (none), 1 (stdout), 2 (stderr) or 3 (both), "
                "or one of them per local rank, such as 0:1,12:2"
            ) from None


def _std(text: str) -> Std:
    if text.strip() not in ("0", "1", "2", "3"):
        raise ValueError(text)
    return Std(int(text))


#: A choice for all local ranks, or per local rank.
StdChoice = Std | Mapping[int, Std]


def choice_for(choice: StdChoice, local_rank: int) -> Std:
    """Return what ``choice`` says for ``local_rank``."""
    if isinstance(choice, Std):
        return choice
    return choice.get(local_rank, Std.NONE)


def ranks_named_by(specs: LogsSpecs) -> dict[str, frozenset[int]]:
    """Return, by flag, the local ranks for which it chooses a stream, where it chooses by local rank."""
    choices = {"--redirects": specs._redirects, "--tee": specs._tee}
    return {
        flag: frozenset(local_rank for local_rank, streams in choice.items() if streams)
        for flag, choice in choices.items()
        if not isinstance(choice, Std)
    }


def _checked_choice(name: str, choice: Any) -> StdChoice:
    try:
        if isinstance(choice, Mapping):
            return {local_rank: _checked_std(value) for local_rank, value in choice.items()}
        return _checked_std(choice)
    except ValueError:
        raise UsageError(
            f"{name} is {choice!r:.80}; it must be a Std, or one per local rank (Std.from_str reads text)"
        ) from None


def _checked_std(value: Any) -> Std:
    """Return ``value`` as a Std; torch's own has the same numbers."""
    if isinstance(value, IntFlag) and 0 <= value <= Std.ALL:
        return Std(int(value))
    raise ValueError(value)


def _checked_folder(folder: Any) -> str | None:
    text = None if folder is None else os.fspath(folder)
    if text is not None and not is_passable(text):
        raise UsageError(f"the log folder {folder!r:.80} is not a path; set --log-dir to a folder's")
    return text


@final
@frozen
class LogsDest:
    """Where each local rank's streams and error file go, by local rank; an absent stream is the agent's own.

    ``tee_stdouts``/``tee_stderrs`` name the files whose content is shown on the console too.
    """

    stdouts: Mapping[int, str] = field(factory=dict)
    stderrs: Mapping[int, str] = field(factory=dict)
    tee_stdouts: Mapping[int, str] = field(factory=dict)
    tee_stderrs: Mapping[int, str] = field(factory=dict)
    error_files: Mapping[int, str] = field(factory=dict)
    filtered_stdout: str = ""
    filtered_stderr: str = ""


class LogsSpecs(ABC):
    """Decides, for each attempt, where the workers' output goes.  Subclass to change it (``--logs-specs``)."""

    def __init__(
        self,
        log_dir: str | None = None,
        redirects: StdChoice = Std.NONE,
        tee: StdChoice = Std.NONE,
        local_ranks_filter: Set[int] | None = None,
        duplicate_stdout_filters: tuple[str, ...] | list[str] | None = None,
        duplicate_stderr_filters: tuple[str, ...] | list[str] | None = None,
    ) -> None:
        self._root_log_dir = _checked_folder(log_dir)
        self._redirects = _checked_choice("redirects", redirects)
        self._tee = _checked_choice("tee", tee)
        self._local_ranks_filter = None if local_ranks_filter is None else frozenset(local_ranks_filter)
        self._duplicate_stdout_filters = tuple(duplicate_stdout_filters or ())
        self._duplicate_stderr_filters = tuple(duplicate_stderr_filters or ())

    @property
    def root_log_dir(self) -> str | None:
        """The folder that the caller named."""
        return self._root_log_dir

    @property
    def local_ranks_filter(self) -> frozenset[int] | None:
        """The local ranks whose output the console shows; ``None`` for all."""
        return self._local_ranks_filter

    @property
    def duplicate_stdout_filters(self) -> tuple[str, ...]:
        return self._duplicate_stdout_filters

    @property
    def duplicate_stderr_filters(self) -> tuple[str, ...]:
        return self._duplicate_stderr_filters

    def with_duplicate_filters(self, stdout: tuple[str, ...], stderr: tuple[str, ...]) -> LogsSpecs:
        """Return a copy with these duplicate filters instead of its own; an empty one leaves its own."""
        if not stdout and not stderr:
            return self
        specs = copy(self)
        specs._duplicate_stdout_filters = stdout or self._duplicate_stdout_filters
        specs._duplicate_stderr_filters = stderr or self._duplicate_stderr_filters
        return specs

    @abstractmethod
    def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
        """Return the destinations for one attempt, whose workers' environments are ``envs`` (by local rank).

        May create folders.  Raises UsageError where they cannot be made.
        """

    def keep_run_dir(self, run_id: str) -> str | None:
        """Return the folder that stays after the run, for reports on the whole run; ``None``: nothing stays.

        Called once at the end, after the workers.  May create the folder.  Raises UsageError where it cannot be made.
        """
        return None


class DefaultLogsSpecs(LogsSpecs):
    """``<log_dir>/<run_id>_<random>/attempt_<restart>/<local_rank>/{stdout,stderr}.log`` and ``error.json``.

    Without a ``log_dir`` a private temporary folder is used if anything must be written at all.  An attempt that is
    run again in a new world (no restart counted) goes to ``attempt_<restart>_round_<n>``: logs are never
    overwritten.
    """

    _run_log_dir: str | None = None

    @property
    def run_log_dir(self) -> str | None:
        """The folder of this run, once the first attempt has begun."""
        return self._run_log_dir

    def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
        if not envs:
            return LogsDest()
        first = next(iter(envs.values()))
        run_dir = self._make_run_dir(first.get("TORCHELASTIC_RUN_ID", "run"))
        attempt_dir = self._make_attempt_dir(
            run_dir, first.get("TORCHELASTIC_RESTART_COUNT", "0"), first.get("QUORATE_ROUND", "0")
        )
        folders = {local_rank: os.path.join(attempt_dir, str(local_rank)) for local_rank in envs}
        for folder in folders.values():
            _make_folder(folder)
        tees = {local_rank: choice_for(self._tee, local_rank) for local_rank in envs}
        files = {local_rank: choice_for(self._redirects, local_rank) | tee for local_rank, tee in tees.items()}

        def paths(name: str, chosen: Mapping[int, Std], stream: Std = Std.ALL) -> dict[int, str]:
            return {rank: os.path.join(folders[rank], name) for rank, streams in chosen.items() if streams & stream}

        return LogsDest(
            paths("stdout.log", files, Std.OUT),
            paths("stderr.log", files, Std.ERR),
            paths("stdout.log", tees, Std.OUT),
            paths("stderr.log", tees, Std.ERR),
            paths("error.json", dict.fromkeys(envs, Std.ALL)),
            os.path.join(attempt_dir, "filtered_stdout.log") if self._duplicate_stdout_filters else "",
            os.path.join(attempt_dir, "filtered_stderr.log") if self._duplicate_stderr_filters else "",
        )

    def keep_run_dir(self, run_id: str) -> str | None:
        kept = self._root_log_dir is not None or (self._run_log_dir is not None and self._writes_streams())
        return self._make_run_dir(run_id) if kept else None

    def _make_run_dir(self, run_id: str) -> str:
        if self._run_log_dir is None:
            name = f"{_as_file_name(run_id)}_{os.urandom(4).hex()}"
            parent = self._root_log_dir
            try:
                if parent is None:
                    folder = _make_temporary_folder(f"quorate_{name}")
                else:
                    os.makedirs(parent, exist_ok=True)
                    folder = os.path.join(os.path.abspath(parent), name)
                    os.mkdir(folder, 0o700)
            except OSError as error:
                raise _unwritable(str(parent), error) from error
            self._run_log_dir = folder
        return self._run_log_dir

    def _make_attempt_dir(self, run_dir: str, restart: str, round_number: str) -> str:
        folder = os.path.join(run_dir, f"attempt_{restart}")
        if os.path.exists(folder):
            folder += f"_round_{round_number}"
        _make_folder(folder)
        return folder

    def remove_if_unused(self) -> None:
        """Remove the run's folder where the caller named none and no stream was sent to it.

        The error files in it have been read by then.
        """
        folder = self._run_log_dir
        if folder is None or self._root_log_dir is not None or self._writes_streams():
            return
        try:
            for parent, _, files in os.walk(folder, topdown=False):
                for name in files:
                    os.unlink(os.path.join(parent, name))
                os.rmdir(parent)
        except OSError:
            return
        self._run_log_dir = None

    def _writes_streams(self) -> bool:
        choices = (self._redirects, self._tee)
        any_file = any(any(c.values()) if isinstance(c, Mapping) else bool(c) for c in choices)
        return any_file or bool(self._duplicate_stdout_filters or self._duplicate_stderr_filters)


def _as_file_name(run_id: str) -> str:
    """Return ``run_id`` as a part of a file's name: file systems take 255 bytes."""
    name = "".join(c if c.isalnum() or c in "_.-" else "_" for c in run_id)[:_LONGEST_NAME]
    while len(name.encode()) > _LONGEST_NAME:
        name = name[:-1]
    return name


def _make_temporary_folder(name: str) -> str:
    """Make a folder where temporary files go.

    Raises:
        UsageError: no place for temporary files can be written to.
    """
    try:
        place, problem = temporary_folder(os.environ)
        folder = os.path.join(place, name)
        os.mkdir(folder, 0o700)
    except OSError as error:
        if remedy := remedy_for(error):
            raise UsageError(f"no temporary folder can be made: {error.strerror}; {remedy}") from error
        raise UsageError(
            f"{error.filename} cannot be used for temporary files: {error.strerror}, nor can any other place; set "
            "TMPDIR to a writable folder, or --log-dir"
        ) from error
    if problem:
        warn(f"{problem}; {place} is used instead")
    return folder


@final
class _AdoptedLogsSpecs(LogsSpecs):
    """Logs specs of TorchElastic's interface, which :func:`adopt_logs_specs` explains."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(theirs.root_log_dir, local_ranks_filter=getattr(theirs, "_local_ranks_filter", None))
        self._theirs = theirs

    def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
        dest = self._theirs.reify({rank: dict(environment) for rank, environment in envs.items()})
        return LogsDest(**{each.name: getattr(dest, each.name) for each in fields(LogsDest)})


def adopt_logs_specs(specs: Any) -> LogsSpecs:
    """Return ``specs`` as quorate's: LogsSpecs of TorchElastic's interface are wrapped, torch's default is replaced.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(specs, LogsSpecs):
        return specs
    kind = type(specs)
    if not callable(getattr(specs, "reify", None)):
        raise UsageError(
            f"{kind.__module__}.{kind.__qualname__} is not a subclass of quorate.LogsSpecs, nor of torch's"
        )
    if kind.__qualname__ == "DefaultLogsSpecs" and kind.__module__.startswith("torch."):
        folder = None if specs.root_log_dir == os.devnull else specs.root_log_dir
        redirects, tee = (_choice_of(Std, choice) for choice in (specs._redirects, specs._tee))
        return DefaultLogsSpecs(folder, redirects, tee, specs._local_ranks_filter)
    return _AdoptedLogsSpecs(specs)


def adopt_logs_specs_class(kind: Any) -> Callable[..., LogsSpecs]:
    """Return what makes the logs specs of a class, quorate's or TorchElastic's; the arguments are quorate's.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(kind, type) and issubclass(kind, LogsSpecs):
        return kind
    if not (isinstance(kind, type) and callable(getattr(kind, "reify", None))):
        raise UsageError("is not a subclass of quorate.LogsSpecs, nor of torch's")
    # Their Std is another class than ours, and theirs is asked for by isinstance.
    homes = [sys.modules.get(base.__module__) for base in kind.__mro__ if base.__name__ == "LogsSpecs"]
    std: Any = next((getattr(home, "Std", None) for home in homes), None) or Std

    def make(redirects: StdChoice = Std.NONE, tee: StdChoice = Std.NONE, **others: Any) -> LogsSpecs:
        return adopt_logs_specs(kind(redirects=_choice_of(std, redirects), tee=_choice_of(std, tee), **others))

    return make


def _choice_of(std: Any, choice: Any) -> Any:
    if isinstance(choice, Mapping):
        return {rank: std(int(value)) for rank, value in choice.items()}
    return std(int(choice))


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: str, error: OSError) -> UsageError:
    return UsageError(f"the log folder {folder} cannot be used: {error.strerror}; set --log-dir to a writable folder")
