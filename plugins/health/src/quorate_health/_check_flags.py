"""Parses the values of this plugin's flags."""

from __future__ import annotations

import shlex
from math import isfinite

from quorate.errors import UsageError
from quorate.text import near_names, whole_number

from ._checks import DEFAULTS, LONGEST_COMMAND_SECONDS, NAMES


def port_of(text: str) -> int:
    """Return a port from 0 to 65535.

    Raises:
        UsageError: it is not one.
    """
    port = whole_number(text)
    if port is None or port > 65535:
        raise UsageError(f"--health-port={text} is not a port; give a number from 0 (any free port) to 65535")
    return port


def names_of(text: str) -> frozenset[str]:
    """Return the checks of a list of ``all``, ``none``, ``NAME`` and ``-NAME``, which is read from left to right.

    Raises:
        UsageError: the list is empty, or a word is something else.
    """
    words = [word.strip().replace("-", "_") for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("--health-checks is empty; write all, none, or some of " + ", ".join(NAMES))
    wanted = set(NAMES) if words[0].startswith("_") else set()
    for word in words:
        name = word.removeprefix("_")
        if word == "all":
            wanted |= set(NAMES)
        elif word == "none":
            wanted.clear()
        elif name not in NAMES:
            raise UsageError(f"--health-checks={text} names no check {name!r}; {_remedy(name, NAMES)}")
        elif word == name:
            wanted.add(name)
        else:
            wanted.discard(name)
    return frozenset(wanted)


def limits_of(text: str) -> dict[str, float]:
    """Return the limits of ``name=number,...``.

    Raises:
        UsageError: a name is unknown, or its value is not a number in the name's range.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, written = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if name not in DEFAULTS:
            raise UsageError(f"--health-check-conf={text} names no limit {name!r}; {_remedy(name, tuple(DEFAULTS))}")
        if not equals:
            raise UsageError(f"--health-check-conf={text} gives no number for {name}; write {name}=NUMBER")
        limits[name] = _number(name, written)
    return limits


def _number(name: str, written: str) -> float:
    try:
        number = float(written)
    except ValueError:
        raise UsageError(f"--health-check-conf: {name}={written} is not a number") from None
    if not isfinite(number) or number < 0:
        raise UsageError(f"--health-check-conf: {name}={written} must be a number of at least 0")
    if name == "command_timeout_s" and not 0 < number <= LONGEST_COMMAND_SECONDS:
        raise UsageError(
            f"--health-check-conf: {name}={written} must be above 0 and at most {LONGEST_COMMAND_SECONDS:g} seconds"
        )
    return number


def command_of(text: str) -> tuple[str, ...]:
    """Return the words of a command, split as a shell does; it is run without a shell.

    Raises:
        UsageError: the command is empty, or a quotation mark is missing.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--health-check-cmd={text} cannot be split into words: {str(error).lower()}") from None
    if not words or not words[0]:
        raise UsageError("--health-check-cmd is empty; give a command, or leave the flag out")
    return words


def _remedy(name: str, known: tuple[str, ...]) -> str:
    near = near_names(name, known)
    return f"did you mean {near[0]}?" if near else "the names are " + ", ".join(known)
