"""A starter's process context, with every answer checked: what a plugin breaks is reported by its name.

What does not live here: the interface (:mod:`quorate.starter`), and what the agent does with the answers (``_runner``).
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar, final

from .._bounded import LARGEST_COUNTER
from .._isolation import call_plugin, checked_answer, is_bool, list_of
from ..records import WorkerExited, WorkerLaunch
from ..starter import (
    DeliversResults,
    ForwardsSignals,
    LeavesBehind,
    ProcessContext,
    ReleasesWorkers,
    StackDumper,
    SuspendsWorkers,
)

_T = TypeVar("_T")
#: Of descriptors and exit codes, which the kernel keeps in 32 bits.
_LARGEST_NUMBER = (1 << 31) - 1


@final
class GuardedContext:
    """Calls the methods of a :class:`~quorate.starter.ProcessContext`; of abilities that it lacks the answer is empty.

    Every method raises a PluginError that names the start method where the context raises, or answers with the wrong
    type.

    Raises:
        PluginError: ``context`` is not a process context.
    """

    def __init__(self, start_method: str, context: Any) -> None:
        self._name = f"start method {start_method!r}"
        checked_answer(self._name, _is_context, "a process context", lambda: context)
        self._context: Any = context
        self._delivers, self._leaves_behind = isinstance(context, DeliversResults), isinstance(context, LeavesBehind)
        self.can_release = isinstance(context, ReleasesWorkers)
        self.can_dump_stacks = isinstance(context, StackDumper)
        self._forwards, self.can_suspend = isinstance(context, ForwardsSignals), isinstance(context, SuspendsWorkers)

    def fileno(self) -> int:
        return self._ask("fileno", _is_descriptor)

    def wake_at(self) -> float | None:
        return self._ask("wake_at", _is_time)

    def advance(self, now: float) -> Sequence[WorkerExited]:
        return self._ask("advance", _are_exits, now)

    def is_gone(self) -> bool:
        return self._ask("is_gone", is_bool)

    def pids(self) -> Mapping[int, int]:
        return self._ask("pids", _are_pids)

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        self._call("stop", signal_number, grace_seconds, now)

    def close(self) -> None:
        self._call("close")

    def delivered(self) -> Sequence[int]:
        return self._ask("delivered", _are_ranks) if self._delivers else ()

    def left_behind(self) -> Sequence[str]:
        return self._ask("left_behind", list_of(str)) if self._leaves_behind else ()

    def release(
        self, signal_number: int, grace_seconds: float, release_seconds: float, given_up: Collection[int], now: float
    ) -> None:
        if self.can_release:
            self._call("release", signal_number, grace_seconds, release_seconds, given_up, now)
        else:
            self.stop(signal_number, grace_seconds, now)

    def released(self) -> Sequence[int] | None:
        return self._ask("released", _are_ranks_or_none) if self.can_release else None

    def assign(self, launch: WorkerLaunch) -> None:
        if self.can_release:
            self._call("assign", launch)

    def forward(self, signal_number: int) -> Sequence[int]:
        return self._ask("forward", _are_ranks, signal_number) if self._forwards else ()

    def suspend(self) -> None:
        if self.can_suspend:
            self._call("suspend")

    def resume(self) -> None:
        if self.can_suspend:
            self._call("resume")

    def dump_stacks(self, hung_local_rank: int, timeout: float) -> Sequence[str]:
        return self._ask("dump_stacks", list_of(str), hung_local_rank, timeout)

    def _ask(self, method: str, is_good: Callable[[Any], TypeGuard[_T]], *arguments: Any) -> _T:
        def ask() -> Any:
            return getattr(self._context, method)(*arguments)

        return checked_answer(f"{self._name}: {method}()", is_good, "of the right type", ask)

    def _call(self, method: str, *arguments: Any) -> None:
        call_plugin(f"{self._name}: {method}()", lambda: getattr(self._context, method)(*arguments))


def _is_context(answer: Any) -> TypeGuard[ProcessContext]:
    return isinstance(answer, ProcessContext)


def _is_whole(answer: Any, least: int = 0, most: int = LARGEST_COUNTER) -> TypeGuard[int]:
    return type(answer) is int and least <= answer <= most


def _is_descriptor(answer: Any) -> TypeGuard[int]:
    """Return whether this is the number of an open file that can be waited for."""
    if not _is_whole(answer, most=_LARGEST_NUMBER):
        return False
    try:
        mode = os.fstat(answer).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_time(answer: Any) -> TypeGuard[float | None]:
    if type(answer) is float:
        return not math.isnan(answer)
    return answer is None or _is_whole(answer, -LARGEST_COUNTER)


def _are_pids(answer: Any) -> TypeGuard[Mapping[int, int]]:
    return isinstance(answer, Mapping) and all(map(_is_whole, (*answer, *answer.values())))


def _are_exits(answer: Any) -> TypeGuard[Sequence[WorkerExited]]:
    return list_of(WorkerExited)(answer) and all(map(_is_exit, answer))


def _is_exit(exit: WorkerExited) -> bool:
    return (
        _is_whole(exit.local_rank)
        and _is_whole(exit.pid)
        and _is_whole(exit.exit_code, -_LARGEST_NUMBER, _LARGEST_NUMBER)
        and _is_whole(exit.timestamp_ns)
        and all(isinstance(each, bool) for each in (exit.stopped, exit.has_both_streams))
        and isinstance(exit.stderr_tail, tuple)
        and all(isinstance(each, str) for each in (exit.problem, exit.exception, *exit.stderr_tail))
    )


def _are_ranks(answer: Any) -> TypeGuard[Sequence[int]]:
    return list_of(int)(answer) and all(map(_is_whole, answer))


def _are_ranks_or_none(answer: Any) -> TypeGuard[Sequence[int] | None]:
    return answer is None or _are_ranks(answer)
