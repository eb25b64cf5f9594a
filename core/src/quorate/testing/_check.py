"""All laws of the conformance kit, and trying them on a backend.

What does not live here: the laws (the modules ``_…_laws``), and the backend under test (``_subject``).
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import quorate

from ..clock import monotonic
from ..errors import UsageError
from ..text import near_names
from . import (
    _crash_laws,
    _fault_laws,
    _membership_laws,
    _plugin_laws,
    _rank_laws,
    _reuse_laws,
    _store_laws,
    _wait_laws,
)
from ._abilities import LawBrokenError
from ._law import Law, Outcome, Verdict
from ._subject import Subject

#: Seconds after which a law that has not ended counts as broken.
_LAW_SECONDS = 90.0
#: In the order in which broken laws are worth reading.
_MODULES = (_plugin_laws, _store_laws, _wait_laws, _fault_laws, _membership_laws, _crash_laws, _reuse_laws, _rank_laws)


@cache
def all_laws() -> tuple[Law, ...]:
    """Return every law, in the order in which they are worth reading when several are broken."""
    found = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Law)]
    assert len({law.name for law in found}) == len(found), "two laws have the same name"
    return tuple(found)


def check(subject: Subject, names: Iterable[str] = ()) -> Iterator[Outcome]:
    """Try all laws, or those in ``names``, on ``subject``, one after the other.

    Raises:
        UsageError: a name is not that of a law.
    """
    chosen, laws = set(names), all_laws()
    unknown = chosen - {law.name for law in laws}
    if unknown:
        near = [name for word in unknown for name in near_names(word, (law.name for law in laws), 3)]
        remedy = f"did you mean {' or '.join(near)}?" if near else "see: quorate conformance --list"
        raise UsageError(f"unknown law {', '.join(sorted(unknown))}; {remedy}")
    for law in laws:
        if law.name in chosen or not chosen:
            yield try_law(law, subject)


def try_law(law: Law, subject: Subject, seconds: float = _LAW_SECONDS) -> Outcome:
    """Try one law; returns within about ``seconds`` even if the backend hangs."""
    with subject.token_in_environment():
        return _try_law(law, subject, seconds)


def _try_law(law: Law, subject: Subject, seconds: float) -> Outcome:
    started_at = monotonic()
    try:
        for ability in law.needs:
            reason = subject.why_absent(ability)
            if reason is not None:
                return Outcome(law, Verdict.ABSENT, reason)
        problem = _run(law, subject, seconds)
    except LawBrokenError as error:
        problem = error
    except Exception as error:
        problem = LawBrokenError(f"its abilities could not be found out: {_unexpected(error)}")
    took = monotonic() - started_at
    if problem is None:
        return Outcome(law, Verdict.KEPT, "", took)
    binds = law.binds(quorate.__version__)
    text = f"{problem.problem}\n{law.explain()}"
    if not binds:
        text += "\nthis law is new: it only warns in this release, and fails from the next minor release on"
    return Outcome(law, Verdict.BROKEN if binds else Verdict.WARNED, text, took)


def _run(law: Law, subject: Subject, seconds: float) -> LawBrokenError | None:
    """Run the law on a thread of its own, so that a backend that hangs does not block the caller."""
    found: list[LawBrokenError] = []

    def run() -> None:
        with subject:
            try:
                law.function(subject)
            except LawBrokenError as error:
                found.append(error)
            except Exception as error:
                found.append(LawBrokenError(_unexpected(error)))

    thread = threading.Thread(target=run, name=f"law {law.name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        subject.abandon()
        thread.join(subject.timeout)
        if not found:
            return LawBrokenError(f"it did not come to an end within {seconds:g} s: some call does not return")
    return found[0] if found else None


def _unexpected(error: Exception) -> str:
    frames: list[Any] = traceback.extract_tb(error.__traceback__)[-3:]
    where = " <- ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"unexpectedly raised {type(error).__name__}: {error} (at {where})"
