"""Random scenarios by seed: safety under faults, then liveness once they stop; and every wrong protocol is found.

A failure prints the seed, the one command that replays it, and the shrunk scenario as a transcript.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quorate.testing._simulation import SimulationError
from quorate.testing._simulation_large import play_large
from quorate.testing._simulation_law import Law
from quorate.testing._simulation_scenario import make_scenario, play
from quorate.testing.simulate import explain_failure, main

from .report import after_the_run
from .simulation_mutants import MUTANTS, Mutant, first_seed_that_finds

PAGE = Path(__file__).parents[2] / "docs/verification.md"
SEEDS = 300
#: Seeds that showed a defect; each is fixed, and docs/verification.md says what it was.
REGRESSIONS: tuple[int, ...] = (478, 1764, 2799, 11924, 13554, 24310, 90948, 100386, 100802, 104288, 110905)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_all_laws_are_kept(first: int) -> None:
    for seed in (*range(first, first + 50), *(REGRESSIONS if first == 0 else ())):
        try:
            play(make_scenario(seed))
        except SimulationError as error:
            pytest.fail(explain_failure(error, most_tries=100))


def test_a_seed_replays_a_run_exactly() -> None:
    one, other = play(make_scenario(3)), play(make_scenario(3))
    assert one.transcript == other.transcript
    assert one.transcript != play(make_scenario(4)).transcript


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_protocol_is_found(mutant: Mutant) -> None:
    found = first_seed_that_finds(mutant, most_seeds=2000)
    assert found is not None, f"no seed below 2000 finds that {mutant.what}"
    row = f"| {mutant.name} | {mutant.what} | {found[0]} | {found[1].value} |"
    assert row in PAGE.read_text(encoding="utf-8"), f"rewrite {PAGE.name}: python -m core.tests.report"


def test_a_failure_prints_the_seed_the_command_and_a_short_transcript(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "survivors are not waited for")
    with mutant.applied():
        assert main(["--seed", str(mutant.likely)]) == 1
    output = capsys.readouterr().out
    assert output.startswith("one-running-world: ")
    assert f"replay: python -m quorate.testing.simulate --seed {mutant.likely}\n" in output
    assert "shrunk to:" in output
    assert output.rstrip().splitlines()[-1].count("LAW BROKEN: one-running-world") == 1
    assert main(["--seed", str(mutant.likely), "--transcript"]) == 0


@pytest.mark.slow  # every node's every step is played; ten thousand are for a command of their own
@pytest.mark.timeout(900)  # it only computes: how long is the machine's affair
def test_two_thousand_nodes_join_restart_lose_one_and_succeed() -> None:
    steps = list(play_large(2000))
    calls = [int(number) for number in re.findall(r"\d+", steps[-1])]
    assert calls[1] < 60, "a node's calls must not grow with the number of nodes"


def test_the_page_on_verification_is_what_its_generator_writes() -> None:
    """All but the counts of a run, which would take minutes."""
    page = PAGE.read_text(encoding="utf-8")
    names = [f"- **{law.value}**: {law.text}" for law in Law]
    names += [f"| {mutant.name} | {mutant.what} |" for mutant in MUTANTS]
    assert [name for name in names if name not in page] == [], "rewrite it: python -m core.tests.report"
    assert page.endswith("\n" + "\n".join(after_the_run()) + "\n"), "rewrite it: python -m core.tests.report"
    assert "Scenarios that broke a law: 0." in page
