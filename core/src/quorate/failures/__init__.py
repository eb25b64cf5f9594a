"""Failed workers as results: what programs and people read of them, and reading error files."""

from __future__ import annotations

from ..diagnosis import call_stack_of, signal_name
from ._error_file import copy_error_data, read_error_file
from ._reports import ChildFailedError, ProcessFailure
from ._stderr import message_from_abort, message_from_stderr

__all__ = [
    "ChildFailedError",
    "ProcessFailure",
    "call_stack_of",
    "copy_error_data",
    "message_from_abort",
    "message_from_stderr",
    "read_error_file",
    "signal_name",
]
