"""Which of a program's exceptions come from the end of a world."""

from __future__ import annotations

from quorate_live import WorldEnded
from quorate_live._errors import is_interruption, is_peer_loss

PEER_LOSS = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")


class BaseExceptionGroup(BaseException):
    """As a library brings it for Python 3.10."""

    def __init__(self, *exceptions: BaseException) -> None:
        self.exceptions = exceptions


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError("it has no text")


def caught(cause: BaseException | None, context: BaseException | None) -> BaseException:
    error = RuntimeError("a step failed")
    error.__cause__, error.__context__ = cause, context
    return error


def test_the_end_of_a_world_is_found_whatever_it_was_wrapped_into() -> None:
    for is_it, end in ((is_interruption, WorldEnded()), (is_peer_loss, PEER_LOSS)):
        assert is_it(end)
        assert is_it(caught(ValueError("told to the user"), end)), "a cause of its own does not hide it"
        assert is_it(caught(end, ValueError("earlier")))
        assert is_it(BaseExceptionGroup(ValueError("another task's"), BaseExceptionGroup(end)))
        assert is_it(caught(UnspeakableError(), end))


def test_an_exception_of_the_programs_own_is_none_of_them() -> None:
    own = caught(UnspeakableError(), BaseExceptionGroup(ValueError("a"), KeyError("b")))
    assert own.__context__ is not None
    own.__context__.__context__ = own  # a circle
    assert not is_interruption(own)
    assert not is_peer_loss(own)
