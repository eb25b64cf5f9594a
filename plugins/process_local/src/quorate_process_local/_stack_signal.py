"""How a Python process can be asked where it is without ending it: it writes the stacks of all threads to stderr.

Here is the process that is asked; who asks is :mod:`._stacks`.  Function workers answer from the start; a program may
do what :func:`answer` does, with the signal that ``QUORATE_STACK_SIGNAL`` names.
"""

from __future__ import annotations

import os

__all__ = ["STACK_SIGNAL", "STACK_SIGNAL_VARIABLE", "answer"]

#: Twelve above Linux's first real-time signal that is free for programs.  Nothing sends these by itself.
STACK_SIGNAL = 46
STACK_SIGNAL_VARIABLE = "QUORATE_STACK_SIGNAL"


def answer() -> None:
    """In a function worker, before its function is called: answer the signal, and fatal ones, with stacks."""
    import faulthandler

    try:
        # Not sys.stderr: the log is behind the descriptor.  A forked worker's interpreter has not seen its variable.
        if os.environ.get("PYTHONFAULTHANDLER") and not faulthandler.is_enabled():
            faulthandler.enable(file=2, all_threads=True)
        number = os.environ.get(STACK_SIGNAL_VARIABLE, "")
        if number.isdecimal():
            faulthandler.register(int(number), file=2, all_threads=True, chain=False)
    except (OSError, ValueError, RuntimeError):
        pass  # it can still be asked in other ways
