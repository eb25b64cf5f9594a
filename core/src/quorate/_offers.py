"""Reads what plugins answer to the hooks ``quorate_register_…``, and what wrappers have made of it.

What does not live here: calling the hooks, and what follows for a plugin that answers wrongly
(:mod:`quorate.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from ._isolation import raise_if_interrupted, shown
from ._plain import plain_record
from .catalogue import PluginKind
from .errors import PluginError

_MOST_OFFERS = 1000


class WrongAnswerError(PluginError):
    """What a plugin has answered; the message is the rest of a sentence about the hook."""


def answers_in(answers: Any, limit: int) -> list[Any]:
    """Return what wrappers have made of at most ``limit`` answers.

    Raises:
        WrongAnswerError: it is not a list, or a longer one.
    """
    if not issubclass(type(answers), (list, tuple)):
        raise WrongAnswerError(
            f"answered {shown(answers)} as a wrapper, which is not the list of answers that it wraps"
        )
    plain = list(list.__iter__(answers) if issubclass(type(answers), list) else tuple.__iter__(answers))
    if len(plain) > limit:
        raise WrongAnswerError(
            "has added an answer as a wrapper; a wrapper only changes answers, offers need a hook of their own"
        )
    return plain


def is_unreadable(read: Callable[[list[Any]], list[Any]], limit: int) -> Callable[[Any], bool]:
    """Return what tells whether ``read`` raises for the answers that it is given."""

    def is_wrong(answers: Any) -> bool:
        try:
            read(answers_in(answers, limit))
        except BaseException as error:
            raise_if_interrupted(error)
            return True
        return False

    return is_wrong


def records_in(kind: PluginKind, answers: Iterable[Any]) -> list[Any]:
    """Return copies of the records that a plugin offers.

    Raises:
        WrongAnswerError: an answer is not an iterable of records of this kind.  Answers may raise anything else.
    """
    return [plain_record(kind.record, record) for answer in answers for record in _checked(kind, answer)]


def _checked(kind: PluginKind, answer: Any) -> list[Any]:
    if answer is None:
        return []
    if isinstance(answer, (str, bytes)) or not isinstance(answer, Iterable):
        raise WrongAnswerError(f"answered {shown(answer)}, which is not an iterable of {kind.record.__name__}")
    records = list(islice(answer, _MOST_OFFERS + 1))  # a generator need not end
    if len(records) > _MOST_OFFERS:
        raise WrongAnswerError(f"answered with more than {_MOST_OFFERS} items")
    for record in records:
        if not isinstance(record, kind.record):
            raise WrongAnswerError(f"answered with {shown(record)}, which is not a {kind.record.__name__}")
    return records
