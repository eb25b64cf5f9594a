"""Random scenarios by seed: safety under faults, then liveness once they stop; and every wrong protocol is found.

A failure prints the seed, the one command that replays it, and the shrunk scenario as a transcript.
"""

from __future__ import annotations

import pytest

from quorate.testing._simulation import SimulationError
from quorate.testing._simulation_scenario import make_scenario, play
from quorate.testing.simulate import tell_failure

SEEDS = 300
#: Seeds that showed a defect; each is fixed, and docs/verification.md tells what it was.
REGRESSIONS: tuple[int, ...] = (478, 2799)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_all_laws_are_kept(first: int) -> None:
    for seed in (*range(first, first + 50), *(REGRESSIONS if first == 0 else ())):
        try:
            play(make_scenario(seed))
        except SimulationError as error:
            pytest.fail(tell_failure(error, most_tries=100))


def test_a_seed_replays_a_run_exactly() -> None:
    one, other = play(make_scenario(3)), play(make_scenario(3))
    assert one.transcript == other.transcript
    assert one.transcript != play(make_scenario(4)).transcript
