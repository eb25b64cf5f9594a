"""The conformance kit itself: how laws are declared, what it refuses, what it reports, and its servers."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import pytest

from quorate import PluginHost, hookimpl
from quorate.cli import main
from quorate.errors import StoreUnavailableError, UsageError
from quorate.rendezvous import InMemoryStore, RendezvousBackend
from quorate.testing import (
    Ability,
    CuttableProxy,
    Law,
    LawBrokenError,
    RendezvousConformance,
    ServerProcess,
    StoreConformance,
    Subject,
    Tier,
    Verdict,
    all_laws,
    check,
    free_port,
    try_law,
)
from quorate.testing._gate import Gate
from quorate.testing._history import Entry, History, explain, is_linearizable
from quorate.testing._law import law
from quorate.testing._subject import result_of, start

from .memory import shared_by_run

MEMORY = RendezvousBackend("memory", "for tests", open_store=shared_by_run(InMemoryStore, InMemoryStore.clone))


def subject(**changes: Any) -> Subject:
    return Subject(MEMORY, "", **{"lenient": True, **changes})


def make_law(function: Any, *needs: Ability, since: tuple[int, int] = (0, 1)) -> Law:
    return Law("made", Tier.STORE, needs, "it says this", "look there", since, function)


# --- declaring laws ---------------------------------------------------------------------------------------------------


def test_every_law_explains_itself() -> None:
    for each in all_laws():
        assert each.text.endswith(".")
        assert each.advice.endswith((".", ".)"))
        assert each.name == each.name.lower()
        assert (Ability.STORE in each.needs) or each.tier is not Tier.STORE


def test_a_law_without_advice_is_refused() -> None:
    def nameless(subject: Subject) -> None:
        """Only one paragraph."""

    with pytest.raises(UsageError, match="two paragraphs"):
        law(Tier.STORE)(nameless)


def test_classes_have_one_test_per_law() -> None:
    names = {f"test_{law.name}" for law in all_laws()}
    assert names <= set(dir(StoreConformance))
    without_store = {f"test_{law.name}" for law in all_laws() if Ability.STORE not in law.needs}
    assert {name for name in dir(RendezvousConformance) if name.startswith("test_")} == without_store


def test_a_law_cannot_be_overridden() -> None:
    with pytest.raises(UsageError, match=r"Mine overrides test_counters_are_exact; a law cannot"):
        type("Mine", (StoreConformance,), {"test_counters_are_exact": None})


@pytest.mark.parametrize(
    ("absent", "problem"), [({"wings": "no"}, "not an ability"), ({"batch": " "}, "without a reason")]
)
def test_absent_abilities_are_known_and_have_a_reason(absent: dict[str, str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        type("Mine", (StoreConformance,), {"absent": absent})
    with pytest.raises(UsageError, match=problem):
        subject(absent=absent)


# --- trying laws ------------------------------------------------------------------------------------------------------


def test_abilities_are_there_or_declared_absent() -> None:
    law = make_law(lambda subject: None, Ability.PAUSE)
    assert try_law(law, subject()).verdict is Verdict.ABSENT
    strict = subject(lenient=False)
    outcome = try_law(law, strict)
    assert outcome.verdict is Verdict.BROKEN
    assert 'absent = {"pause": "why"}' in outcome.text
    declared = try_law(law, subject(lenient=False, absent={"pause": "no server"}))
    assert (declared.verdict, declared.text) == (Verdict.ABSENT, "no server")
    batch = make_law(lambda subject: None, Ability.BATCH)
    assert "but the backend has it" in try_law(batch, subject(absent={"batch": "I believe"})).text


def test_a_new_law_warns_before_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> None:
        raise LawBrokenError("seen this")

    new = make_law(broken, since=(0, 2))
    monkeypatch.setattr("quorate.__version__", "0.2.5")
    outcome = try_law(new, subject())
    assert outcome.verdict is Verdict.WARNED
    assert "fails from the next minor release" in outcome.text
    for version in ("0.3.0", "1.0"):
        monkeypatch.setattr("quorate.__version__", version)
        assert try_law(new, subject()).verdict is Verdict.BROKEN
    monkeypatch.setattr("quorate.__version__", "0.1.0")
    assert try_law(make_law(broken), subject()).verdict is Verdict.BROKEN


def test_a_broken_law_says_what_was_seen_and_where_to_look() -> None:
    def raises(subject: Subject) -> None:
        raise KeyError("surprise")

    text = try_law(make_law(raises), subject()).text
    for part in ("KeyError", "surprise", "test_conformance_kit.py", "it says this", "look there"):
        assert part in text


def test_a_law_that_hangs_is_broken_in_time() -> None:
    freed = threading.Event()
    tried = subject(timeout=0.05)

    def hangs(subject: Subject) -> None:
        freed.wait(30)

    outcome = try_law(make_law(hangs), tried, seconds=0.05)
    freed.set()
    assert outcome.verdict is Verdict.BROKEN
    assert "did not come to an end" in outcome.text


def test_a_member_that_waits_for_a_change_bears_a_store_that_is_slow_to_answer() -> None:
    with subject() as tried:
        job, gate = tried.job(), Gate()
        member = job.member(1, 2, gate=gate, close_timeout=0.05)
        member.join()
        gate.shut()
        with pytest.raises(StoreUnavailableError):
            member.handler.num_nodes_waiting()
        changing = start(member.await_change)
        with pytest.raises(FutureTimeoutError):
            changing.result(0.5)
        gate.open()
        other = job.member(1, 2).joining()
        result_of(changing, 30.0, "waiting for the end of a round")
        assert member.join().world_size == 2
        other.result(30.0)


def test_an_unknown_law_is_refused_with_what_it_may_have_been() -> None:
    with pytest.raises(UsageError, match="did you mean counters_are_exact"):
        list(check(subject(), ["counter_is_exact"]))


@pytest.mark.parametrize("mode", ["default", "error"])
def test_in_pytest_a_new_law_warns_even_where_warnings_are_errors(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest, quorate\n"
        "from quorate.rendezvous import InMemoryStore, RendezvousBackend\n"
        "from quorate.testing import Law, LawBrokenError, StoreConformance, Tier\n"
        "from quorate.testing._classes import _make_test\n"
        "def function(subject): raise LawBrokenError('seen')\n"
        "law = Law('new', Tier.STORE, (), 'text', 'advice', (0, 1000), function)\n"
        "class TestIt(StoreConformance):\n"
        "    backend = RendezvousBackend('m', 's', open_store=lambda parameters: InMemoryStore())\n"
        "    @pytest.fixture\n"
        "    def server(self): return ''\n"
        "TestIt.test_new = _make_test(law)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", mode, "-k", "test_new"]
    done = subprocess.run([*command, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "NewLawWarning: seen" in done.stdout
    assert "1 passed" in done.stdout


# --- histories --------------------------------------------------------------------------------------------------------


def entry(operation: str, argument: Any, answer: Any, began: float, ended: float, member: int = 0) -> Entry:
    return Entry(member, operation, "key", argument, answer, began, ended)


NEVER = float("inf")


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], True, id="nothing"),
        pytest.param(
            [entry("put", b"1", None, 0, 1), entry("get", None, b"1", 2, 3)], True, id="read what was written"
        ),
        pytest.param([entry("put", b"1", None, 0, 1), entry("get", None, None, 2, 3)], False, id="stale read"),
        pytest.param([entry("put", b"1", None, 0, 5), entry("get", None, None, 2, 3)], True, id="concurrent read"),
        pytest.param(
            [entry("put", b"1", None, 0, 9), entry("get", None, b"1", 1, 2), entry("get", None, None, 3, 4)],
            False,
            id="seen, then not",
        ),
        pytest.param([entry("create", b"1", True, 0, 3), entry("create", b"1", True, 1, 2)], False, id="two winners"),
        pytest.param([entry("create", b"1", False, 0, 3), entry("create", b"1", True, 1, 2)], True, id="one winner"),
        pytest.param([entry("add", 1, 1, 0, 3), entry("add", 1, 1, 1, 2)], False, id="lost addition"),
        pytest.param([entry("add", 1, 2, 0, 3), entry("add", 1, 1, 1, 2)], True, id="two additions"),
        pytest.param([entry("add", 1, None, 0, NEVER), entry("add", 1, 2, 5, 6)], True, id="unanswered, carried out"),
        pytest.param([entry("add", 1, None, 0, NEVER), entry("add", 1, 1, 5, 6)], True, id="unanswered, lost"),
        pytest.param([entry("add", 1, None, 0, NEVER), entry("add", 1, 3, 5, 6)], False, id="carried out twice"),
        pytest.param(
            [entry("put", b"1", None, 0, 1), entry("delete", None, None, 2, 3), entry("wait", None, None, 4, 5)],
            True,
            id="deleted",
        ),
    ],
)
def test_histories_are_judged(entries: list[Entry], expected: bool) -> None:
    assert is_linearizable(entries) is expected


def test_an_explanation_is_as_short_as_it_can_be() -> None:
    good = [entry("put", b"%d" % number, None, number, number + 0.5) for number in range(50)]
    text = explain([*good, entry("get", None, b"0", 50, 51, member=7), *(entry("put", b"", None, 60, 61),)])
    assert text.splitlines()[-1].endswith("member 7: get() -> b'0'")


def test_a_call_without_an_answer_is_recorded_as_such() -> None:
    def fail() -> None:
        raise StoreUnavailableError("away")

    history = History()
    history.record(0, "put", "key", b"1", fail)
    assert [each.ended for each in history.by_key()["key"]] == [NEVER]


# --- servers ----------------------------------------------------------------------------------------------------------

ECHO = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    sock, _ = listener.accept()
    while data := sock.recv(100):
        sock.sendall(data)
"""


def answer(sock: socket.socket, text: bytes) -> bytes:
    sock.sendall(text)
    return sock.recv(100)


def test_a_server_can_be_cut_off_paused_and_restarted() -> None:
    port = free_port()
    with ServerProcess([sys.executable, "-c", ECHO, str(port)], port) as server:
        host, _, number = server.endpoint.rpartition(":")
        with socket.create_connection((host, int(number)), 30) as sock:
            assert answer(sock, b"one") == b"one"
            for fault in (server.partition, server.pause):
                with fault():
                    sock.settimeout(0.05)
                    with pytest.raises(TimeoutError):
                        answer(sock, b"two")
                sock.settimeout(30)
                assert sock.recv(100) == b"two"  # nothing is lost: it was only late
        before = server.endpoint
        server.restart()
        assert server.endpoint == before
        with socket.create_connection((host, int(number)), 30) as sock:
            assert answer(sock, b"three") == b"three"


CHILD_SERVER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if os.fork():  # the server is a child of the process that was started, as behind a shell or a launcher
    os.wait()
while True:
    connection, _ = listener.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""


def test_a_pause_stops_every_process_of_the_server() -> None:
    port = free_port()
    with ServerProcess([sys.executable, "-c", CHILD_SERVER, str(port)], port) as server:
        host, _, text = server.endpoint.partition(":")
        with socket.create_connection((host, int(text)), timeout=30) as client:
            client.sendall(b"1")
            assert client.recv(10) == b"1"
            client.settimeout(0.5)
            with server.pause():
                client.sendall(b"2")
                with pytest.raises(TimeoutError):
                    client.recv(10)
            client.settimeout(30)
            assert client.recv(10) == b"2"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=30)


def test_an_answer_is_lost_after_the_server_has_got_the_request() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, CuttableProxy(f"127.0.0.1:{server.getsockname()[1]}") as proxy:
        host, _, number = proxy.endpoint.rpartition(":")
        with socket.create_connection((host, int(number)), timeout=30) as client:
            connection, _ = server.accept()
            with connection:
                client.sendall(b"before")
                assert connection.recv(10) == b"before"
                with proxy.losing_answers():
                    client.sendall(b"add")
                    assert connection.recv(10) == b"add"
                    connection.sendall(b"done")
                    assert client.recv(10) == b""


def test_a_server_that_does_not_start_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not listen"):
        ServerProcess([sys.executable, "-c", "pass"], free_port())
    with pytest.raises(UsageError, match="cannot be started"):
        ServerProcess([str(tmp_path / "absent")], 1)


def test_a_proxy_without_a_server_ends_connections() -> None:
    with CuttableProxy(f"127.0.0.1:{free_port()}") as proxy:
        host, _, port = proxy.endpoint.rpartition(":")
        with socket.create_connection((host, int(port)), 30) as sock:
            assert sock.recv(1) == b""


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the in-memory store found as if it were installed."""
    plugin = type("plugin", (), {"quorate_register_rendezvous": staticmethod(hookimpl(lambda: [MEMORY]))})
    host = PluginHost(paths=[], extra=[("memory", plugin)])
    monkeypatch.setattr("quorate.plugins._host", host)


def test_the_command_prints_one_line_per_law(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["conformance", "memory", "--endpoint", "x", "--law=create_has_one_winner", "--law=counters_are_exact"]
    assert main([*words, "--law=pause_is_reported_and_survived"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["ok", "store", "create_has_one_winner"],
        ["ok", "store", "counters_are_exact"],
        ["absent", "store", "pause_is_reported_and_survived:"],
    ]
    assert lines[3:] == ["memory: 2 kept, 1 not tried"]


def test_the_command_fails_for_a_broken_law(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "memory", "--endpoint=x", "--law=bad_endpoint_is_refused"]) == 4
    out = capsys.readouterr().out
    assert "should raise UsageError, but nothing was raised" in out
    assert "again: quorate conformance memory --endpoint=x --law=bad_endpoint_is_refused" in out
    assert main(["conformance", "memory", "--endpoint=x", "--law=bad_endpoint_is_refused", "--absent=endpoint"]) == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["memory"], "the endpoint is missing"),
        (["nobody"], "unknown rendezvous backend 'nobody'"),
        (["--endpoint=x"], "name one backend"),
        (["memory", "--endpoint"], "argument --endpoint: expected one argument"),
        (["memory", "--endpoint=x", "--rdzv_conf=a"], "'a' is not a list of settings KEY=VALUE"),
        (["memory", "--endpoint=x", "--what"], "unrecognized arguments: --what; see: quorate conformance --help"),
        (["memory", "--endpoint=x", "--law=zzz"], "unknown law zzz; see: quorate conformance --list"),
    ],
)
def test_wrong_use_of_the_command_is_told(
    words: list[str], problem: str, installed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", *words]) == 2
    assert problem in capsys.readouterr().err


def test_the_command_lists_the_laws(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(law.name in out and law.text in out for law in all_laws())


def test_processes_that_run_side_by_side_are_given_ports_of_their_own_and_none_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody holds a port between the choice and the server's start."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    ports = [free_port() for _ in range(150)]
    assert len(set(ports)) == 150
    assert {port % 3 for port in ports} == {(20_000 + 1) % 3}
