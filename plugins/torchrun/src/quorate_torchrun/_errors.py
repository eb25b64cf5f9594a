"""Errors of quorate as torch's own classes, in a process that has loaded those.

A program can only catch torch's classes if it has imported them, so that nothing is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import quorate

_ERRORS = "torch.distributed.elastic.multiprocessing.errors"
_PROCESSES = "torch.distributed.elastic.multiprocessing.api"
_RENDEZVOUS = "torch.distributed.elastic.rendezvous.api"
_NO_FILE = "<N/A>"


def as_torch_has_it(error: Exception) -> Exception:
    """Return torch's exception for ``error``; ``error`` itself where torch has none, or it is not loaded."""
    if isinstance(error, quorate.ChildFailedError):
        return _child_failed(error)
    if isinstance(error, quorate.SignalException):
        torch_class = _find(_PROCESSES, "SignalException")
        return error if torch_class is None else torch_class(str(error), error.sigval)
    if isinstance(error, quorate.RendezvousError):
        for kind in type(error).__mro__:
            torch_class = _find(_RENDEZVOUS, kind.__name__) if kind.__module__.startswith("quorate") else None
            if torch_class is not None:
                same: Exception = torch_class(str(error))
                return same
    return error


@contextmanager
def raised_as_torch_has_it() -> Iterator[None]:
    """Raise torch's exception for one of quorate that leaves the block, with quorate's as its cause."""
    try:
        yield
    except Exception as error:
        same = as_torch_has_it(error)
        if same is error:
            raise
        raise same from error


def _find(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def _child_failed(error: quorate.ChildFailedError) -> Exception:
    torch_class, failure_class = _find(_ERRORS, "ChildFailedError"), _find(_ERRORS, "ProcessFailure")
    if torch_class is None or failure_class is None:
        return error
    # The root cause comes first: torch takes the first one of those with the earliest time.
    root, _ = error.get_first_failure()
    ranks = sorted(error.failures, key=lambda rank: (rank != root, rank))
    same: Exception = torch_class(error.name, {rank: _failure(failure_class, error.failures[rank]) for rank in ranks})
    return same


def _failure(failure_class: Any, failure: quorate.ProcessFailure) -> Any:
    same = failure_class(failure.local_rank, failure.pid, failure.exitcode, _NO_FILE)
    same.error_file_data = dict(failure.error_file_data)
    # What torch's @record copies upwards must be there.
    same.error_file = failure.error_file if os.path.isfile(failure.error_file) else _NO_FILE
    same.message = same.error_file_data.get("message") if failure.has_error_data else failure.message
    same.timestamp = failure.timestamp
    return same
