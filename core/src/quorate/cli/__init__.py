"""The command ``quorate``: ``run``, ``plugins`` and ``conformance``."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports
from ..notices import open_missing_streams, write_error

if TYPE_CHECKING:
    from ._exit import ExitCode

__all__ = ["ExitCode", "main"]

#: Not imported here: with the records it takes most of the time in which :func:`main` catches a Ctrl-C.
__getattr__ = lazy_exports(globals(), {"ExitCode": "_exit"})


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
        os._exit(130)  # a second Ctrl-C finds nothing to interrupt

    if argv is None:
        leave(execute(sys.argv[1:]))
    return execute(argv)
