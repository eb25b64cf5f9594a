"""``torch.distributed.elastic.multiprocessing.errors.error_handler``: what writes a worker's error file."""

from __future__ import annotations

from . import ErrorHandler

__all__ = ["ErrorHandler"]
