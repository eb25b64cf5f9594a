"""``ErrorHandler`` and ``record`` as torch has them, on quorate's recorder and its error file.

What does not live here: the file itself (:mod:`quorate.failures`), and what is recorded of an exception (a plugin).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from quorate import ChildFailedError, UsageError
from quorate.failures import copy_error_data, read_error_file
from quorate.notices import warn
from quorate.recording import initialize_recorder, record_exception

_P = ParamSpec("_P")
_R = TypeVar("_R")
_VARIABLE = "TORCHELASTIC_ERROR_FILE"


class ErrorHandler:
    """Writes what went wrong to the file that ``TORCHELASTIC_ERROR_FILE`` names.

    Subclass it and override :meth:`initialize` and :meth:`record_exception` to do it otherwise.
    """

    def initialize(self) -> None:
        """Prepare this process: a fatal signal then leaves the Python stacks on stderr."""
        initialize_recorder()

    def record_exception(self, e: BaseException) -> None:
        """Record ``e``; without the variable, nothing.  Never raises."""
        record_exception(e)

    def override_error_code_in_rootcause_data(
        self, rootcause_error_file: str, rootcause_error: dict[str, Any], error_code: int = 0
    ) -> None:
        """Put ``error_code`` into the data of an error file, where its message is an object."""
        message = rootcause_error.get("message")
        if isinstance(message, dict):
            message["errorCode"] = error_code
        else:
            warn(f"the error file {rootcause_error_file} has no place for the exit code {error_code}")

    def dump_error_file(self, rootcause_error_file: str, error_code: int = 0) -> None:
        """Hand the error of a child upwards: copy it into this process's own error file, and replace what is there.

        Raises:
            UsageError: there is no error file at ``rootcause_error_file``, or it cannot be read as one.
        """
        data = read_error_file(rootcause_error_file)
        if data is None:
            raise UsageError(f"{rootcause_error_file} is not an error file")
        if error_code:
            self.override_error_code_in_rootcause_data(rootcause_error_file, data, error_code)
        copy_error_data(data, os.environ.get(_VARIABLE))


def get_error_handler() -> ErrorHandler:
    """Return the handler that :func:`record` uses where none is given."""
    return ErrorHandler()


def record(fn: Callable[_P, _R], error_handler: ErrorHandler | None = None) -> Callable[_P, _R | None]:
    """Decorate the entrypoint of a worker: ``error_handler`` records what leaves it, and it is raised again.

    Of a ChildFailedError the error of the first failed worker is handed upwards.  ``SystemExit(0)`` is success, and the
    wrapper returns ``None``.
    """
    handler = error_handler or get_error_handler()

    @wraps(fn)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        handler.initialize()
        try:
            return fn(*args, **kwargs)
        except SystemExit as stop:
            if stop.code == 0:
                return None
            raise
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            if os.path.isfile(failure.error_file):
                handler.dump_error_file(failure.error_file, failure.exitcode)
            raise
        except Exception as error:
            handler.record_exception(error)
            raise

    return wrapper
