"""``frozen``, ``field``, ``evolve``: attrs' own for the type checker and for whoever asks, without its price at start.

Importing attrs takes as long as starting Python, and each class of it a tenth of a millisecond: together a third of the
time to a job's first worker (docs/decisions/0014).  So the core's records are made here, frozen and slotted, by a
decorator that means what ``attrs.frozen`` means; their attrs half (``__attrs_attrs__``, and with it ``attrs.evolve``,
``attrs.asdict``, ``attrs.fields``) is made by attrs itself the first time that somebody asks for it.

``frozen(slots=False)`` is for a record that is copied far more often than it is made: its values are in a dictionary,
which is copied in one go.

What is left out of attrs, because no record needs it: inheritance between records, ``super()`` in a record, ``order``,
``on_setattr``, and validators with more than one check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter

from .lazy_typing import TYPE_CHECKING, Any, final

__all__ = ["Field", "as_dict", "evolve", "field", "fields_of", "frozen", "ge", "gt", "min_len"]


@final
class _Missing:
    """Stands for "no default"; equal to nothing that a field could hold."""

    def __repr__(self) -> str:
        return "required"


_MISSING: Any = _Missing()


@final
class Field:
    """One field of a record: what ``attrs.Attribute`` is to attrs.  ``type`` is the annotation's text."""

    __slots__ = ("converter", "default", "factory", "kw_only", "name", "repr", "type", "validator")

    def __init__(
        self,
        default: Any = _MISSING,
        factory: Callable[[], Any] | None = None,
        validator: Callable[[Any, Any, Any], None] | None = None,
        converter: Callable[[Any], Any] | None = None,
        kw_only: bool = False,
        repr: bool = True,
    ) -> None:
        self.name = self.type = ""
        self.default, self.factory, self.validator, self.converter = default, factory, validator, converter
        self.kw_only, self.repr = kw_only, repr


def fields_of(record: type) -> tuple[Field, ...]:
    """Return the fields of a record's class, in order."""
    return _fields.get(record) or _make_fields(record)


_fields: dict[type, tuple[Field, ...]] = {}


def _make_fields(cls: type) -> tuple[Field, ...]:
    defaults: dict[str, Any] = cls.__quorate_defaults__  # type: ignore[attr-defined] # put there by frozen()
    made = _fields[cls] = tuple(_take(name, text, defaults) for name, text in cls.__annotations__.items())
    return made


def _take(name: str, annotation: Any, defaults: Mapping[str, Any]) -> Field:
    value = defaults.get(name, _MISSING)
    taken = value if isinstance(value, Field) else Field(value)
    taken.name, taken.type = name, annotation
    return taken


def as_dict(record: Any) -> dict[str, Any]:
    """Return name -> value of a record, one level deep."""
    return {each.name: getattr(record, each.name) for each in fields_of(type(record))}


def _comparing(bound: Any, is_right: Callable[[Any, Any], bool], text: str) -> Callable[[Any, Any, Any], None]:
    def check(record: Any, checked: Any, value: Any) -> None:
        if not is_right(value, bound):
            raise ValueError(f"{checked.name} is {value!r}; it must be {text} {bound!r}")

    return check


def ge(bound: float) -> Callable[[Any, Any, Any], None]:
    """Return a validator: at least ``bound``."""
    return _comparing(bound, lambda value, least: bool(value >= least), "at least")


def gt(bound: float) -> Callable[[Any, Any, Any], None]:
    """Return a validator: above ``bound``."""
    return _comparing(bound, lambda value, least: bool(value > least), "above")


def min_len(length: int) -> Callable[[Any, Any, Any], None]:
    """Return a validator: of at least ``length`` characters or items."""
    return _comparing(length, lambda value, least: len(value) >= least, "at least this long:")


if TYPE_CHECKING:
    from attrs import evolve as evolve
    from attrs import field as field
    from attrs import frozen as frozen
else:
    field = Field
    _new, _set = object.__new__, object.__setattr__

    def evolve(record: Any, **changes: Any) -> Any:
        """Return a copy of ``record`` with ``changes``."""
        cls = type(record)
        copier = _copiers.get(cls) or _make_copier(cls)
        if copier.is_whole:
            whole = {**record.__dict__, **changes}
            if len(whole) != len(copier.places):
                return cls(**changes)  # which knows how to complain
            copy = _new(cls)
            _set(copy, "__dict__", whole)
            return copy
        values = list(_values(record))
        if not copier.is_plain:
            return cls(**{**dict(zip(copier.places, values, strict=True)), **changes})
        try:
            for name, value in changes.items():
                values[copier.places[name]] = value
        except KeyError:
            return cls(**changes)  # which knows how to complain
        copy = _new(cls)
        for put, value in zip(copier.setters, values, strict=True):
            put(copy, value)
        return copy

    def frozen(cls: type | None = None, *, slots: bool = True) -> Any:
        """Make ``cls`` a frozen record of its annotated names, slotted unless told otherwise."""
        if cls is None:
            return lambda cls: frozen(cls, slots=slots)
        names = tuple(cls.__annotations__)
        body = {**cls.__dict__, **_METHODS}
        defaults = body["__quorate_defaults__"] = {name: body.pop(name) for name in names if name in body}
        keywords = [name for name, value in defaults.items() if isinstance(value, Field) and value.kw_only]
        body["__match_args__"] = tuple(name for name in names if name not in keywords) if keywords else names
        for name in ("__dict__", "__weakref__"):
            body.pop(name, None)
        if slots:
            body["__slots__"] = (*names, "__weakref__")
        return type(cls)(cls.__name__, cls.__bases__, body)


@final
class _Copier:
    """How a class's records are copied; ``is_plain``: nothing has to be checked or converted.

    ``is_whole``: their values are in a dictionary besides, which can be copied as it is.
    """

    def __init__(self, cls: type) -> None:
        fields = fields_of(cls)
        self.places = {each.name: place for place, each in enumerate(fields)}
        has_more = hasattr(cls, "__attrs_post_init__")
        self.is_plain = not has_more and all(each.validator is None and each.converter is None for each in fields)
        self.is_whole = self.is_plain and "__slots__" not in cls.__dict__
        self.setters = [_setter(cls, each.name) for each in fields]


def _setter(cls: type, name: str) -> Callable[[Any, Any], None]:
    """Return what puts a value into a record's field, which it otherwise refuses."""
    slot = cls.__dict__.get(name)
    if slot is not None:
        setter: Callable[[Any, Any], None] = slot.__set__
        return setter
    return lambda record, value: object.__setattr__(record, name, value)


_copiers: dict[type, _Copier] = {}


def _make_copier(cls: type) -> _Copier:
    made = _copiers[cls] = _Copier(cls)
    return made


#: A class that is made more instances of than this is worth compiling an ``__init__``.
_FEW = 8


def _first_init(self: Any, *args: Any, **kwargs: Any) -> None:
    """Stand in for ``__init__`` for the first few instances; a class that is made more of is worth compiling one.

    Anything but a plain, right call is left to the compiled one, which also knows how to complain.
    """
    cls = type(self)
    made = cls.__quorate_made__ = cls.__quorate_made__ + 1
    if made > _FEW or not _assign(self, fields_of(cls), args, kwargs):
        if cls.__init__ is _first_init:
            cls.__init__ = _compile_init(cls)
        cls.__init__(self, *args, **kwargs)


def _assign(self: Any, fields: tuple[Field, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Set the fields of a new record and run its checks; return whether the arguments were right."""
    names = [each.name for each in fields if not each.kw_only]
    values = dict(zip(names, args, strict=False))
    values.update(kwargs)
    if len(args) > len(names) or len(values) != len(args) + len(kwargs):
        return False
    for each in fields:
        value = values.pop(each.name, _MISSING)
        if value is _MISSING:
            if each.factory is not None:
                value = each.factory()
            elif each.default is not _MISSING:
                value = each.default
            else:
                return False
        object.__setattr__(self, each.name, value if each.converter is None else each.converter(value))
    if values:
        return False
    for each in fields:
        if each.validator is not None:
            each.validator(self, each, getattr(self, each.name))
    if hasattr(self, "__attrs_post_init__"):
        self.__attrs_post_init__()
    return True


def _compile_init(cls: type) -> Any:
    """Write ``__init__`` as a person would: arguments in order, converters, assignments, validators, post-init."""
    names: dict[str, Any] = {"_missing": _MISSING}
    arguments, keywords = ["self"], list[str]()
    lines, checks = list[str](), list[str]()
    for number, each in enumerate(fields_of(cls)):
        name, default = each.name, ""
        value = name
        if each.factory is not None:
            names[f"_factory{number}"], default = each.factory, "=_missing"
            value = f"(_factory{number}() if {name} is _missing else {name})"
        elif each.default is not _MISSING:
            names[f"_default{number}"], default = each.default, f"=_default{number}"
        if each.converter is not None:
            names[f"_convert{number}"] = each.converter
            value = f"_convert{number}({value})"
        (keywords if each.kw_only else arguments).append(name + default)
        names[f"_put{number}"] = _setter(cls, name)
        lines.append(f"    _put{number}(self, {value})")
        if each.validator is not None:
            names[f"_check{number}"], names[f"_field{number}"] = each.validator, each
            checks.append(f"    _check{number}(self, _field{number}, self.{name})")
    if hasattr(cls, "__attrs_post_init__"):
        checks.append("    self.__attrs_post_init__()")
    signature = ", ".join([*arguments, *(["*", *keywords] if keywords else [])])
    exec("\n".join([f"def __init__({signature}):", *lines, *checks, "    return None"]), names)
    return names["__init__"]


@final
class _AttrsHalf:
    """``__attrs_attrs__``, made by attrs when first asked for."""

    def __get__(self, record: Any, cls: type) -> Any:
        import attrs

        make: Any = attrs.field  # whose types know no annotations that are texts
        twins = {}
        for each in fields_of(cls):
            default = attrs.Factory(each.factory) if each.factory is not None else each.default
            twins[each.name] = make(
                default=attrs.NOTHING if default is _MISSING else default,
                validator=each.validator,
                converter=each.converter,
                kw_only=each.kw_only,
                repr=each.repr,
                type=each.type,
            )
        made: Any = attrs.make_class(cls.__name__, twins)
        type.__setattr__(cls, "__attrs_attrs__", made.__attrs_attrs__)
        return made.__attrs_attrs__


def _values(record: Any) -> tuple[Any, ...]:
    getter = _getters.get(type(record)) or _make_getter(type(record))
    values: tuple[Any, ...] = getter(record)
    return values


_getters: dict[type, Callable[[Any], Any]] = {}


def _make_getter(cls: type) -> Callable[[Any], Any]:
    names = [each.name for each in fields_of(cls)]
    # Of a single name, attrgetter gives the value itself.
    made = attrgetter(*names) if len(names) > 1 else lambda record: tuple(getattr(record, name) for name in names)
    _getters[cls] = made
    return made


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash((type(self), _values(self)))


def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields_of(type(self)) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: Any, name: str, value: Any = None) -> None:
    from attrs.exceptions import FrozenInstanceError

    raise FrozenInstanceError


def _get_state(self: Any) -> Mapping[str, Any]:
    return as_dict(self)


def _set_state(self: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        object.__setattr__(self, name, value)


#: What all records have in common.
_METHODS: Mapping[str, Any] = {
    "__quorate_made__": 0,
    "__attrs_attrs__": _AttrsHalf(),
    "__init__": _first_init,
    "__setattr__": _refuse,
    "__delattr__": _refuse,
    "__getstate__": _get_state,
    "__setstate__": _set_state,
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
}
