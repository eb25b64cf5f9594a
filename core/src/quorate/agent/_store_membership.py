"""The agent's side of a rendezvous in a store: its handler already reports every change by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from ..records import NodeRecord, RoundEnd
from ..rendezvous import EventDrivenHandler, _protocol as rendezvous
from . import _protocol as protocol

__all__ = ["StoreMembership", "agent_input"]


def agent_input(output: rendezvous.Output) -> protocol.Input | None:
    """Return the agent's input that an output of the rendezvous machine stands for."""
    if isinstance(output, rendezvous.Joined):
        return protocol.RoundJoined(output.assignment)
    if isinstance(output, rendezvous.Ended):
        return protocol.RoundEnded(output.end)
    if isinstance(output, rendezvous.Closed):
        return protocol.JobClosed(output.end)
    if isinstance(output, rendezvous.GaveUp):
        return protocol.RendezvousFailed(output.kind, output.problem)
    if isinstance(output, rendezvous.StandingBy):
        return protocol.StandingBy(output.reason)
    if isinstance(output, rendezvous.Waiting):
        return protocol.Waiting(output.report)
    if isinstance(output, rendezvous.CutOff):
        return protocol.CutOff(output.reason)
    if isinstance(output, rendezvous.Reconnected):
        return protocol.Reconnected()
    if isinstance(output, rendezvous.NodeDeclined):
        return protocol.PeerDeclined(output.reason)
    return None


@final
class StoreMembership:
    """Implements :class:`._membership.Membership`."""

    def __init__(self, handler: EventDrivenHandler, post: Callable[[protocol.Input], None]) -> None:
        self._handler = handler

        def receive(output: rendezvous.Output) -> None:
            event = agent_input(output)
            if event is not None:
                post(event)

        handler.subscribe(receive)

    def join(self, node: NodeRecord) -> None:
        self._handler.request_join(node)

    def end_round(self, end: RoundEnd) -> None:
        self._handler.end_round(end)

    def report_done(self) -> None:
        self._handler.report_done()

    def leave(self) -> None:
        self._handler.request_leave()

    def decline(self, node: NodeRecord) -> None:
        self._handler.request_decline(node)

    def close(self) -> None:
        self._handler.subscribe(lambda output: None)
