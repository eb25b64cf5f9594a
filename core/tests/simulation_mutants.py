"""Wrong protocols: each breaks one promise of the machines, and random seeds must find it.

A simulation that finds none of them would find nothing else either.  Each mutant names the laws that may catch it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from attrs import evolve, frozen

from ..agent import _machine as agent_machine
from ..agent import _protocol as agent
from ..records import Verdict
from ..rendezvous import _executor, _gather, _joining, _machine, _protocol, _running, _sealing
from ..rendezvous._liveness import Liveness
from ..rendezvous._transition import Transition
from ._simulation import SimulationError
from ._simulation_scenario import make_scenario, play

__all__ = ["MUTANTS", "Mutant", "first_seed_that_finds"]


@final
@frozen
class Mutant:
    """One wrong protocol.

    ``patches`` are (where, name, replacement); ``where`` may be a module, a class or a table.  ``likely`` is a seed
    that found it once, which is tried first.
    """

    name: str
    what: str
    patches: tuple[tuple[Any, Any, Any], ...]
    likely: int = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have all machines of this process be wrong."""
        undo: list[tuple[Any, Any, Any]] = []
        try:
            for where, name, replacement in self.patches:
                if isinstance(where, dict):
                    undo.append((where, name, where[name]))
                    where[name] = replacement
                else:
                    undo.append((where, name, where.__dict__[name]))
                    setattr(where, name, replacement)
            yield
        finally:
            for where, name, original in reversed(undo):
                if isinstance(where, dict):
                    where[name] = original
                else:
                    setattr(where, name, original)


def first_seed_that_finds(mutant: Mutant, most_seeds: int) -> tuple[int, str] | None:
    """Return the likely seed or the first one below ``most_seeds`` that finds ``mutant``, and the law it saw broken."""
    with mutant.applied():
        for seed in (mutant.likely, *range(most_seeds)):
            try:
                play(make_scenario(seed))
            except SimulationError as error:
                return seed, error.law
    return None


# --- how each goes wrong ------------------------------------------------------------------------------------------


def _put_instead_of_create(key_ends: str) -> Callable[..., None]:
    real = Transition.call

    def call(transition: Transition, tag: str, operation: str, *keys: str, **rest: Any) -> None:
        wrong = operation == "create" and keys[0].endswith(key_ends)
        real(transition, tag, "put" if wrong else operation, *keys, **rest)

    return call


def _seats_by_ticket_alone(n: int, sealer: int, ticket: int) -> str:
    return f"{n}/assignment/0/{ticket}"


def _never_still(liveness: Liveness, key: str) -> float:
    return 0.0


def _still_without_credit(liveness: Liveness, values: Any, now: float, interval: float) -> Liveness:
    return _REAL_LOOK(Liveness(liveness.seen, None), values, now, interval)


_REAL_LOOK = Liveness.look


def _no_survivors(state: _protocol.State) -> list[int]:
    return []


def _deaf_to_the_end(transition: Transition, event: _protocol.Appeared) -> None:
    """Take note of the end, but do not tell the agent."""
    real: list[_protocol.Command] = transition.commands
    before = len(real)
    _joining.round_ended(transition, event)
    transition.commands[before:] = [c for c in transition.commands[before:] if not isinstance(c, _protocol.Ended)]


def _success_by_count(transition: Transition, value: Any) -> None:
    """Believe a counter that a lost answer may have raised twice."""
    assignment = transition.state.assignment
    assert assignment is not None
    if int(value) >= assignment.group_world_size:
        _running.on_check(transition, [b"1 done "] * assignment.group_world_size)


def _start_before_the_stop(transition: Any, event: Any) -> None:
    """Join the next round while workers are still being stopped."""
    agent_machine._note_end(transition, event)
    if transition.state.phase is agent.Phase.STOPPING and not event.end.verdict.is_terminal:
        transition.set(gone=True)
        agent_machine._go_on(transition)


def _follow_the_proposal(transition: Any, event: Any) -> None:
    """Follow what this agent wanted recorded, not what was."""
    proposed = transition.state.proposed
    agent_machine._note_end(transition, evolve(event, end=proposed) if proposed is not None else event)


def _no_budget(transition: Transition, event: _protocol.End) -> None:
    end = event.end
    if end.verdict is Verdict.RESTART:
        end = evolve(end, restart_count=end.restart_count + 1)
    _running.end(transition, evolve(event, end=end))


def _drop_early_join(transition: Transition, event: _protocol.Join) -> None:
    """Forget a wish that comes before the round's end is recorded."""


def _no_retry(transition: Transition) -> None:
    """Forget what failed."""
    transition.set(failed=(), retry_at=None)


def _always_answered(desk: _executor.PendingWait, key: str, value: bytes | None, trouble: Any = None) -> Any:
    """Deliver what nobody waits for any more, and lose what broke."""
    desk.is_waiting = False
    if value is None:
        return None
    desk.key = None
    return _protocol.Appeared(key, value)


def _table(input: type) -> dict[Any, Any]:
    table: Any = _machine._TABLE[input]
    return dict(table) if not isinstance(table, dict) else table


def _agent_table(input: type) -> dict[Any, Any]:
    table: Any = agent_machine._TABLE[input]
    assert isinstance(table, dict)
    return table


def _replies() -> dict[Any, Any]:
    table: Any = _machine._REPLIES
    assert isinstance(table, dict)
    return table


_P = _protocol.Phase

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "seal without create",
        "a sealer that lost writes over the seal of the one that won",
        ((Transition, "call", _put_instead_of_create("/sealed")),),
        likely=19,
    ),
    Mutant(
        "end without create",
        "the last to say why a round ended is believed, not the first",
        ((Transition, "call", _put_instead_of_create("/ended")),),
        likely=3,
    ),
    Mutant(
        "assignments of all sealers in one place",
        "a node reads an assignment of the sealer that lost",
        ((_protocol.Key, "assignment", staticmethod(_seats_by_ticket_alone)),),
        likely=49,
    ),
    Mutant("no lease", "nobody is ever found dead", ((Liveness, "still_for", _never_still),)),
    Mutant(
        "no credit for the watcher's own pause",
        "who slept takes the others for dead",
        ((Liveness, "look", _still_without_credit),),
        likely=22,
    ),
    Mutant(
        "survivors are not waited for",
        "the next round is sealed while workers of the last one are stopping",
        ((_gather, "missing_survivors", _no_survivors),),
        likely=1,
    ),
    Mutant(
        "workers are kept after being left out",
        "a round's end is not told to the agent",
        ((_table(_protocol.Appeared), _P.RUNNING, _deaf_to_the_end),),
    ),
    Mutant(
        "success by count",
        "the counter of those who are done is believed without a look at them",
        ((_replies(), "done", (frozenset({_P.RUNNING}), _success_by_count)),),
        likely=1710,
    ),
    Mutant(
        "the next round before the stop",
        "the agent joins while its workers are being stopped",
        ((_agent_table(agent.RoundEnded), agent.Phase.STOPPING, _start_before_the_stop),),
        likely=10,
    ),
    Mutant(
        "the agent follows its own proposal",
        "what was recorded is ignored where the agent had its own idea",
        (
            (_agent_table(agent.RoundEnded), agent.Phase.STOPPING, _follow_the_proposal),
            (_agent_table(agent.JobClosed), agent.Phase.STOPPING, _follow_the_proposal),
        ),
        likely=468,
    ),
    Mutant(
        "restarts count twice",
        "each failure takes two from the budget",
        ((_table(_protocol.End), _P.RUNNING, _no_budget),),
        likely=1,
    ),
    Mutant(
        "an early wish to join is dropped",
        "the defect of seed 478",
        ((_table(_protocol.Join), _P.RUNNING, _drop_early_join),),
        likely=478,
    ),
    Mutant("no retry", "what the store did not answer is forgotten", ((_machine, "_retry", _no_retry),)),
    Mutant(
        "broken waits are lost",
        "the driver forgets a wait whose connection broke",
        ((_executor.PendingWait, "finish", _always_answered),),
        likely=40,
    ),
    Mutant(
        "min_nodes is not asked for",
        "a round is sealed with whoever is there",
        ((_sealing, "evaluate", lambda state, now: evolve(_gather.evaluate(state, now), ready=True)),),
    ),
)
