"""Wrong protocols: each breaks one promise of the machines, and random seeds must find it.

They show that the simulation finds defects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from attrs import evolve, frozen

from quorate.agent import (
    _cut_off as agent_cut_off,
    _joining as agent_joining,
    _machine as agent_machine,
    _protocol as agent,
    _running as agent_running,
    _stopping as agent_stopping,
)
from quorate.records import Verdict
from quorate.rendezvous import (
    _every_phase,
    _executor,
    _gather,
    _joining,
    _machine,
    _member_tickets,
    _protocol,
    _running,
    _sealing,
    _standing,
    _state,
    _transition,
)
from quorate.rendezvous._liveness import Liveness
from quorate.rendezvous._protocol import Phase, Purpose
from quorate.rendezvous._state import State
from quorate.rendezvous._transition import Transition
from quorate.testing._simulation import SimulationError
from quorate.testing._simulation_law import Law
from quorate.testing._simulation_scenario import make_scenario, play

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
        """Make all machines of this process wrong."""
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


def first_seed_that_finds(mutant: Mutant, most_seeds: int) -> tuple[int, Law] | None:
    """Return the likely seed, or the first one below ``most_seeds``, that finds ``mutant``, and the broken law."""
    with mutant.applied():
        for seed in (mutant.likely, *range(most_seeds)):
            try:
                play(make_scenario(seed))
            except SimulationError as error:
                return seed, error.law
    return None


# --- how each goes wrong ------------------------------------------------------------------------------------------


def _put_instead_of_create(key_ends: str) -> Callable[..., None]:
    real = Transition.create

    def create(transition: Transition, purpose: Purpose, key: str, value: bytes) -> None:
        (Transition.put if key.endswith(key_ends) else real)(transition, purpose, key, value)

    return create


def _assignment_by_ticket_alone(n: int, sealer: int, ticket: int) -> str:
    return f"{n}/assignment/0/{ticket}"


def _never_silent(liveness: Liveness, key: str) -> float:
    return 0.0


def _reading_without_credit(liveness: Liveness, values: Any, now: float, interval: float) -> Liveness:
    return _REAL_READING(Liveness(liveness.readings, None), values, now, interval)


_REAL_READING = Liveness.after_reading


def _no_survivors(state: State) -> list[int]:
    return []


def _end_not_reported(transition: Transition, event: _protocol.Appeared) -> None:
    """Note the end, but do not report it to the agent."""
    before = len(transition.commands)
    _joining.on_round_ended(transition, event)
    transition.commands[before:] = [c for c in transition.commands[before:] if not isinstance(c, _protocol.RoundEnded)]


def _success_by_count(transition: Transition, value: Any) -> None:
    """Believe a counter that a lost answer may have raised twice."""
    assignment = transition.state.assignment
    assert assignment is not None
    if int(value) >= assignment.group_world_size:
        _running.on_done_check(transition, [b"1 done "] * assignment.group_world_size)


def _start_before_the_stop(transition: Any, event: Any) -> None:
    """Join the next round while workers are still being stopped."""
    agent_stopping.end_recorded(transition, event)
    if transition.state.phase is agent.Phase.STOPPING and not event.end.verdict.is_terminal:
        agent_stopping.gone(transition, agent.WorkersGone())


def _follow_the_proposal(transition: Any, event: Any) -> None:
    """Follow what this agent wanted recorded, not what was."""
    proposed = transition.stopping.proposed
    agent_stopping.end_recorded(transition, evolve(event, end=proposed) if proposed is not None else event)


def _no_budget(transition: Transition, event: _protocol.End) -> None:
    end = event.end
    if end.verdict is Verdict.RESTART:
        end = evolve(end, restart_count=end.restart_count + 1)
    _running.on_end(transition, evolve(event, end=end))


def _drop_early_join(transition: Transition, event: _protocol.Join) -> None:
    """Forget a request that comes before the round's end is recorded."""


def _no_retry(transition: Transition) -> None:
    """Forget what failed."""
    transition.set(trouble=evolve(transition.state.trouble, failed=(), retry_at=None))


def _always_answered(pending: _executor.PendingWait, key: str, value: bytes | None, failure: Any = None) -> Any:
    """Deliver a key that is not waited for any more, and lose a failure."""
    pending.is_waiting = False
    if value is None:
        return None
    pending.key = None
    return _protocol.Appeared(key, value)


def _sealed_below_minimum(state: State, now: float) -> _gather.Readiness:
    """Seal with the nodes that are here."""
    return evolve(_gather.evaluate(state, now), rule=_gather.Rule.FULL)


def _rule(phase: Phase, trigger: _machine.Trigger, handler: Any) -> tuple[Any, Any, Any]:
    """Return the patch that makes the machine use another handler."""
    key = phase, trigger
    return _machine.RULES, key, evolve(_machine.RULES[key], handler=handler)


def _without_waiting(handler: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Do what ``handler`` does, and take workers that were asked to leave their world for those that have left it."""

    def handle(transition: Any, event: Any) -> None:
        handler(transition, event)
        if any(isinstance(command, agent.ReleaseWorkers) for command in transition.commands):
            agent_stopping.gone(transition, agent.WorkersGone(frozenset(range(transition.assignment.local_world_size))))

    return handle


def _end_at_once(transition: Any, *arguments: Any) -> None:
    """End the run, whoever still waits."""
    transition.finish(*arguments)


def _stay_as_it_was(transition: Any, event: Any) -> None:
    """Do nothing."""


def _when(phase: agent.Phase, input: type, handler: Callable[[Any, Any], None]) -> tuple[Any, type, Any]:
    """Return the patch that gives the agent's machine another handler for ``input`` in ``phase``."""
    table: Any = agent_machine.TABLE[phase]
    return table, input, evolve(table[input], handler=handler, targets=frozenset(agent.Phase))


def _when_stopping(input: type, handler: Callable[[Any, Any], None]) -> tuple[Any, type, Any]:
    """Return the patch that gives the agent's machine another handler for ``input`` while workers are being stopped."""
    table: Any = agent_machine.TABLE[agent.Phase.STOPPING]
    return table, input, evolve(table[input], handler=handler)


def _from_the_last_failure(state: State) -> float | None:
    """Count from when the store was found away, instead of from the last heartbeat that it acknowledged."""
    due_at = _REAL_CUT_OFF_AT(state)
    since = state.trouble.since
    return due_at if due_at is None or since is None else since + state.settings.timeouts.silence_limit


_REAL_CUT_OFF_AT = _state.cut_off_at


def _on_though_it_is_over(transition: Transition, values: list[bytes | None]) -> None:
    """Go on, whatever became of the round."""
    _standing.on_standing(transition, [None])


def _frozen_in_name(transition: Any, event: Any) -> None:
    """Say that the workers are frozen, and leave them running."""
    agent_cut_off.cut_off(transition, event)
    transition.commands[:] = [each for each in transition.commands if not isinstance(each, agent.FreezeWorkers)]


def _with_a_grace(transition: Any, event: Any) -> None:
    """Let frozen workers go on, so that they can save what they have."""
    transition.set(phase=agent.Phase.RUNNING)
    transition.emit(agent.ThawWorkers())
    agent_running.round_ended(transition, event)


def _majority_of_any(state: State, live: Any) -> str:
    """Let new nodes count as those of the last round."""
    previous = state.previous
    number = -1 if previous is None else previous.summary.round_number
    return _REAL_WHY_MINORITY(state, {ticket: evolve(node, previous_round=number) for ticket, node in live.items()})


_REAL_WHY_MINORITY = _gather.why_minority


def _only_from_the_wait(state: State) -> tuple[str, ...]:
    return ()


def _tickets_without_use(transition: Transition, values: list[bytes | None]) -> None:
    """Take a member that has sent no heartbeat of its rank for one that has sent none at all."""
    _member_tickets.on_tickets(transition, [None] * len(values))


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "seal without create",
        "a sealer that lost overwrites the seal of the winner",
        ((Transition, "create", _put_instead_of_create("/sealed")),),
        likely=10,
    ),
    Mutant(
        "end without create",
        "the last reason why a round ended counts, not the first",
        ((Transition, "create", _put_instead_of_create("/ended")),),
        likely=4,
    ),
    Mutant(
        "assignments of all sealers in one place",
        "a node reads an assignment of the sealer that lost",
        ((_protocol.Key, "assignment", staticmethod(_assignment_by_ticket_alone)),),
        likely=149,
    ),
    Mutant("no lease", "no node is ever found lost", ((Liveness, "silent_for", _never_silent),)),
    Mutant(
        "no credit for the watcher's own pause",
        "a node that was paused declares the others lost",
        ((Liveness, "after_reading", _reading_without_credit),),
        likely=337,
    ),
    Mutant(
        "survivors are not waited for",
        "the next round is sealed while workers of the last one are stopping",
        ((_gather, "missing_survivors", _no_survivors),),
        likely=3,
    ),
    Mutant(
        "workers are kept after being left out",
        "the end of a round is not reported to the agent",
        (_rule(Phase.RUNNING, _protocol.Appeared, _end_not_reported),),
        likely=3,
    ),
    Mutant(
        "success by count",
        "the job succeeds by the counter of done nodes, without a look at their heartbeats",
        (_rule(Phase.RUNNING, Purpose.DONE_COUNT, _success_by_count),),
        likely=20,
    ),
    Mutant(
        "the next round before the stop",
        "the agent joins while its workers are being stopped",
        (_when_stopping(agent.RoundEnded, _start_before_the_stop),),
        likely=10,
    ),
    Mutant(
        "the agent follows its own proposal",
        "an agent that proposed one end of the round ignores that another end was recorded",
        (
            _when_stopping(agent.RoundEnded, _follow_the_proposal),
            _when_stopping(agent.JobClosed, _follow_the_proposal),
        ),
        likely=138,
    ),
    Mutant(
        "restarts count twice",
        "each failure takes two restarts from the budget",
        (_rule(Phase.RUNNING, _protocol.End, _no_budget),),
        likely=3,
    ),
    Mutant(
        "an early request to join is dropped",
        "a request to join is forgotten if it comes before the end of the round is known",
        (_rule(Phase.RUNNING, _protocol.Join, _drop_early_join),),
        likely=478,
    ),
    Mutant("no retry", "a call without an answer is forgotten", ((_every_phase, "retry", _no_retry),)),
    Mutant(
        "broken waits are lost",
        "the driver forgets a wait whose connection broke, and the node does not read what it waits for",
        (
            (_executor.PendingWait, "finish", _always_answered),
            (_transition, "_awaited_keys", _only_from_the_wait),
        ),
        likely=141,
    ),
    Mutant(
        "min_nodes is ignored",
        "a round is sealed with the nodes that are there, however few",
        ((_sealing, "evaluate", _sealed_below_minimum),),
    ),
    Mutant(
        "released workers are not waited for",
        "an agent that learns of a round's end goes on while its live workers are still in their world",
        (_when(agent.Phase.RUNNING, agent.RoundEnded, _without_waiting(agent_running.round_ended)),),
        likely=4,
    ),
    Mutant(
        "the others of a failed worker are not waited for",
        "an agent whose worker failed goes on while its live workers are still in their world",
        (_when(agent.Phase.RUNNING, agent.Diagnosed, _without_waiting(agent_running.diagnosed)),),
        likely=4,
    ),
    Mutant(
        "live workers are left behind",
        "an agent ends while live workers wait with it for a round that does not come",
        tuple((module, "end_run", _end_at_once) for module in (agent_joining, agent_stopping)),
        likely=88,
    ),
    Mutant(
        "a live worker that has ended is counted on",
        "an agent gives the next assignment to a live worker that has ended while it waited",
        (_when(agent.Phase.JOINING, agent.WorkersExited, _stay_as_it_was),),
        likely=200,
    ),
    Mutant(
        "cut off from the last failure on",
        "a node counts its lease from the failure that it saw, not from the last heartbeat that arrived",
        tuple((module, "cut_off_at", _from_the_last_failure) for module in (_state, _standing)),
        likely=7,
    ),
    Mutant(
        "frozen in name only",
        "the workers of a node that is cut off are not frozen",
        (_when(agent.Phase.RUNNING, agent.CutOff, _frozen_in_name),),
        likely=191,
    ),
    Mutant(
        "frozen workers get a grace",
        "workers go on to save what they have, though the next round may run already",
        (_when(agent.Phase.FROZEN, agent.RoundEnded, _with_a_grace),),
        likely=66,
    ),
    Mutant(
        "frozen workers go on in a round that is over",
        "a node whose heartbeat arrives again does not look whether its round has ended",
        (_rule(Phase.RUNNING, Purpose.STANDING, _on_though_it_is_over),),
        likely=436,
    ),
    Mutant(
        "a grace goes on while the node is cut off",
        "workers that are being stopped use their whole grace, though no node waits for it any more",
        (_when(agent.Phase.STOPPING, agent.CutOff, _stay_as_it_was),),
        likely=346,
    ),
    Mutant(
        "new nodes count for the majority",
        "nodes that were not in the last round are counted among those that may begin the next one",
        ((_gather, "why_minority", _majority_of_any),),
        likely=18,
    ),
    Mutant(
        "only the wait tells",
        "a node learns what it waits for from its blocking wait alone, whose connection may stand still",
        ((_transition, "_awaited_keys", _only_from_the_wait),),
        likely=116,
    ),
    Mutant(
        "a ticket's heartbeats count for nothing",
        "a member that does not know yet that its round is sealed is found lost, though it sends heartbeats",
        (_rule(Phase.RUNNING, Purpose.MEMBER_TICKETS, _tickets_without_use),),
        likely=181,
    ),
)
