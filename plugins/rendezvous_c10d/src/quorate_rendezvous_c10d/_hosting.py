"""Hosting the store where a node was told to: is there one already, and whose is it?

A host leaves a note in its store: which job it is for, and which process keeps it.  Who was told to host and finds the
place taken reads the note.  The store of its own job it joins, with a warning; anything else it names at once, as
waiting would not help.

What does not live here: the choice of the host where nobody was told (:mod:`._opening`).
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any, NamedTuple, final

from quorate.clock import monotonic
from quorate.errors import QuorateError, UsageError
from quorate.notices import warn
from quorate.rendezvous import job_is_over

from ._connection import Connection, connect
from ._endpoint import find_answering
from ._settings import Settings, format_endpoint
from ._values import prefix_of, read_one

__all__ = ["Found", "leave_note", "look", "look_beside", "say_forwarded", "say_joined", "say_not_local", "say_taken"]

_NOTE_KEY = "quorate#host"
_NOTE_VERSION = 1
# A host leaves its note as soon as its server runs.
_NOTE_SECONDS = 2.0
_KNOCK_SECONDS = 0.5
# What does not look as if it would stay is given this long to go.
_TAKEN_SECONDS = 2.0
# A server that is starting on a busy machine answers late; one that is stopped never does.
_ANSWER_SECONDS = 5.0


@final
class Found(NamedTuple):
    """What is at an address: a connection to the store of this very job, or else why it cannot be used.

    ``worth_seconds`` is how long it is worth waiting for it to go (0: not at all); ``is_store`` tells that it is a
    TCPStore.
    """

    connection: Connection | None
    address: str
    keeper: str
    problem: str
    worth_seconds: float
    is_store: bool


def leave_note(store: Any, run_id: str) -> None:
    """Write down whose store this is.  Raises RuntimeError."""
    note = {"version": _NOTE_VERSION, "run_id": run_id, "host": socket.gethostname(), "pid": os.getpid()}
    store.compare_set(_NOTE_KEY, b"", json.dumps(note).encode())


def look(settings: Settings, host: str, answer_seconds: float = _ANSWER_SECONDS) -> Found | None:
    """Return what is at ``host`` and the port of ``settings``; ``None`` where nobody accepts connections."""
    address, _ = find_answering(host, settings.port, monotonic() + _KNOCK_SECONDS)
    if address is None:
        return None
    deadline = monotonic() + min(answer_seconds, max(settings.connect_timeout_seconds, 0.1))
    try:
        connection = connect(address, settings.port, deadline, settings.operation_timeout_seconds)
    except RuntimeError as error:
        if monotonic() >= deadline:
            return Found(None, address, "", "it takes connections and says nothing", 0.0, False)
        return Found(
            None, address, "", f"what listens there is not a TCPStore ({_first_line(error)})", _TAKEN_SECONDS, False
        )
    try:
        found = _examine(settings, connection, address)
    except (RuntimeError, QuorateError) as error:
        found = Found(None, address, "", f"its store does not answer ({_first_line(error)})", _TAKEN_SECONDS, True)
    if found.connection is None:
        connection.close()
    return found


def look_beside(settings: Settings, listening: str) -> Found | None:
    """Return this job's store where it is on the loopback address of the other family than ``listening``."""
    if listening != "::1" and not listening.startswith("127."):
        return None
    found = look(settings, "127.0.0.1" if listening == "::1" else "::1", _KNOCK_SECONDS)
    return found if found is not None and found.connection is not None else None


def _examine(settings: Settings, connection: Connection, address: str) -> Found:
    run_id, keeper = _read_note(connection)
    if run_id is None:
        return Found(None, address, "", "it is a TCPStore, but not one that quorate hosts", 0.0, True)
    if job_is_over(_Job(connection.store, run_id)):
        problem = f"the store of job {run_id!r}, which has ended, is still there"
        return Found(None, address, keeper, problem, settings.connect_timeout_seconds, True)
    if run_id != settings.run_id:
        return Found(None, address, keeper, f"{keeper} hosts the store of another job, {run_id!r}, there", 0.0, True)
    return Found(connection, address, keeper, "", 0.0, True)


def _read_note(connection: Connection) -> tuple[str | None, str]:
    deadline = monotonic() + _NOTE_SECONDS
    while True:
        raw = read_one(connection.store, _NOTE_KEY)
        if raw is not None or monotonic() >= deadline:
            break
        threading.Event().wait(0.02)
    try:
        note = json.loads(raw or b"")
        run_id, keeper = note["run_id"], f"process {int(note['pid'])} on {str(note['host'])[:100]}"
    except (ValueError, TypeError, KeyError):
        return None, ""
    return (run_id, keeper) if isinstance(run_id, str) and note.get("version") == _NOTE_VERSION else (None, "")


@final
class _Job:
    """As much of a store as it takes to see whether a job is over."""

    def __init__(self, store: Any, run_id: str) -> None:
        self._store, self._prefix = store, prefix_of(run_id)

    def add(self, key: str, amount: int) -> int:
        return int(self._store.add(self._prefix + key, amount))

    def get(self, keys: list[str]) -> list[bytes | None]:
        return [read_one(self._store, self._prefix + key) for key in keys]


# --- sentences --------------------------------------------------------------------------------------------------------


def say_joined(settings: Settings, found: Found) -> None:
    """Warn that this node joins a store which it was told to host."""
    warn(
        f"this node was told to host the c10d store at {_where(settings)}, but {found.keeper} hosts it for this job "
        "already; this node joins it. Set is_host=true on one node only"
    )


def say_taken(settings: Settings, problem: str) -> UsageError:
    """Return the error of a node that was told to host where it cannot."""
    return UsageError(
        f"this node was told to host the c10d store at {_where(settings)} and cannot: port {settings.port} is in use "
        f"on this node: {problem}. Stop what listens there, or choose another port in --rdzv-endpoint"
    )


def say_forwarded(settings: Settings) -> None:
    """Warn that nobody may find the store of this host."""
    warn(
        f"this node hosts the c10d store, as it was told, but {_where(settings)} is not an address of this machine and "
        "does not lead to it from here; other nodes find the store only where that address is forwarded to this machine"
    )


def say_not_local(settings: Settings, keeper: str) -> UsageError:
    """Return the error of a node that was told to host at an address which leads to another host of the store."""
    return UsageError(
        f"this node was told to host the c10d store at {_where(settings)}, but that is not an address of this machine, "
        f"and {keeper or 'another store'} is there already. Set is_host=true on one node only, the one that owns the "
        "address in --rdzv-endpoint, and leave it out here"
    )


def _where(settings: Settings) -> str:
    return format_endpoint(settings.host, settings.port)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()[:200]
