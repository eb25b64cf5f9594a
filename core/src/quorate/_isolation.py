"""Which exceptions of a plugin stay with the plugin.

What does not live here: what is reported of them, which each caller knows.
"""

from __future__ import annotations

import signal
import threading

__all__ = ["raise_if_interrupted"]


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
