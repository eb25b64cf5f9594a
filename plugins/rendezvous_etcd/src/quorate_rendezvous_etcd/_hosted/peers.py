"""What the other members' peer ports say: whether the cluster exists, and what it knows of this member.

They answer ``GET /members`` even while there is no leader; etcd itself asks there before it starts with an empty disk.
Nothing heavy is imported here, so that a member can start before the agent has imported what talks to it.

What does not live here: what follows from an answer (:mod:`.life`), and changes of the members (:mod:`.cluster`).
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

from attrs import frozen

from quorate.clock import monotonic
from quorate.net import Endpoint

from .._dial import describe, dial
from .._settings import Settings
from .life import Event, EventKind
from .names import Names

if TYPE_CHECKING:
    import ssl

ASK_SECONDS = 0.5
_LARGEST_ANSWER = 1 << 20


@final
@frozen
class Listed:
    """One member as another lists it: ``has_been_up`` tells whether it has ever served clients."""

    member_id: int
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


_FOREIGN = "the etcd at {} is another job's, or its node has another list of machines in --rdzv-endpoint"


@final
class Identity(NamedTuple):
    """Which member of which cluster."""

    settings: Settings
    names: Names
    place: int


@final
class Peers:
    """The cluster as the member ``index`` of ``names`` sees it from outside.  Any thread may use it.

    Raises:
        UsageError: certificates that cannot be used.
    """

    def __init__(self, settings: Settings, names: Names, index: int) -> None:
        self._names, self._index = names, index
        self.token = cluster_token(settings.run_id)
        self.urls = [f"{settings.protocol}://{peer}" for peer in names.peers]
        ids, self._cluster_id = initial_ids(self.urls, self.token)
        self._initial_id = ids[index]
        self._tls = _tls_of(settings)

    @property
    def own_url(self) -> str:
        """Where the others reach this member."""
        return self.urls[self._index]

    @property
    def first_cluster(self) -> str:
        """The members that the cluster begins with, as etcd takes them."""
        return ",".join(f"m{index}={url}" for index, url in enumerate(self.urls))

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
                return Event(EventKind.REFUSED, problem=_FOREIGN.format(peer))
            own = [member for member in members if member.peer_url == self.own_url]
            if not own:
                return Event(EventKind.IS_STRANGER)
            if own[0].has_been_up or own[0].member_id != self._initial_id:
                return Event(EventKind.IS_MEMBER, own[0].member_id)
        return Event(EventKind.NOT_FORMED, problem=problem)

    def describe_others(self) -> str:
        """Return how each other member answers this one now, for messages; by any thread."""
        return "; ".join(
            f"{peer}: {self._answer_of(peer)}" for index, peer in enumerate(self._names.peers) if index != self._index
        )

    def _answer_of(self, peer: Endpoint) -> str:
        try:
            self._members_at(peer)
        except (OSError, ValueError) as error:
            if self._tls is None or not _is_of_tls(error):
                return describe(error)
            return f"TLS fails ({describe(error)}); compare ca_cert, and the names and the usage in both certificates"
        return "answers"

    def answers(self, url: str, seconds: float) -> bool:
        """Return whether the member at the peer address ``url`` answers within ``seconds``."""
        peer = dict(zip(self.urls, self._names.peers, strict=True)).get(url)
        if peer is None:
            return True  # another node has added it
        try:
            self._members_at(peer, seconds)
        except (OSError, ValueError):
            return False
        return True

    def _members_at(self, peer: Endpoint, seconds: float = ASK_SECONDS) -> tuple[int, list[Listed]]:
        """Return the cluster's id and its members, as ``peer`` lists them.  Raises OSError, ValueError."""
        deadline = monotonic() + seconds

        def secure(sock: Any) -> Any:
            return sock if self._tls is None else self._tls.wrap_socket(sock, server_hostname=peer.host)

        sock = dial(peer, deadline, lambda sock: None, lambda sock: sock.close(), secure)
        with sock:
            sock.settimeout(max(0.001, deadline - monotonic()))
            sock.sendall(f"GET /members HTTP/1.1\r\nHost: {peer}\r\nConnection: close\r\n\r\n".encode())
            return read_members(sock, deadline)


def _tls_of(settings: Settings) -> ssl.SSLContext | None:
    if not settings.secure:
        return None
    from .._tls import make_tls_context  # ssl takes long to import

    return make_tls_context(settings, [])


def _is_of_tls(error: Exception) -> bool:
    loaded = sys.modules.get("ssl")
    return loaded is not None and isinstance(error, loaded.SSLError)


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
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError("the whole answer did not come in time")
        sock.settimeout(left)
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
    return Listed(int(entry.get("id", 0)), str(urls[0]), bool(entry.get("clientURLs")))
