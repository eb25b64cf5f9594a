"""What one member tells its cluster over API v3: changes of the members, and that this one leaves.

What does not live here: what the others' peer ports say (:mod:`.peers`), what follows from an answer (:mod:`.life`),
and who asks when (:mod:`.member`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, final

from attrs import evolve

from quorate.clock import monotonic
from quorate.errors import QuorateError

from .._v3.client import Client
from .life import Event, EventKind
from .peers import ASK_SECONDS, Identity, Peers

#: How long a member that leaves waits for the answers of the others: it removes those that do not answer, too.
_LEAVE_ASK_SECONDS = 3.0
_CHANGE_SECONDS = 3.0
_HAND_OVER_SECONDS = 0.5


@final
class Cluster:
    """The cluster as the member ``identity`` sees it.  Used by one thread; :meth:`close` by any."""

    def __init__(self, identity: Identity, peers: Peers) -> None:
        self._peers = peers
        settings, names, index = identity
        own = names.endpoints[index]
        others = tuple(endpoint for endpoint in names.endpoints if endpoint != own)
        self._client = Client(evolve(settings, endpoints=(*others, own), begins_with_first=True))
        self._own = Client(evolve(settings, endpoints=(own,)))

    def close(self) -> None:
        """End the calls that are under way."""
        self._client.close()
        self._own.close()

    # --- this member's own life ---------------------------------------------------------------------------------------

    def remove(self, member_id: int) -> Event:
        """Have the cluster remove a member."""
        return self._change("MemberRemove", EventKind.REMOVED, ID=member_id)[0]

    def add(self) -> tuple[Event, str]:
        """Ask to be added as a learner; return what that led to, and the members that it is to start with."""
        url = self._peers.own_url
        event, answer = self._change("MemberAdd", EventKind.ADDED, peerURLs=[url], isLearner=True)
        if answer is None:
            return event, ""
        named = {own: f"m{index}" for index, own in enumerate(self._peers.urls)}
        members = [(named.get(peer, f"u{member.ID:x}"), peer) for member in answer.members for peer in member.peerURLs]
        return evolve(event, member_id=answer.member.ID), ",".join(f"{name}={peer}" for name, peer in members)

    def promote(self, member_id: int) -> Event:
        """Ask for a vote."""
        return self._change("MemberPromote", EventKind.PROMOTED, ID=member_id)[0]

    def _change(self, method: str, kind: EventKind, **fields: Any) -> tuple[Event, Any]:
        request = getattr(self._client.messages, f"{method}Request")(**fields)
        try:
            return Event(kind), self._client.call(method, request, monotonic() + _CHANGE_SECONDS)
        except QuorateError as error:
            return Event(EventKind.REFUSED, problem=str(error)), None

    # --- the others ---------------------------------------------------------------------------------------------------

    def leave(self) -> bool:
        """Hand over if this member leads, and have it removed, so that those who stay need no vote of it.

        Members that do not answer are removed first, or those that stay might be too few.  Returns whether nothing is
        left to do.  Raises QuorateError: no answer.
        """
        own, leads = self.own_id(_LEAVE_ASK_SECONDS)
        silent = set(self.unreachable(_LEAVE_ASK_SECONDS)) - {own}
        voters = [member.ID for member in self._list().members if not member.isLearner]
        others = [member for member in voters if member not in silent and member != own]
        if not others:
            return True
        if leads:
            request = self._own.messages.MoveLeaderRequest(targetID=others[0])
            # Where it fails, those who stay elect a leader once this one is removed.
            with suppress(QuorateError):
                self._own.call("MoveLeader", request, monotonic() + _HAND_OVER_SECONDS)
        return all(self.remove(member).kind is EventKind.REMOVED for member in (*sorted(silent & set(voters)), own))

    def own_id(self, seconds: float = ASK_SECONDS) -> tuple[int, bool]:
        """Return the id of this member, and whether it leads.  Raises QuorateError: it does not answer."""
        status = self._own.call("Status", self._own.messages.StatusRequest(), monotonic() + seconds)
        return int(status.header.member_id), status.leader == status.header.member_id

    def unreachable(self, seconds: float = ASK_SECONDS) -> list[int]:
        """Return the ids of the members whose peer port does not answer.  Raises QuorateError."""
        members = self._list().members
        return [member.ID for member in members for url in member.peerURLs if not self._peers.answers(url, seconds)]

    def _list(self) -> Any:
        return self._own.call("MemberList", self._own.messages.MemberListRequest(), monotonic() + _LEAVE_ASK_SECONDS)
