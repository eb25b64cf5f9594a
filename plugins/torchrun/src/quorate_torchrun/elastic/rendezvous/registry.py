"""``torch.distributed.elastic.rendezvous.registry``."""

from __future__ import annotations

from ..._registry import get_rendezvous_handler

__all__ = ["get_rendezvous_handler"]
