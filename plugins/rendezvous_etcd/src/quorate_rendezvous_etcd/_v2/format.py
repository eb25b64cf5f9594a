"""How keys and values of the job look in etcd's API v2: a tree of paths, and text.

Pure functions; nothing here talks to etcd.

A key such as ``3/node/7`` becomes the path ``3/node/=7``.  Directories keep their name, and the name of a value begins
with ``=``, so that ``3`` and ``3/node`` can both be keys.  Characters that have a meaning in a URL or for etcd (``%``,
``?``, ``.``, a leading ``_``) are written as ``~`` and two hexadecimal digits.
"""

from __future__ import annotations

import base64
import os
from typing import final

from attrs import frozen

from quorate.errors import StoreCorruptError

from .._limits import LARGEST_VALUE_BYTES

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
_LEAF = "="
_EMPTY = "~"
# A stamp and the base64 of the largest value.
_LONGEST_TEXT = 100 + (LARGEST_VALUE_BYTES + 2) // 3 * 4


def escape(text: str) -> str:
    """Return ``text`` with all but letters, digits and inner ``-_.`` escaped.

    The result for a prefix of ``text`` is a prefix of the result.
    """
    escaped: list[str] = []
    for byte in text.encode("utf-8", "surrogatepass"):
        character = chr(byte)
        plain = character in _SAFE and (bool(escaped) or character not in "._")
        escaped.append(character if plain else f"~{byte:02X}")
    return "".join(escaped)


def key_path(key: str) -> str:
    """Return the path of ``key`` below the job's keys."""
    *directories, leaf = key.split("/")
    return "/".join([*(escape(part) or _EMPTY for part in directories), _LEAF + escape(leaf)])


def split_prefix(prefix: str) -> tuple[str, tuple[str, str]]:
    """Return the directory of all keys with ``prefix``, and how the names in it begin: of directories, of values.

    Where the first is empty, all names in the directory are meant.
    """
    *directories, rest = prefix.split("/")
    path = "/".join(escape(part) or _EMPTY for part in directories)
    return path, (escape(rest), _LEAF + escape(rest))


def new_stamp() -> str:
    """Return a word of 12 characters that no other write has."""
    return base64.urlsafe_b64encode(os.urandom(9)).decode()


@final
@frozen
class Value:
    """A value and the stamp of the write that stored it."""

    data: bytes
    stamp: str


def pack(value: Value) -> str:
    """Return the text that is stored."""
    return f"v1:{value.stamp}:{base64.urlsafe_b64encode(value.data).decode()}"


def unpack(text: object, path: str) -> Value:
    """Read what was stored at ``path``.

    Raises:
        StoreCorruptError: this version of quorate has not written it, or it is too large.
    """
    if not isinstance(text, str):
        raise StoreCorruptError(path, "there is a directory where a value should be")
    if len(text) > _LONGEST_TEXT:
        raise StoreCorruptError(path, f"it is larger than the {LARGEST_VALUE_BYTES} bytes that the store accepts")
    kind, _, rest = text.partition(":")
    stamp, colon, data = rest.partition(":")
    if kind == "v1" and colon:
        try:
            return Value(base64.b64decode(data, altchars=b"-_", validate=True), stamp)
        except ValueError:
            pass
    raise StoreCorruptError(path, f"it begins with {text[:20]!r}, which this version of quorate does not write")
