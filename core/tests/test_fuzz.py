"""Every decoder of the core takes any bytes: it raises its documented error, or nothing (``make fuzz`` tries more)."""

from __future__ import annotations

import random

import pytest
from core.tests.fuzz.__main__ import changed
from core.tests.fuzz.found import targets_of
from hypothesis import given, settings, strategies as st

TARGETS = targets_of("core")


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_well_formed_is_accepted(name: str) -> None:
    target = TARGETS[name]
    assert all(target.try_one(example) for example in target.examples)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_the_documented_error_or_none(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    example = st.sampled_from(target.beginnings)
    mutated = st.builds(changed, example, st.integers(0, 2**32).map(random.Random))
    target.try_one(data.draw(st.binary(max_size=300) | st.text(max_size=200).map(str.encode) | mutated))
