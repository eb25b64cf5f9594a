"""A law of the conformance kit: what it is called, what it needs, when it binds, and how it is tried on a backend.

What does not live here: the laws themselves (the modules ``_…_laws``), and what they are handed (``_subject``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, final

from attrs import frozen

from ..clock import monotonic
from ..errors import QuorateError, UsageError

if TYPE_CHECKING:
    from ._subject import Subject

__all__ = ["Ability", "Law", "LawBrokenError", "Outcome", "Tier", "Verdict", "all_laws", "check", "law", "try_law"]

#: The release in which the kit began; its laws bind from the first day.
_FIRST_RELEASE = (0, 1)
#: Seconds after which a law that has not come to an end counts as broken.
_LAW_SECONDS = 90.0


class Tier(str, Enum):
    """What a law is about.  Backends that open a handler of their own are held to all but ``STORE``."""

    PLUGIN = "plugin"
    STORE = "store"
    MEMBERSHIP = "membership"
    RANKS = "ranks"


class Ability(str, Enum):
    """What not every backend, or not every test server, can do.  An absent one is declared, with a reason."""

    ENTRY_POINT = "entry_point"  # the backend is installed, and given by its name
    ENDPOINT = "endpoint"  # the backend has endpoints that can be wrong
    STORE = "store"  # tier 1: the core runs its protocol on the backend's store
    SEVERAL_NODES = "several_nodes"
    BATCH = "batch"
    INTERRUPT = "interrupt"
    PARTITION = "partition"  # the test's server can be cut off from its clients
    PAUSE = "pause"  # the test's server can be stopped for a while
    RESTART = "restart"  # the test's server can be ended and started again

    @property
    def remedy(self) -> str:
        """How to have it."""
        return _REMEDIES[self]


_REMEDIES = {
    Ability.ENTRY_POINT: "install the plugin and give the backend by its name",
    Ability.ENDPOINT: "the backend must take an endpoint",
    Ability.STORE: "the backend must give open_store",
    Ability.SEVERAL_NODES: "the backend must serve more than one node",
    Ability.BATCH: "the store needs put_many (quorate.rendezvous.BatchStore)",
    Ability.INTERRUPT: "the store needs interrupt (quorate.rendezvous.InterruptibleStore)",
    Ability.PARTITION: "the server of your test needs a context manager partition()",
    Ability.PAUSE: "the server of your test needs a context manager pause()",
    Ability.RESTART: "the server of your test needs a method restart()",
}


class Verdict(str, Enum):
    """What came of trying a law."""

    KEPT = "ok"
    BROKEN = "BROKEN"
    WARNED = "warning"  # broken, but the law is new: it fails from the next minor release on
    ABSENT = "absent"  # the backend lacks what the law needs, and says why


@final
class LawBrokenError(QuorateError, AssertionError):
    """A backend breaks a law; the message says what was seen, what the law says, and how to look further."""

    def __init__(self, problem: str, law: Law | None = None) -> None:
        self.problem, self.law = problem, law
        super().__init__(problem if law is None else f"{problem}\n{law.explain()}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (str(self),)


@final
@frozen
class Law:
    """One promise of a backend.  ``text`` says what must hold, ``advice`` what usually breaks it and where to look."""

    name: str
    tier: Tier
    needs: tuple[Ability, ...]
    text: str
    advice: str
    since: tuple[int, int]
    function: Callable[[Subject], None]

    def explain(self) -> str:
        """Return the law's name, what it says and what to look at."""
        return f"law {self.name} ({self.tier.value}): {self.text}\nlook further: {self.advice}"

    def binds(self, version: str) -> bool:
        """Return whether breaking it fails in ``version`` of quorate: not in the minor release that brought it."""
        major, minor, *_ = version.split(".")
        return self.since <= _FIRST_RELEASE or (int(major), int(minor)) > self.since


@final
@frozen
class Outcome:
    """A law, tried: the verdict, one text that explains it (empty if kept), and how long it took."""

    law: Law
    verdict: Verdict
    text: str = ""
    seconds: float = 0.0


_laws: dict[str, Law] = {}


def law(tier: Tier, *needs: Ability, since: str = "0.1") -> Callable[[Callable[[Subject], None]], Law]:
    """Make a law of a function; its name is the law's, the docstring's two paragraphs are text and advice."""

    def register(function: Callable[[Subject], None]) -> Law:
        text, _, advice = (" ".join(part.split()) for part in (function.__doc__ or "").partition("\n\n"))
        if not text or not advice:
            raise UsageError(f"the law {function.__name__} needs a docstring of two paragraphs: the law, and advice")
        major, minor = since.split(".")
        first = (Ability.STORE,) if tier is Tier.STORE and Ability.STORE not in needs else ()
        made = Law(function.__name__, tier, (*first, *needs), text, advice, (int(major), int(minor)), function)
        if made.name in _laws:
            raise UsageError(f"there are two laws {made.name}")
        _laws[made.name] = made
        return made

    return register


def all_laws() -> tuple[Law, ...]:
    """Return every law, in the order in which they are worth reading when several are broken."""
    from . import _plugin_laws, _store_laws, _wait_laws  # noqa: I001, F401 - importing them registers their laws, in this order
    from . import _fault_laws, _membership_laws, _crash_laws, _rank_laws  # noqa: F401 - as above

    return tuple(_laws.values())


def check(subject: Subject, names: Iterable[str] = ()) -> Iterator[Outcome]:
    """Try all laws (or those in ``names``) on ``subject``, one after the other.

    Raises:
        UsageError: there is no law of a given name.
    """
    chosen, laws = set(names), all_laws()
    unknown = chosen - {law.name for law in laws}
    if unknown:
        from difflib import get_close_matches

        near = [name for word in unknown for name in get_close_matches(word, [law.name for law in laws], 3)]
        remedy = f"did you mean {' or '.join(near)}?" if near else "see: quorate conformance --list"
        raise UsageError(f"there is no law {', '.join(sorted(unknown))}; {remedy}")
    for law in laws:
        if law.name in chosen or not chosen:
            yield try_law(law, subject)


def try_law(law: Law, subject: Subject, seconds: float = _LAW_SECONDS) -> Outcome:
    """Try one law; whatever the backend does, this returns within about ``seconds``."""
    began = monotonic()
    try:
        for ability in law.needs:
            reason = subject.why_absent(ability)
            if reason is not None:
                return Outcome(law, Verdict.ABSENT, reason)
        problem = _run(law, subject, seconds)
    except LawBrokenError as error:
        problem = error
    except Exception as error:
        problem = LawBrokenError(f"what the backend can do cannot be told: {_unforeseen(error)}")
    took = monotonic() - began
    if problem is None:
        return Outcome(law, Verdict.KEPT, "", took)
    from .. import __version__

    binds = law.binds(__version__)
    text = f"{problem.problem}\n{law.explain()}"
    if not binds:
        text += "\nthis law is new: it only warns in this release, and fails from the next minor release on"
    return Outcome(law, Verdict.BROKEN if binds else Verdict.WARNED, text, took)


def _run(law: Law, subject: Subject, seconds: float) -> LawBrokenError | None:
    """Carry the law out on a thread of its own, since a backend that hangs must not take the caller with it."""
    found: list[LawBrokenError] = []

    def carry_out() -> None:
        with subject:
            try:
                law.function(subject)
            except LawBrokenError as error:
                found.append(error)
            except Exception as error:
                found.append(LawBrokenError(_unforeseen(error)))

    thread = threading.Thread(target=carry_out, name=f"law {law.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        subject.abandon()
        thread.join(subject.patience)
        if not found:
            return LawBrokenError(f"it did not come to an end within {seconds:g} s: some call does not return")
    return found[0] if found else None


def _unforeseen(error: Exception) -> str:
    import traceback

    frames: list[Any] = traceback.extract_tb(error.__traceback__)[-3:]
    where = " <- ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"unexpectedly raised {type(error).__name__}: {error} (at {where})"
