"""What etcd's and gRPC's error codes mean for a rendezvous: try again, act on it, or give up, and with what sentence.

What does not live here: trying again (:mod:`._transport`).
"""

from __future__ import annotations

from enum import Enum
from typing import final

from quorate.errors import QuorateError, RendezvousStateError, StoreUnavailableError, UsageError

from ._settings import PASSWORD_VARIABLE, Settings

__all__ = ["Refused", "RefusedError", "Trouble", "judge"]


@final
class Trouble(Enum):
    """What an attempt has met that may be over with the next one."""

    BUSY = "busy"  # this member answers: an election, or more requests than it takes
    AWAY = "away"  # this member does not answer
    TOKEN = "token"  # the token of the user has expired


@final
class Refused(Enum):
    """A definite answer that callers of the transport act on."""

    LEASE_GONE = "lease"
    LEASE_EXISTS = "exists"
    COMPACTED = "compacted"


@final
class RefusedError(Exception):
    """The answer was one of :class:`Refused`.  Never leaves the store."""

    def __init__(self, kind: Refused, details: str) -> None:
        self.kind = kind
        super().__init__(details)


# Words of etcd's own error texts, which its client libraries compare, too.
_TOKEN_WORDS = ("invalid auth token", "revision of auth store is old")
_LEASE_GONE = "requested lease not found"
_LEASE_EXISTS = "lease already exists"
_COMPACTED = "revision has been compacted"


def judge(code: str, details: str, settings: Settings) -> Trouble | QuorateError | RefusedError:
    """Return what the answer ``code`` (the name of a gRPC status) with its text means."""
    text = details.removeprefix("etcdserver: ")
    if any(word in text for word in _TOKEN_WORDS) and settings.user:
        return Trouble.TOKEN
    for words, kind in (
        (_LEASE_GONE, Refused.LEASE_GONE),
        (_LEASE_EXISTS, Refused.LEASE_EXISTS),
        (_COMPACTED, Refused.COMPACTED),
    ):
        if words in text:
            return RefusedError(kind, text)
    definite = _definite(code, text, settings)
    if definite is not None:
        return definite
    # A member without a leader is as good as none: another one may have it.
    has_answered = details.startswith("etcdserver: ") and "no leader" not in text and "stopped" not in text
    return Trouble.BUSY if has_answered or "too many requests" in text else Trouble.AWAY


def _definite(code: str, text: str, settings: Settings) -> QuorateError | None:
    """Return the error that trying again cannot help, or ``None``."""
    where = settings.where
    if "database space exceeded" in text:
        return StoreUnavailableError(
            f"etcd at {where} takes no writes: its database is full. Compact and defragment it, then run "
            "'etcdctl alarm disarm'; --auto-compaction-retention=5m keeps it small"
        )
    if code == "PERMISSION_DENIED":
        who = f"user {settings.user!r}" if settings.user else "this client"
        return UsageError(
            f"etcd at {where} does not permit {who} to use the keys below {settings.prefix!r} ({text}); grant its role "
            f"readwrite on that prefix (etcdctl role grant-permission ROLE readwrite {settings.prefix}/ --prefix), or "
            "set --rdzv-conf prefix=… to one that it may use"
        )
    if "authentication failed" in text or (code == "UNAUTHENTICATED" and settings.user):
        return UsageError(
            f"etcd at {where} does not accept user {settings.user!r} with this password ({text}); check "
            f"--rdzv-conf user=… and the variable {PASSWORD_VARIABLE}"
        )
    if "user name is empty" in text or code == "UNAUTHENTICATED" or any(word in text for word in _TOKEN_WORDS):
        return UsageError(
            f"etcd at {where} asks for a user and password; set --rdzv-conf user=… and the variable {PASSWORD_VARIABLE}"
        )
    if "authentication is not enabled" in text:
        return UsageError(
            f"etcd at {where} has no authentication enabled, so the user {settings.user!r} cannot log in; leave out "
            "--rdzv-conf user=…, or run 'etcdctl auth enable'"
        )
    if code == "UNIMPLEMENTED":
        return UsageError(
            f"what answers at {where} is no etcd with API v3 ({text}); check --rdzv-endpoint, or use "
            "--rdzv-backend=etcd-v2 for an old etcd"
        )
    if code in ("INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "DATA_LOSS", "NOT_FOUND"):
        return RendezvousStateError(f"etcd at {where} refused a request: {text}")
    return None
