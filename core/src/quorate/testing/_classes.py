"""``StoreConformance`` and ``RendezvousConformance``: test classes for pytest with one test per law.

The tests are made from the list of laws.  Nothing here imports pytest, which takes ``unittest.SkipTest`` for a skip.
What does not live here: the laws.
"""

from __future__ import annotations

import unittest
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ..errors import UsageError
from ..rendezvous import RendezvousBackend
from ._abilities import Ability, LawBrokenError
from ._check import all_laws, try_law
from ._law import Law, Verdict
from ._subject import Server, Subject, check_absent


class NewLawWarning(UserWarning):
    """A backend breaks a law that is new in this release; from the next minor release on its test will fail."""


class _Conformance:
    """What both classes share.  A subclass sets the attributes and defines a fixture ``server``."""

    #: The name of the installed backend; or a record, for one that is not installed.
    backend: ClassVar[str | RendezvousBackend]
    #: Ability -> why the backend, or this test's server, does not have it.
    absent: ClassVar[Mapping[str, str]] = {}
    #: Rendezvous settings for every member, such as short timeouts.
    settings: ClassVar[Mapping[str, Any]] = {}
    #: A well-formed endpoint where no server answers.
    dead_endpoint: ClassVar[str] = ""
    #: A malformed endpoint, which the backend must refuse.
    bad_endpoint: ClassVar[str] = ""
    #: Whether all members have a job token, so that the store's values are signed.
    signed: ClassVar[bool] = False
    #: Seconds within which everything that a law expects must have happened.
    timeout: ClassVar[float] = 30.0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        names = {_test_name(law) for law in all_laws()}
        overridden = sorted(names & set(vars(cls)))
        if overridden:
            raise UsageError(
                f"{cls.__name__} overrides {', '.join(overridden)}; a law cannot be overridden. If the backend lacks "
                "what the law needs, declare the ability absent, with a reason"
            )
        check_absent(cls.absent)

    def _subject(self, server: Server | str) -> Subject:
        return Subject(
            self.backend,
            server,
            settings=self.settings,
            absent=self.absent,
            timeout=self.timeout,
            signed=self.signed,
            dead_endpoint=self.dead_endpoint,
            bad_endpoint=self.bad_endpoint,
        )


def _test_name(law: Law) -> str:
    return f"test_{law.name}"


def _make_test(law: Law) -> Callable[[_Conformance, Any], None]:
    def test(self: _Conformance, server: Any) -> None:
        __tracebackhide__ = True
        outcome = try_law(law, self._subject(server))
        if outcome.verdict is Verdict.ABSENT:
            raise unittest.SkipTest(outcome.text)
        if outcome.verdict is Verdict.WARNED:
            # A new law must not fail at once, even where warnings are errors.
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn(outcome.text, NewLawWarning, stacklevel=1)
        if outcome.verdict is Verdict.BROKEN:
            raise LawBrokenError(outcome.text)

    test.__name__ = test.__qualname__ = _test_name(law)
    test.__doc__ = law.text
    return test


class RendezvousConformance(_Conformance):
    """Tests for a backend that opens a handler of its own: all laws except those about a store."""


class StoreConformance(_Conformance):
    """Tests for a backend that opens a store: all laws."""


for _law in all_laws():
    setattr(StoreConformance, _test_name(_law), _make_test(_law))
    if Ability.STORE not in _law.needs:
        setattr(RendezvousConformance, _test_name(_law), _make_test(_law))
