"""Jobs that use one run id one after the other: which of them a store is in, who belongs to it, when it is over.

The jobs under one run id are its *incarnations*, numbered from 0.  ``incarnation/<k>/job``, created once, is the record
of the node that began incarnation k.  ``incarnation/<k>/over``, created once, says that it is over.  The keys of
incarnation 0 have the names that the protocol gives them, those of incarnation k begin with ``incarnation/<k>/data/``.
A node of an older incarnation can therefore write nothing into a newer one.  It also reads the key ``over`` with every
read, and finds out that its job is gone.  The counter ``incarnations`` is a hint at the newest one.

An incarnation is over when all its nodes have left: the last one says so and clears its keys.  Otherwise it is over
when none of its keys has changed for a lease, on the clock of the node that wants to begin the next one.

A store that the job's own nodes serve ends with the job.  It has one incarnation only.

What does not live here: the store of one incarnation (``_incarnation_store``), which differences
keep a node out (``_same_job``), and what is read of a job (``_observed_job``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import final

from attrs import evolve

from .._bounded import LARGEST_COUNTER, MOST_NODES
from ..clock import monotonic
from ..errors import RendezvousStateError, StoreCorruptError, StoreUnavailableError
from ..records import NodeRecord
from ._incarnation_store import IncarnationStore, OverError, incarnation_store, over_key, wrong_answer
from ._liveness import Heartbeat, HeartbeatState
from ._observed_job import ObservedJob, observe_job
from ._protocol import Key
from ._refusals import refused, tell_refusal
from ._same_job import refusal
from ._store import HostedStore, Store, parse_counter
from ._wire import decode_node, encode

_HINT = "incarnations"
_LOOKS_PER_LEASE = 6
#: The hint is too high by as many as its increment was repeated: each node of a job does so once at most.
_MOST_BELOW_HINT = MOST_NODES
_JOBS_PER_READ = 1024


def _check_hint(count: object) -> int:
    """Return how many jobs the hint says have ended.  Raises StoreCorruptError for what is not such a count."""
    if type(count) is not int or not 0 <= count < LARGEST_COUNTER:
        raise StoreCorruptError(_HINT, "it is not a count of jobs")
    return count


def _job_key(number: int) -> str:
    return f"incarnation/{number}/job"


def _read(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Return what ``store`` holds.  Raises RendezvousStateError for an answer that breaks its contract."""
    found = store.get(keys)
    if not isinstance(found, Sequence) or len(found) != len(keys):
        raise wrong_answer(store, "get", found)
    for value in found:
        if value is not None and not isinstance(value, bytes):
            raise wrong_answer(store, "get", value)
    return list(found)


def _create(store: Store, key: str, value: bytes) -> bool:
    """Return whether this node has written ``key``.  Raises RendezvousStateError as :func:`_read` does."""
    is_writer = store.create(key, value)
    if not isinstance(is_writer, bool):
        raise wrong_answer(store, "create", is_writer)
    return is_writer


# --- which job a node joins -------------------------------------------------------------------------------------------


@final
class Next(Enum):
    """What a node does about the incarnation that it finds."""

    JOIN = "join it; it may be over, and the node then learns how it ended"
    BEGIN = "begin the next incarnation: no node of this one is left"
    WAIT = "look again: whether nodes of this one are left is not known yet, or they are about to leave"
    REFUSE = "give up: the job goes on, and this node does not belong to it"


def judge(
    node: NodeRecord, first: ObservedJob, now: ObservedJob, still_seconds: float, lease: float, is_other: bool
) -> Next:
    """Decide what ``node`` does about an incarnation that another node began.

    Arguments:
        first, now: what was read of it at first and last.
        still_seconds: for how long nothing has changed.
        lease: seconds after which nodes of which nothing changes count as gone.
        is_other: the node does not belong to the job.
    """
    is_alive = now != first
    if still_seconds >= lease:
        return Next.BEGIN if is_other or now.is_over else Next.JOIN
    if now.is_over:
        # A node on a host that was in the job has started again: it waits until the last run has left.
        is_latecomer = not is_other and node.host not in now.hosts()
        return Next.JOIN if is_latecomer and is_alive else Next.WAIT
    if is_other:
        return Next.REFUSE if is_alive else Next.WAIT
    return Next.JOIN


@final
class JobEntry:
    """Leads one node to the job that it belongs to.  Used by the store's thread.

    Arguments:
        run_id: the name of the job.
        is_named: whether a person gave that name.
        lease: ``lease_timeout`` of the job.
        keeps: whether the keys of an incarnation that is over are kept.
        pause: waits for some seconds; returns whether this node is leaving meanwhile.
        report: called with a sentence when this node has to wait.
        clock: returns monotonic seconds.
        ends_with_job: the job's own nodes serve the store, so that it has one incarnation.
    """

    def __init__(
        self,
        run_id: str,
        is_named: bool,
        lease: float,
        keeps: bool,
        pause: Callable[[float], bool],
        report: Callable[[str], None],
        clock: Callable[[], float] = monotonic,
        ends_with_job: bool = False,
    ) -> None:
        self._run_id, self._is_named, self._lease, self._keeps = run_id, is_named, lease, keeps
        self._pause, self._report, self._clock, self._ends_with_job = pause, report, clock, ends_with_job
        #: The record of the node that began the job; ``None`` as long as that is this node, or is not known.
        self.begun_by: NodeRecord | None = None

    def enter(self, store: Store, node: NodeRecord) -> Store:
        """Return the store of the incarnation that ``node`` joins; begins a new one where that is due.

        Raises:
            RendezvousStateError: ``node`` does not belong to the job that goes on.
            StoreUnavailableError: no answer.
        """
        if self._ends_with_job or isinstance(store, HostedStore):
            return self._enter_hosted(store, node)
        entered = self._enter_first(store, node)
        if entered is not None:
            return entered
        number = self._newest(store)
        while True:
            inside = incarnation_store(store, number, self._run_id, self._keeps)
            record, over = _read(store, [_job_key(number), over_key(number)])
            if over is not None:
                number = self._begin(store, number, node)
                continue
            if record is None and _create(store, _job_key(number), encode(node)):
                self.begun_by = None
                return inside
            if record is None:
                (record,) = _read(store, [_job_key(number)])
            if record is None:
                raise RendezvousStateError(
                    f"the store {type(store).__name__} broke its contract: {_job_key(number)!r} can neither be created "
                    "nor read; update its plugin"
                )
            self.begun_by = decode_node(_job_key(number), record)
            try:
                if self._may_join(inside, node):
                    return inside
            except OverError:
                pass  # its last node has just left
            number = self._begin(store, number, node)

    def _enter_first(self, store: Store, node: NodeRecord) -> Store | None:
        """Join incarnation 0 if that is the newest and goes on, with one read; ``None``: there is more to look at."""
        keys = [_HINT, _job_key(0), over_key(0), _job_key(1), Key.ended(0)]
        hint, record, *others = _read(store, keys)
        if _check_hint(parse_counter(_HINT, hint)) > 0 or any(value is not None for value in others):
            return None
        inside = incarnation_store(store, 0, self._run_id, self._keeps)
        if record is None:
            return inside if _create(store, _job_key(0), encode(node)) else None
        self.begun_by = decode_node(_job_key(0), record)
        if node.declined:
            return inside
        return None if self._problem(node) else inside

    def _problem(self, node: NodeRecord) -> str:
        """Return why ``node`` does not belong to the job, ``""`` if it does."""
        assert self.begun_by is not None
        return "" if node.declined else refusal(node, self.begun_by, self._run_id, self._is_named)

    def _enter_hosted(self, store: Store, node: NodeRecord) -> Store:
        (record,) = _read(store, [_job_key(0)])
        if record is None and not _create(store, _job_key(0), encode(node)):
            (record,) = _read(store, [_job_key(0)])
        if record is not None:
            self.begun_by = decode_node(_job_key(0), record)
            if problem := self._problem(node):
                self._refuse(store, node, problem)
        return store

    # --- the newest incarnation ---------------------------------------------------------------------------------------

    def _newest(self, store: Store) -> int:
        """Return the number of the newest incarnation that was begun, 0 if none was."""
        while True:
            hint = number = _check_hint(store.add(_HINT, 0))
            record, after = _read(store, [_job_key(number), _job_key(number + 1)])
            while after is not None:
                number += 1
                (after,) = _read(store, [_job_key(number + 1)])
                record = after or record
            while record is None and number > 0:  # the hint is too high: its increment was repeated
                if hint - number >= _MOST_BELOW_HINT:
                    raise StoreCorruptError(_HINT, f"it counts {hint} jobs, but no job has a number near that")
                below = range(number - 1, max(-1, number - 1 - _JOBS_PER_READ), -1)
                records = _read(store, [_job_key(each) for each in below])
                number, record = next(
                    ((each, found) for each, found in zip(below, records, strict=True) if found is not None),
                    (below[-1], None),
                )
            if record is not None or store.add(_HINT, 0) == hint:
                return number

    def _begin(self, store: Store, number: int, node: NodeRecord) -> int:
        """End incarnation ``number`` and begin the next, unless another node does; return the next one's number."""
        _create(store, over_key(number), b"gone")
        if _create(store, _job_key(number + 1), encode(node)):
            hint = store.add(_HINT, 0)
            if hint <= number:
                store.add(_HINT, number + 1 - hint)
            incarnation_store(store, number, self._run_id, self._keeps).clear()
            if number > 0:
                store.delete(f"incarnation/{number - 1}/")
        return number + 1

    # --- joining the one that is there --------------------------------------------------------------------------------

    def _may_join(self, inside: IncarnationStore, node: NodeRecord) -> bool:
        """Return whether ``node`` joins the incarnation; ``False``: it is over."""
        problem = self._problem(node)
        if not problem and (node.declined or not observe_job(inside, with_heartbeats=False).is_over):
            return True
        first = now = observe_job(inside)
        looked_at = still_since = self._clock()
        is_told = False
        while True:
            answer = judge(node, first, now, self._clock() - still_since, self._lease, bool(problem))
            if answer is Next.REFUSE:
                self._refuse(inside, node, problem)
            if answer is not Next.WAIT:
                return answer is Next.JOIN
            if not is_told:
                self._report(self._why_waiting(now))
                is_told = True
            if self._pause(self._lease / _LOOKS_PER_LEASE):
                raise StoreUnavailableError("this node is leaving")
            before, now = now, observe_job(inside)
            moment = self._clock()
            # While this node stood still itself, it did not see the others.
            if now != before or moment - looked_at > self._lease / 2:
                still_since = moment
            looked_at = moment

    def _why_waiting(self, observed: ObservedJob) -> str:
        hosts = ", ".join(observed.hosts()[:8]) or "unknown hosts"
        if observed.is_over:
            return (
                f"the last job with the run id {self._run_id!r} has ended and not all of its nodes ({hosts}) have left "
                "yet; waiting for them before a new job begins"
            )
        return (
            f"another job uses the run id {self._run_id!r} (on {hosts}); finding out whether any of its nodes is left"
        )

    def _refuse(self, store: Store, node: NodeRecord, problem: str) -> None:
        """Tell the nodes that gather, or run, why ``node`` does not join, and raise."""
        observed = observe_job(store)
        if observed.size > 0 and observed.end is None:
            tell_refusal(store, observed.number, refused(node, problem))
        elif observed.end is None:
            ticket = store.add(Key.tickets(observed.number), 1)
            left = Heartbeat(1, HeartbeatState.LEFT, node.host)
            store.put(Key.ticket_heartbeat(observed.number, ticket), left.encode())
            store.put(Key.node(observed.number, ticket), encode(evolve(node, declined=problem)))
        raise RendezvousStateError(f"this node ({node.name}) does not join: {problem}")
