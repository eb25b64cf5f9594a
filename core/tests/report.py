"""Writes ``docs/verification.md``: what the conformance kit, the simulation, fuzzing and long trials have verified.

    python -m core.tests.report --seeds 1500 --write docs/verification.md

Laws, mutants and counts come from the code and a run.  Written by hand are the list of defects below, and the sections
on fuzzing and on long trials, which stand in files of their own.
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

__all__ = ["DEFECTS", "Defect", "after_the_run", "main"]


@final
@frozen
class Defect:
    """One defect that was found and fixed; ``shown`` is the seed, story or test that shows it when it is back."""

    what: str
    shown: str


DEFECTS: tuple[Defect, ...] = (
    Defect(
        "A node learned that its round is sealed from its blocking wait alone. Until then it sent heartbeats that the "
        "members of the round did not read. If the connection of the wait stood still, the node was found lost two "
        "leases after the seal, although it was healthy. Now a node reads what it waits for together with the "
        "heartbeats, and any heartbeat of a member counts.",
        'the wrong protocols "only the wait tells" and "a ticket\'s heartbeats count for nothing"',
    ),
    Defect(
        "A node left while an earlier call was still without an answer. When that call failed, the node took the call "
        "for its last heartbeat, and ended without recording the end of its round.",
        "`test_an_earlier_call_that_fails_does_not_end_the_leaving`",
    ),
    Defect(
        "A worker failed while the store was away. After `close_timeout` its agent asked for the next round before "
        "the end of this round was recorded. The request was dropped, and the whole job waited for that node for "
        "ever. Now the request is kept until the end is known.",
        "seeds 478, 1562, 2799",
    ),
    Defect(
        "A node left while its end of the round was still on the way to the store. It reported only that it left, and "
        "the other nodes continued a job that had failed for good. Now the node sends the end again.",
        "`test_a_node_that_leaves_before_its_end_is_recorded_records_that_end`",
    ),
    Defect(
        "A sealer crashed. The node that took over found the crashed node lost, forgot this, and sealed a round with "
        "it. Workers started, waited for a lease, and were stopped again. Now the node that takes over keeps in mind "
        "which node is lost.",
        "transcript `sealer_dies`, `test_the_sealer_dies_while_gathering_and_the_next_ticket_seals`",
    ),
    Defect(
        "A node that was paused during a short outage counted the pause as outage, and gave up when it woke, although "
        "the store had answered the other nodes for a long time. Now the node asks the store once more.",
        "seed 11924, `test_a_node_that_was_paused_through_an_outage_asks_once_more_before_it_gives_up`",
    ),
    Defect(
        "A sealer without an answer from its store for two seconds counted that time as silence of the other nodes. "
        "It sealed a round without nodes that were still stopping their workers, and two worlds ran. Now silence "
        "counts only as far as it was read.",
        "seed 1764",
    ),
    Defect(
        "A node whose workers were done sent no more heartbeats. A standby watched one member after the other. It "
        "declared the node lost, together with a node that had been away and was back, and ended a running round. Now "
        "nodes send heartbeats when they are done, and a standby reads the heartbeats of all members before it ends "
        "their round. This also takes two leases in all, instead of two for each dead member.",
        "seed 24310, `test_a_standby_declares_no_node_lost_that_is_done_or_has_come_back`",
    ),
    Defect(
        "A law was wrong. A node that had its ticket, but had not yet written its record, counted as in line from the "
        "beginning. So a round without this node counted as a broken law.",
        "seed 13554",
    ),
    Defect(
        "A law was wrong. A node whose disk was full left just as a round with it was sealed. The others were told at "
        "once that it had left, and began another round, as they should. That counted as a false loss.",
        "seed 90948",
    ),
    Defect(
        "A law was wrong. A live worker that waited for its next assignment died just as its agent told it that, "
        "before the agent could know. That counted as an assignment for a worker that did not wait.",
        "seed 110905",
    ),
    Defect(
        "A node was told to stop, or its disk was full, while it could not reach the store, with "
        "`when_cut_off=freeze`. Its workers kept their grace when the node was cut off, and ran beside those of the "
        "next round. Now only a node that could tell the others that it leaves keeps it.",
        "seeds 100386 and 100802, `test_a_node_that_leaves_keeps_its_grace_when_it_is_cut_off_once_the_others_know`",
    ),
    Defect(
        "A node whose workers were done asked whether those of the other nodes were. The answer was lost, and the "
        "round ended for another reason. The node asked again in a later round, took the answer for one about that "
        "round, and declared the job done. Now a round's end ends its questions.",
        "seed 104288, `test_a_question_of_an_earlier_round_is_not_asked_again`",
    ),
    Defect(
        "While many nodes arrived, the sealer woke for each of them, decoded all heartbeats again, and put all names "
        "into one sentence. The work was quadratic in the number of nodes. Now the sealer wakes less often while many "
        "nodes are missing, decodes each heartbeat once, and names sixteen nodes.",
        "`python -m quorate.testing.simulate --nodes 10000`",
    ),
    Defect(
        "A node that came after a job's end could begin a round of its own. Now the node that writes the end also "
        "raises the round number.",
        "the kit, law `closing_is_final`",
    ),
    Defect(
        "A live worker that waited for the rest of a message was stopped. When a connection breaks, gloo ends the "
        "operations that wait, but not the one that has begun. Now the worker ends this one itself.",
        "`test_waits_for_a_peer_that_is_stopped_or_silent_end`",
    ),
    Defect(
        "A live worker that died after it was asked to leave its world was reported as one that did not leave in "
        "time. The channel of such a worker closes before the agent sees its end.",
        "`test_a_worker_that_dies_while_it_leaves_its_world_is_not_late`",
    ),
)

#: Written by hand, after a run of ``make fuzz``, and after trials that take too long for the suite.
BY_HAND = (Path(__file__).parent / "fuzz" / "figures.md", Path(__file__).parent / "long_trials.md")


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
        "`python -m core.tests.report` writes this page. Do not edit the page. Its texts are in `core/tests/report.py` "
        "and in the files that are named there.",
        "",
        "The *simulation* runs agents, workers and stores in virtual time, with faults at random. "
        "[Decision 18](decisions/0018-what-the-simulation-shares.md) says what it shares with production. The "
        "*conformance kit* tests a rendezvous backend ([its laws](conformance.md)). A *law* is a promise that holds in "
        "every run.",
        "",
        *simulation,
        *mutants,
        *after_the_run(),
    ]
    return lines, good and all_found


def after_the_run() -> list[str]:
    """Return the lines of the page for which nothing has to be run: all that follow the simulation."""
    return [
        *_kit(),
        *(line for path in BY_HAND for line in path.read_text(encoding="utf-8").splitlines()),
        "## Defects that were found",
        "",
        "Each defect is fixed, and the tests contain the seed, transcript or test that shows it. When the protocol "
        "changes, a seed plays another scenario. The seeds in this table showed the defect when it was found.",
        "",
        "| what was wrong | shown by |",
        "|---|---|",
        *(f"| {defect.what} | {defect.shown} |" for defect in DEFECTS),
    ]


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
        "The faults are those of the network, the machines and the workers. A node that is *deaf* gets no answers, "
        "while what it sends arrives. *Worker planned* counts workers that were set to end in this way unless "
        "something else ends them first.",
        "",
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
        "Each row is a mistake that was put into the protocol for a test. The test passes if a scenario breaks a law.",
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
