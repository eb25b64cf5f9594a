"""The agent's side of a rendezvous: requests that never block, answers posted as inputs.

A handler in a store works this way itself; one that only has the blocking interface gets a thread.  What does not live
here: the protocol (:mod:`quorate.rendezvous`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol, final

from attrs import evolve

from .._isolation import problem_of
from .._plain import plain_text
from ..errors import FailureKind, RendezvousClosedError, RendezvousTimeoutError, UsageError
from ..records import Assignment, Cause, NodeRecord, RoundEnd, Verdict
from ..rendezvous import EventDrivenHandler, RendezvousHandler, RendezvousInfo, assign_ranks
from ..rendezvous._outputs import Left
from . import _protocol as protocol
from ._guarded_handler import GuardedHandler, records_by_itself

#: The handlers that agents of this process use now: (process id, id of the handler).
_used: dict[tuple[int, int], object] = {}

# How long a handler's wait_for_change may block: it is then asked for waiting nodes, unless it reports them itself.
_POLL_SECONDS, _EVENT_DRIVEN_SECONDS = 1.0, 3600.0
_CLOSE_SECONDS = 0.2
_SIZES_TIMEOUT_SECONDS = 60.0


class Membership(Protocol):
    """One node's part in a job.  All methods return at once."""

    def join(self, node: NodeRecord) -> None: ...

    def end_round(self, end: RoundEnd) -> None: ...

    def report_done(self) -> None: ...

    def leave(self) -> None: ...

    def decline(self, node: NodeRecord) -> None: ...

    def close(self) -> None:
        """Stop posting.  The handler is shut down by its owner."""
        ...


@contextmanager
def sole_use(handler: RendezvousHandler) -> Iterator[None]:
    """Keep other agents of this process from ``handler``: it is one node.  Raises UsageError if one uses it."""
    inner = handler.inner if isinstance(handler, GuardedHandler) else handler
    key, mine = (os.getpid(), id(inner)), object()
    if _used.setdefault(key, mine) is not mine:
        raise UsageError(
            "another agent that runs in this process uses the same rendezvous handler, which stands for one node; "
            "make a handler for each agent (quorate.get_rendezvous_handler)"
        )
    try:
        yield
    finally:
        del _used[key]


def open_membership(handler: RendezvousHandler, post: Callable[[protocol.Input], None]) -> Membership:
    """Return the membership for ``handler``; ``post`` may be called from any thread."""
    if isinstance(handler, EventDrivenHandler):
        return _StoreMembership(handler, post)
    return _ThreadMembership(handler, post)


@final
class _StoreMembership:
    """Passes everything on: the handler already reports every change by itself."""

    def __init__(self, handler: EventDrivenHandler, post: Callable[[protocol.Input], None]) -> None:
        self._handler = handler
        handler.subscribe(lambda output: None if isinstance(output, Left) else post(output))

    def join(self, node: NodeRecord) -> None:
        self._handler.request_join(node)

    def end_round(self, end: RoundEnd) -> None:
        self._handler.end_round(end)

    def report_done(self) -> None:
        self._handler.report_done()

    def leave(self) -> None:
        self._handler.request_leave()

    def decline(self, node: NodeRecord) -> None:
        self._handler.request_decline(node)

    def close(self) -> None:
        self._handler.subscribe(lambda output: None)


@final
class _ThreadMembership:
    """Runs a handler's blocking methods on a thread of their own."""

    def __init__(self, handler: RendezvousHandler, post: Callable[[protocol.Input], None]) -> None:
        self._handler, self._post = handler, post
        self._requests: SimpleQueue[NodeRecord | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._prepared = False
        self._round = 0
        self._ended_here: RoundEnd | None = None

    def join(self, node: NodeRecord) -> None:
        self._ended_here = None
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="quorate-rendezvous", daemon=True)
            thread.start()  # raises where the system has no thread left
            self._thread = thread
        self._requests.put(node)

    def end_round(self, end: RoundEnd) -> None:
        self._handler.end_round(end)
        if not records_by_itself(self._handler, "end_round"):
            self._end_here(end)  # a handler without this method records nothing: this node's end counts

    def report_done(self) -> None:
        self._handler.report_done()
        if not records_by_itself(self._handler, "report_done"):
            self._end_here(
                RoundEnd(self._round, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers of this node have succeeded")
            )

    def _end_here(self, end: RoundEnd) -> None:
        if self._ended_here is None:
            self._ended_here = end
            self._post(protocol.JobClosed(end) if end.verdict.is_terminal else protocol.RoundEnded(end))

    def leave(self) -> None:
        """Do nothing: such a handler leaves by :meth:`RendezvousHandler.shutdown`."""

    def decline(self, node: NodeRecord) -> None:
        """Do nothing: such a handler only knows nodes that join."""

    def close(self) -> None:
        self._closed = True
        self._requests.put(None)
        if self._thread is not None:
            # A handler that still blocks after this is woken by its owner's shutdown(), which comes next.
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closed:
            node = self._requests.get()
            if node is None:
                return
            try:
                try:
                    self._one_round(node)
                except RendezvousClosedError as error:
                    verdict = Verdict.SUCCEEDED if error.succeeded else Verdict.STOPPED
                    end = RoundEnd(self._round, Cause.STOPPED, verdict, plain_text(error.reason))
                    self._post_unless_closed(protocol.JobClosed(end))
            except BaseException as error:  # this thread must not end in silence, nor over a handler's own exception
                self._post_unless_closed(protocol.RendezvousFailed(FailureKind.of(error), problem_of(error)))

    def _post_unless_closed(self, event: protocol.Input) -> None:
        if not self._closed:
            self._post(event)

    def _one_round(self, node: NodeRecord) -> None:
        if not self._prepared:
            self._prepared = True
            self._handler.prepare(node)
        info = self._handler.next_rendezvous()
        assignment = info.assignment or _derive(info, node, self._round)
        self._round = assignment.round_number
        self._post_unless_closed(protocol.RoundJoined(evolve(assignment, shares_store=self._handler.use_agent_store)))
        timeout = _EVENT_DRIVEN_SECONDS if self._handler.tells_every_change else _POLL_SECONDS
        while not self._closed and self._ended_here is None:
            end = self._handler.wait_for_change(timeout)
            if end is not None:
                self._round += 1
                self._post_unless_closed(
                    protocol.JobClosed(end) if end.verdict.is_terminal else protocol.RoundEnded(end)
                )
                return
            if self._handler.num_nodes_waiting() > 0:
                self._post_unless_closed(
                    protocol.RoundEnded(
                        RoundEnd(self._round, Cause.NODE_JOINED, Verdict.RESCALE, "other nodes wait to join")
                    )
                )
                return


def _derive(info: RendezvousInfo, node: NodeRecord, round_number: int) -> Assignment:
    """Derive this node's ranks where the handler only knows membership: the nodes exchange their sizes in the store.

    Without a store all nodes are assumed to have this node's role and number of workers.
    """
    from ..rendezvous._wire import decode_node, encode  # keeps the protocol off the path of jobs without a store

    master = info.bootstrap_store_info
    if info.store is None:
        nodes = [evolve(node, node_id=f"{rank}") for rank in range(info.world_size)]
    else:
        keys = [f"ranks/{round_number}/{rank}" for rank in range(info.world_size)]
        info.store.put(keys[info.rank], encode(evolve(node, node_id=f"{info.rank}")))
        nodes = []
        for key in keys:
            value = info.store.wait(key, _SIZES_TIMEOUT_SECONDS)
            if value is None:
                raise RendezvousTimeoutError(
                    f"a node of the round did not report its size within {_SIZES_TIMEOUT_SECONDS:g} s ({key})"
                )
            nodes.append(decode_node(key, value))
    nodes[0] = evolve(nodes[0], address=master.master_addr, port=master.master_port)
    assignments = assign_ranks(nodes, [n.node_id for n in nodes], round_number=round_number, restart_count=0)
    return assignments[f"{info.rank}"]
