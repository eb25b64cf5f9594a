"""Text and numbers of peers and workers: nothing steers a terminal, nothing that cannot be waited for is waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, fields
from core.tests.cli_runs import clean_environment, quorate, runs_a_job
from core.tests.test_foreign_files import KINDS

from quorate import notices
from quorate.clock import monotonic, sleep
from quorate.errors import StoreCorruptError, UsageError
from quorate.failures import read_error_file
from quorate.net import parse_endpoint
from quorate.records import Assignment, Cause, FailureRecord, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import InMemoryStore, RendezvousParameters, job_is_over
from quorate.rendezvous._liveness import Heartbeat
from quorate.rendezvous._parameters import settings_of
from quorate.rendezvous._wire import decode_assignment, decode_end, decode_node, encode, encode_object
from quorate.text import without_passwords
from quorate.verdict import JobState, JobVerdict

EVIL = "\x1b[2Jbad\x07\u202e\x9b31m"
LONG = "x" * 100_000


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


# --- peers ------------------------------------------------------------------------------------------------------------

ASSIGNMENT = Assignment(0, "a", "r", 1, 0, 1, 0, 1, 0, 1, "h", 1, warnings=(EVIL,), missing=(EVIL,))
FAILURE = FailureRecord(0, 0, 1, 1, Cause.EXCEPTION, f"{EVIL}\n{EVIL}", 0, host=EVIL, stderr_tail=(EVIL, EVIL))
END = RoundEnd(
    0, Cause.STOPPED, Verdict.STOPPED, f"{EVIL}\nquorate: error", host=EVIL, missing=(EVIL,), failure=FAILURE
)


def test_what_peers_write_for_people_steers_no_terminal() -> None:
    end, node = (
        decode_end("k", encode(END)),
        decode_node("k", encode(NodeRecord("a", "r", 1, host=EVIL, declined=EVIL))),
    )
    assignment = decode_assignment("k", encode(ASSIGNMENT))
    assert end.failure is not None
    texts = [end.reason, end.host, *end.missing, end.failure.host, *end.failure.stderr_tail, node.host, node.declined]
    assert all(text.isprintable() for text in (*texts, *assignment.warnings, *assignment.missing))
    assert is_harmless(end.failure.message)
    assert Heartbeat.decode(f"1 run {EVIL}".encode()).host.isprintable()


def test_names_that_are_compared_stay_as_they_are() -> None:
    node = decode_node("k", encode(NodeRecord(EVIL, EVIL, 1, address=EVIL)))
    assert (node.node_id, node.role, node.address) == (EVIL, EVIL, EVIL)


def test_a_report_steers_no_terminal_and_has_no_endless_line() -> None:
    failure = evolve(FAILURE, message=f"{EVIL}\n{LONG}", error_file=EVIL, node_id=EVIL)
    verdict = JobVerdict(
        EVIL,
        EVIL,
        EVIL,
        JobState.FAILED,
        Cause.EXCEPTION,
        f"{EVIL}\n{LONG}",
        failure,
        (failure,),
        (evolve(END, reason=EVIL),),
    )
    report = verdict.report(f"{EVIL}.py")
    assert is_harmless(report)
    assert max(map(len, report.split("\n"))) < 10_000
    assert json.loads(json.dumps(verdict.to_json()))["reason"].endswith(LONG)  # programs get all of it


def test_the_console_takes_no_control_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    notices.warn(f"{EVIL}\r\n{LONG}")
    notices.write_error(json.dumps({"a": LONG}))
    notices.write_output(f"one\ttwo{EVIL}\nthree")
    captured = capsys.readouterr()
    assert is_harmless(captured.out)
    assert is_harmless(captured.err)
    first, second, line, _ = captured.err.split("\n")
    assert first.startswith("quorate: warning: bad")
    assert len(second) < 5000
    assert json.loads(line) == {"a": LONG}


@runs_a_job
def test_a_workers_message_reaches_no_terminal_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"raise ValueError({EVIL!r})")
    recorded = tmp_path / "recorded.py"
    recorded.write_text(f"from quorate import record\n@record\ndef main(): raise ValueError({EVIL!r})\nmain()")
    for each in (script, recorded):
        done = quorate("run", "--standalone", "--max-restarts=0", "--redirects=3", f"--log-dir={tmp_path}", str(each))
        assert done.returncode == 1
        assert "ValueError: bad" in done.stderr
        assert is_harmless(done.stderr), repr(done.stderr)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_file_that_a_worker_has_replaced_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "error.json"
    KINDS[kind](path)
    if (tmp_path / "secret").exists():
        (tmp_path / "secret").write_text('{"message": "secret"}')
    assert read_error_file(str(path)) is None


FILLER = """
import os, sys
filler = open(os.path.join(os.environ["LOGS"], "filler"), "wb", 0)
try:
    while filler.write(bytes(4096)): pass
except OSError: pass
if sys.argv[1] == "fails":
    raise OSError(28, "No space left on device")
try:
    for _ in range(100): print("x" * 4095, flush=True)
except OSError: pass
open(os.environ["OUT"], "w").write("done")
os._exit(0)  # what is buffered cannot be written
"""


@runs_a_job
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize(("flag", "what"), [("--redirects=3", "goes on"), ("--tee=3", "goes on"), ("--tee=3", "fails")])
def test_a_disk_for_logs_that_fills_up_while_a_job_runs_is_named_and_the_job_goes_on(
    tmp_path: Path, flag: str, what: str
) -> None:
    (tmp_path / "train.py").write_text(FILLER)
    (tmp_path / "logs").mkdir()
    command = [str(Path(sys.executable).with_name("quorate")), "run", "--standalone", "--health-checks=none", flag]
    command += ["--max-restarts=0", f"--log-dir={tmp_path}/logs", str(tmp_path / "train.py"), what]
    mount = f'mount -t tmpfs -o size=256k tmpfs {tmp_path}/logs; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", mount, "sh", *command],
        env=clean_environment(LOGS=str(tmp_path / "logs"), OUT=str(tmp_path / "out")),
        capture_output=True,
        text=True,
        timeout=100,
    )
    if "mount: " in done.stderr or "unshare: " in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == (1 if what == "fails" else 0), done.stderr
    assert (tmp_path / "out").exists() is (what != "fails")
    assert "No space left on device" in done.stderr, done.stderr[-3000:]
    assert "bug in quorate" not in done.stderr


# --- counters and times -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 50])
@pytest.mark.parametrize("hint", [0, 1, 49, 50, 51, 10**9, 2**63 - 1])
@pytest.mark.parametrize("is_over", [True, False])
def test_whether_a_job_is_over_does_not_depend_on_the_counter(rounds: int, hint: int, is_over: bool) -> None:
    store, end = InMemoryStore(), RoundEnd(0, Cause.EXCEPTION, Verdict.RESTART, "")
    store.add("round", hint)
    for number in range(rounds):
        is_last = is_over and number == rounds - 1
        store.create(f"{number}/ended", encode(evolve(end, verdict=Verdict.FAILED if is_last else Verdict.RESTART)))
    assert job_is_over(store) is is_over


@pytest.mark.parametrize("hint", [-1, 2**64, "x", None, True])
def test_a_counter_that_no_round_has_is_named(hint: Any) -> None:
    store: Any = InMemoryStore()
    store.add = lambda key, amount: hint
    with pytest.raises(StoreCorruptError, match="round"):
        job_is_over(store)


def test_ends_that_contradict_each_other_are_no_endless_search() -> None:
    store: Any = InMemoryStore()
    turns = iter(range(10**6))
    running = encode(RoundEnd(0, Cause.EXCEPTION, Verdict.RESTART, ""))
    store.get = lambda keys: [running if next(turns) % 3 else None] * len(keys)
    store.add = lambda key, amount: 5
    with suppress(StoreCorruptError):
        job_is_over(store)
    assert next(turns) < 1000


@pytest.mark.parametrize("name", [attribute.name for attribute in fields(Assignment)])
@pytest.mark.parametrize("value", [10**400, -1, 1e999, float("nan"), True, [], {}, "\ud800", None, "9" * 400])
def test_every_field_of_an_assignment_takes_only_what_a_sealer_writes(name: str, value: Any) -> None:
    good = json.loads(encode(evolve(ASSIGNMENT, warnings=(), missing=())))
    changed = {key: text for key, text in good.items() if key not in ("v", "kind")} | {name: value}
    try:
        decoded = decode_assignment("k", encode_object("assignment", changed))
    except StoreCorruptError:
        return
    read = getattr(decoded, name)
    assert type(read) is type(getattr(ASSIGNMENT, name))
    assert read == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("seconds", [3e6, 1e12, 1e300, float("inf")])
def test_a_wait_of_any_length_ends_when_something_happens(seconds: float) -> None:
    store = InMemoryStore()
    waits: list[Callable[[], Any]] = [lambda: store.wait("key", seconds)]
    results: list[Any] = []
    threads = [threading.Thread(target=lambda wait=wait: results.append(wait())) for wait in waits]
    for thread in threads:
        thread.start()
    store.put("key", b"x")
    for thread in threads:
        thread.join(30)
    assert results == [b"x"]


def test_a_pause_that_is_over_is_none() -> None:
    began = monotonic()
    sleep(-5.0)
    assert monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("user:hunter2@host:1", "user:********@host:1"),
        ("redis://:hunter2@host:1", "redis://:********@host:1"),
        ("http://user:hunter2@a:1,http://user:hunter2@b:1", "http://user:********@a:1,http://user:********@b:1"),
        ("host:1", "host:1"),
        ("user@host:1", "user@host:1"),
        ("[::1]:1", "[::1]:1"),
    ],
)
def test_a_password_in_an_endpoint_is_not_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
    parameters = RendezvousParameters("x", text, "job", 1, 1)
    assert "hunter2" not in repr(parameters)
    assert "hunter2" not in settings_of(parameters).endpoint
    if text != shown:
        with pytest.raises(UsageError) as caught:
            parse_endpoint(text)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("argument", ["--show-config", "--nnodes=2"])
def test_a_password_in_an_endpoint_reaches_no_console(tmp_path: Path, argument: str) -> None:
    (tmp_path / "train.py").touch()
    flags = ["--rdzv-backend=tcp", "--rdzv-endpoint=user:hunter2@host:1", "--rdzv-id=1"]
    done = quorate("run", argument, *flags, str(tmp_path / "train.py"), cwd=tmp_path)
    assert "hunter2" not in done.stdout + done.stderr
