"""Builds etcd's transactions: comparisons, operations, and the two branches that they choose between.

What does not live here: sending them (:mod:`.client`) and what they are for (:mod:`.member`, :mod:`.store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from .messages import Messages

_EQUAL, _NOT_EQUAL = 0, 3
_CREATE, _MOD, _VALUE = 1, 2, 3


def _end_of_prefix(prefix: bytes) -> bytes:
    """Return the first key after all keys that start with ``prefix`` (which ends in ASCII)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


@final
class Requests:
    """Makes requests of the message classes in ``messages``."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    # --- comparisons --------------------------------------------------------------------------------------------------

    def is_absent(self, key: bytes) -> Any:
        """``key`` does not exist."""
        return self._messages.Compare(result=_EQUAL, target=_CREATE, key=key, create_revision=0)

    def is_empty(self, prefix: bytes) -> Any:
        """No key starts with ``prefix``.  (Each key in a range is compared; of none, a key's zero value is.)"""
        compare = self.is_absent(prefix)
        compare.range_end = _end_of_prefix(prefix)
        return compare

    def is_at(self, key: bytes, revision: int) -> Any:
        """``key`` was last written at ``revision`` (0: does not exist)."""
        return self._messages.Compare(result=_EQUAL, target=_MOD, key=key, mod_revision=revision)

    def is_not(self, key: bytes, value: bytes) -> Any:
        """``key`` exists and holds another value."""
        return self._messages.Compare(result=_NOT_EQUAL, target=_VALUE, key=key, value=value)

    # --- operations ---------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, lease: int) -> Any:
        """Write ``key``; etcd removes it when ``lease`` ends."""
        return self._messages.RequestOp(request_put=self._messages.PutRequest(key=key, value=value, lease=lease))

    def touch(self, key: bytes, lease: int) -> Any:
        """Write ``key``, which exists, with the value that it has: its version grows by one."""
        put = self._messages.PutRequest(key=key, ignore_value=True, lease=lease)
        return self._messages.RequestOp(request_put=put)

    def get(self, key: bytes, revision: int = 0, *, without_value: bool = False, here: bool = False) -> Any:
        """Read ``key``, as it was at ``revision`` (0: as it is).

        ``here``: as the member that is asked knows it, which may have missed newer writes.
        """
        request = self._messages.RangeRequest(key=key, revision=revision, keys_only=without_value, serializable=here)
        return self._messages.RequestOp(request_range=request)

    def first_key(self, prefix: bytes) -> Any:
        """Read the first key that starts with ``prefix``, without its value."""
        request = self._messages.RangeRequest(key=prefix, range_end=_end_of_prefix(prefix), limit=1, keys_only=True)
        return self._messages.RequestOp(request_range=request)

    def delete(self, key: bytes) -> Any:
        """Remove ``key``."""
        return self._messages.RequestOp(request_delete_range=self._messages.DeleteRangeRequest(key=key))

    def delete_prefix(self, prefix: bytes) -> Any:
        """Remove all keys that start with ``prefix``."""
        request = self._messages.DeleteRangeRequest(key=prefix, range_end=_end_of_prefix(prefix))
        return self._messages.RequestOp(request_delete_range=request)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def either(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]) -> Any:
        """A transaction inside a transaction."""
        return self._messages.RequestOp(request_txn=self.transaction(compare, success, failure))

    def transaction(self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any] = ()) -> Any:
        """If all of ``compare`` hold, then ``success``, else ``failure``, at once."""
        return self._messages.TxnRequest(compare=compare, success=success, failure=failure)

    def watch(self, key: bytes) -> Any:
        """Ask for every write of ``key`` from now on; removals are left out."""
        no_delete = self._messages.WatchCreateRequest.NODELETE
        create = self._messages.WatchCreateRequest(key=key, filters=[no_delete])
        return self._messages.WatchRequest(create_request=create)
