"""What etcd's and gRPC's error codes mean for a rendezvous: try again, act on it, or give up.

What does not live here: trying again (:mod:`.client`).
"""

from __future__ import annotations

from enum import Enum
from typing import final

from quorate.errors import QuorateError, RendezvousStateError, StoreUnavailableError, UsageError

from .._settings import PASSWORD_VARIABLE, Settings


@final
class Trouble(Enum):
    """A problem of one attempt that the next attempt may not meet."""

    BUSY = "busy"  # the member answers that it cannot serve now: an election, or too many requests
    AWAY = "away"  # the member does not answer
    TOKEN = "token"  # the user's token has expired


@final
class Refused(Enum):
    """A refusal that callers of the client act on."""

    LEASE_GONE = "lease"
    LEASE_EXISTS = "exists"
    COMPACTED = "compacted"


@final
class RefusedError(StoreUnavailableError):
    """etcd refused a request for one of the reasons in :class:`Refused`."""

    def __init__(self, kind: Refused, details: str) -> None:
        self.kind = kind
        super().__init__(f"etcd refused a request: {details}")


# Parts of etcd's error texts.  etcd's own client libraries compare the same texts.
_TOKEN_WORDS = ("invalid auth token", "revision of auth store is old")
_REFUSALS = {
    "requested lease not found": Refused.LEASE_GONE,
    "lease already exists": Refused.LEASE_EXISTS,
    "revision has been compacted": Refused.COMPACTED,
}


def judge(code: str, details: str, settings: Settings) -> Trouble | QuorateError:
    """Return what an answer means; ``code`` is the name of a gRPC status and ``details`` its text."""
    text = details.removeprefix("etcdserver: ")
    if any(word in text for word in _TOKEN_WORDS) and settings.user:
        return Trouble.TOKEN
    for words, kind in _REFUSALS.items():
        if words in text:
            return RefusedError(kind, text)
    definite = _definite(code, text, settings)
    if definite is not None:
        return definite
    # Another member may have a leader where this one has none.
    has_answered = details.startswith("etcdserver: ") and "no leader" not in text and "stopped" not in text
    return Trouble.BUSY if has_answered or "too many requests" in text else Trouble.AWAY


def _definite(code: str, text: str, settings: Settings) -> QuorateError | None:
    """Return an error that a retry cannot mend, or ``None``."""
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
            f"the server at {where} is not an etcd with API v3 ({text}); check --rdzv-endpoint, or use "
            "--rdzv-backend=etcd-v2 for an old etcd"
        )
    if code in ("INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "DATA_LOSS", "NOT_FOUND"):
        return RendezvousStateError(f"etcd at {where} refused a request: {text}")
    return None
