"""A plugin's logs specs, with every answer checked: what a plugin breaks is reported by its name.

What does not live here: the interface and the core's own (:mod:`quorate.logs_specs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeGuard, TypeVar, final

from attrs import fields

from .._isolation import checked_answer
from ..logs_specs import DefaultLogsSpecs, LogsDest, LogsSpecs
from ..text import is_passable

_T = TypeVar("_T")


def guarded_logs(specs: LogsSpecs) -> LogsSpecs:
    """Return ``specs`` with its answers checked; the core's own is returned as it is."""
    return specs if type(specs) is DefaultLogsSpecs else _GuardedLogs(specs)


@final
class _GuardedLogs(LogsSpecs):
    """Calls the methods of other logs specs.

    Every method raises what they raise, if it is an error of quorate.  It raises a PluginError that names their class
    where they raise anything else, or answer with the wrong type; the first one when this is made.
    """

    def __init__(self, specs: LogsSpecs) -> None:
        super().__init__()
        self._specs = specs
        self._what = f"logs specs {type(specs).__name__}"
        _ = self.root_log_dir  # a wrong one is refused before anything runs

    @property
    def root_log_dir(self) -> str | None:
        return self._ask("root_log_dir", _is_path_or_none, lambda: self._specs.root_log_dir)

    @property
    def local_ranks_filter(self) -> frozenset[int] | None:
        ranks = self._ask("local_ranks_filter", _are_ranks, lambda: self._specs.local_ranks_filter)
        return None if ranks is None else frozenset(ranks)

    @property
    def duplicate_stdout_filters(self) -> tuple[str, ...]:
        return tuple(self._ask("duplicate_stdout_filters", _are_texts, lambda: self._specs.duplicate_stdout_filters))

    @property
    def duplicate_stderr_filters(self) -> tuple[str, ...]:
        return tuple(self._ask("duplicate_stderr_filters", _are_texts, lambda: self._specs.duplicate_stderr_filters))

    def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
        return self._ask("reify()", _is_dest, lambda: self._specs.reify(envs))

    def keep_run_dir(self, run_id: str) -> str | None:
        return self._ask("keep_run_dir()", _is_path_or_none, lambda: self._specs.keep_run_dir(run_id))

    def _ask(self, what: str, is_good: Callable[[Any], TypeGuard[_T]], ask: Callable[[], Any]) -> _T:
        return checked_answer(f"{self._what}: {what}", is_good, "what it has to be", ask)


def _is_path_or_none(answer: Any) -> TypeGuard[str | None]:
    return answer is None or is_passable(answer)


def _are_ranks(answer: Any) -> TypeGuard[Set[int] | None]:
    return answer is None or (isinstance(answer, Set) and all(type(rank) is int for rank in answer))


def _are_texts(answer: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(answer, (tuple, list)) and all(isinstance(text, str) for text in answer)


def _is_dest(answer: Any) -> TypeGuard[LogsDest]:
    """Return whether this is a LogsDest with a path, or paths by local rank, in each of its fields."""
    return isinstance(answer, LogsDest) and all(
        is_passable(value)
        if each.name.startswith("filtered_")
        else isinstance(value, Mapping) and all(type(rank) is int and is_passable(path) for rank, path in value.items())
        for each in fields(LogsDest)
        for value in (getattr(answer, each.name),)
    )
