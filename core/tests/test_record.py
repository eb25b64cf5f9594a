"""The core's records mean what attrs' mean: the same definitions, made by both, behave alike."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate import _record, records
from quorate._record import Field, fields_of
from quorate.records import Cause, NodeRecord, RestartBudget


@_record.frozen
class Point:
    """A record with something of everything."""

    x: int = _record.field(validator=_record.ge(0))
    label: str = "none"
    tags: list[str] = _record.field(factory=list)
    scale: float = _record.field(default=1, converter=float, kw_only=True)
    secret: str = _record.field(default="", repr=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.label == "bad":
            raise ValueError("bad label")

    @property
    def double(self) -> int:
        return 2 * self.x


@_record.frozen
class Plain:
    """A record without checks, as most are."""

    x: int
    label: str = "none"
    tags: list[str] = _record.field(factory=list)
    scale: float = _record.field(default=1, kw_only=True)


@_record.frozen(slots=False)
class Whole:
    """The same, copied as a whole."""

    x: int
    label: str = "none"
    tags: list[str] = _record.field(factory=list)
    scale: float = _record.field(default=1, kw_only=True)


@_record.frozen(slots=False)
class Checked:
    """A record whose copies cannot be made as a whole, because they have to be checked."""

    x: int = _record.field(validator=_record.ge(0))
    label: str = "none"


def _plain_twin(name: str, slots: bool) -> Any:
    """Return the plain definition, made by attrs."""
    fields = {
        "x": attrs.field(),
        "label": attrs.field(default="none"),
        "tags": attrs.field(factory=list),
        "scale": attrs.field(default=1, kw_only=True),
    }
    return attrs.make_class(name, fields, frozen=True, slots=slots)


PLAIN_TWIN = _plain_twin("Plain", slots=True)
WHOLE_TWIN = _plain_twin("Whole", slots=False)
CHECKED_TWIN = attrs.make_class(
    "Checked",
    {"x": attrs.field(validator=attrs.validators.ge(0)), "label": attrs.field(default="none")},
    frozen=True,
    slots=False,
)


def _twin() -> Any:
    """Return the same definition, made by attrs."""

    def post_init(self: Any) -> None:
        if self.label == "bad":
            raise ValueError("bad label")

    return attrs.make_class(
        "Point",
        {
            "x": attrs.field(validator=attrs.validators.ge(0)),
            "label": attrs.field(default="none"),
            "tags": attrs.field(factory=list),
            "scale": attrs.field(default=1, converter=float, kw_only=True),
            "secret": attrs.field(default="", repr=False, kw_only=True),
        },
        frozen=True,
        slots=True,
        class_body={"__attrs_post_init__": post_init},
    )


TWIN = _twin()
PAIRS = ((Point, TWIN), (Plain, PLAIN_TWIN), (Whole, WHOLE_TWIN), (Checked, CHECKED_TWIN))
ARGUMENTS = st.tuples(
    st.lists(st.one_of(st.integers(-2, 5), st.sampled_from(["", "a", "bad"])), max_size=4),
    st.dictionaries(st.sampled_from(["x", "label", "tags", "scale", "secret", "no"]), st.integers(-2, 5), max_size=3),
)


def outcome(make: Callable[..., Any], arguments: tuple[list[Any], dict[str, Any]]) -> Any:
    try:
        made = make(*arguments[0], **arguments[1])
    except (TypeError, ValueError) as error:
        return type(error)
    return attrs.asdict(made), repr(made)


@given(ARGUMENTS)
def test_any_call_has_the_outcome_that_attrs_gives_it(arguments: tuple[list[Any], dict[str, Any]]) -> None:
    assert outcome(Point, arguments) == outcome(TWIN, arguments)


@given(ARGUMENTS)
def test_the_first_instances_of_a_class_are_made_no_differently(arguments: tuple[list[Any], dict[str, Any]]) -> None:
    """A class's ``__init__`` is compiled only once it was made some instances of."""
    for cls, twin in PAIRS:
        fresh: Any = cls
        fresh.__init__, fresh.__quorate_made__ = _record._first_init, 0
        assert outcome(cls, arguments) == outcome(twin, arguments)


@given(ARGUMENTS, ARGUMENTS)
def test_a_changed_copy_is_the_one_that_attrs_makes(
    first: tuple[list[Any], dict[str, Any]], second: tuple[list[Any], dict[str, Any]]
) -> None:
    for cls, twin in PAIRS:
        made = outcome(cls, first)
        if isinstance(made, tuple):
            ours, theirs = cls(*first[0], **first[1]), twin(*first[0], **first[1])
            changes: tuple[list[Any], dict[str, Any]] = ([], second[1])
            assert outcome(partial(_record.evolve, ours), changes) == outcome(partial(attrs.evolve, theirs), changes)
            assert outcome(cls, first) == made


def test_attrs_knows_our_records() -> None:
    point = Point(1, tags=["a"])
    assert attrs.has(Point)
    assert [each.name for each in attrs.fields(Point)] == [each.name for each in attrs.fields(TWIN)]
    assert attrs.evolve(point, x=2) == Point(2, tags=["a"])
    assert attrs.asdict(point) == {"x": 1, "label": "none", "tags": ["a"], "scale": 1.0, "secret": ""}


def test_every_record_of_the_core_is_one_that_attrs_knows() -> None:
    classes = [value for value in vars(records).values() if isinstance(value, type) and attrs.has(value)]
    assert NodeRecord in classes
    for cls in classes:
        assert [each.name for each in attrs.fields(cls)] == [each.name for each in fields_of(cls)]


@pytest.mark.parametrize(("cls", "is_slotted"), [(Point, True), (Plain, True), (Whole, False), (Checked, False)])
def test_a_record_is_frozen_slotted_unless_told_otherwise_and_weakly_referable(cls: Any, is_slotted: bool) -> None:
    record = cls(1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        record.x = 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del record.x
    assert hasattr(record, "__dict__") is not is_slotted
    import weakref

    assert weakref.ref(record)() is record


def test_a_copy_made_as_a_whole_shares_nothing_that_can_change() -> None:
    record = Whole(1)
    copied = _record.evolve(record, x=2)
    assert (record.x, copied.x) == (1, 2)
    assert _record.evolve(copied, x=1) == record
    assert hash(_record.evolve(copied, tags=())) == hash(_record.evolve(record, x=2, tags=()))
    with pytest.raises(TypeError, match="unexpected"):
        _record.evolve(record, y=2)


def test_records_are_values() -> None:
    one, same, other = RestartBudget(1, 3), RestartBudget(1, 3), RestartBudget(1, 3, Cause.HANG)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != (1, 3)
    assert len({one, same, other}) == 2


def test_a_default_made_by_a_factory_is_each_instances_own() -> None:
    one, other = Point(1), Point(1)
    one.tags.append("a")
    assert other.tags == []


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_record_can_be_copied_and_pickled(again: Callable[[Any], Any]) -> None:
    for record in (NodeRecord("n", "role", 2, host="h", rank_hint=1), Whole(1), Checked(1)):
        assert again(record) == record


def test_a_record_matches_by_position() -> None:
    assert RestartBudget.__match_args__[:2] == ("used", "allowed")  # type: ignore[attr-defined] # as attrs' classes
    assert "scale" not in Point.__match_args__  # type: ignore[attr-defined] # keyword-only


def test_what_a_field_refuses_is_named() -> None:
    with pytest.raises(ValueError, match="x is -1; it must be at least 0"):
        Point(-1)


def test_fields_keep_their_annotations_as_text() -> None:
    assert {each.name: each.type for each in fields_of(RestartBudget)}["last_cause"] == "Cause | None"
    assert all(isinstance(each, Field) for each in fields_of(Point))


def test_attrs_is_not_imported_until_it_is_asked_for() -> None:
    """That is what the records' own decorator is for."""
    code = (
        "import sys, quorate.records as r; assert 'attr' not in sys.modules\n"
        "budget = r.evolve(r.RestartBudget(1, 3), used=2); repr(budget), hash(budget), budget == budget\n"
        "assert 'attr' not in sys.modules\n"
        "import attrs; assert attrs.evolve(budget, used=1) == r.RestartBudget(1, 3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
