"""What the two ends of a connection say is checked where it comes in, and records lead to no other folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from quorate.net import host_name
from quorate_ssh import _detached
from quorate_ssh._console import Console
from quorate_ssh._hosts import Host
from quorate_ssh._messages import ANSWERS, MARK, ORDERS, decode
from quorate_ssh._session import Answered, Ended, Event, Session

RECORD = {"job": "job", "host": host_name(), "pid": (1 << 22) - 1, "log": "/x.log", "start_time": 1}


@pytest.mark.parametrize(
    "answer",
    [
        {"hello": 5},
        {"hello": {"address": ["a"]}},
        {"hello": {"address": "a\nb"}},
        {"hello": {"port": 1e9}},
        {"hello": {"version": 1}},
        {"problem": {}},
        {"detached": [5]},
        {"detached": {**RECORD, "pid": -1}},
        {"detached": [{**RECORD, "log": None, "job": 1}]},
    ],
)
def test_an_answer_that_is_not_well_formed_is_not_one(answer: dict[str, Any]) -> None:
    assert decode(json.dumps(answer), ANSWERS) == {}


@pytest.mark.parametrize(
    "order",
    [
        {"signal": "x"},
        {"signal": 10**9},
        {"check": {"folder": "\0"}},
        {"check": []},
        {"start": {"arguments": "ab", "environment": {}}},
        {"start": {"arguments": [], "environment": {"A": 1}}},
        {"start": {"arguments": ["\ud800"], "environment": {}}},
        {"start": {"arguments": [], "environment": {"A=": "b"}}},
        {"detached": {"forget": 1}},
    ],
)
def test_an_order_that_is_not_well_formed_is_not_one(order: dict[str, Any]) -> None:
    assert decode(json.dumps(order), ORDERS) == {}


@pytest.mark.parametrize("line", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"hello":NaN}', b"9" * 9999])
def test_a_line_that_is_not_a_message_is_not_one(line: bytes) -> None:
    assert decode(line, ANSWERS) == decode(line, ORDERS) == {}


def test_a_host_that_says_anything_ends_with_its_connection(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the place of ssh stands a program that says what a broken or hostile host could."""
    said = [{"hello": {"version": "9"}}, {"hello": 7}, {"hello": {"version": "8"}}]
    program = tmp_path / "ssh"
    lines = "".join(f"{MARK}{json.dumps(each)}\n" for each in said)
    (tmp_path / "said").write_bytes(lines.encode() + b"\xff" * 9_000_000 + b"\n")
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/said\nprintf '\\033[2J%09999d\\n' 7 >&2\nexit 3\n")
    program.chmod(0o700)
    events: SimpleQueue[Event] = SimpleQueue()
    session = Session(0, Host("h"), [str(program)], sys.executable, Console(), events.put)
    got: list[Event] = []
    while not (got and isinstance(got[-1], Ended)):
        got.append(events.get(timeout=60.0))
    assert [each.message for each in got if isinstance(each, Answered)] == said[:1]
    assert session.hello == {"version": "9"}
    assert session.complaint == "its answer '{\"hello\": 7}' is not one that was asked for"
    assert all(len(line) <= 1000 and line.isprintable() for line in session.last_lines)


@pytest.mark.parametrize("job", ["job", "a/b", "..", "../..", "/etc", "", "x" * 60 + "\N{SNOWMAN}"])
def test_forgetting_a_job_removes_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "quorate" / "detached" / "kept").mkdir(parents=True)
    before = sorted(map(str, tmp_path.rglob("*")))
    folder = Path(_detached._folder_of(job))
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({**RECORD, "job": job}))
    assert [each["job"] for each in _detached.answer({"end": None, "forget": None})] == [job]
    assert _detached.answer({"end": None, "forget": job}) == []
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 600,
        b"5",
        b"{}",
        *(json.dumps({**RECORD, **each}).encode() for each in ({"job": ".."}, {"pid": -1}, {"job": None})),
    ]
    + [json.dumps({**RECORD, "pid": 10**30}).encode(), json.dumps({**RECORD, "job": 5}).encode()],
)
def test_what_is_not_a_record_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "quorate" / "detached" / "job"
    folder.mkdir(parents=True)
    (folder / "a.json").write_bytes(content)
    os.mkfifo(folder / "b.json")
    assert _detached.answer({"end": "..", "forget": ".."}) == []
    assert (folder / "a.json").exists()
