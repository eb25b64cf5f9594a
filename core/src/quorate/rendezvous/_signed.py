"""A store whose values are signed, over any store: who does not have the job token cannot write for the job.

Each value is preceded by a tag: keyed BLAKE2b over the key's name and the value.  A value without the right tag, or
moved to another name, is not the job's.  The names in the store end in a suffix that depends on the token.  A stranger
can therefore not create a job's key before the job does, because its name cannot be known before it exists.

Counters (``add``) are not signed: the protocol takes them for hints, bounds them, and believes signed records alone.
Where the caller says which keys are counters, a counter is never taken for a value.
What does not live here: where the key comes from (:mod:`quorate.job_token`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence

from ..errors import StoreCorruptError
from ..job_token import STORE_PURPOSE, JobToken
from ._layer import Layer, lay_over
from ._protocol import Key
from ._store import Store

_VERSION = b"\x01"
_TAG_BYTES = 32
_VALUE_AT = len(_VERSION) + _TAG_BYTES
_SUFFIX_CHARACTERS = 20
_MOST_NAMES = 1 << 14
_COUNT = re.compile(rb"-?[0-9]{1,19}")
_PROBLEM = "it is not signed with this job's token"


class SignedStore(Layer):
    """Implements :class:`quorate.rendezvous.Store`; made by :func:`sign_store`.

    A value that is not signed counts as absent for ``get`` (its owner may yet write the right one), and is reported
    once for each key; ``wait`` raises, because nothing better can come.

    Raises:
        StoreCorruptError: ``wait`` found a value without the job's signature; names the key.
    """

    def __init__(
        self, store: Store, key: bytes, report: Callable[[str], None], is_counter: Callable[[str], bool]
    ) -> None:
        super().__init__(store)
        self._report, self._is_counter = report, is_counter
        # Copied for each digest: to copy is cheaper than to take in the key again.
        self._name_digest = hashlib.blake2b(key=key, digest_size=_SUFFIX_CHARACTERS // 2, person=b"name")
        self._value_digest = hashlib.blake2b(key=key, digest_size=_TAG_BYTES, person=b"value")
        # Heartbeats are read and written again and again.
        self._names: dict[str, str] = {}
        self._signed_names: dict[str, bytes] = {}  # a name, as it is signed in front of its value
        self._reported: set[str] = set()

    # --- names and tags ---------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        name = self._names.get(key)
        if name is None:
            digest = self._name_digest.copy()
            digest.update(key.encode())
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
                self._signed_names.clear()
            name = f"{key}.{digest.hexdigest()}"
            self._signed_names[name] = _as_signed(name)
            self._names[key] = name
        return name

    def _tag(self, name: str, value: bytes) -> bytes:
        """Return what stands before the value of ``name``."""
        digest = self._value_digest.copy()
        # Another thread may have cleared the names since.
        digest.update(self._signed_names.get(name) or _as_signed(name))
        digest.update(value)
        return _VERSION + digest.digest()

    def _value(self, name: str, value: bytes) -> bytes:
        return self._tag(name, value) + value

    def _open(self, key: str, name: str, sealed: bytes) -> bytes | None:
        """Return the value, ``None`` if it is neither signed for this name nor a counter's."""
        value = sealed[_VALUE_AT:]
        if hmac.compare_digest(sealed[:_VALUE_AT], self._tag(name, value)):
            return value
        return sealed if _COUNT.fullmatch(sealed) and self._is_counter(key) else None

    # --- the store --------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        names = list(map(self._name, keys))
        values = list(self.below.get(names))
        for number, (key, sealed) in enumerate(zip(keys, values, strict=True)):
            if sealed is None:
                continue
            values[number] = value = self._open(key, names[number], sealed)
            if value is None and key not in self._reported:
                self._reported.add(key)
                self._report(f"the value of {key!r} in the rendezvous store is ignored: {_PROBLEM}")
        return values

    def wait(self, key: str, timeout: float) -> bytes | None:
        name = self._name(key)
        sealed = self.below.wait(name, timeout)
        if sealed is None:
            return None
        value = self._open(key, name, sealed)
        if value is None:
            raise StoreCorruptError(key, _PROBLEM)
        return value

    def delete(self, prefix: str) -> None:
        self.below.delete(prefix)


def _as_signed(name: str) -> bytes:
    data = name.encode()
    return len(data).to_bytes(4, "big") + data


def sign_store(
    store: Store,
    key: bytes,
    report: Callable[[str], None],
    is_counter: Callable[[str], bool] = lambda key: True,
) -> SignedStore:
    """Return ``store`` with signed values; it has the optional abilities that ``store`` has, and no others.

    Arguments:
        store: what holds the values.
        key: 32 secret bytes, the same on all nodes of the job.
        report: called with one sentence for each key under which a value was ignored.
        is_counter: returns whether a key is a counter; by default any may be one, so that a decimal number passes
            unsigned under any key.
    """
    return lay_over(store, SignedStore, key, report, is_counter)


def protect(store: Store, run_id: str, token: JobToken | None, report: Callable[[str], None]) -> Store:
    """Return the store in which the nodes of the job ``run_id`` meet, signed if the job has a token.

    ``report`` is called as by :func:`sign_store`.
    """
    if token is None:
        return store
    return sign_store(store, token.key(run_id, STORE_PURPOSE), report, Key.is_counter)
