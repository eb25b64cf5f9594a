"""Writes ``docs/verification.md``: what the conformance kit and the simulation have verified.

    python -m core.tests.report --seeds 10000 --write docs/verification.md

Only the list of defects is written by hand; laws, mutants and counts come from the code and a run.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import final

from attrs import frozen

from quorate.testing import all_laws
from quorate.testing._simulation import SimulationError
from quorate.testing._simulation_law import Law
from quorate.testing._simulation_scenario import make_scenario, play
from quorate.testing.simulate import replay_command

from .mutants import MUTANTS as KIT_MUTANTS
from .simulation_mutants import MUTANTS, first_seed_that_finds

__all__ = ["DEFECTS", "Defect", "main"]


@final
@frozen
class Defect:
    """One defect that was found and fixed; ``shown`` is the seed, story or test that shows it when it is back."""

    what: str
    shown: str


DEFECTS: tuple[Defect, ...] = (
    Defect(
        "A node learned that its round is sealed from its blocking wait alone, and until then it sent heartbeats that "
        "the members of the round did not read. Where the connection of the wait stood still, a healthy node was found "
        "lost two leases after the seal. What a node waits for is now read with the heartbeats, and any heartbeat of a "
        "member counts.",
        'the wrong protocols "only the wait tells" and "a ticket\'s heartbeats count for nothing"',
    ),
    Defect(
        "A node left while an earlier call was still without an answer. When that call failed, the node took it for "
        "its last heartbeat, and ended without the end of the round that it had to record.",
        "`test_an_earlier_call_that_fails_does_not_end_the_leaving`",
    ),
    Defect(
        "A worker failed while the store was away. After `close_timeout` its agent asked for the next round before the "
        "end of this round was recorded. The request was dropped, and the whole job waited for that node for ever. The "
        "request is now kept until the end is known.",
        "seeds 478, 1562, 2799",
    ),
    Defect(
        "A node left while its end of the round was still on the way to the store. It reported only that it left, and "
        "the others continued a job that had failed for good. It now sends the end again.",
        "`test_a_node_that_leaves_before_its_end_is_recorded_records_that_end`",
    ),
    Defect(
        "The successor of a crashed sealer forgot which node it had just found lost, and sealed a round with it: "
        "workers started, waited for a lease, and were stopped again. It now remembers.",
        "transcript `sealer_dies`, `test_the_sealer_dies_while_gathering_and_the_next_ticket_seals`",
    ),
    Defect(
        "A node that was paused during a short outage counted the pause as outage, and gave up when it woke, although "
        "the store had answered the others for a long time. It now asks once more.",
        "seed 11924, `test_a_node_that_was_paused_through_an_outage_asks_once_more_before_it_gives_up`",
    ),
    Defect(
        "A sealer without an answer from its store for two seconds counted that time as silence of the other nodes. It "
        "sealed a round without survivors that were still stopping their workers, and two worlds ran. Silence now "
        "counts only as far as it was read.",
        "seed 1764",
    ),
    Defect(
        "A node whose workers were done wrote no more heartbeats. A standby, which watched one member after the other, "
        "declared it lost together with a node that had been away and was back, and ended a running round. Done nodes "
        "now continue to write heartbeats, and a standby reads those of all members before it ends their round (which "
        "also takes two leases now, instead of two per dead member).",
        "seed 24310, `test_a_standby_declares_no_node_lost_that_is_done_or_has_come_back`",
    ),
    Defect(
        "A defect of a law: a node that had its ticket but had not yet written its record counted as in line from the "
        "beginning, and a round without it as a broken law.",
        "seed 13554",
    ),
    Defect(
        "While many nodes arrived, the sealer woke for each of them, decoded all heartbeats again, and put all names "
        "into one sentence: quadratic in the number of nodes. It now wakes less often while many nodes are missing, "
        "decodes each heartbeat once, and names sixteen nodes.",
        "`python -m quorate.testing.simulate --nodes 10000`",
    ),
    Defect(
        "A node that came after a job's end could begin a round of its own. The writer of the end now raises the round "
        "number.",
        "the kit, law `closing_is_final`",
    ),
)

#: Written by hand after a run of ``make fuzz``.
FUZZING = Path(__file__).parent / "fuzz" / "figures.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a law was broken or a mutant was not found."""
    parser = argparse.ArgumentParser(prog="python -m core.tests.report", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many to play (default: %(default)s)")
    parser.add_argument("--write", type=Path, help="the page to write; without it, print")
    options = parser.parse_args(arguments)
    lines, good = _page(options.seeds)
    text = "\n".join(lines) + "\n"
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")
    return 0 if good else 1


def _page(seeds: int) -> tuple[list[str], bool]:
    simulation, good = _simulation(seeds)
    mutants, all_found = _mutants()
    lines = [
        "# What has been verified",
        "",
        "Written by `python -m core.tests.report`; do not edit. [conformance.md](conformance.md) lists the laws of the "
        "conformance kit. [Decision 18](decisions/0018-what-the-simulation-shares.md) says what the simulation shares "
        "with production.",
        "",
        *simulation,
        *mutants,
        *_kit(),
        *FUZZING.read_text(encoding="utf-8").splitlines(),
        "## Defects that were found",
        "",
        "Each defect is fixed, and the tests contain the seed, story or test that shows it. (When the protocol "
        "changes, a seed plays another scenario. The seeds in this table showed the defect when it was found.)",
        "",
        "| what was wrong | shown by |",
        "|---|---|",
        *(f"| {defect.what} | {defect.shown} |" for defect in DEFECTS),
    ]
    return lines, good and all_found


def _simulation(seeds: int) -> tuple[list[str], bool]:
    counts, broken = Counter[str](), list[SimulationError]()
    node_seconds, rounds = 0.0, 0
    for seed in range(seeds):
        try:
            result = play(make_scenario(seed))
        except SimulationError as error:
            broken.append(error)
            continue
        counts += result.counts
        node_seconds, rounds = node_seconds + result.node_seconds, rounds + result.rounds
    lines = [
        "## The simulation",
        "",
        f"{seeds} random scenarios (seeds 0 to {seeds - 1}): {rounds} rounds, {node_seconds / 3600:.1f} simulated "
        f"node-hours, {sum(counts.values())} faults. Scenarios that broke a law: {len(broken)}.",
        "",
        *(f"- {error.law.value}: {error.problem}: `{replay_command(error.seed)}`" for error in broken),
        *([""] if broken else []),
        "| fault | count |",
        "|---|---|",
        *(f"| {kind} | {number} |" for kind, number in sorted(counts.items())),
        "",
        f"Its {len(Law)} laws:",
        "",
        *(f"- **{law.value}**: {law.text}" for law in Law),
        "",
    ]
    return lines, not broken


def _mutants() -> tuple[list[str], bool]:
    lines = [
        "## Wrong protocols that the simulation finds",
        "",
        "| wrong protocol | what it does | found by seed | by law |",
        "|---|---|---|---|",
    ]
    missed = 0
    for mutant in MUTANTS:
        found = first_seed_that_finds(mutant, most_seeds=2000)
        missed += found is None
        seed, law = (str(found[0]), found[1].value) if found is not None else ("**not found**", "")
        lines.append(f"| {mutant.name} | {mutant.what} | {seed} | {law} |")
    return [*lines, ""], missed == 0


def _kit() -> list[str]:
    counts = f"{len(all_laws())} laws of backends. {len(KIT_MUTANTS)} wrong backends"
    return [
        "## The conformance kit",
        "",
        f"{counts}, each caught by the law that names it (`test_conformance_mutants`):",
        "",
        "| law | the wrong backend that it catches |",
        "|---|---|",
        *(f"| {mutant.law} | {mutant.what} |" for mutant in KIT_MUTANTS),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
