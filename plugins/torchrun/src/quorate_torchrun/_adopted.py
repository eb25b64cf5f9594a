"""Rendezvous handlers of third parties, made for torchrun, as backends of quorate: ``--rdzv-backend=NAME``.

Such a handler knows which nodes are there, and no more.  So, as in torchrun, a node learns that a round is over because
others wait to join, restarts are counted on each node, and no node is told why a round ended.  Sizes and the exit
barrier go through the store that it hands out, which is the round's own.  Imported when a job asks for one: it needs
torch, which every handler for torchrun needs as well.

What does not live here: the other direction (:mod:`._handlers`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, final

from attrs import evolve
from torch.distributed.elastic import rendezvous

import quorate
from quorate.clock import monotonic
from quorate.notices import note
from quorate.plugins import FoundPlugin
from quorate.records import Assignment, Cause, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import RendezvousStoreInfo, assign_ranks
from quorate.text import parse_json, printable

_NODE_KEY, _DONE_KEY = "quorate/node", "quorate/done"
#: Within which every node of a round must have told its size.
_SIZES_SECONDS = 60.0
#: How often the exit barrier is looked at; the agent looks at the waiting nodes as often.
_BARRIER_SECONDS = 0.2
_MOST_NODES = _MOST_WORKERS = 1 << 16
_LONGEST_ROLE = 1000


def open_adopted(found: FoundPlugin, parameters: quorate.RendezvousParameters) -> AdoptedHandler:
    """Open the handler that an entry point of ``torchrun.handlers`` makes.

    Raises:
        what it raises.
    """
    create = found.load()()
    return adopt(create(torch_parameters(parameters)), f"{found.name} of {found.distribution}", parameters)


def torch_parameters(parameters: quorate.RendezvousParameters) -> Any:
    """Return ``parameters`` as torch's."""
    return rendezvous.RendezvousParameters(
        parameters.backend,
        parameters.endpoint,
        parameters.run_id,
        parameters.min_nodes,
        parameters.max_nodes,
        parameters.local_addr,
        **parameters.config,
    )


def adopt(theirs: Any, name: str, parameters: quorate.RendezvousParameters) -> AdoptedHandler:
    """Return ``theirs``, which a sentence calls ``name``, as quorate's agent calls it."""
    if parameters.max_nodes > 1:
        note(
            f"{name} is a rendezvous handler for torchrun: with it each node counts its own restarts, and the others "
            "are not told why a round ended"
        )
    return AdoptedHandler(theirs)


@final
class AdoptedHandler(quorate.RendezvousHandler):
    """``theirs``, a handler of torch's interface, as quorate's agent calls it."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._node: NodeRecord | None = None
        self._store: Any = None
        self._world_size = 1
        self._restarts = self._rounds = 0
        self._changed = threading.Condition()
        self._end: RoundEnd | None = None
        self._is_done = self._has_told = False

    # --- as it is ---------------------------------------------------------------------------------------------------

    def get_backend(self) -> str:
        return str(self._theirs.get_backend())

    def get_run_id(self) -> str:
        return str(self._theirs.get_run_id())

    def is_closed(self) -> bool:
        return bool(_call(self._theirs.is_closed))

    def set_closed(self) -> None:
        _call(self._theirs.set_closed)

    @property
    def use_agent_store(self) -> bool:
        return bool(getattr(self._theirs, "use_agent_store", False))

    def num_nodes_waiting(self) -> int:
        try:
            return int(_call(self._theirs.num_nodes_waiting))
        except quorate.RendezvousConnectionError:
            return 0  # the workers do not need it

    def shutdown(self) -> bool:
        with self._changed:
            self._changed.notify_all()
        return bool(_call(self._theirs.shutdown))

    # --- what torch's agent does itself -----------------------------------------------------------------------------

    def prepare(self, node: NodeRecord) -> None:
        self._node = node

    def next_rendezvous(self) -> quorate.RendezvousInfo:
        with self._changed:
            self._end, self._is_done, self._has_told = None, False, False
        info = _call(self._theirs.next_rendezvous)
        self._store, self._world_size = info.store, info.world_size
        where = getattr(info, "bootstrap_store_info", None)
        if where is None:
            address = None if self._node is None else self._node.address
            where = rendezvous.RendezvousStoreInfo.build(info.rank, info.store, address)
        master = RendezvousStoreInfo(where.master_addr, where.master_port)
        assignment = self._assign(info.rank, info.world_size, master)
        self._rounds += 1
        return quorate.RendezvousInfo(None, info.rank, info.world_size, master, assignment)

    def _assign(self, rank: int, world_size: int, master: RendezvousStoreInfo) -> Assignment:
        node = self._node
        assert node is not None
        if not 0 <= rank < world_size <= _MOST_NODES:
            raise quorate.RendezvousStateError(f"the handler has given this node rank {rank} of {world_size} nodes")
        keys = [f"{_NODE_KEY}/{each}" for each in range(world_size)]
        try:
            self._store.set(keys[rank], json.dumps({"role": node.role, "workers": node.local_world_size}))
            self._store.wait(keys, timedelta(seconds=_SIZES_SECONDS))
            told = [self._store.get(key) for key in keys]
        except Exception as error:
            raise quorate.RendezvousTimeoutError(
                f"the nodes of the round did not tell their sizes within {_SIZES_SECONDS:g} s: {error}"
            ) from error
        nodes = [_parse_node(str(each), data) for each, data in enumerate(told)]
        nodes[0] = evolve(nodes[0], address=master.master_addr, port=master.master_port)
        order = [each.node_id for each in nodes]
        assigned = assign_ranks(nodes, order, round_number=self._rounds, restart_count=self._restarts)
        return assigned[str(rank)]

    def end_round(self, end: RoundEnd) -> None:
        """End it for this node; the others see this node wait, or fail as their connections to its workers break."""
        self._restarts = end.restart_count
        self._conclude(end)

    def report_done(self) -> None:
        with self._changed:
            self._is_done = True
            self._changed.notify_all()

    def wait_for_change(self, timeout: float) -> RoundEnd | None:
        deadline = monotonic() + timeout
        with self._changed:
            while self._end is None and not self._is_done:
                left = deadline - monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
        return self._end or self._meet_at_exit(timeout)

    def _meet_at_exit(self, timeout: float) -> RoundEnd | None:
        """Wait for the other nodes to be done too; a store that is gone means that its host was."""
        try:
            if self._store.add(_DONE_KEY, 0 if self._has_told else 1) < self._world_size:
                self._has_told = True
                with self._changed:
                    self._changed.wait(min(timeout, _BARRIER_SECONDS))
                return self._end
        except Exception as error:
            if self._world_size > 1 and not self._has_told:
                problem = f"{type(error).__name__}: {error}"
                note(f"this node could not tell the other nodes that its workers are done: {problem}")
        self._conclude(RoundEnd(self._rounds - 1, Cause.SUCCEEDED, Verdict.SUCCEEDED, "all workers have succeeded"))
        return self._end

    def _conclude(self, end: RoundEnd) -> None:
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()


def _parse_node(node_id: str, data: bytes) -> NodeRecord:
    """Return what a node has told.  Raises RendezvousStateError if it is not a role and a number of workers."""
    try:
        record = parse_json(data)
        role, workers = record["role"], record["workers"]
        if not isinstance(role, str) or type(workers) is not int or not 0 < workers <= _MOST_WORKERS:
            raise ValueError("it is not a role and a number of workers")
        return NodeRecord(node_id, printable(role, _LONGEST_ROLE), workers)
    except (ValueError, TypeError, KeyError) as error:
        raise quorate.RendezvousStateError(f"the record of node {node_id} cannot be used: {error}") from None


def _call(method: Callable[[], Any]) -> Any:
    """Call a method of theirs; torch's errors come as quorate's."""
    try:
        return method()
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}
        if "RendezvousGracefulExitError" in names:
            raise quorate.RendezvousClosedError(str(error), succeeded=True) from error
        if "RendezvousClosedError" in names:
            raise quorate.RendezvousClosedError(str(error) or "the rendezvous is closed") from error
        for kind in (quorate.RendezvousTimeoutError, quorate.RendezvousConnectionError, quorate.RendezvousStateError):
            if kind.__name__ in names:
                raise kind(str(error) or type(error).__name__) from error
        raise
