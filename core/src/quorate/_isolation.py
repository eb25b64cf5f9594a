"""Calls plugins' functions: which exceptions are a plugin's own, and which answers are good.

What does not live here: what is reported of them, which each caller knows.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any, TypeGuard, TypeVar

from ._plain import name_of_type, plain_copy, plain_text
from .errors import PluginError, QuorateError, RendezvousClosedError, remedy_for
from .notices import warn
from .text import printable
from .verdict import JobVerdict

_T = TypeVar("_T")
_LONGEST_DESCRIPTION, _LONGEST_ANSWER = 1000, 200


def call_here(function: Callable[..., _T], *arguments: Any, **keywords: Any) -> _T:
    """Call a plugin's function.  Where it has forked this process and lets the copy go on, the copy ends here.

    Else there would be two agents, which start every worker twice.
    """
    process = os.getpid()
    try:
        answer: _T = _no_coroutine(function(*arguments, **keywords))
        return answer
    finally:
        if os.getpid() != process:
            warn("a plugin has forked this process, and the copy that went on is ended; end such a copy with os._exit")
            os._exit(1)


def _no_coroutine(answer: Any) -> Any:
    """Return ``answer``; raise TypeError if it is a coroutine, or a list with one: what was called has not run."""
    for each in answer if type(answer) is list else (answer,):
        if type(each) is CoroutineType:
            each.close()
            raise TypeError("it is a coroutine, which nothing awaits; write def in the place of async def")
    return answer


def call_plugin(what: str, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a plugin's function where the job cannot go on without its answer.

    Raises:
        QuorateError: what the function raised, if it is one that can be read.
        PluginError: the function raised anything else; the message begins with ``what``.
    """
    try:
        answer: _T = _no_coroutine(function(*arguments))
        return answer
    except BaseException as error:
        raise_if_interrupted(error)
        if _is_error_of_quorate(error):
            raise
        raise PluginError(f"{what} raised {described(error)}") from error


def _is_error_of_quorate(error: BaseException) -> bool:
    """Return whether this is an error of quorate with the text and the fields that callers read.

    A plugin may raise one of a class of its own, or one whose ``__init__`` was not called.
    """
    try:
        if not isinstance(error, QuorateError) or not isinstance(str(error), str):
            return False
        if isinstance(error, RendezvousClosedError) and not (type(error.reason) is str and is_bool(error.succeeded)):
            return False
        return error.verdict is None or isinstance(error.verdict, JobVerdict)
    except BaseException as problem:
        raise_if_interrupted(problem)
        return False


def checked_answer(
    what: str, is_good: Callable[[Any], TypeGuard[_T]], wanted: str, function: Callable[..., Any], *arguments: Any
) -> _T:
    """As :func:`call_plugin`, for an answer that has to be ``wanted``; all methods of an answer may raise anything.

    What is checked and returned is a copy of plain types (:func:`quorate._plain.plain_copy`).

    Raises:
        PluginError: also where the answer is not good; the message begins with ``what``.
    """

    def ask() -> _T:
        answer = plain_copy(_no_coroutine(function(*arguments)))
        if not is_good(answer):
            raise PluginError(f"{what} answered {shown(answer)}, which is not {wanted}")
        return answer

    return call_plugin(what, ask)


def is_bool(answer: Any) -> TypeGuard[bool]:
    """Return whether a plugin has answered yes or no; for :func:`checked_answer`."""
    return isinstance(answer, bool)


def list_of(kind: type[_T]) -> Callable[[Any], TypeGuard[Sequence[_T]]]:
    """Return what tells whether an answer is a sequence of ``kind``; for :func:`checked_answer`."""

    def is_good(answer: Any) -> TypeGuard[Sequence[_T]]:
        is_sequence = isinstance(answer, Sequence) and not isinstance(answer, (str, bytes))
        return is_sequence and all(isinstance(item, kind) for item in answer)

    return is_good


def described(error: BaseException) -> str:
    """Return type and text of an exception in one line; never raises, although the exception may be a plugin's own."""
    try:
        text = plain_text(str(error))
    except BaseException as problem:
        raise_if_interrupted(problem)
        text = "its text cannot be read"
    name = name_of_type(error)
    sentence = printable(f"{name}: {text}" if text else name, _LONGEST_DESCRIPTION)
    remedy = remedy_for(error)
    return f"{sentence}; {remedy}" if remedy else sentence


def problem_of(error: BaseException) -> str:
    """Return the text of an error of quorate, which is a sentence, and type and text of any other."""
    try:
        text = plain_text(str(error)) if isinstance(error, QuorateError) else ""
    except BaseException as problem:
        raise_if_interrupted(problem)
        text = ""
    return text or described(error)


def shown(answer: Any) -> str:
    """Return what a plugin has answered, for a message; never raises."""
    try:
        text = plain_text(repr(answer))
    except BaseException as problem:
        raise_if_interrupted(problem)
        text = f"a {name_of_type(answer)}"
    return printable(text, _LONGEST_ANSWER)


def raise_if_interrupted(error: BaseException) -> None:
    """Raise ``error`` again if it may be a person's Ctrl-C; every other exception, SystemExit too, is the plugin's own.

    While an agent handles SIGINT itself, Python raises no KeyboardInterrupt, so that one is a plugin's as well.
    """
    if (
        issubclass(type(error), KeyboardInterrupt)  # what an exception says of its own class may be a lie, or raise
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        raise error
