"""What one member asks and tells the others of its cluster, and what their answers mean for its life.

The other members' peer ports say what the cluster knows of this member (``GET /members``), even while there is no
leader; etcd itself asks there before it starts with an empty disk.  Changes go through API v3.

What does not live here: what follows from an answer (:mod:`.life`), and who asks when (:mod:`.member`).
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, final

from attrs import evolve, frozen

from quorate.clock import monotonic
from quorate.errors import QuorateError
from quorate.net import Endpoint

from .._dial import describe, dial
from .._settings import Settings
from .._tls import make_tls_context
from .._v3.client import Client
from .life import Event, EventKind
from .names import Names

__all__ = ["Cluster", "Identity", "Listed", "cluster_token", "initial_ids"]

_ASK_SECONDS = 0.5
#: For the members that one which leaves would remove with itself.
_LEAVE_ASK_SECONDS = 3.0
_CHANGE_SECONDS = 3.0
_HAND_OVER_SECONDS = 0.5
_LARGEST_ANSWER = 1 << 20


@final
@frozen
class Listed:
    """One member as another lists it: ``has_been_up`` tells whether it has ever served clients."""

    member_id: int
    name: str
    peer_url: str
    has_been_up: bool


def cluster_token(run_id: str) -> str:
    """Return what tells the cluster of one job from that of another at the same names."""
    return "quorate-" + hashlib.sha256(run_id.encode()).hexdigest()[:32]


def initial_ids(peer_urls: Sequence[str], token: str) -> tuple[list[int], int]:
    """Return the ids of the members that a cluster begins with, and the cluster's own, as etcd derives them."""
    ids = [_id_of(url.encode() + token.encode()) for url in peer_urls]
    return ids, _id_of(b"".join(number.to_bytes(8, "big") for number in sorted(ids)))


def _id_of(text: bytes) -> int:
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8], "big")


@final
class Identity(NamedTuple):
    """Which member of which cluster."""

    settings: Settings
    names: Names
    place: int


@final
class Cluster:
    """The cluster as the member ``index`` of ``names`` sees it.  Used by one thread; :meth:`close` by any."""

    def __init__(self, settings: Settings, names: Names, index: int) -> None:
        self._settings, self._names, self._index = settings, names, index
        self.token = cluster_token(settings.run_id)
        self.peer_urls = [f"{settings.protocol}://{peer}" for peer in names.peers]
        ids, self._cluster_id = initial_ids(self.peer_urls, self.token)
        self._initial_id = ids[index]
        self._tls = make_tls_context(settings, [])
        own = names.endpoints[index]
        others = tuple(endpoint for endpoint in names.endpoints if endpoint != own)
        self._client = Client(evolve(settings, endpoints=(*others, own), begins_with_first=True))
        self._own = Client(evolve(settings, endpoints=(own,)))

    @property
    def first_cluster(self) -> str:
        """The members that the cluster begins with, as etcd takes them."""
        return ",".join(f"m{index}={url}" for index, url in enumerate(self.peer_urls))

    def close(self) -> None:
        """End the calls that are under way."""
        self._client.close()
        self._own.close()

    # --- this member's own life ---------------------------------------------------------------------------------------

    def look(self) -> Event:
        """Ask the others what the cluster knows of this member."""
        problem = ""
        for index, peer in enumerate(self._names.peers):
            if index == self._index:
                continue
            try:
                cluster_id, members = self._members_at(peer)
            except (OSError, ValueError) as error:
                problem = f"{peer}: {error}"
                continue
            if cluster_id != self._cluster_id:
                return Event(EventKind.REFUSED, problem=f"another job's etcd is at {peer}")
            own = [member for member in members if member.peer_url == self.peer_urls[self._index]]
            if not own:
                return Event(EventKind.IS_STRANGER)
            if own[0].has_been_up or own[0].member_id != self._initial_id:
                return Event(EventKind.IS_MEMBER, own[0].member_id)
        return Event(EventKind.NOT_FORMED, problem=problem)

    def remove(self, member_id: int) -> Event:
        """Have the cluster remove a member."""
        return self._change("MemberRemove", EventKind.REMOVED, ID=member_id)[0]

    def add(self) -> tuple[Event, str]:
        """Ask to be added as a learner; return what that led to, and the members that it is to start with."""
        url = self.peer_urls[self._index]
        event, answer = self._change("MemberAdd", EventKind.ADDED, peerURLs=[url], isLearner=True)
        if answer is None:
            return event, ""
        named = {own: f"m{index}" for index, own in enumerate(self.peer_urls)}
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

    def describe_others(self) -> str:
        """Return how each other member answers this one now, for messages; by any thread."""
        return "; ".join(
            f"{peer}: {self._answer_of(peer)}" for index, peer in enumerate(self._names.peers) if index != self._index
        )

    def _answer_of(self, peer: Endpoint) -> str:
        try:
            self._members_at(peer)
        except ssl.SSLError as error:
            return f"TLS fails ({describe(error)}); compare ca_cert, and the names and the usage in both certificates"
        except (OSError, ValueError) as error:
            return describe(error)
        return "answers"

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

    def own_id(self, seconds: float = _ASK_SECONDS) -> tuple[int, bool]:
        """Return the id of this member, and whether it leads.  Raises QuorateError: it does not answer."""
        status = self._own.call("Status", self._own.messages.StatusRequest(), monotonic() + seconds)
        return int(status.header.member_id), status.leader == status.header.member_id

    def unreachable(self, seconds: float = _ASK_SECONDS) -> list[int]:
        """Return the ids of the members whose peer port does not answer.  Raises QuorateError."""
        peers = dict(zip(self.peer_urls, self._names.peers, strict=True))
        return [
            member.ID
            for member in self._list().members
            for url in member.peerURLs
            if not self._answers(peers.get(url), seconds)
        ]

    def _list(self) -> Any:
        return self._own.call("MemberList", self._own.messages.MemberListRequest(), monotonic() + _LEAVE_ASK_SECONDS)

    def _answers(self, peer: Endpoint | None, seconds: float) -> bool:
        if peer is None:
            return True  # another node has added it
        try:
            self._members_at(peer, seconds)
        except (OSError, ValueError):
            return False
        return True

    def _members_at(self, peer: Endpoint, seconds: float = _ASK_SECONDS) -> tuple[int, list[Listed]]:
        """Return the cluster's id and its members, as ``peer`` lists them.  Raises OSError, ValueError."""
        deadline = monotonic() + seconds

        def secure(sock: Any) -> Any:
            return sock if self._tls is None else self._tls.wrap_socket(sock, server_hostname=peer.host)

        sock = dial(peer, deadline, lambda sock: None, lambda sock: sock.close(), secure)
        with sock:
            sock.settimeout(max(0.001, deadline - monotonic()))
            sock.sendall(f"GET /members HTTP/1.1\r\nHost: {peer}\r\nConnection: close\r\n\r\n".encode())
            return read_members(sock, deadline)


def read_members(sock: socket.socket, deadline: float) -> tuple[int, list[Listed]]:
    """Return the cluster's id and its members from an HTTP answer.  Raises OSError, ValueError."""
    fields, body = _read_answer(sock, deadline)
    try:
        entries = json.loads(body)
        if not isinstance(entries, list):
            raise ValueError("it does not list members as etcd does")
        return int(fields.get(b"x-etcd-cluster-id", b"0"), 16), [_read_member(entry) for entry in entries]
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it does not list members as etcd does ({type(error).__name__})") from None


def _read_answer(sock: socket.socket, deadline: float) -> tuple[dict[bytes, bytes], bytes]:
    """Return the header and the body of an HTTP answer of known length.  Raises OSError, ValueError."""
    answer = b""
    fields: dict[bytes, bytes] = {}
    while True:
        head, found, body = answer.partition(b"\r\n\r\n")
        if found:
            lines = [line.partition(b":") for line in head.splitlines()[1:]]
            fields = {name.lower(): value.strip() for name, _, value in lines}
            # Not until the connection is closed: etcd may leave it open.
            if len(body) >= int(fields.get(b"content-length", b"0")):
                return fields, body
        sock.settimeout(max(0.001, deadline - monotonic()))
        data = sock.recv(1 << 16)
        if not data or len(answer) > _LARGEST_ANSWER:
            raise ValueError("it does not answer as etcd does")
        answer += data


def _read_member(entry: Any) -> Listed:
    if not isinstance(entry, dict):
        raise ValueError("it does not list members as etcd does")
    urls = entry.get("peerURLs") or [""]
    if not isinstance(urls, list):
        raise ValueError("it does not list members as etcd does")
    return Listed(int(entry.get("id", 0)), str(entry.get("name", "")), str(urls[0]), bool(entry.get("clientURLs")))
