"""Copies what a plugin has answered into plain types, so that no method of the plugin's own is called later.

An object whose class derives from ``str``, ``int``, ``list`` or a record may answer otherwise, raise, or change after
it was checked.  What does not live here: whether an answer is right, and who is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from enum import Enum
from itertools import islice
from typing import Any, TypeVar, cast, final

from attrs import AttrsInstance, fields

_R = TypeVar("_R", bound=AttrsInstance)

#: In one answer, counted through all of its containers.
_MOST_ITEMS = 1 << 17
#: Fields of records that hold the user's own objects, or those of a backend.
_KEPT_AS_THEY_ARE = frozenset({"args", "error_data", "return_value", "store"})


def plain_text(text: str) -> str:
    """Return ``text`` as a ``str``, if its class derives from that."""
    return str.__str__(text)


def name_of_type(value: object) -> str:
    """Return the name of the class of ``value``; its metaclass is not asked."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def plain_copy(value: Any) -> Any:
    """Return a copy of texts, numbers, containers and records of quorate, of plain types all through.

    An enumeration's member of type ``str`` and every other object are returned as they are.

    Raises:
        ValueError: there are more than 131072 items in it.  A container may raise anything else.
    """
    return _Copier().copy(value)


def plain_record(kind: type[_R], value: object) -> _R:
    """Return a record of exactly this kind with the plain values of ``value``, which is of it or of a class below it.

    Raises:
        AttributeError: it lacks a field.  Whatever the record's own validators raise, too.
    """
    return _Copier().record(kind, value)


@final
class _Copier:
    def __init__(self) -> None:
        self._left = _MOST_ITEMS

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, str, int, float, bytes):
            return value
        if issubclass(kind, str):
            return value if issubclass(kind, Enum) else plain_text(value)
        if issubclass(kind, int):
            return int.__int__(value)
        if issubclass(kind, float):
            return float.__float__(value)
        if issubclass(kind, Mapping):
            keys = self._items(dict.__iter__(value) if issubclass(kind, dict) else value)
            get = dict.__getitem__ if issubclass(kind, dict) else kind.__getitem__
            return {self.copy(key): self.copy(get(value, key)) for key in keys}
        for plain in (list, tuple, set, frozenset):
            if issubclass(kind, plain):
                return plain(self.copy(item) for item in self._items(plain.__iter__(value)))
        if issubclass(kind, Set):
            return frozenset(self.copy(item) for item in self._items(value))
        if issubclass(kind, Sequence) and not issubclass(kind, (bytes, bytearray, memoryview, range)):
            return tuple(self.copy(item) for item in self._items(value))
        known = _record_below(kind)
        return value if known is None else self.record(known, value)

    def record(self, kind: type[_R], value: object) -> _R:
        names = [each.name for each in fields(kind)]
        values = {name: getattr(value, name) for name in names}
        return kind(**{name: each if name in _KEPT_AS_THEY_ARE else self.copy(each) for name, each in values.items()})

    def _items(self, container: Iterable[Any]) -> list[Any]:
        items = list(islice(container, self._left + 1))  # it need not end
        self._left -= len(items)
        if self._left < 0:
            raise ValueError(f"it has more than {_MOST_ITEMS} items")
        return items


def _record_below(kind: type) -> type[AttrsInstance] | None:
    """Return the record of quorate that a class is or derives from."""
    for each in kind.__mro__:
        if "__attrs_attrs__" in vars(each) and each.__module__.startswith("quorate."):
            return cast("type[AttrsInstance]", each)
    return None
