"""``torch.distributed.elastic.multiprocessing.errors``: what workers record, and what is reported of them."""

from __future__ import annotations

from quorate import ChildFailedError, ProcessFailure

from ...._error_handler import ErrorHandler, get_error_handler, record

__all__ = ["ChildFailedError", "ErrorHandler", "ProcessFailure", "get_error_handler", "record"]
