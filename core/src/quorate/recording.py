"""``@record``: captures the exception of a worker's entrypoint where the agent can read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from .notices import warn

__all__ = ["record", "record_exception"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def record(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate the entrypoint of a worker: an exception that leaves it is recorded, then raised again.

    Without ``TORCHELASTIC_ERROR_FILE`` in the environment nothing is recorded.  ``SystemExit`` passes through.
    """

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            record_exception(error)
            raise

    return wrapper


def record_exception(error: BaseException) -> None:
    """Record ``error`` with the chosen recorder; never raises."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    try:
        from .plugins import PluginKind, get_host  # all plugins: a worker pays for them only when it fails

        name = os.environ.get("QUORATE_ERROR_RECORDER", "file")
        get_host().choose(PluginKind.ERROR_RECORDER, name).record_exception(error, path)
    except Exception as problem:
        warn(f"the exception could not be recorded: {problem}")
