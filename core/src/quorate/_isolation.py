"""Which exceptions of a plugin stay with the plugin.

What does not live here: what is reported of them, which each caller knows.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import PluginError, QuorateError

__all__ = ["call_plugin", "raise_if_interrupted"]

_T = TypeVar("_T")


def call_plugin(what: str, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a plugin's function where there is no default to go on with.

    Raises:
        QuorateError: what the function raised, if it is one.
        PluginError: the function raised anything else; the message begins with ``what``.
    """
    try:
        return function(*arguments)
    except QuorateError:
        raise
    except BaseException as error:
        raise_if_interrupted(error)
        raise PluginError(f"{what} raised {type(error).__name__}: {error}") from error


def raise_if_interrupted(error: BaseException) -> None:
    """Raise ``error`` again if it may be a person's Ctrl-C; every other exception, SystemExit too, is the plugin's own.

    While an agent handles SIGINT itself, Python raises no KeyboardInterrupt, so that one is a plugin's as well.
    """
    if (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        raise error
