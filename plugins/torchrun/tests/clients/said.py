"""What the programs beside this one tell the test that runs them."""

from __future__ import annotations

import os
import sys

__all__ = ["say"]


def say(*words: object) -> None:
    """Write one line: whether quorate runs this worker, then ``words``; in one piece, for others write too."""
    sys.stdout.write(" ".join(map(str, ("LINE", "QUORATE_ROUND" in os.environ, *words))) + "\n")
    sys.stdout.flush()
