"""Records concurrent calls of a store, and decides whether one order of the calls explains all answers.

The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993): take any call that began before the
first return, try it on a model of one key, continue with the rest, and go back where the answer does not fit.  States
that were tried are not tried again.  Keys are independent, so that each is checked alone.

What does not live here: who makes the calls (``_store_laws``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, final

from attrs import evolve, frozen

from ..clock import monotonic
from ..errors import StoreUnavailableError

_NEVER = float("inf")


@final
@frozen
class Entry:
    """One call of one member on ``key``, from ``began`` to ``ended``, and its answer.

    ``ended`` is infinite for a call without an answer: it may have been carried out at any later time, or never.
    """

    member: int
    operation: str
    key: str
    argument: Any
    answer: Any
    began: float
    ended: float


@final
class History:
    """Collects entries from several threads."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._lock = threading.Lock()

    def record(self, member: int, operation: str, key: str, argument: Any, call: Callable[[], Any]) -> Any:
        """Make ``call`` and record it; returns ``None`` for a call without an answer."""
        began, ended, answer = monotonic(), _NEVER, None
        try:
            answer = call()
            ended = monotonic()
        except StoreUnavailableError:
            pass
        with self._lock:
            self._entries.append(Entry(member, operation, key, argument, answer, began, ended))
        return answer

    def by_key(self) -> dict[str, list[Entry]]:
        """Return the entries of each key in the order in which they began."""
        found: dict[str, list[Entry]] = {}
        for entry in sorted(self._entries, key=lambda entry: entry.began):
            found.setdefault(entry.key, []).append(entry)
        return found


def _apply(entry: Entry, value: bytes | None) -> tuple[bytes | None, Any]:
    """Return the key's new value, and the answer that a correct store gives."""
    if entry.operation == "create":
        return (entry.argument, True) if value is None else (value, False)
    if entry.operation == "put":
        return entry.argument, None
    if entry.operation == "add":
        count = int(value or b"0") + entry.argument
        return b"%d" % count, count
    if entry.operation == "delete":
        return None, None
    return value, value  # get and wait


def is_linearizable(entries: Sequence[Entry]) -> bool:
    """Return whether some order of ``entries``, all of one key that is absent at first, explains every answer."""
    everything = (1 << len(entries)) - 1
    certain = sum(1 << i for i, entry in enumerate(entries) if entry.ended != _NEVER)
    seen: set[tuple[int, bytes | None]] = set()
    stack: list[tuple[int, bytes | None]] = [(0, None)]
    while stack:
        done, value = stack.pop()
        if done & certain == certain:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        left = everything & ~done
        first_return = min(entry.ended for i, entry in enumerate(entries) if left >> i & 1)
        for i, entry in enumerate(entries):
            if not left >> i & 1 or entry.began > first_return:
                continue
            after, answer = _apply(entry, value)
            if entry.ended == _NEVER or answer == entry.answer:
                stack.append((done | 1 << i, after))
    return False


def explain(entries: Sequence[Entry]) -> str:
    """Return the shortest part of a history that no order explains, one line per call, times in milliseconds."""
    by_return = sorted(entries, key=lambda entry: entry.ended)
    for count in range(1, len(by_return) + 1):
        limit = by_return[count - 1].ended
        # A call that had not returned by then may have been carried out.
        part = [
            entry if entry.ended <= limit else evolve(entry, answer=None, ended=_NEVER)
            for entry in entries
            if entry.began <= limit
        ]
        if not is_linearizable(part):
            break
    zero = part[0].began
    lines = []
    for entry in part[-20:]:
        until = "no answer" if entry.ended == _NEVER else f"{1000 * (entry.ended - zero):9.3f}"
        asked = "" if entry.argument is None else repr(entry.argument)
        lines.append(
            f"  {1000 * (entry.began - zero):9.3f} to {until}  member {entry.member}: "
            f"{entry.operation}({asked}) -> {entry.answer!r}"
        )
    return "\n".join(lines)
