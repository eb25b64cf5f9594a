"""The command ``quorate``: ``run``, ``plugins`` and ``conformance``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from ..notices import open_missing_streams, write_error
from ._exit import ExitCode

__all__ = ["ExitCode", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit code (:class:`ExitCode`).

    Without ``argv`` it is this process's own command line, and the process ends here.
    """
    if argv is None:
        # Imports make many objects and little garbage: with the default threshold, looking for it is a twentieth of
        # the launch.
        gc.set_threshold(50_000, 20, 20)
        open_missing_streams()
    try:
        from ._main import execute, leave  # everything else, once the threshold is set
    except KeyboardInterrupt:
        if argv is not None:
            raise
        write_error("quorate: interrupted")
        return 130

    if argv is None:
        leave(execute(sys.argv[1:]))
    return execute(argv)
