"""``frozen``: attrs' frozen, slotted classes at half the price of a class.

attrs writes and compiles ``__eq__``, ``__hash__`` and ``__repr__`` for each class, which for the core's records is a
tenth of the time to the first worker.  Here all classes share three plain ones; everything else is attrs'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["frozen"]

if TYPE_CHECKING:
    from attrs import frozen as frozen
else:
    import attrs

    def _values(self: Any) -> tuple[Any, ...]:
        return tuple(getattr(self, attribute.name) for attribute in self.__attrs_attrs__)

    def _eq(self: Any, other: object) -> Any:
        return _values(self) == _values(other) if type(self) is type(other) else NotImplemented

    def _hash(self: Any) -> int:
        return hash((type(self), _values(self)))

    def _repr(self: Any) -> str:
        shown = (f"{a.name}={getattr(self, a.name)!r}" for a in self.__attrs_attrs__ if a.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def frozen(cls: type) -> type:
        """Make ``cls`` a frozen, slotted attrs class."""
        cls.__eq__, cls.__hash__, cls.__repr__ = _eq, _hash, _repr
        return attrs.frozen(cls, eq=False, repr=False)
