"""How the two ends of a connection prove to each other that they have the job's token, and sign what follows.

A challenge and its answer, with keyed BLAKE2b (RFC 7693).  Both nonces, both roles, the job and the protocol's version
are part of what is proved, so that no proof can be replayed, reflected, or used for another job.  From the nonces comes
a key for each direction; each frame then carries a counter's signature.  Nothing is encrypted: that is TLS's work
(``_tls``).  What does not live here: the frames (``_wire``), and who says what when (``_link``, ``_server``).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from enum import Enum
from typing import final

from attrs import field, frozen

from ._wire import LENGTH_BYTES, PROTOCOL_VERSION, WireError

NONCE_BYTES = 32
TAG_BYTES = 16
_COUNTER_BYTES = 8


@final
class Role(str, Enum):
    """The two ends of a connection."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Role:
        """The other end."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


def new_nonce() -> bytes:
    """Return a number that is used once."""
    return os.urandom(NONCE_BYTES)


@final
@frozen
class Challenge:
    """What both ends of one connection know once both nonces are out; ``key`` is the secret one."""

    key: bytes = field(repr=False)
    run_id: bytes
    server_nonce: bytes
    client_nonce: bytes

    def proof(self, role: Role, incarnation: bytes = b"") -> bytes:
        """Return what proves that ``role`` has the key; the server's proof covers its incarnation."""
        return self._derive(f"proof {role.value}", incarnation)

    def is_proved(self, role: Role, proof: bytes, incarnation: bytes = b"") -> bool:
        """Return whether ``proof`` is the one of ``role``; takes the same time for all that are not."""
        return hmac.compare_digest(proof, self.proof(role, incarnation))

    def session(self, role: Role) -> Session:
        """Return what signs and checks the frames at the end ``role``."""
        return Session(self._derive(f"frames {role.value}"), self._derive(f"frames {role.other.value}"))

    def _derive(self, purpose: str, extra: bytes = b"") -> bytes:
        fields = (purpose.encode(), self.run_id, self.server_nonce, self.client_nonce, extra)
        text = b"".join(len(each).to_bytes(4, "big") + each for each in fields)
        person = f"quorate-tcp-v{PROTOCOL_VERSION}".encode()
        return hashlib.blake2b(text, key=self.key, digest_size=32, person=person).digest()


@final
class Session:
    """Signs the frames that one end of a connection sends, and checks those that it receives, in their order."""

    __slots__ = ("_receive_digest", "_received", "_send_digest", "_sent")

    def __init__(self, send_key: bytes, receive_key: bytes) -> None:
        # Copied for each frame: to copy is cheaper than to take in the key again.
        self._send_digest = hashlib.blake2b(key=send_key, digest_size=TAG_BYTES)
        self._receive_digest = hashlib.blake2b(key=receive_key, digest_size=TAG_BYTES)
        self._sent = self._received = 0

    def sign(self, frame: bytes) -> bytes:
        """Return ``frame`` (length and body) with its signature."""
        body = frame[LENGTH_BYTES:]
        digest = self._send_digest.copy()
        digest.update(self._sent.to_bytes(_COUNTER_BYTES, "big"))
        digest.update(body)
        self._sent += 1
        return (len(body) + TAG_BYTES).to_bytes(LENGTH_BYTES, "big") + body + digest.digest()

    def forget_last(self) -> None:
        """The frame that was signed last is not sent: the next one takes its place."""
        self._sent -= 1

    def check(self, signed: bytes) -> bytes:
        """Return the body of the next frame without its signature.

        Raises:
            WireError: the frame was changed, left out, repeated, or comes from a program without the key.
        """
        body = signed[:-TAG_BYTES]
        digest = self._receive_digest.copy()
        digest.update(self._received.to_bytes(_COUNTER_BYTES, "big"))
        digest.update(body)
        if not hmac.compare_digest(signed[-TAG_BYTES:], digest.digest()):
            raise WireError("a frame is not signed by the other side")
        self._received += 1
        return body
