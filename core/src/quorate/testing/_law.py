"""A law of the conformance kit: its name, what it needs, when it binds, and the decorator that makes one.

What does not live here: the laws themselves (the modules ``_…_laws``), and trying them (``_check``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from typing import final

from attrs import frozen

from ..errors import UsageError
from ._abilities import Ability
from ._subject import Subject

#: The release that introduced the kit; its laws bind from the start.
_FIRST_RELEASE = (0, 1)


@final
class Tier(str, Enum):
    """What a law is about.  Backends that open a handler of their own are held to all but ``STORE``."""

    PLUGIN = "plugin"
    STORE = "store"
    MEMBERSHIP = "membership"
    RANKS = "ranks"


@final
class Verdict(str, Enum):
    """What came of trying a law."""

    KEPT = "ok"
    BROKEN = "BROKEN"
    WARNED = "warning"  # broken, but the law is new: it fails from the next minor release on
    ABSENT = "absent"  # the backend lacks what the law needs, and says why


@final
@frozen
class Law:
    """One promise of a backend: ``text`` says what must hold, ``advice`` what usually breaks it and where to look."""

    name: str
    tier: Tier
    needs: tuple[Ability, ...]
    text: str
    advice: str
    since: tuple[int, int]
    function: Callable[[Subject], None]

    def explain(self) -> str:
        """Return the law's name, its text and its advice."""
        return f"law {self.name} ({self.tier.value}): {self.text}\nlook further: {self.advice}"

    def binds(self, version: str) -> bool:
        """Return whether a backend that breaks it fails in ``version`` of quorate; a new law only warns at first."""
        major, minor, *_ = version.split(".")
        return self.since <= _FIRST_RELEASE or (int(major), int(minor)) > self.since


@final
@frozen
class Outcome:
    """The verdict on one law, the text that explains it (empty if the law is kept), and how long it took."""

    law: Law
    verdict: Verdict
    text: str = ""
    seconds: float = 0.0


def law(tier: Tier, *needs: Ability, since: str = "0.1") -> Callable[[Callable[[Subject], None]], Law]:
    """Make a law of a function: its name is the law's name, the docstring's two paragraphs are text and advice."""

    def make(function: Callable[[Subject], None]) -> Law:
        if sys.flags.optimize > 1:
            raise UsageError("the conformance kit needs docstrings; run Python without -OO (unset PYTHONOPTIMIZE)")
        text, _, advice = (" ".join(part.split()) for part in (function.__doc__ or "").partition("\n\n"))
        if not text or not advice:
            raise UsageError(f"the law {function.__name__} needs a docstring of two paragraphs: the law, and advice")
        major, minor = since.split(".")
        first = (Ability.STORE,) if tier is Tier.STORE and Ability.STORE not in needs else ()
        return Law(function.__name__, tier, (*first, *needs), text, advice, (int(major), int(minor)), function)

    return make
