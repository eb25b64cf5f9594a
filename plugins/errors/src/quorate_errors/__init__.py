"""Error recorder ``file`` and the classification of how a worker failed.

Public besides the plugin: :func:`write_failure`, which completes an error file with what only the agent knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

from quorate.catalogue import ErrorRecorder
from quorate.hookspecs import hookimpl

if TYPE_CHECKING:
    from quorate.records import Cause, FailureRecord

    from ._memory import MemoryKills

__all__ = ["plugin", "write_failure"]


def write_failure(error_file: str, failure: FailureRecord) -> bool:
    """Add ``failure`` to its error file, or make one; returns whether it could be written.  Never raises.

    What the worker recorded stays as it is; node, cause and the last lines of stderr are put beside it.
    """
    from ._file import write_failure as write

    return write(error_file, failure)


# The three are functions of their own so that a worker that never fails imports nothing more than this module.
def _initialize(error_file: str) -> None:
    from ._file import initialize

    initialize(error_file)


def _record_exception(exception: BaseException, error_file: str) -> None:
    from ._file import record_exception

    record_exception(exception, error_file)


def _read(error_file: str) -> Mapping[str, Any] | None:
    from quorate.failures import read_error_file

    return read_error_file(error_file)


def _complete(error_file: str, failure: FailureRecord) -> None:
    import os

    if os.path.isdir(os.path.dirname(error_file)):  # who has removed the logs does not want them back
        write_failure(error_file, failure)


@final
class _Plugin:
    """What the entry point names."""

    def __init__(self) -> None:
        self._kills: MemoryKills | None = None

    @hookimpl
    def quorate_register_error_recorder(self) -> Iterable[ErrorRecorder]:
        """Offer ``file``."""
        return [
            ErrorRecorder(
                name="file",
                summary="a JSON file that TorchElastic reads and writes as well",
                initialize=_initialize,
                record_exception=_record_exception,
                read=_read,
                complete=_complete,
                begin=self._memory_kills,  # the kernel's counters are compared with what they were at the start
            )
        ]

    @hookimpl
    def quorate_decide_cause(self, failure: FailureRecord) -> Cause | None:
        """Classify a failure from its exit code, its recorded error, its stderr and the kernel's counters."""
        from ._cause import classify

        return classify(failure, self._memory_kills())

    def _memory_kills(self) -> MemoryKills:
        if self._kills is None:
            from ._memory import MemoryKills, counter_files

            self._kills = MemoryKills(counter_files())
        return self._kills


plugin = _Plugin()
