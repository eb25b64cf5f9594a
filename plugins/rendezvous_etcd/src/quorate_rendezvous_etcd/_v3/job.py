"""What etcd holds of a job over API v3, and where.

Below ``<prefix>/<run id>/`` are::

    job                     the incarnation: its token, its lease, its limits of nodes; written once, then only removed
    <token>/member/<name>   one key for each member, on a lease of its own that ends soon after its agent died
    <token>/key/<key>       the keys of the store

The members' keys are on the members' leases, and all others on the incarnation's lease.

Pure functions; nothing here talks to etcd.  What does not live here: joining and leaving (:mod:`.member`).
"""

from __future__ import annotations

import os
import re
from typing import final

from attrs import frozen

from quorate.errors import StoreCorruptError

from .._settings import Settings
from .lease import LARGEST_LEASE_ID, new_lease_id

_VERSION = 1
_RECORD = re.compile(rb"1 ([0-9a-f]{1,32}) ([0-9a-f]{1,16}) ([0-9]{1,9}) ([0-9]{1,9})")


def root_of(settings: Settings) -> str:
    """Return what all keys of the job start with."""
    # A run id may hold slashes; escaped, no job's keys begin with another's.
    run_id = settings.run_id.replace("%", "%25").replace("/", "%2F")
    return f"{settings.prefix}/{run_id}/"


@final
@frozen
class Incarnation:
    """One of the jobs that use a run id, one after the other."""

    token: str
    lease: int
    #: The job's ``min_nodes`` and ``max_nodes``.
    node_limits: tuple[int, int]

    @classmethod
    def new(cls, settings: Settings) -> Incarnation:
        """Return an incarnation that is unlike any other."""
        return cls(os.urandom(8).hex(), new_lease_id(), (settings.min_nodes, settings.max_nodes))

    def encode(self) -> bytes:
        """Return the value of the key ``job``."""
        return f"{_VERSION} {self.token} {self.lease:x} {self.node_limits[0]} {self.node_limits[1]}".encode()

    @classmethod
    def decode(cls, value: bytes, key: str) -> Incarnation:
        """Read the value of the key ``job``, which is called ``key`` in full.

        Raises:
            StoreCorruptError: this version of quorate has not written it.
        """
        match = _RECORD.fullmatch(value)
        if match is not None and int(match[2], 16) <= LARGEST_LEASE_ID:
            return cls(match[1].decode(), int(match[2], 16), (int(match[3]), int(match[4])))
        version = re.match(rb"([0-9]{1,9})(?: |$)", value)
        if version is not None and int(version[1]) != _VERSION:
            raise StoreCorruptError(key, f"it was written by another version ({version[1].decode()})")
        raise StoreCorruptError(key, "it was not written by quorate")

    def members(self, root: str) -> bytes:
        """Return what the keys of all members start with."""
        return f"{root}{self.token}/member/".encode()

    def keys(self, root: str) -> bytes:
        """Return what all keys of the store start with."""
        return f"{root}{self.token}/key/".encode()
