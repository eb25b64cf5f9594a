"""What a plugin may do instead of answering.  No tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from quorate.catalogue import HealthCheck
from quorate.errors import PluginError, RendezvousClosedError
from quorate.records import NodeRecord

__all__ = ["DEEDS", "fail_with"]


class _Odd(BaseException):
    def __str__(self) -> str:
        raise SystemExit(9)


class _LiarError(Exception):
    """Raises where it is asked for its class, as ``isinstance`` does."""

    @property
    def __class__(self) -> Any:
        raise SystemExit(9)


class _HiddenError(OSError):
    """Raises where it is asked what happened, and where."""

    errno = args = filename = __traceback__ = property(lambda self: fail_with(SystemExit(9)))  # type: ignore[assignment]


class _LimitError(RuntimeError):
    args = property(lambda self: fail_with(SystemExit(9)))  # type: ignore[assignment]


class _OwnError(PluginError):
    """An error of quorate whose text cannot be read."""

    __str__ = __getattribute__ = lambda self, *arguments: fail_with(SystemExit(9))  # type: ignore[assignment]


class _Unreadable:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(9)

    __repr__ = __eq__ = __len__ = __iter__ = __bool__ = lambda self, *arguments: fail_with(_Odd())  # type: ignore[assignment]
    __hash__ = object.__hash__


def fail_with(error: BaseException) -> Any:
    """Raise ``error``, where only an expression is possible."""
    raise error


def _endless() -> Iterator[int]:
    while True:
        yield 1


def _failing() -> Iterator[int]:
    yield 1
    raise SystemExit(4)


#: What a plugin may do instead of answering; none of it is right for any hook that has an answer.
DEEDS: Mapping[str, Callable[[], Any]] = {
    "SystemExit": lambda: fail_with(SystemExit(3)),
    "KeyboardInterrupt": lambda: fail_with(KeyboardInterrupt()),
    "ValueError": lambda: fail_with(ValueError("x")),
    "an exception without a text": lambda: fail_with(_Odd()),
    "an exception that hides its class": lambda: fail_with(_LiarError()),
    "an exception that hides its number": lambda: fail_with(_HiddenError()),
    "an exception that hides its arguments": lambda: fail_with(_LimitError()),
    "an exception of quorate that cannot be read": lambda: fail_with(_OwnError()),
    "an exception of quorate that was never made": lambda: fail_with(
        RendezvousClosedError.__new__(RendezvousClosedError)
    ),
    "a deep recursion": lambda: fail_with(RecursionError()),
    "a number": lambda: 3,
    "a string": lambda: "a\x1b[2Jb",
    "bytes": lambda: b"ab",
    "an object that raises": _Unreadable,
    "a record of another hook": lambda: HealthCheck("x", "y", str),
    "a list of numbers": lambda: [1, 2],
    "an endless generator": _endless,
    "a generator that leaves": _failing,
    "a class": lambda: NodeRecord,
}
