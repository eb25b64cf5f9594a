"""The server's side of a new connection: which job, which version, and whether it has the job's token.

What does not live here: what is proved (``_auth``), and requests after it (``_server``).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import final

from quorate.job_token import TOKEN_FILE_VARIABLE

from ._auth import NONCE_BYTES, TAG_BYTES, Challenge, Role, new_nonce
from ._peers import Peer, Peers
from ._wire import (
    HELLO_ITEMS,
    LARGEST_FRAME,
    LARGEST_HELLO,
    MAGIC,
    PROTOCOL_VERSION,
    Code,
    Message,
    Problem,
    WireError,
    encode,
)


@final
class Greeter:
    """Answers the messages of connections that are not authenticated yet; used by the server's thread alone."""

    def __init__(
        self,
        run_id: str,
        incarnation: bytes,
        key: bytes | None,
        peers: Peers,
        warn_once: Callable[[str, str], None],
    ) -> None:
        self._run_id, self._incarnation, self._key = run_id, incarnation, key
        self._peers, self._warn_once = peers, warn_once

    def answer(self, peer: Peer, message: Message) -> None:
        """Take the next message.  Raises WireError for one that is out of place."""
        if peer.nonce:
            self._check_proof(peer, message)
        else:
            self._greet(peer, message)

    def _greet(self, peer: Peer, message: Message) -> None:
        if message.code != Code.HELLO or len(message.items) != HELLO_ITEMS or message.items[0] != MAGIC:
            raise WireError("this is not a hello")
        if message.number != PROTOCOL_VERSION:
            sentence = f"it speaks version {PROTOCOL_VERSION} of the store's protocol, this node {message.number}"
            self._warn_once(
                "version",
                f"refuses {address_of(peer)}, which speaks version {message.number} of the protocol, not "
                f"{PROTOCOL_VERSION}; give every node the same version of quorate-rendezvous-static",
            )
            self._refuse(peer, message, Problem.VERSION, sentence)
        elif message.items[1] != self._run_id.encode():
            self._refuse(peer, message, Problem.OTHER_JOB, "it serves another job (another run id)")
        elif self._key is not None:
            peer.nonce = new_nonce()
            self._peers.send(peer, encode(Code.CHALLENGE, message.request, PROTOCOL_VERSION, [peer.nonce]))
        else:
            self._peers.authenticate(peer)
            self._peers.send(peer, encode(Code.OK, message.request, PROTOCOL_VERSION, [self._incarnation]))

    def _check_proof(self, peer: Peer, message: Message) -> None:
        if message.code != Code.PROVE:
            raise WireError("this is not a proof")
        assert self._key is not None
        nonce, peer.nonce = peer.nonce, b""  # each is for one attempt
        if not message.items:
            self._warn_once(
                "no token",
                f"refuses {address_of(peer)}, which has no job token; set {TOKEN_FILE_VARIABLE} there if it is a "
                "node of this job",
            )
            self._refuse(peer, message, Problem.TOKEN, "it takes only nodes that have the job's token")
            return
        if len(message.items) != 2:
            raise WireError("this is not a proof")
        client_nonce, proof = (item or b"" for item in message.items)
        challenge = Challenge(self._key, self._run_id.encode(), nonce, client_nonce)
        if len(client_nonce) != NONCE_BYTES or not challenge.is_proved(Role.CLIENT, proof):
            self._warn_once(
                "other token",
                f"refuses {address_of(peer)}, which has another job token; give all nodes of the job the same one",
            )
            self._refuse(peer, message, Problem.TOKEN, "its job token is another one than this node's")
            return
        self._peers.authenticate(peer)
        answer = [self._incarnation, challenge.proof(Role.SERVER, self._incarnation)]
        self._peers.send(peer, encode(Code.OK, message.request, PROTOCOL_VERSION, answer))
        peer.session = challenge.session(Role.SERVER)
        peer.frames.limit = LARGEST_FRAME + TAG_BYTES

    def _refuse(self, peer: Peer, message: Message, problem: Problem, sentence: str) -> None:
        # It stays unauthenticated: it reads the answer and leaves, or its time runs out.
        self._peers.send(peer, encode(Code.PROBLEM, message.request, problem, [sentence.encode()]))


def address_of(peer: Peer) -> str:
    """Return where ``peer`` comes from, for messages."""
    try:
        return str(peer.socket.getpeername()[0])
    except OSError:
        return "a connection that is gone"


def refuse_at_once(sock: socket.socket, most: int, *, is_plain: bool) -> None:
    """Turn away and close a connection beyond the limit of ``most``; where TLS is used, without a word."""
    sentence = f"it has its limit of {most} connections; raise the limit of open files (ulimit -n) of its host"
    with suppress(BlockingIOError):
        sock.recv(LARGEST_HELLO)  # closing with unread bytes resets the connection, and the answer may be lost
    if is_plain:
        sock.send(encode(Code.PROBLEM, 0, Problem.BUSY, [sentence.encode()]))
    sock.close()
