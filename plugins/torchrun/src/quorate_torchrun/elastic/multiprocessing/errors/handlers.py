"""``torch.distributed.elastic.multiprocessing.errors.handlers``: which handler a worker has."""

from __future__ import annotations

from . import get_error_handler

__all__ = ["get_error_handler"]
