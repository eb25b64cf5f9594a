"""Starts a group of workers together: all of them or none.

What does not live here: what is then done with them (:mod:`._context`), and starting one of them (the starters).
"""

from __future__ import annotations

from collections.abc import Callable

from quorate.starter import StarterRequest

from ._commands import cannot_start
from ._context import LocalContext


def start_group(request: StarterRequest, launch_all: Callable[[LocalContext], None]) -> LocalContext:
    """Return a context whose workers ``launch_all`` has started; if that fails none is left.

    Raises:
        StartError: they cannot be started; where a limit of the system is the reason, the message has the remedy.
    """
    try:
        context = LocalContext(request)
    except OSError as error:
        raise cannot_start(error) from error
    try:
        launch_all(context)
        context.begin()
    except BaseException as error:
        context.close()
        if isinstance(error, OSError):
            raise cannot_start(error) from error
        raise
    return context
