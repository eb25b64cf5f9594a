"""A plugin's rendezvous handler, with every answer checked: what a plugin breaks is reported by its name.

What does not live here: the interface (:mod:`quorate.rendezvous`), and what the agent does with the answers
(``_membership``, ``_runner``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar, final

from attrs import fields

from .._bounded import LARGEST_COUNTER, LONGEST_DELAY_SECONDS, MOST_NODES
from .._isolation import call_plugin, checked_answer, is_bool
from ..cut_off import WhenCutOff
from ..errors import QuorateError, StoreCorruptError, UsageError
from ..records import Assignment, NodeRecord, RoundEnd
from ..rendezvous import EventDrivenHandler, RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from ..text import is_passable
from ..timeouts import LONGEST_SECONDS

_T = TypeVar("_T")
_KINDS: dict[str, type] = {"int": int, "str": str, "bool": bool}


def guarded(handler: RendezvousHandler) -> RendezvousHandler:
    """Return ``handler`` with its answers checked; the core's own handler is returned as it is.

    Raises:
        UsageError: it is not a handler.
    """
    if not isinstance(handler, RendezvousHandler):
        raise UsageError(
            f"rdzv_handler is {handler!r:.80}, which is not a rendezvous handler of quorate; "
            "make one with quorate.get_rendezvous_handler"
        )
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
        return self._read("tells_every_change", is_bool)

    def get_backend(self) -> str:
        return self._ask("get_backend", _is_name)

    def next_rendezvous(self) -> RendezvousInfo:
        return self._ask("next_rendezvous", self._is_info)

    def is_closed(self) -> bool:
        return self._ask("is_closed", is_bool)

    def set_closed(self) -> None:
        self._call("set_closed")

    def num_nodes_waiting(self) -> int:
        return self._ask("num_nodes_waiting", _is_node_count)

    def get_run_id(self) -> str:
        return self._ask("get_run_id", _is_run_id)

    def shutdown(self) -> bool:
        return bool(self._call("shutdown"))

    @property
    def use_agent_store(self) -> bool:
        return self._read("use_agent_store", is_bool)

    @property
    def loss_timeout(self) -> float:
        return self._read("loss_timeout", _is_time)

    @property
    def when_cut_off(self) -> WhenCutOff:
        return self._read("when_cut_off", _is_policy)

    def is_cut_off(self) -> bool:
        return self._ask("is_cut_off", is_bool)

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        return self._ask("wait_for_change", _is_end, timeout)

    def end_round(self, end: RoundEnd) -> None:
        self._call("end_round", end)

    def report_done(self) -> None:
        self._call("report_done")

    def measure_latency(self, timeout: float) -> float | None:
        return self._ask("measure_latency", _is_time_or_none, timeout)

    def prepare(self, node: NodeRecord) -> None:
        self._node = node
        self._call("prepare", node)

    def _is_info(self, answer: Any) -> TypeGuard[RendezvousInfo]:
        """Return whether ``answer`` is a place in a round: for this node, with a rank below its size."""
        if not (
            isinstance(answer, RendezvousInfo)
            and (answer.store is None or _is_store(answer.store))
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

    def _ask(self, method: str, is_good: Callable[[Any], TypeGuard[_T]], *arguments: Any) -> _T:
        return self._checked(f"{method}()", is_good, lambda: getattr(self.inner, method)(*arguments))

    def _read(self, name: str, is_good: Callable[[Any], TypeGuard[_T]]) -> _T:
        return self._checked(name, is_good, lambda: getattr(self.inner, name))

    def _checked(self, what: str, is_good: Callable[[Any], TypeGuard[_T]], ask: Callable[[], Any]) -> _T:
        return checked_answer(f"{self._what}: {what}", is_good, "what it has to be", ask)

    def _call(self, method: str, *arguments: Any) -> Any:
        return call_plugin(f"{self._what}: {method}()", lambda: getattr(self.inner, method)(*arguments))


def _name_of(handler: RendezvousHandler) -> str:
    try:
        return checked_answer("", _is_name, "", handler.get_backend)
    except QuorateError:
        return type(handler).__name__


def _is_name(answer: Any) -> TypeGuard[str]:
    return isinstance(answer, str) and bool(answer) and answer.isprintable()


def _is_run_id(answer: Any) -> TypeGuard[str]:
    return bool(answer) and is_passable(answer)


def _is_policy(answer: Any) -> TypeGuard[WhenCutOff]:
    return isinstance(answer, WhenCutOff)


def _is_whole(answer: Any, most: int) -> TypeGuard[int]:
    return type(answer) is int and 0 <= answer <= most


def _is_node_count(answer: Any) -> TypeGuard[int]:
    return _is_whole(answer, MOST_NODES)


def _is_time(answer: Any, most: float = LONGEST_SECONDS) -> TypeGuard[float]:
    return type(answer) in (int, float) and 0 <= answer <= most


def _is_time_or_none(answer: Any) -> TypeGuard[float | None]:
    return answer is None or _is_time(answer)


def _has_right_fields(assignment: Any) -> bool:
    """Return whether this is an Assignment whose texts are texts and whose numbers are whole ones of at least 0."""
    return isinstance(assignment, Assignment) and all(
        type(value := getattr(assignment, each.name)) is _KINDS.get(str(each.type), tuple)
        and (type(value) is not int or 0 <= value <= LARGEST_COUNTER)
        for each in fields(Assignment)
    )


def _is_store(answer: Any) -> bool:
    return all(callable(getattr(answer, method, None)) for method in ("put", "wait"))


def _is_end(answer: Any) -> TypeGuard[RoundEnd | None]:
    """Return whether this is an end that a node could have recorded."""
    from ..rendezvous._wire import decode_end, encode  # keeps the protocol off the path of jobs without such a handler

    if answer is None:
        return True
    if not (
        isinstance(answer, RoundEnd)
        and isinstance(answer.reason, str)
        and _is_time(answer.delay_seconds, LONGEST_DELAY_SECONDS)
        and _is_time(answer.grace_seconds, LONGEST_DELAY_SECONDS)
        and isinstance(answer.missing, tuple)  # not recorded
        and all(isinstance(name, str) for name in answer.missing)
    ):
        return False
    try:
        decode_end("", encode(answer))
    except StoreCorruptError:
        return False
    return True
