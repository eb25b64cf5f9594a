"""Whether nodes wait to get into a round, asked of a store that may be slow."""

from __future__ import annotations

from ..errors import StoreUnavailableError
from ..rendezvous import RendezvousHandler

__all__ = ["someone_waits"]


def someone_waits(handler: RendezvousHandler) -> bool:
    """Return whether nodes wait to get in, as far as the store has said: it may be slow to answer."""
    try:
        return handler.num_nodes_waiting() > 0
    except StoreUnavailableError:
        return False  # the caller asks again, until a deadline of its own
