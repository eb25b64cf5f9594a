"""The life of one hosted member, as a pure state machine: ``step(state, event)``.

Theory of operation.  The cluster begins with all names of the endpoint at once.  A member that comes later, with an
empty disk, must not take part under its former id, because it has forgotten what it promised under that id.  It is
therefore removed and added again as a learner, which receives the log and has no vote until it has caught up.  A member
whose process died and whose disk is still there goes on with that disk::

    looking ──► forming ──────────────────────────────────► serving ◄──► returning
       │                                                        ▲
       └──► replacing ──► adding ──► learning ──► promoting ────┘

Each phase has one action.  What it leads to is the next event.  Whatever the cluster refuses is tried again from
``looking``, after a pause, because only the cluster knows what has become of it meanwhile.  A process that ends is
started again with its disk: even before it served, it may have given its vote.

No I/O, no clock and no threads here.  Who carries the actions out: :mod:`.member`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import final

from attrs import evolve, frozen

#: After so many failed starts in a row the disk is taken for the cause, and given up.
_MOST_FAILED_STARTS = 3
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


@final
class Phase(Enum):
    """Where a member is in its life."""

    LOOKING = "looking"  # asks the other members what the cluster knows of this one
    FORMING = "forming"  # starts as one of those that the cluster begins with
    REPLACING = "replacing"  # has the cluster remove what it was
    ADDING = "adding"  # asks the cluster to take it as a learner
    LEARNING = "learning"  # starts as a learner
    PROMOTING = "promoting"  # asks for its vote
    SERVING = "serving"  # has a vote
    RETURNING = "returning"  # starts again with its disk


@final
class Action(Enum):
    """What the runner does next."""

    LOOK = "look"
    START_NEW = "start new"  # on an empty disk, with all names of the endpoint
    REMOVE = "remove"
    ADD = "add"
    START_ADDED = "start added"  # on an empty disk, with the members that the cluster has named
    PROMOTE = "promote"
    WATCH = "watch"  # wait for the end of the process
    START_AGAIN = "start again"  # with the disk as it is


@final
class EventKind(Enum):
    """What an action has led to."""

    NOT_FORMED = "no cluster is there yet, or it waits for this member"
    IS_MEMBER = "the cluster has a member of this name that has been up"
    IS_STRANGER = "the cluster has no member of this name"
    READY = "the process serves clients"
    ENDED = "the process has ended"
    WAS_REMOVED = "the process has ended because the cluster has removed this member"
    IS_KNOWN = "the process has ended because the cluster knows this member from before"
    REMOVED = "removed"
    ADDED = "added"
    PROMOTED = "promoted"
    REFUSED = "the cluster refused, or did not answer"


@final
@frozen
class Event:
    """``member_id`` is the one that the event is about; ``problem`` a sentence where there is one."""

    kind: EventKind
    member_id: int = 0
    problem: str = ""


@final
@frozen
class State:
    """What is known of this member.

    ``pause_seconds`` is how long to wait before the action, ``failures`` how many actions in a row have failed.
    ``is_learner`` holds from the start as a learner until the promotion.
    """

    phase: Phase = Phase.LOOKING
    member_id: int = 0
    is_learner: bool = False
    failures: int = 0
    pause_seconds: float = 0.0
    problem: str = ""


_ACTIONS = {
    Phase.LOOKING: Action.LOOK,
    Phase.FORMING: Action.START_NEW,
    Phase.REPLACING: Action.REMOVE,
    Phase.ADDING: Action.ADD,
    Phase.LEARNING: Action.START_ADDED,
    Phase.PROMOTING: Action.PROMOTE,
    Phase.SERVING: Action.WATCH,
    Phase.RETURNING: Action.START_AGAIN,
}


def action_of(state: State) -> Action:
    """Return what the runner has to do in ``state``, once its pause is over."""
    return _ACTIONS[state.phase]


def _enter(state: State, event: Event, phase: Phase) -> State:
    """Return the state after an action that has succeeded."""
    return evolve(state, phase=phase, member_id=event.member_id or state.member_id, failures=0, pause_seconds=0.0)


def _form(state: State, event: Event) -> State:
    # A start that fails looks again, so that the failures in a row are still counted.
    return evolve(state, phase=Phase.FORMING, is_learner=False)


def _replace(state: State, event: Event) -> State:
    return evolve(state, phase=Phase.REPLACING, member_id=event.member_id)


def _add(state: State, event: Event) -> State:
    return evolve(state, phase=Phase.ADDING)


def _learn(state: State, event: Event) -> State:
    return evolve(_enter(state, event, Phase.LEARNING), is_learner=True)


def _serve(state: State, event: Event) -> State:
    return evolve(_enter(state, event, Phase.SERVING), is_learner=False, problem="")


def _ready_again(state: State, event: Event) -> State:
    return _enter(state, event, Phase.PROMOTING) if state.is_learner else _serve(state, event)


def _fail(state: State, event: Event, phase: Phase) -> State:
    failures = state.failures + 1
    pause = min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
    return evolve(state, phase=phase, failures=failures, pause_seconds=pause, problem=event.problem)


def _begin_anew(state: State, event: Event) -> State:
    """This member has lost its place in the cluster: its state does not count any more."""
    return evolve(_fail(state, event, Phase.LOOKING), member_id=0, is_learner=False)


def _return_or_give_up_disk(state: State, event: Event) -> State:
    if state.failures >= _MOST_FAILED_STARTS:
        return _begin_anew(state, event)
    return _return(state, event)


_promote = partial(_enter, phase=Phase.PROMOTING)
_look_again = partial(_fail, phase=Phase.LOOKING)
_return = partial(_fail, phase=Phase.RETURNING)
_ask_again = partial(_fail, phase=Phase.PROMOTING)

Handler = Callable[[State, Event], State]

#: The whole machine.  What is not listed changes nothing.
TABLE: dict[tuple[Phase, EventKind], Handler] = {
    (Phase.LOOKING, EventKind.NOT_FORMED): _form,
    (Phase.LOOKING, EventKind.IS_MEMBER): _replace,
    (Phase.LOOKING, EventKind.IS_STRANGER): _add,
    (Phase.LOOKING, EventKind.REFUSED): _look_again,
    #
    (Phase.FORMING, EventKind.READY): _serve,
    (Phase.FORMING, EventKind.ENDED): _return,
    (Phase.FORMING, EventKind.WAS_REMOVED): _begin_anew,
    (Phase.FORMING, EventKind.IS_KNOWN): _look_again,
    #
    (Phase.REPLACING, EventKind.REMOVED): _add,
    (Phase.REPLACING, EventKind.REFUSED): _look_again,
    #
    (Phase.ADDING, EventKind.ADDED): _learn,
    (Phase.ADDING, EventKind.REFUSED): _look_again,
    #
    (Phase.LEARNING, EventKind.READY): _promote,
    (Phase.LEARNING, EventKind.ENDED): _return,
    (Phase.LEARNING, EventKind.WAS_REMOVED): _begin_anew,
    (Phase.LEARNING, EventKind.IS_KNOWN): _begin_anew,
    #
    (Phase.PROMOTING, EventKind.PROMOTED): _serve,
    (Phase.PROMOTING, EventKind.REFUSED): _ask_again,
    (Phase.PROMOTING, EventKind.ENDED): _return,
    (Phase.PROMOTING, EventKind.WAS_REMOVED): _begin_anew,
    (Phase.PROMOTING, EventKind.IS_KNOWN): _return,
    #
    (Phase.SERVING, EventKind.ENDED): _return,
    (Phase.SERVING, EventKind.WAS_REMOVED): _begin_anew,
    (Phase.SERVING, EventKind.IS_KNOWN): _return,  # it had said so of another one that asked it
    #
    (Phase.RETURNING, EventKind.READY): _ready_again,
    (Phase.RETURNING, EventKind.ENDED): _return_or_give_up_disk,
    (Phase.RETURNING, EventKind.WAS_REMOVED): _begin_anew,
    (Phase.RETURNING, EventKind.IS_KNOWN): _begin_anew,
}


def step(state: State, event: Event) -> State:
    """Take what an action has led to; return the new state."""
    handler = TABLE.get((state.phase, event.kind))
    return state if handler is None else handler(state, event)
