"""Writes over API v2 for a node whose agent was killed, and removes its entry; called in its guardian.

The guardian of the last member marks the job as left, as a member does that leaves in order: the next job begins at
once.  The keys stay until then, or until they expire.

What does not live here: when something is written (the core), and the store (:mod:`.store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from quorate.clock import monotonic
from quorate.rendezvous import Write

from .._settings import Settings
from .answers import RefusedError
from .client import Client, Route
from .format import Value, key_path, new_stamp, pack
from .job import JobDirectory

_SECONDS = 3.0


def write_last_words(settings: Settings, token: str, member: str, writes: Sequence[Write]) -> None:
    """Make ``writes`` in the incarnation ``token``, and remove ``member``.  Raises what :class:`Client` raises."""
    client = Client(Route(settings))
    directory = JobDirectory(client, settings)
    try:
        for write in writes:
            text = pack(Value(write.value, new_stamp()))
            conditions = {"prevExist": False} if write.once else {}
            with suppress(RefusedError):  # another node was first
                path = f"{directory.keys(token)}/{key_path(write.key)}"
                client.put(path, monotonic() + _SECONDS, value=text, **conditions)
        with suppress(RefusedError):
            _remove_member(client, directory, token, member)
    finally:
        client.close()


def _remove_member(client: Client, directory: JobDirectory, token: str, member: str) -> None:
    deadline = monotonic() + _SECONDS
    # An entry that is gone has expired, perhaps with those of members that are alive: etcd was away.
    if not client.delete(member, deadline) or not directory.is_empty(token, deadline):
        return
    current, index = directory.read_current(deadline)
    if current == token:
        directory.mark_as_left(current, index, deadline)
