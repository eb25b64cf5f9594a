"""Agents that go on without the command that started them, and their records on each host.

A record is a file beside the agent's output, below ``$XDG_STATE_HOME`` (``~/.local/state``), one for each host, because
hosts may share their home folders.  What does not live here: ``quorate detached``, which asks for them (``_command``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from quorate.clock import wall_seconds
from quorate.files import read_bytes, write_atomically, write_byte
from quorate.net import host_name
from quorate.proc import start_time_of
from quorate.text import parse_json

from ._messages import is_record

_RECORD_SUFFIX = ".json"


def _folder() -> str:
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "quorate", "detached")


def _folder_of(job: str) -> str:
    """Return the folder of a job; a name that would lead elsewhere is quoted."""
    name = quote(job, safe="")
    return os.path.join(_folder(), name if name.strip(".") else name.replace(".", "%2E") or "%")


def begin(job: str, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Start an agent that outlives this process; return its record.

    Raises:
        OSError: the agent could not be started, or its record not be written; no agent runs.
    """
    folder = _folder_of(job)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # Several names of a job may be one machine.
    name = f"{host_name()}-{os.getpid()}"
    log = os.path.join(folder, f"{name}.log")
    with open(log, "ab") as output:
        write_byte(folder)  # a disk that is full takes the empty file
        agent = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    record = {
        "job": job,
        "host": host_name(),
        "pid": agent.pid,
        "start_time": start_time_of(agent.pid),
        "since": wall_seconds(),
        "log": log,
    }
    try:
        write_atomically(os.path.join(folder, name + _RECORD_SUFFIX), json.dumps(record))
    except OSError:
        agent.kill()  # nobody would find it: its workers die with it
        agent.wait()
        raise
    return record


def answer(question: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return this host's records; with ``end``, the agent of that job is asked to stop first."""
    end, result = question.get("end"), []
    for record in _records():
        is_alive = record["start_time"] is not None and start_time_of(record["pid"]) == record["start_time"]
        if end and record["job"] == end:
            if is_alive:
                with suppress(ProcessLookupError, PermissionError):  # it has ended meanwhile
                    os.kill(record["pid"], signal.SIGTERM)
            record["ended"] = True
        elif not is_alive and question.get("forget") == record["job"]:
            shutil.rmtree(_folder_of(record["job"]), ignore_errors=True)
            continue
        result.append({**record, "is_alive": is_alive})
    return result


def _records() -> list[dict[str, Any]]:
    """Return the records that this host has written; one that does not lie in its job's folder is not one of ours."""
    found = []
    for folder, _, names in os.walk(_folder()):
        for name in sorted(names):
            if not name.endswith(_RECORD_SUFFIX):
                continue
            try:
                record = parse_json(read_bytes(os.path.join(folder, name), regular=True))
            except ValueError:
                continue  # not one of ours
            if is_record(record) and record["host"] == host_name() and folder == _folder_of(record["job"]):
                found.append({"start_time": None, **record})
    return found
