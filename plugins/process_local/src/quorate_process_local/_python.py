"""Parses a Python command line: the interpreter's options, what it runs, and the arguments of that.

What does not live here: what is done with the parts (:mod:`._warm`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, final

_NAMES = re.compile(r"(python|pypy)[0-9.]*t?(-dbg|d)?")
_SWITCHES = frozenset("bBdOPqsuv")
_NO_HOOK = frozenset("EIS")
_WITH_VALUE = frozenset("WX")
_HASH_CHECK = "--check-hash-based-pycs"


@final
class PythonCommand(NamedTuple):
    """One command: ``kind`` is ``script``, ``module`` or ``code``, and ``target`` its path, name or text."""

    options: tuple[str, ...]
    kind: str
    target: str
    arguments: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        """What ``sys.argv`` is when the program begins."""
        first = {"script": self.target, "module": "-m", "code": "-c"}[self.kind]
        return [first, *self.arguments]

    @property
    def head(self) -> str:
        """What Python puts in front of ``sys.path`` for this program, unless an option forbids it."""
        if self.kind == "module":
            return os.getcwd()
        if self.kind == "code":
            return ""
        return self.target if os.path.isdir(self.target) else os.path.dirname(os.path.realpath(self.target))


def is_python(path: str) -> bool:
    """Return whether the program at ``path`` is a Python interpreter, by its name or because it runs this process."""
    if _NAMES.fullmatch(os.path.basename(path)):
        return True
    return bool(sys.executable) and os.path.realpath(path) == os.path.realpath(sys.executable)


def parse_python_command(words: Sequence[str]) -> PythonCommand:
    """Return the parts of what follows the interpreter in a command.

    Raises:
        ValueError: it runs no script, module or code; the text says what it does instead.
    """
    options: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word.startswith("--"):
            if word != _HASH_CHECK or not rest:
                raise ValueError(f"the option {word} of Python is not for a program that runs")
            options += [word, rest.pop(0)]
            continue
        for position, letter in enumerate(word[1:], 1):
            if letter in _SWITCHES:
                continue
            if letter in _NO_HOOK:
                raise ValueError(f"with the option -{letter} Python does not let anything be imported ahead")
            if letter not in _WITH_VALUE and letter not in "mc":
                raise ValueError(f"the option -{letter} of Python is not for a program that runs")
            if position > 1:
                options.append(word[:position])
            value = word[position + 1 :] or (rest.pop(0) if rest else "")
            if letter in "mc":
                return PythonCommand(tuple(options), {"m": "module", "c": "code"}[letter], value, tuple(rest))
            options += [f"-{letter}", value]
            break
        else:
            options.append(word)
    if not rest or rest[0] == "-":
        raise ValueError("Python would read its program from standard input")
    return PythonCommand(tuple(options), "script", rest[0], tuple(rest[1:]))
