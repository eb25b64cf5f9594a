"""From the last lines of a worker's stderr to its exception, or to why it aborted."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from ..text import plain

_LONGEST_MESSAGE = 2048
# "[rank0]: ", as torch writes before each line of a traceback; "  | ", as Python draws around exception groups.
_PREFIX = re.compile(r"^(?:\[[^\]]{1,64}\]: ?)?(?: *[|+] )*")
# "╭─── Traceback (most recent call last) ───╮" is rich's, "ValueError    Traceback (most recent call last)" IPython's.
_HEADING = re.compile(
    r"(?:[\u2500-\u257f+ -]+|(?P<name>[A-Za-z_][\w.]*) {2,})?"
    r"(?:Traceback \(most recent call last\)|Exception Group Traceback)"
)
_BOX = re.compile(r"^[\u2500-\u257f]|^\+-{3,}")
_FRAME = re.compile(r'^\s+File "[^"]*", line \d+')
# What Python's faulthandler writes when the process aborts.
_ABORTED = "Fatal Python error: Aborted"
_NO_FRAME = "  <no Python frame>"
_FRAMES_LEFT_OUT = "  ..."
_OF_THE_PROGRAM = re.compile(r'^  File ".*", line \d+ in <module>$')
_EXCEPTION_LINE = re.compile(r"(?s)^[A-Za-z_][\w.]*(?:: .*)?$")


def message_from_stderr(lines: Sequence[str]) -> str | None:
    """Return the exception line of the last Python traceback in ``lines``, ``None`` if there is no traceback.

    Arguments:
        lines: the last lines of a worker's stderr; the beginning of the traceback may have scrolled out.

    The line is at most 2 KiB.  Tracebacks of ignored exceptions do not count.  Colours, prefixes such as ``[rank0]:``,
    boxes that libraries draw, and the frames around exception groups are left out.
    """
    found: str | None = None
    in_frames = ignored = in_box = False
    expected = ""
    for raw in lines:
        text = plain(raw).rstrip("\r\n")
        line = _PREFIX.sub("", text, count=1)
        if line.startswith("Exception ignored in"):
            ignored = True
        elif heading := _HEADING.match(line):
            in_frames, expected, in_box = True, heading["name"] or "", text.startswith("+--")
        elif line.startswith((" ", "\t")) or _BOX.match(line) or (in_box and text.startswith("|")):
            in_frames = in_frames or _FRAME.match(line) is not None
        elif in_frames and line.startswith(expected) and line:
            if _EXCEPTION_LINE.match(line) and not ignored:
                found = line[:_LONGEST_MESSAGE]
            in_frames = ignored = False
    return found


def message_from_abort(exit_code: int, lines: Sequence[str]) -> str | None:
    """Return what to say of a Python program that had finished and aborted while Python ended; ``None`` for any other.

    Arguments:
        exit_code: of the worker, or of a shell that waited for it (128 + signal).
        lines: the last lines of its stderr, with the stacks of all Python threads (``PYTHONFAULTHANDLER``).  If none
            of them begins in the program, the program's own code has ended.
    """
    if exit_code not in (-signal.SIGABRT, 128 + signal.SIGABRT):
        return None
    lines = [line.rstrip("\r\n") for line in lines]
    if _ABORTED not in lines:
        return None
    stacks = lines[len(lines) - lines[::-1].index(_ABORTED) :]
    if _NO_FRAME not in stacks or _FRAMES_LEFT_OUT in stacks or any(_OF_THE_PROGRAM.match(line) for line in stacks):
        return None
    if any(line.startswith("Extension modules:") and " torch." in line for line in stacks):
        return (
            "the script had finished; torch aborted while Python ended (SIGABRT): "
            "call torch.distributed.destroy_process_group() at the end of the script"
        )
    return (
        "the script had finished; a library aborted while Python ended (SIGABRT): "
        "if it uses torch.distributed, call destroy_process_group() at the end of the script"
    )
