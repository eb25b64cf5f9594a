"""The entry point's object: the recorder and the hook that decides causes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import final

from quorate.catalogue import ErrorRecorder
from quorate.failures import read_error_file
from quorate.hookspecs import hookimpl
from quorate.records import Cause, FailureRecord

from ._cause import classify
from ._file import initialize, record_exception, write_failure
from ._memory import MemoryKills, counter_files


def _complete(error_file: str, failure: FailureRecord) -> None:
    if os.path.isdir(os.path.dirname(error_file)):  # a folder for logs that was removed is not made again
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
                initialize=initialize,
                record_exception=record_exception,
                read=read_error_file,
                complete=_complete,
                begin=self._count_memory_kills,
            )
        ]

    @hookimpl
    def quorate_decide_cause(self, failure: FailureRecord) -> Cause | None:
        """Classify a failure from its exit code, its recorded error, its stderr and the kernel's counters."""
        return classify(failure, self._count_memory_kills())

    def _count_memory_kills(self) -> MemoryKills:
        """Count from the first call on: the kernel's counters also hold what was killed before."""
        if self._kills is None:
            self._kills = MemoryKills(counter_files())
        return self._kills


plugin = _Plugin()
