"""What the values of ``--health-checks``, ``--health-check-conf`` and ``--health-check-cmd`` mean."""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from math import isfinite

from quorate.errors import UsageError

from ._checks import DEFAULTS, LONGEST_COMMAND_SECONDS, NAMES

__all__ = ["command_of", "limits_of", "names_of"]


def names_of(text: str) -> frozenset[str]:
    """Return the checks that ``all``, ``none``, names, and names after a minus amount to, from left to right.

    Raises:
        UsageError: a word is none of them.
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
        UsageError: an unknown name, or something that is no number that makes sense for it.
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
    """Return the words of a command, split as a shell does; there is no shell to run it.

    Raises:
        UsageError: there are none, or a quotation mark is missing.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--health-check-cmd={text} cannot be split into words: {str(error).lower()}") from None
    if not words or not words[0]:
        raise UsageError("--health-check-cmd is empty; give a command, or leave the flag out")
    return words


def _remedy(name: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else "the names are " + ", ".join(known)
