"""Whether the job that a store holds has ended: for a backend whose nodes serve the store themselves.

Such a store stays for a moment after its job, so that every node can read how it ended.  A new job under the same run
id must not join it.
"""

from __future__ import annotations

from typing import Protocol, cast

from ._protocol import Key
from ._signed import sign_store
from ._store import Store
from ._wire import decode_end

__all__ = ["job_is_over"]


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
        StoreCorruptError: what stands there is not a record of an end.
    """
    if key is not None:
        store = sign_store(cast("Store", store), key, lambda sentence: None)
    number = store.add(Key.ROUND, 0)  # counts the rounds that have ended; may lag behind by one
    keys = [Key.ended(n) for n in (number - 1, number) if n >= 0]
    ends = [decode_end(key, value) for key, value in zip(keys, store.get(keys), strict=True) if value is not None]
    return any(end.verdict.is_terminal for end in ends)
