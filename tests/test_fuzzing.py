"""Everything that reads what others wrote, in every distribution, has a fuzz target or says why it has none.

Each target gets a few hundred inputs here; ``make fuzz`` tries more (docs/verification.md).  The core's own targets are
also tried by ``core/tests/test_fuzz.py``.
"""

from __future__ import annotations

import random
from itertools import islice
from time import thread_time

import pytest
from core.tests.fuzz.__main__ import LONGEST_SECONDS, inputs
from core.tests.fuzz.found import DISTRIBUTIONS, decoders_of, elsewhere_of, reached_by, targets_of

pytestmark = pytest.mark.needs("torch", "etcd3", "waitress")

_INPUTS = 200
_PLUGINS = sorted(set(DISTRIBUTIONS) - {"core"})


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_no_decoder_is_without_a_target_or_a_reason(distribution: str) -> None:
    reached = {place for target in targets_of(distribution).values() for place in reached_by(target)}
    decoders = decoders_of(distribution)
    without = {name for name, place in decoders.items() if place not in reached}
    assert without == set(elsewhere_of(distribution)), "give each a target in tests/fuzz_targets.py, or a true reason"


@pytest.mark.parametrize("distribution", _PLUGINS)
def test_the_decoders_of_plugins_raise_what_they_document(distribution: str) -> None:
    for name, target in targets_of(distribution).items():
        assert all(target.try_one(example) for example in target.examples), name
        for number, data in enumerate(islice(inputs(target, random.Random(name)), _INPUTS)):
            began = thread_time()
            try:
                target.try_one(data)
            except BaseException as error:
                raise AssertionError(f"{name}: input {number} is {data[:500]!r}") from error
            assert thread_time() - began < LONGEST_SECONDS, f"{name}: input {number} is {data[:500]!r}"
