"""Hosting the store with ``is_host=true``: is one there already, and whose is it?

A host leaves a note in its store: which job it is for, and which process hosts it.  A node with ``is_host=true`` that
finds the port taken reads the note.  It joins the store of its own job, with a warning.  Anything else it names at
once, as waiting would not help.

What does not live here: the choice of the host without ``is_host`` (:mod:`._opening`).
"""

from __future__ import annotations

import json
import os
import socket
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, final

from attrs import frozen

from quorate.clock import monotonic, sleep
from quorate.errors import QuorateError
from quorate.job_token import STORE_PURPOSE
from quorate.rendezvous import job_is_over
from quorate.text import printable

from ._connection import Connection, connect
from ._endpoint import find_answering
from ._settings import Settings
from ._values import first_line, prefix_of, read_identity, read_one

#: How long the store of a job that has ended is given to go by itself; the core's default ``linger_timeout``.
ENDED_SECONDS = 5.0
_NOTE_KEY = "quorate#host"
_NOTE_VERSION = 1
#: What is said of a listener that accepts connections and sends no byte.
SILENT = "it accepts connections and does not answer"
# A host leaves its note as soon as its server runs.
_NOTE_SECONDS = 2.0
_HELLO_SECONDS = 0.5
# How long a program that may be about to end is waited for.
_TAKEN_SECONDS = 2.0
# A server that is starting on a busy machine answers late; one that is stopped never does.
_ANSWER_SECONDS = 5.0


@final
@frozen
class Found:
    """What is at an address: a connection to the store of this very job, or else why it cannot be used.

    ``hosted_by`` names the process that hosts the store, where known.  ``wait_seconds`` is how long to wait for it to
    go (0: not at all).  ``is_store`` says that it is a TCPStore.  ``ended`` is the store's identity, if its job has
    ended.
    """

    address: str
    connection: Connection | None = None
    hosted_by: str = ""
    problem: str = ""
    wait_seconds: float = 0.0
    is_store: bool = True
    ended: bytes = b""


def leave_note(store: Any, run_id: str) -> None:
    """Write down whose store this is.  Raises RuntimeError."""
    note = {"version": _NOTE_VERSION, "run_id": run_id, "host": socket.gethostname(), "pid": os.getpid()}
    store.compare_set(_NOTE_KEY, b"", json.dumps(note).encode())


def look(settings: Settings, host: str, answer_seconds: float = _ANSWER_SECONDS) -> Found | None:
    """Return what is at ``host`` and the port of ``settings``; ``None`` where nothing accepts connections."""
    address, _ = find_answering(host, settings.port, monotonic() + _HELLO_SECONDS)
    if address is None:
        return None
    deadline = monotonic() + min(answer_seconds, max(settings.connect_timeout_seconds, 0.1))
    try:
        connection = connect(address, settings.port, deadline, settings.operation_timeout_seconds)
    except RuntimeError as error:
        if monotonic() >= deadline:
            return Found(address, problem=SILENT, is_store=False)
        problem = f"what listens there is not a TCPStore ({first_line(error)})"
        return Found(address, problem=problem, wait_seconds=_TAKEN_SECONDS, is_store=False)
    try:
        found = _examine(settings, connection, address)
    except (RuntimeError, QuorateError) as error:
        problem = f"its store does not answer ({first_line(error)})"
        found = Found(address, problem=problem, wait_seconds=_TAKEN_SECONDS)
    if found.connection is None:
        connection.close()
    return found


def look_beside(settings: Settings, listening: str) -> Found | None:
    """Return this job's store where it is on the loopback address of the other family than ``listening``."""
    if listening != "::1" and not listening.startswith("127."):
        return None
    found = look(settings, "127.0.0.1" if listening == "::1" else "::1", _HELLO_SECONDS)
    return found if found is not None and found.connection is not None else None


def _examine(settings: Settings, connection: Connection, address: str) -> Found:
    run_id, hosted_by = _read_note(connection)
    if run_id is None:
        return Found(address, problem="it is a TCPStore, but not one that quorate hosts")
    if has_ended(settings, connection, run_id):
        return Found(
            address,
            hosted_by=hosted_by,
            problem=still_there(run_id),
            wait_seconds=settings.connect_timeout_seconds,
            ended=read_identity(connection.store),
        )
    if run_id != settings.run_id:
        problem = f"{hosted_by} hosts the store of another job, {run_id!r}, there"
        return Found(address, hosted_by=hosted_by, problem=problem)
    return Found(address, connection, hosted_by)


def has_ended(settings: Settings, connection: Connection, run_id: str) -> bool:
    """Return whether the job's end is recorded.  Raises RuntimeError."""
    key = None if settings.token is None else settings.token.key(run_id, STORE_PURPOSE)
    return job_is_over(_Job(connection.store, run_id), key)


def still_there(run_id: str) -> str:
    """Say that a job has ended and its store has not."""
    return f"the store of job {run_id!r}, which has ended, is still there"


class LocalHost(Protocol):
    """A handle on a store that this process hosts."""

    identity: bytes

    def retire(self, other_ports: Sequence[int | None]) -> bool:
        """End the store if only its host and the connections from ``other_ports`` use it; returns whether it did."""
        ...


_local_hosts: weakref.WeakSet[LocalHost] = weakref.WeakSet()


def register_local_host(host: LocalHost) -> None:
    """Have :func:`end_local_host` find ``host`` as long as it lives."""
    _local_hosts.add(host)


def end_local_host(identity: bytes, *own_ports: int | None) -> bool:
    """End the store of that identity, whose job has ended, if this process hosts it and no other node is left.

    Its handler may never be shut down.  The caller's own connections to it come from ``own_ports``.  Returns whether
    the store has ended.
    """
    hosts = [host for host in list(_local_hosts) if host.identity == identity]
    return bool(hosts) and hosts[0].retire(own_ports)


def _read_note(connection: Connection) -> tuple[str | None, str]:
    deadline = monotonic() + _NOTE_SECONDS
    while True:
        raw = read_one(connection.store, _NOTE_KEY)
        if raw is not None or monotonic() >= deadline:
            break
        sleep(0.02)
    return _parse_note(raw or b"")


def _parse_note(raw: bytes) -> tuple[str | None, str]:
    """Return the job that a host's note is for, and who hosts it; ``None`` where there is no such note."""
    try:
        note = json.loads(raw)
        run_id, hosted_by = note["run_id"], f"process {int(note['pid'])} on {printable(str(note['host']), 100)}"
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None, ""
    return (run_id, hosted_by) if isinstance(run_id, str) and note.get("version") == _NOTE_VERSION else (None, "")


@final
class _Job:
    """As much of a store as it takes to see whether a job is over."""

    def __init__(self, store: Any, run_id: str) -> None:
        self._store, self._prefix = store, prefix_of(run_id)

    def add(self, key: str, amount: int) -> int:
        return int(self._store.add(self._prefix + key, amount))

    def get(self, keys: list[str]) -> list[bytes | None]:
        return [read_one(self._store, self._prefix + key) for key in keys]
