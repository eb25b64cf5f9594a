"""The life of a hosted member, without a member: what its machine does after what."""

from __future__ import annotations

import random

import pytest

from quorate_rendezvous_etcd._hosted.life import TABLE, Action, Event, EventKind, Phase, State, action_of, step

K = EventKind


def after(*kinds: EventKind, state: State | None = None) -> State:
    result = State() if state is None else state
    for number, kind in enumerate(kinds, 1):
        result = step(result, Event(kind, number))
    return result


def test_the_members_that_a_cluster_begins_with_start_at_once() -> None:
    assert action_of(State()) is Action.LOOK
    state = after(K.NOT_FORMED)
    assert (action_of(state), state.pause_seconds) == (Action.START_NEW, 0.0)
    assert action_of(after(K.READY, state=state)) is Action.WATCH


def test_an_empty_disk_never_acts_in_the_name_of_what_was_there_before() -> None:
    """It is removed, added without a vote, and promoted once it has caught up."""
    state, actions = State(), []
    for event in (
        Event(K.IS_MEMBER, 7),
        Event(K.REMOVED),
        Event(K.ADDED, 8),
        Event(K.READY),
        Event(K.REFUSED, problem="not in sync"),
        Event(K.PROMOTED),
    ):
        state = step(state, event)
        actions.append(action_of(state))
    assert actions == [
        Action.REMOVE,
        Action.ADD,
        Action.START_ADDED,
        Action.PROMOTE,
        Action.PROMOTE,
        Action.WATCH,
    ]
    assert (state.member_id, state.is_learner, state.failures) == (8, False, 0)


def test_who_was_removed_meanwhile_is_added() -> None:
    assert action_of(after(K.IS_STRANGER)) is Action.ADD


@pytest.mark.parametrize("before", [[K.NOT_FORMED], [K.NOT_FORMED, K.READY]])
def test_a_process_that_ends_goes_on_with_its_disk(before: list[EventKind]) -> None:
    """Also before it has served: it may have given its vote."""
    state = after(*before, K.ENDED)
    assert action_of(state) is Action.START_AGAIN
    assert action_of(after(K.READY, state=state)) is Action.WATCH


def test_a_learner_that_ends_asks_for_its_vote_when_it_is_back() -> None:
    state = after(K.IS_STRANGER, K.ADDED, K.READY, K.ENDED)
    assert action_of(state) is Action.START_AGAIN
    assert action_of(after(K.READY, state=state)) is Action.PROMOTE


def test_a_disk_that_does_not_start_is_given_up() -> None:
    state = after(K.NOT_FORMED, K.READY, K.ENDED, K.ENDED, K.ENDED)
    assert action_of(state) is Action.START_AGAIN
    assert action_of(after(K.ENDED, state=state)) is Action.LOOK


@pytest.mark.parametrize("before", [[K.NOT_FORMED, K.READY], [K.NOT_FORMED, K.READY, K.ENDED], [K.NOT_FORMED]])
def test_a_member_that_was_removed_begins_anew(before: list[EventKind]) -> None:
    state = after(*before, K.WAS_REMOVED)
    assert (action_of(state), state.member_id) == (Action.LOOK, 0)


def test_pauses_grow_to_a_bound_and_end_with_success() -> None:
    state, pauses = State(), []
    for _ in range(10):
        state = after(K.IS_STRANGER, K.REFUSED, state=state)
        pauses.append(state.pause_seconds)
    assert pauses[0] == 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 2.0
    state = after(K.IS_STRANGER, K.ADDED, state=state)
    assert (state.failures, state.pause_seconds) == (0, 0.0)


def test_from_everywhere_there_is_a_way_to_a_vote() -> None:
    """Whatever has happened, the answers of a healthy cluster lead to it."""
    healthy = {
        Action.LOOK: K.IS_STRANGER,
        Action.START_NEW: K.READY,
        Action.REMOVE: K.REMOVED,
        Action.ADD: K.ADDED,
        Action.START_ADDED: K.READY,
        Action.PROMOTE: K.PROMOTED,
        Action.START_AGAIN: K.READY,
    }
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    for _ in range(300):
        state = after(*source.choices(list(K), k=source.randrange(30)))
        for _ in range(len(Phase)):
            if action_of(state) is not Action.WATCH:
                state = after(healthy[action_of(state)], state=state)
        assert action_of(state) is Action.WATCH, f"seed {seed}: {state}"
        assert not state.is_learner


def test_whatever_an_action_may_lead_to_is_listed() -> None:
    """What is not would be done again at once, and for ever."""
    ends = {K.ENDED, K.WAS_REMOVED, K.IS_KNOWN}
    outcomes = {
        Action.LOOK: {K.NOT_FORMED, K.IS_MEMBER, K.IS_STRANGER, K.REFUSED},
        Action.START_NEW: {K.READY, *ends},
        Action.REMOVE: {K.REMOVED, K.REFUSED},
        Action.ADD: {K.ADDED, K.REFUSED},
        Action.START_ADDED: {K.READY, *ends},
        Action.PROMOTE: {K.PROMOTED, K.REFUSED, *ends},
        Action.WATCH: ends,
        Action.START_AGAIN: {K.READY, *ends},
    }
    assert {(phase, kind) for phase in Phase for kind in outcomes[action_of(State(phase))]} == set(TABLE)


def test_what_is_not_listed_changes_nothing() -> None:
    for phase in Phase:
        for kind in set(K) - {listed for where, listed in TABLE if where is phase}:
            state = State(phase)
            assert step(state, Event(kind, 3)) is state
