"""A starter's process context, with every answer checked: what a plugin breaks is reported by its name.

What does not live here: the interface (:mod:`quorate.starter`), and what the agent does with the answers (``_runner``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

from .._isolation import checked_answer
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

__all__ = ["GuardedContext"]


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
        answer: int = self._ask("fileno", _is_whole)
        return answer

    def wake_at(self) -> float | None:
        answer: float | None = self._ask("wake_at", _is_time)
        return answer

    def advance(self, now: float) -> Sequence[WorkerExited]:
        answer: Sequence[WorkerExited] = self._ask("advance", _list_of(WorkerExited), now)
        return answer

    def is_gone(self) -> bool:
        answer: bool = self._ask("is_gone", lambda answer: isinstance(answer, bool))
        return answer

    def pids(self) -> Mapping[int, int]:
        answer: Mapping[int, int] = self._ask("pids", _are_pids)
        return answer

    def stop(self, signal_number: int, grace_seconds: float, now: float) -> None:
        self._ask("stop", _is_anything, signal_number, grace_seconds, now)

    def close(self) -> None:
        self._ask("close", _is_anything)

    def delivered(self) -> Sequence[int]:
        answer: Sequence[int] = self._ask("delivered", _list_of(int)) if self._delivers else ()
        return answer

    def left_behind(self) -> Sequence[str]:
        answer: Sequence[str] = self._ask("left_behind", _list_of(str)) if self._leaves_behind else ()
        return answer

    def release(
        self, signal_number: int, grace_seconds: float, release_seconds: float, given_up: Collection[int], now: float
    ) -> None:
        if self.can_release:
            self._ask("release", _is_anything, signal_number, grace_seconds, release_seconds, given_up, now)
        else:
            self.stop(signal_number, grace_seconds, now)

    def released(self) -> Sequence[int] | None:
        answer: Sequence[int] | None = self._ask("released", _are_ranks_or_none) if self.can_release else None
        return answer

    def assign(self, launch: WorkerLaunch) -> None:
        if self.can_release:
            self._ask("assign", _is_anything, launch)

    def forward(self, signal_number: int) -> Sequence[int]:
        answer: Sequence[int] = self._ask("forward", _list_of(int), signal_number) if self._forwards else ()
        return answer

    def suspend(self) -> None:
        if self.can_suspend:
            self._ask("suspend", _is_anything)

    def resume(self) -> None:
        if self.can_suspend:
            self._ask("resume", _is_anything)

    def dump_stacks(self, hung_local_rank: int, timeout: float) -> Sequence[str]:
        answer: Sequence[str] = self._ask("dump_stacks", _list_of(str), hung_local_rank, timeout)
        return answer

    def _ask(self, method: str, is_good: Callable[[Any], bool], *arguments: Any) -> Any:
        return checked_answer(
            f"{self._name}: {method}()",
            is_good,
            "of the right type",
            lambda: getattr(self._context, method)(*arguments),
        )


def _is_context(answer: Any) -> bool:
    return isinstance(answer, ProcessContext)


def _is_anything(answer: Any) -> bool:
    return True


def _is_whole(answer: Any) -> bool:
    return type(answer) is int


def _is_time(answer: Any) -> bool:
    return answer is None or type(answer) in (int, float)


def _are_pids(answer: Any) -> bool:
    return isinstance(answer, Mapping) and all(map(_is_whole, (*answer, *answer.values())))


def _list_of(kind: type) -> Callable[[Any], bool]:
    def is_good(answer: Any) -> bool:
        is_list = isinstance(answer, Sequence) and not isinstance(answer, (str, bytes))
        return is_list and all(isinstance(item, kind) for item in answer)

    return is_good


def _are_ranks_or_none(answer: Any) -> bool:
    return answer is None or _list_of(int)(answer)
