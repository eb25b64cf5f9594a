"""Reports of a node that waits, for other nodes or for the store: when they are due, and what they say.  Pure.

Only the sealer knows which nodes are here.  While it waits it writes a note about them, which the other nodes read.
What does not live here: who prints a report (:mod:`quorate.agent`), and why the endpoint does not answer
(:mod:`quorate.reach`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from .._bounded import MOST_NODES
from ..cut_off import WhenCutOff
from ..errors import FailureKind, StoreCorruptError
from ..records import RendezvousWaiting
from ._gather import live_nodes, why_minority
from ._protocol import JOINING, Key, Phase, Purpose, StopWaiting, Waiting
from ._state import Report, State
from ._transition import Transition
from ._wire import decode_object, encode_object

_FIRST_SECONDS = 3.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 120.0
_MOST_HOSTS = 16
_LONGEST_HOST = 255
_WORKERS = {WhenCutOff.RUN: "go on", WhenCutOff.FREEZE: "are frozen", WhenCutOff.STOP: "were killed"}


def begin_reports(transition: Transition) -> None:
    """This node begins to wait."""
    transition.set(report=Report(transition.now, transition.now + _FIRST_SECONDS))


def watch_store_trouble(transition: Transition) -> None:
    """The store does not answer while workers run."""
    if transition.state.report.at is None and transition.state.phase not in JOINING:
        begin_reports(transition)


def report(transition: Transition) -> None:
    """Report what this node waits for, and set the time of the next report."""
    state, now = transition.state, transition.now
    waited = now - state.report.since
    pause = min(max(waited, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
    transition.set(report=evolve(state.report, at=now + pause))
    if state.phase is Phase.AWAITING and state.trouble.since is None:
        transition.get(Purpose.WHO_IS_HERE, [Key.here(state.round_number)])
        return
    hosts: Sequence[str] = ()
    count = 0
    if state.phase is Phase.GATHERING:
        live = live_nodes(state)
        hosts, count = sorted({node.name for node in live.values()})[:_MOST_HOSTS], len(live)
        _write_note(transition, hosts, count)
    _emit(transition, hosts, count)


def note_who_is_here(transition: Transition) -> None:
    """The sealer has seen another node: nodes that wait for the seal may want to know it."""
    state = transition.state
    live = live_nodes(state)
    if state.report.noted not in (0, len(live)):
        _write_note(transition, sorted({node.name for node in live.values()})[:_MOST_HOSTS], len(live))


def _write_note(transition: Transition, hosts: Sequence[str], count: int) -> None:
    state = transition.state
    transition.set(report=evolve(state.report, noted=count))
    value = encode_object("here", {"hosts": list(hosts), "nodes": count})
    transition.put(Purpose.NOTE_WHO_IS_HERE, Key.here(state.round_number), value)


def on_note(transition: Transition, values: list[bytes | None]) -> None:
    """The sealer's note was read; it is absent if the sealer has not waited for long."""
    key, hosts, count = transition.state.pending[Purpose.WHO_IS_HERE].keys[0], (), 0
    if values[0] is not None:
        hosts, count = _decode_note(key, values[0])
    _emit(transition, hosts, count)


def _decode_note(key: str, value: bytes) -> tuple[Any, int]:
    data = decode_object(key, value, "here")
    hosts, count = data.get("hosts"), data.get("nodes")
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts) or type(count) is not int:
        raise StoreCorruptError(key, "it is not a note of who is here")
    return tuple(host[:_LONGEST_HOST] for host in hosts[:_MOST_HOSTS]), min(max(count, 0), MOST_NODES)


def _emit(transition: Transition, hosts: Sequence[str], count: int) -> None:
    state, now = transition.state, transition.now
    missing = max(0, state.settings.min_nodes - count) if count else 0
    left = None
    if state.phase in JOINING and state.join_deadline is not None:
        left = max(0.0, state.join_deadline - now)
    elif state.trouble.since is not None:
        left = max(0.0, state.trouble.since + state.settings.timeouts.store_outage_timeout - now)
    waited = now - state.report.since
    transition.emit(
        Waiting(
            RendezvousWaiting(
                round_number=state.round_number,
                waited_seconds=waited,
                left_seconds=left,
                nodes=count,
                missing=missing,
                hosts=tuple(hosts),
                problem=state.trouble.problem if state.trouble.since is not None else "",
                reason=_sentence(state, waited, left, hosts, count, missing),
            )
        )
    )


def _sentence(state: State, waited: float, left: float | None, hosts: Sequence[str], count: int, missing: int) -> str:
    ends = "" if left is None else f"; this node gives up in {left:.0f} s"
    since = f"for {waited:.0f} s"
    if state.trouble.since is not None or state.phase is Phase.LOCATING:
        problem = f" ({state.trouble.problem})" if state.trouble.since is not None else ""
        if state.phase in JOINING:
            return f"waiting for the rendezvous store {since}{problem}{ends}"
        workers = _WORKERS[state.settings.when_cut_off] if state.standing.is_cut_off else "go on"
        return f"the rendezvous store has not answered {since}{problem}; the workers {workers}{ends}"
    if state.phase is Phase.STANDBY:
        return f"on standby {since}: {state.reason}"
    if not count:
        return f"waiting for round {state.round_number} {since}: {state.reason}{ends}"
    if state.phase is Phase.GATHERING and (minority := why_minority(state, live_nodes(state))):
        return f"waiting {since}: {minority}{ends}"
    names = ", ".join(hosts) + (" and more" if len(hosts) < count and len(hosts) == _MOST_HOSTS else "")
    if not missing:
        # Only the sealer knows how many of them were there before.
        is_not_first = state.settings.majority and state.round_number > 0
        needed = "; majority=true needs more than half of the last round's nodes" if is_not_first else ""
        return f"waiting {since} to begin round {state.round_number} with {count} node(s), {names}{needed}{ends}"
    return (
        f"waiting for nodes {since}: {count} of {state.settings.min_nodes} are here ({names}), {missing} missing{ends}"
    )


def on_stop_waiting(transition: Transition, event: StopWaiting) -> None:
    """A plugin has decided that this node does not wait any longer."""
    transition.give_up(FailureKind.TIMEOUT, f"a plugin decided not to wait any longer: {event.reason}")
