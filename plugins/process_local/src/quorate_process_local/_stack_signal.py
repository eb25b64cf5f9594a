"""The stack signal: a Python process that gets it writes the stacks of all threads to stderr, and goes on.

Function workers answer it from the start.  A program may do what :func:`answer` does, with the signal that
``QUORATE_STACK_SIGNAL`` names.  What does not live here: sending it (:mod:`._stacks`).
"""

from __future__ import annotations

import faulthandler
import os

#: Twelve above Linux's first real-time signal that is free for programs.  Nothing sends these by itself.
STACK_SIGNAL = 46
STACK_SIGNAL_VARIABLE = "QUORATE_STACK_SIGNAL"


def answer() -> None:
    """In a function worker, before its function is called: answer the signal, and fatal ones, with stacks."""
    try:
        # Not sys.stderr: the log is behind the descriptor.  A forked worker's interpreter has not seen its variable.
        if os.environ.get("PYTHONFAULTHANDLER") and not faulthandler.is_enabled():
            faulthandler.enable(file=2, all_threads=True)
        number = os.environ.get(STACK_SIGNAL_VARIABLE, "")
        if number.isdecimal():
            faulthandler.register(int(number), file=2, all_threads=True, chain=False)
    except (OSError, ValueError, RuntimeError):
        pass  # there are other ways to get its stacks
