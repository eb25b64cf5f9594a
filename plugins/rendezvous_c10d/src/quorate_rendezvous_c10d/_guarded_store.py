"""A store of torch whose methods can be called in forked children, whenever those are forked.

Each of torch's methods makes its counters in its first call, and locks itself meanwhile.  A child that is forked while
another thread is in there would wait for ever in its own first call.

What does not live here: how forks are kept away (:mod:`quorate.forks`), and connections (:mod:`._connection`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from quorate.forks import no_fork

#: The methods that have been called in this process, or in the one that it was forked from.
_called: set[str] = set()


@final
class GuardedStore:
    """Has all that ``store`` has; no thread can fork this process during the first call of a method.

    A first call should not wait for long; see :meth:`has_called`.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)  # an older torch lacks some
        return method if name in _called else _guarded(name, method)

    @staticmethod
    def has_called(name: str) -> bool:
        """Return whether a method of that name has been called in this process."""
        return name in _called


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with no_fork():
            try:
                return method(*arguments, **options)
            finally:
                _called.add(name)

    return call
