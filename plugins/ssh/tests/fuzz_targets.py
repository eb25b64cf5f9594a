"""What a launch over ssh reads: lists of hosts, what the two ends say, and records; found by ``core.tests.fuzz``."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO, Any
from unittest.mock import patch

from core.tests.fuzz.target import Target

from quorate.errors import UsageError
from quorate.net import host_name
from quorate_ssh import _detached, remote
from quorate_ssh._console import Console
from quorate_ssh._hosts import Host, parse_hostfile, parse_hosts
from quorate_ssh._messages import MARK, ORDERS, decode
from quorate_ssh._plan import Plan
from quorate_ssh._session import Answered, Event, Session

_HOST = Host("a")
_PLAN = Plan("job", (_HOST,), ("ssh",), {}, "train.py", (), "/", {}, 1, 2, False)


def _session(output: IO[bytes], errors: IO[bytes], events: list[Event]) -> Session:
    """Return a connection whose other end has said all; nothing runs."""
    session = object.__new__(Session)
    session.index, session.host, session.hello = 0, _HOST, {}
    session.is_started = session.is_missing = False
    session.complaint, session._bytes_between = "", 0
    session._expected = {"hello": dict, "problem": str, "detached": object}
    session.last_lines = deque(maxlen=5)
    session._console, session._post = Console(), events.append
    session._process = SimpleNamespace(stdout=output, stderr=errors, poll=lambda: 0)  # type: ignore[assignment] # no ssh
    return session


def _hear_host(data: bytes) -> None:
    """Read what a host says, and use it as a launch does."""
    events: list[Event] = []
    session = _session(io.BytesIO(data), io.BytesIO(data), events)
    session._read_output()
    session._read_errors()
    assert all(len(line) <= 1000 and line.isprintable() for line in session.last_lines)
    try:
        endpoint = _PLAN.endpoint_at(_HOST, session.hello, [session.hello])
    except UsageError:
        endpoint = ""
    json.dumps(_PLAN.start(0, session.hello, endpoint, "token", is_first=True)).encode()
    for event in events:
        assert isinstance(event, Answered)
        told = event.message.get("detached", [])
        for record in told if isinstance(told, list) else [told]:
            f"{record['pid'] + 1}{record['log']}".encode("utf-8", "surrogateescape")


def _hear_launch(data: bytes) -> None:
    """Read what the launching side says, as far as it does not start or end anything."""
    message = decode(data, ORDERS)
    start = message.get("start")
    if start is not None:
        {**os.environ}.update({name: value or "" for name, value in start["environment"].items()})
        [os.fsencode(word) for word in start["arguments"]]
    before = os.getcwd()
    try:
        remote._problem_with(message.get("check", {"folder": "/"}))
    finally:
        os.chdir(before)
    with redirect_stdout(io.TextIOWrapper(io.BytesIO())) as output:
        remote._say({"problem": ""})
    output.seek(0)
    assert output.read().startswith(MARK)
    assert 0 < message.get("signal", 1) <= 64


def _read_records(data: bytes) -> None:
    with TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as state:
        folder = os.path.join(state, "quorate", "detached", "job")
        os.makedirs(folder)
        with open(os.path.join(folder, "a.json"), "wb") as file:
            file.write(data)
        with patch.dict(os.environ, {"XDG_STATE_HOME": state}):
            for record in _detached.answer({"end": None, "forget": "job"}):
                json.dumps(record)
        assert os.path.isdir(os.path.dirname(folder))


def _line(message: Mapping[str, Any]) -> bytes:
    return MARK.encode() + json.dumps(message).encode() + b"\n"


_RECORD = {"job": "job", "host": host_name(), "pid": (1 << 22) - 1, "start_time": 5, "since": 1, "log": "/x.log"}
_HELLO = {"version": "1", "plugins": "x", "host": "h", "address": "192.0.2.1", "port": 5, "pid": 7}
_TEXTS = ((UsageError,), (b"a:0", b"[", b"a,a", b"a slots=x", b"-x"))

TARGETS: Mapping[str, Target] = {
    "hosts": Target(lambda data: parse_hosts(data.decode("utf-8", "replace")), (b"a,b:8,u@c,[fd00::1]:4",), *_TEXTS),
    "files of hosts": Target(
        lambda data: parse_hostfile(data.decode("utf-8", "replace"), "file"),
        (b"a slots=4 max_slots=8 # c\nb:2\nc\n", b"a\na\n"),
        *_TEXTS,
    ),
    "what hosts say": Target(
        _hear_host,
        (
            _line({"hello": _HELLO}) + _line({"problem": ""}) + b"text\n",
            _line({"detached": _RECORD}) + _line({"detached": [_RECORD]}),
            _line({"hello": 5}) + _line({"detached": [[]]}) + _line({"hello": {"port": "x", "address": ["\ud800"]}}),
        ),
    ),
    "what hosts are told": Target(
        _hear_launch,
        (
            b'{"check":{"folder":"/","script":"x"}}',
            b'{"start":{"arguments":["--nnodes=1"],"environment":{"A":"b"},"detach":""}}',
            b'{"signal":15}',
            b'{"detached":{"end":null,"forget":"job"}}',
            b'{"signal":"x"}',
            b'{"check":{"folder":"\\u0000"}}',
        ),
    ),
    "records of detached agents": Target(_read_records, (json.dumps(_RECORD).encode(), b"[" * 600, b'{"job":".."}')),
}

ELSEWHERE: Mapping[str, str] = {"quorate_ssh/remote:_machine": "the kernel's own name of this boot"}
