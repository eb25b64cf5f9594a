"""How keys and values of the job look in etcd's API v2: a tree of paths, and text.

Pure functions; nothing here talks to etcd.

A key such as ``3/node/7`` becomes the path ``3/node/=7``: directories keep their name, and what holds a value begins
with ``=``, so that ``3`` and ``3/node`` can both be keys.  Whatever a URL or etcd itself would read in another way
(``%``, ``?``, ``.``, a leading ``_``, which hides a name) is written as ``~`` and two hexadecimal digits.
"""

from __future__ import annotations

import base64
import os
from typing import final

from attrs import frozen

from quorate.errors import StoreCorruptError

__all__ = ["Value", "escape", "key_path", "new_stamp", "pack", "split_prefix", "unpack"]

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
_LEAF = "="
_EMPTY = "~"


def escape(text: str) -> str:
    """Return ``text`` with everything but letters, digits and inner ``-_.`` escaped; keeps prefixes prefixes."""
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
    """Return the directory that holds all keys with ``prefix``, and how the names in it begin: of directories, of
    values.  Where the first is empty, everything in the directory is meant."""
    *directories, rest = prefix.split("/")
    path = "/".join(escape(part) or _EMPTY for part in directories)
    return path, (escape(rest), _LEAF + escape(rest))


def new_stamp() -> str:
    """Return a word of 12 characters that no other write has."""
    return base64.urlsafe_b64encode(os.urandom(9)).decode()


@final
@frozen
class Value:
    """A value and the stamp of the write that put it there."""

    data: bytes
    stamp: str


def pack(value: Value) -> str:
    """Return the text that is stored."""
    return f"v1:{value.stamp}:{base64.urlsafe_b64encode(value.data).decode()}"


def unpack(text: object, path: str) -> Value:
    """Read what was stored at ``path``.

    Raises:
        StoreCorruptError: it is not ours, or of a version that is not known here.
    """
    if not isinstance(text, str):
        raise StoreCorruptError(path, "there is a directory where a value should be")
    kind, _, rest = text.partition(":")
    stamp, colon, data = rest.partition(":")
    if kind == "v1" and colon:
        try:
            return Value(base64.b64decode(data, altchars=b"-_", validate=True), stamp)
        except ValueError:
            pass
    raise StoreCorruptError(path, f"it begins with {text[:20]!r}, which this version of quorate does not write")
