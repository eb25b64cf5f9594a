"""quorate's rendezvous backends in stock torchrun: ``--rdzv-backend=quorate-tcp``, ``quorate-etcd`` and others.

Named by entry points of torch's group ``torchrun.handlers``, and imported by torchrun alone.  The nodes agree through
quorate; the store that torch's agents and workers share is a TCPStore of the round's first node, at the address and
port that quorate holds for it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, final

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

import quorate
from quorate.notices import warn
from quorate.records import Assignment, Cause, RoundEnd, Verdict

from ._errors import as_torch_has_it

__all__ = ["c10d", "etcd", "etcd_v2", "static", "tcp"]

#: Seconds within which a round that this node has ended must be over.
_END_SECONDS = 60.0


@final
class _Handler(RendezvousHandler):  # type: ignore[misc] # torch is not checked
    """A handler of quorate, as torch's agent calls it."""

    def __init__(self, backend: str, parameters: Any) -> None:
        config = {key: value for key, value in parameters.config.items() if value is not None}
        self._store_timeout = timedelta(seconds=float(config.get("timeout", 600)))
        self._handler = quorate.get_rendezvous_handler(
            quorate.RendezvousParameters(
                backend,
                parameters.endpoint,
                parameters.run_id,
                parameters.min_nodes,
                parameters.max_nodes,
                parameters.local_addr,
                **config,
            )
        )
        self._assignment: Assignment | None = None
        self._end: RoundEnd | None = None
        self._store: Any = None

    def get_backend(self) -> str:
        return f"quorate-{self._handler.get_backend()}"

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_run_id(self) -> str:
        return self._handler.get_run_id()

    def next_rendezvous(self) -> RendezvousInfo:
        try:
            self._end_round()
            info = self._handler.next_rendezvous()
        except quorate.QuorateError as error:
            raise as_torch_has_it(error) from error
        self._assignment, self._end = info.assignment, None
        where = info.bootstrap_store_info
        self._store = TCPStore(
            where.master_addr,
            where.master_port,
            # Some backends (c10d) serve a store there already.
            is_master=info.rank == 0 and not self._handler.use_agent_store,
            timeout=self._store_timeout,
            wait_for_workers=False,
        )
        return RendezvousInfo(
            self._store, info.rank, info.world_size, RendezvousStoreInfo(where.master_addr, where.master_port)
        )

    def _end_round(self) -> None:
        """End the round that this node is in: torch's agent asks for the next one, because a worker failed."""
        self._store = None
        if self._assignment is None or self._look() is not None:
            return
        number = self._assignment.round_number
        self._handler.end_round(RoundEnd(number, Cause.EXIT_CODE, Verdict.RESCALE, "torchrun restarts its workers"))
        self._look(_END_SECONDS)

    def _look(self, timeout: float = 0.0) -> RoundEnd | None:
        """Return why the round has ended, ``None`` while it runs."""
        if self._end is None and self._assignment is not None:
            self._end = self._handler.wait_for_change(timeout)
        return self._end

    def num_nodes_waiting(self) -> int:
        """Return a number above 0 where the workers must be started again: nodes wait, or the round has ended."""
        try:
            end = self._look()
            if end is not None:
                return int(not end.verdict.is_terminal)
            return self._handler.num_nodes_waiting()
        except quorate.StoreUnavailableError:
            return 0  # the workers do not need the store
        except quorate.QuorateError as error:
            raise as_torch_has_it(error) from error

    def is_closed(self) -> bool:
        return self._handler.is_closed()

    def set_closed(self) -> None:
        self._handler.set_closed()

    def shutdown(self) -> bool:
        self._store = None
        if self._assignment is not None and self._end is None:
            self._handler.report_done()
        try:
            return self._handler.shutdown()
        except Exception as error:
            warn(f"the rendezvous could not be shut down: {error}")
            return False


def _generate(backend: str) -> Callable[[Any], _Handler]:
    """Return what makes a handler from torch's parameters."""
    return partial(_Handler, backend)


c10d, etcd, etcd_v2, static, tcp = (partial(_generate, name) for name in ("c10d", "etcd", "etcd-v2", "static", "tcp"))
