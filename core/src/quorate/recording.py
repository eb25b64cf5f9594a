"""``@record``: captures the exception of a worker's entrypoint where the agent can read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from .notices import warn

__all__ = ["initialize_recorder", "record", "record_exception"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def record(function: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """Decorate the entrypoint of a worker: an exception that leaves it is recorded, then raised again.

    Without ``TORCHELASTIC_ERROR_FILE`` in the environment nothing is recorded.  ``SystemExit`` passes through, except
    for code 0: the function has succeeded, and the wrapper returns ``None``.
    """

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        try:
            return function(*args, **kwargs)
        except SystemExit as stop:
            if stop.code == 0:
                return None
            raise
        except Exception as error:
            record_exception(error)
            raise

    return wrapper


def record_exception(error: BaseException) -> None:
    """Record ``error`` with the chosen recorder; never raises."""
    _ask_recorder(lambda recorder, path: recorder.record_exception(error, path), "the exception could not be recorded")


def initialize_recorder() -> None:
    """Have the chosen recorder prepare this process, as it does for a function's worker; never raises."""
    _ask_recorder(lambda recorder, path: recorder.initialize(path), "the recorder of exceptions is not ready")


def _ask_recorder(call: Callable[[Any, str], object], complaint: str) -> None:
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    try:
        from .plugins import PluginKind, get_host  # all plugins: a worker pays for them only when it fails

        name = os.environ.get("QUORATE_ERROR_RECORDER", "file")
        call(get_host().choose(PluginKind.ERROR_RECORDER, name), path)
    except BaseException as problem:  # a recorder's own; what the worker has raised goes on
        from ._isolation import problem_of, raise_if_interrupted  # only a recorder that fails needs them

        raise_if_interrupted(problem)
        warn(f"{complaint}: {problem_of(problem)}")
