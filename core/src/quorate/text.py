"""Text that comes from elsewhere (a worker's stderr, a peer's message): made fit to be shown, and read within bounds.

What a process can be given (an environment, a command) is told here too.  What does not live here: which text is shown,
and where.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = [
    "is_environment",
    "is_passable",
    "is_word_of_command",
    "near_names",
    "parse_json",
    "plain",
    "printable",
    "printable_lines",
    "whole_number",
    "without_passwords",
]

#: Terminal control sequences of ECMA-48 and ECMA-35, in their 7-bit and 8-bit forms.
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI, with parameters: colours, cursor
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\n\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings: titles, links
    r"|\x1b[ -/]+[0-~]"  # character sets
    r"|\x1b[0-~]"
)
#: What is left of control characters, but for tabs and line ends.
_STRAY = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: The password of ``user:password@host``, and of ``scheme://user:password@host``.
_PASSWORD = re.compile(r"(?<![^\s/,;'\"])([^\s/@:,;'\"]*:)[^\s/@]+(?=@)")

_MOST_DIGITS = 20
#: In bytes, with the NUL at its end (execve(2): MAX_ARG_STRLEN).
_LONGEST_VARIABLE = 1 << 17
_DEEPEST = 64  # nested JSON


def printable(text: str, longest: int) -> str:
    """Return ``text`` in at most ``longest`` characters, without anything that steers a terminal.

    Control sequences are left out, tabs become spaces, and any other control character is replaced.  Line ends are
    control characters too: pass lines one by one to keep them.
    """
    if len(text) <= longest and text.isprintable():
        return text
    # Cut first: the work is bounded by the result, with room for control sequences that are left out.
    text = _CONTROL.sub("", text[: 4 * longest]).expandtabs(4)
    text = "".join(map(_shown, text))
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def printable_lines(text: str, longest: int | None = None) -> str:
    """Return ``text`` with its line ends, each line as :func:`printable` shows it.

    Arguments:
        text: of one or more lines.
        longest: characters of a line; ``None``: as many as it has.
    """
    lines = (line.rstrip("\r") for line in text.split("\n"))
    if longest is None:
        longest = 4 * len(text)  # a tab becomes four characters at most
    return "\n".join(printable(line, longest) for line in lines)


def plain(text: str) -> str:
    """Return ``text`` without anything that steers a terminal; its lines and tabs stay, as does all that is text."""
    if text.isprintable():
        return text
    return _STRAY.sub("\N{REPLACEMENT CHARACTER}", _CONTROL.sub("", text).replace("\r\n", "\n"))


def without_passwords(text: str) -> str:
    """Return ``text``, which may have endpoints of the form ``user:password@host``, with ``********`` for passwords."""
    return _PASSWORD.sub(r"\1********", text) if "@" in text else text


def whole_number(text: str) -> int | None:
    """Return the number that ``text`` writes in ASCII digits, ``None`` for anything else or 2**64 and more."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        return None
    number = int(text)
    return number if number < 1 << 64 else None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is not finite")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def parse_json(data: bytes | str) -> Any:
    """Return the value in ``data``, which is text or UTF-8.

    Raises:
        ValueError: it is not JSON, has a number that is not finite or too long, or is nested more than 64 deep.
    """
    try:
        value = _DECODER.decode(data if isinstance(data, str) else data.decode())
    except (RecursionError, OverflowError):
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for container in level for item in _items(container)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _items(value: Any) -> Iterator[Any]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inside if isinstance(item, (dict, list)))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"


def near_names(word: str, known: Iterable[str], most: int = 1, likeness: float = 0.6) -> list[str]:
    """Return at most ``most`` of the ``known`` names that ``word`` may have been meant to be, the nearest first.

    ``likeness`` is how like the word a name must be, from 0 (any name) to 1 (the same).
    """
    from difflib import get_close_matches  # only a mistake needs it

    return get_close_matches(word, list(known), most, likeness)


def is_environment(value: Any) -> bool:
    """Return whether the system takes ``value`` as the environment of a process, or as a part of it."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(text, str) and name and "=" not in name and is_passable(f"{name}={text}")
        for name, text in value.items()
    )


def is_passable(text: Any) -> bool:
    """Return whether ``text`` can be a variable of a process, or a word of its command."""
    return is_word_of_command(text) and len(os.fsencode(text)) < _LONGEST_VARIABLE


def is_word_of_command(text: Any) -> bool:
    """Return whether ``text`` has neither a NUL nor half a character; it may be longer than the system takes."""
    if not isinstance(text, str) or "\0" in text:
        return False
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
