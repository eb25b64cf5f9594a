"""Sentences for the person at the console, from the core and from plugins.

What does not live here: what goes into results, events and the job's record.
"""

from __future__ import annotations

import sys

__all__ = ["warn"]


def warn(sentence: str) -> None:
    """Write ``quorate: warning: …`` to standard error.  Never raises: a stream that takes nothing harms no job."""
    try:
        sys.stderr.write(f"quorate: warning: {sentence}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass
