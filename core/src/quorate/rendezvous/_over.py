"""Whether the job that a store holds has ended: for a backend whose nodes serve the store themselves.

Such a store stays for a moment after its job, so that every node can read how it ended.  A new job under the same run
id must not join it.
"""

from __future__ import annotations

from typing import Protocol, cast

from ..errors import StoreCorruptError
from ._protocol import Key
from ._signed import sign_store
from ._state import RoundSearch
from ._store import Store
from ._transition import check_round
from ._wire import decode_end

#: More than it takes to find any round among 2**63.
_MOST_READS = 200


class _Readable(Protocol):
    """What is needed of a store."""

    def add(self, key: str, amount: int) -> int: ...

    def get(self, keys: list[str], /) -> list[bytes | None]: ...


def job_is_over(store: _Readable, key: bytes | None = None) -> bool:
    """Return whether the end of the job in ``store`` is recorded.

    Arguments:
        key: what the job's values are signed with (``JobToken.key(run_id, STORE_PURPOSE)``); ``None``: they are not.

    Raises:
        StoreUnavailableError: the store did not answer.
        StoreCorruptError: the key's value is not a record of an end, or the counter of rounds is not a number that
            rounds have.
    """
    if key is not None:
        store = sign_store(cast("Store", store), key, lambda sentence: None)
    number, search = check_round(store.add(Key.ROUND, 0)), RoundSearch()  # the counter is a hint, as everywhere
    for _ in range(_MOST_READS):
        numbers = (number - 1, number) if number > 0 else (number,)
        values = store.get([Key.ended(each) for each in numbers])
        if number > 0 and values[0] is None:
            search = search.below(number)
        else:
            found = [(Key.ended(n), value) for n, value in zip(numbers, values, strict=True) if value is not None]
            if any(decode_end(name, value).verdict.is_terminal for name, value in found):
                return True
            if values[-1] is None:
                return False
            search = search.above(number)
        number = search.next_number()
    raise StoreCorruptError(Key.ROUND, "the ends of its rounds contradict each other")
