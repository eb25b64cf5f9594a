"""Laws about a server that is cut off, stopped or restarted: a call may fail, but it must not return a wrong answer.

What does not live here: nodes that crash or pause (``_crash_laws``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ..clock import monotonic, sleep
from ..errors import StoreLostError, StoreUnavailableError
from ..rendezvous import Store
from ._abilities import Ability, LawBrokenError
from ._law import Tier, law
from ._subject import Subject, require, settle, start

_T = TypeVar("_T")
#: The value of ``operation_timeout``, and the deadline for a backend that has no such setting.
_OPERATION_SECONDS = 0.5
_SLACK_SECONDS = 10.0
_LOST_ANSWERS = 5


def _open(subject: Subject) -> tuple[Store, Store]:
    job = subject.job()
    settings = {"operation_timeout": _OPERATION_SECONDS, **subject.settings}
    return job.open(**settings), job.open(**settings)


def _once_it_answers(subject: Subject, call: Callable[[], _T], what: str) -> _T:
    """Return the answer of ``call``, once the store answers again."""
    deadline = monotonic() + subject.timeout
    while True:
        try:
            return call()
        except StoreLostError:
            raise
        except StoreUnavailableError as error:
            if monotonic() > deadline:
                raise LawBrokenError(f"{what} {subject.timeout:g} s after the fault is over: {error}") from error
        sleep(0.1)


def _require_unavailable(subject: Subject, store: Store, fault: str) -> None:
    """Every operation must raise StoreUnavailableError within the deadline; wait may also time out."""
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: store.get(["before"]),
        "put": lambda: store.put("during", b"?"),
        "wait": lambda: store.wait("absent", 0.5),
    }
    for name, call in calls.items():
        calling = start(call)
        settle(calling, _OPERATION_SECONDS + _SLACK_SECONDS)
        require(calling.done(), f"{name} hangs while the server is {fault}")
        error = calling.exception()
        if error is None:
            require(
                name == "wait" and calling.result() is None,
                f"{name} answers {calling.result()!r} while the server is {fault}",
            )
        elif not isinstance(error, StoreUnavailableError):
            raise LawBrokenError(f"{name} raises {type(error).__name__} while the server is {fault}: {error}")


def _require_intact(subject: Subject, store: Store, fault: str) -> None:
    """After the fault, the store still has what was written, and takes writes; or it raises StoreLostError."""
    try:
        again = _once_it_answers(subject, lambda: store.get(["before"]), "get fails")
        require(again == [b"value"], f"after the server was {fault}, a key that was written reads {again[0]!r}")
        created = _once_it_answers(subject, lambda: store.create("before", b"other"), "create fails")
        require(not created, f"after the server was {fault}, create wrote over a key that existed")
    except StoreLostError:
        return
    _once_it_answers(subject, lambda: store.put("after", b"value"), "put fails")
    value = _once_it_answers(subject, lambda: store.wait("after", 5.0), "wait fails")
    require(value == b"value", f"after the server was {fault}, wait does not see a key that is there")


@law(Tier.STORE, Ability.PARTITION)
def partition_is_reported_and_survived(subject: Subject) -> None:
    """While the server is cut off, every operation raises StoreUnavailableError within its deadline; afterwards the
    same store works again and still has every value.

    Give every request a deadline (`operation_timeout`), turn the client's exceptions into StoreUnavailableError, and
    connect again after a failure. Answering None or [] for "no answer" starts a second job.
    """
    store, _ = _open(subject)
    store.put("before", b"value")
    with subject.server.partition():
        _require_unavailable(subject, store, "cut off")
    _require_intact(subject, store, "cut off")


@law(Tier.STORE, Ability.PARTITION)
def wait_survives_a_partition(subject: Subject) -> None:
    """A key that is written after a partition reaches a member that was waiting during it.

    Either the wait continues, or it raises StoreUnavailableError or returns None in time and the next wait finds the
    key. No wait may last for ever on a dead connection.
    """
    waiter, writer = _open(subject)
    timeout = 2.0 * subject.timeout
    waiting = start(waiter.wait, "key", timeout)
    sleep(0.1)
    with subject.server.partition():
        sleep(0.5)
    _once_it_answers(subject, lambda: writer.create("key", b"value"), "create fails")
    settle(waiting, subject.timeout)
    require(waiting.done(), "a wait that began before a partition never ends")
    if waiting.exception() is None and waiting.result() is not None:
        require(waiting.result() == b"value", f"the wait returned {waiting.result()!r}")
        return
    error = waiting.exception()
    require(error is None or isinstance(error, StoreUnavailableError), f"the wait raised {type(error).__name__}")
    again = _once_it_answers(subject, lambda: waiter.wait("key", subject.timeout), "wait fails")
    require(again == b"value", f"the wait after the partition returned {again!r}")


@law(Tier.STORE, Ability.LOSING_ANSWERS)
def lost_answer_is_not_repeated_in_secret(subject: Subject) -> None:
    """An add whose answer was lost raises StoreUnavailableError, and is in the counter once or not at all: the store
    does not repeat it by itself.

    Switch off the retries of the client for add (and for create, whose second attempt finds its own key). The protocol
    repeats what may be repeated, and knows that it has done so.
    """
    store, other = _open(subject)
    for attempt in range(_LOST_ANSWERS):
        key = f"count/{attempt}"
        _once_it_answers(subject, partial(store.add, key, 1), "add fails")
        before = _once_it_answers(subject, partial(store.add, key, 0), "add fails")
        with subject.server.losing_answers():
            adding = start(store.add, key, 1)
            settle(adding, _OPERATION_SECONDS + _SLACK_SECONDS)
        require(adding.done(), "add hangs when its answer is lost")
        error = adding.exception()
        if error is not None and not isinstance(error, StoreUnavailableError):
            raise LawBrokenError(f"add raises {type(error).__name__} when its answer is lost: {error}") from error
        after = _once_it_answers(subject, partial(other.add, key, 0), "add fails")
        require(after - before <= 1, f"one add whose answer was lost has raised the counter by {after - before}")
        require(
            error is not None or after == adding.result() == before + 1, "add has returned, and the counter differs"
        )


@law(Tier.STORE, Ability.PAUSE)
def pause_is_reported_and_survived(subject: Subject) -> None:
    """A stopped server keeps its connections open and does not answer: operations end at their deadline, and work again
    once the server continues.

    A connect timeout is not enough: each read needs a timeout, too.
    """
    store, _ = _open(subject)
    store.put("before", b"value")
    with subject.server.pause():
        _require_unavailable(subject, store, "stopped")
    _require_intact(subject, store, "stopped")


@law(Tier.STORE, Ability.RESTART)
def restart_loses_nothing_in_silence(subject: Subject) -> None:
    """After a restart of the server, open stores work again and still have every value, or raise StoreLostError. A job
    never finds its own store empty and begins again.

    Connect again. If the server does not keep its data, write a mark when the job is opened, and raise StoreLostError
    when the mark is missing.
    """
    store, other = _open(subject)
    store.put("before", b"value")
    subject.server.restart()
    for one in (store, other):
        _require_intact(subject, one, "restarted")
