"""A plugin's rendezvous handler, with every answer checked: what a plugin breaks is reported by its name.

What does not live here: the interface (:mod:`quorate.rendezvous`), and what the agent does with the answers
(``_membership``, ``_runner``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from attrs import fields

from .._bounded import LARGEST_COUNTER, LONGEST_DELAY_SECONDS, MOST_NODES
from .._decisions import is_passable
from .._isolation import checked_answer
from ..cut_off import WhenCutOff
from ..errors import QuorateError
from ..records import Assignment, Cause, NodeRecord, RoundEnd, Verdict
from ..rendezvous import EventDrivenHandler, RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from ..timeouts import LONGEST_SECONDS

__all__ = ["GuardedHandler", "guarded", "records_by_itself"]

_KINDS: dict[str, type] = {"int": int, "str": str, "bool": bool}


def guarded(handler: RendezvousHandler) -> RendezvousHandler:
    """Return ``handler`` with its answers checked; the core's own handler is returned as it is."""
    return handler if isinstance(handler, EventDrivenHandler) else GuardedHandler(handler)


def records_by_itself(handler: RendezvousHandler, method: str) -> bool:
    """Return whether ``handler`` implements an optional method (``end_round``, ``report_done``) of its own."""
    inner = handler.inner if isinstance(handler, GuardedHandler) else handler
    return getattr(type(inner), method) is not getattr(RendezvousHandler, method)


@final
class GuardedHandler(RendezvousHandler):
    """Calls the methods of another handler.

    Every method raises what the handler raises, if it is an error of quorate.  It raises a PluginError that names the
    backend where the handler raises anything else, or answers with the wrong type.
    """

    def __init__(self, handler: RendezvousHandler) -> None:
        self.inner = handler
        self._node: NodeRecord | None = None
        self._what = f"rendezvous backend {_name_of(handler)!r}"

    @property
    def tells_every_change(self) -> bool:  # type: ignore[override] # the handler's own, which may be a property
        answer: bool = self._read("tells_every_change", _is_bool)
        return answer

    def get_backend(self) -> str:
        answer: str = self._ask("get_backend", _is_name)
        return answer

    def next_rendezvous(self) -> RendezvousInfo:
        answer: RendezvousInfo = self._ask("next_rendezvous", self._is_info)
        return answer

    def is_closed(self) -> bool:
        answer: bool = self._ask("is_closed", _is_bool)
        return answer

    def set_closed(self) -> None:
        self._ask("set_closed", _is_anything)

    def num_nodes_waiting(self) -> int:
        answer: int = self._ask("num_nodes_waiting", lambda answer: _is_whole(answer, MOST_NODES))
        return answer

    def get_run_id(self) -> str:
        answer: str = self._ask("get_run_id", lambda answer: bool(answer) and is_passable(answer))
        return answer

    def shutdown(self) -> bool:
        return bool(self._ask("shutdown", _is_anything))

    @property
    def use_agent_store(self) -> bool:
        answer: bool = self._read("use_agent_store", _is_bool)
        return answer

    @property
    def loss_timeout(self) -> float:
        answer: float = self._read("loss_timeout", _is_time)
        return answer

    @property
    def when_cut_off(self) -> WhenCutOff:
        answer: WhenCutOff = self._read("when_cut_off", lambda answer: isinstance(answer, WhenCutOff))
        return answer

    def is_cut_off(self) -> bool:
        answer: bool = self._ask("is_cut_off", _is_bool)
        return answer

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        answer: RoundEnd | None = self._ask("wait_for_change", _is_end, timeout)
        return answer

    def end_round(self, end: RoundEnd) -> None:
        self._ask("end_round", _is_anything, end)

    def report_done(self) -> None:
        self._ask("report_done", _is_anything)

    def measure_latency(self, timeout: float) -> float | None:
        answer: float | None = self._ask("measure_latency", _is_time_or_none, timeout)
        return answer

    def prepare(self, node: NodeRecord) -> None:
        self._node = node
        self._ask("prepare", _is_anything, node)

    def _is_info(self, answer: Any) -> bool:
        """Return whether ``answer`` is a place in a round: for this node, with a rank below its size."""
        if not (
            isinstance(answer, RendezvousInfo)
            and _is_whole(answer.world_size, MOST_NODES)
            and _is_whole(answer.rank, answer.world_size - 1)
            and isinstance(answer.bootstrap_store_info, RendezvousStoreInfo)
            and _is_name(answer.bootstrap_store_info.master_addr)
            and _is_whole(answer.bootstrap_store_info.master_port, 65535)
        ):
            return False
        assignment = answer.assignment
        return assignment is None or (
            _has_right_fields(assignment)
            and assignment.group_rank == answer.rank
            and assignment.group_world_size == answer.world_size
            and assignment.first_rank + assignment.local_world_size <= assignment.world_size
            and assignment.local_world_size == (self._node or assignment).local_world_size
        )

    def _ask(self, method: str, is_good: Callable[[Any], bool], *arguments: Any) -> Any:
        return self._checked(f"{method}()", is_good, lambda: getattr(self.inner, method)(*arguments))

    def _read(self, name: str, is_good: Callable[[Any], bool]) -> Any:
        return self._checked(name, is_good, lambda: getattr(self.inner, name))

    def _checked(self, what: str, is_good: Callable[[Any], bool], ask: Callable[[], Any]) -> Any:
        return checked_answer(f"{self._what}: {what}", is_good, "what it has to be", ask)


def _name_of(handler: RendezvousHandler) -> str:
    try:
        name: str = checked_answer("", _is_name, "", handler.get_backend)
    except QuorateError:
        return type(handler).__name__
    return name


def _is_anything(answer: Any) -> bool:
    return True


def _is_name(answer: Any) -> bool:
    return isinstance(answer, str) and bool(answer) and answer.isprintable()


def _is_whole(answer: Any, most: int) -> bool:
    return type(answer) is int and 0 <= answer <= most


def _is_bool(answer: Any) -> bool:
    return isinstance(answer, bool)


def _is_time(answer: Any, most: float = LONGEST_SECONDS) -> bool:
    return type(answer) in (int, float) and 0 <= answer <= most


def _is_time_or_none(answer: Any) -> bool:
    return answer is None or _is_time(answer)


def _has_right_fields(assignment: Any) -> bool:
    """Return whether this is an Assignment whose texts are texts and whose numbers are whole ones of at least 0."""
    return isinstance(assignment, Assignment) and all(
        type(value := getattr(assignment, each.name)) is _KINDS.get(str(each.type), tuple)
        and (type(value) is not int or 0 <= value <= LARGEST_COUNTER)
        for each in fields(Assignment)
    )


def _is_end(answer: Any) -> bool:
    return answer is None or (
        isinstance(answer, RoundEnd)
        and isinstance(answer.cause, Cause)
        and isinstance(answer.verdict, Verdict)
        and isinstance(answer.reason, str)
        and _is_whole(answer.round_number, LARGEST_COUNTER)
        and _is_whole(answer.restart_count, LARGEST_COUNTER)
        and _is_time(answer.delay_seconds, LONGEST_DELAY_SECONDS)
    )
