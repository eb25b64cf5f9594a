"""Stores whose values are signed with a job token: what is refused, and that nothing else changes."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest

from quorate.errors import StoreCorruptError, UsageError
from quorate.job_token import JobToken, job_token_of, load_job_token
from quorate.rendezvous import InMemoryStore, sign_store
from quorate.rendezvous._protocol import Key

SECRET = b"0123456789abcdef"
KEY = JobToken(SECRET).key("job", "store")


class Pair:
    """A signed store, the store below it, and what was reported."""

    def __init__(self) -> None:
        self.below = InMemoryStore()
        self.reports: list[str] = []
        self.signed = sign_store(self.below, KEY, self.reports.append)

    def name_of(self, key: str) -> str:
        """Return the name that ``key`` has below, once it exists there."""
        (name,) = [name for name in self.below._values if name.startswith(f"{key}.")]
        return name


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_what_is_written_is_read_back(pair: Pair) -> None:
    assert pair.signed.create("1/sealed", b"seal")
    assert not pair.signed.create("1/sealed", b"other")
    pair.signed.put("1/heartbeat/r0", b"")
    pair.signed.put_many([("1/a", b"a"), ("1/b", b"b")])
    assert pair.signed.get(["1/sealed", "1/heartbeat/r0", "1/a", "1/b", "1/c"]) == [b"seal", b"", b"a", b"b", None]
    assert pair.signed.wait("1/sealed", 0.0) == b"seal"
    assert pair.signed.add("1/tickets", 2) == 2
    pair.signed.delete("1/")
    assert pair.signed.get(["1/sealed", "1/a"]) == [None, None]
    assert pair.reports == []


def test_a_stranger_who_writes_under_the_plain_name_changes_nothing(pair: Pair) -> None:
    pair.below.create("1/ended", b"forged")
    assert pair.signed.get(["1/ended"]) == [None]
    assert pair.signed.create("1/ended", b"true")
    assert pair.signed.wait("1/ended", 0.0) == b"true"


def test_a_value_without_the_tag_is_ignored_and_reported_once(pair: Pair) -> None:
    pair.signed.put("1/heartbeat/r0", b"7 run")
    pair.below.put(pair.name_of("1/heartbeat/r0"), b"8 run")
    assert pair.signed.get(["1/heartbeat/r0"]) == [None]
    assert pair.signed.get(["1/heartbeat/r0"]) == [None]
    assert len(pair.reports) == 1
    assert "'1/heartbeat/r0'" in pair.reports[0]
    pair.signed.put("1/heartbeat/r0", b"9 run")
    assert pair.signed.get(["1/heartbeat/r0"]) == [b"9 run"]


def test_a_value_of_another_key_does_not_pass(pair: Pair) -> None:
    pair.signed.put("1/ended", b"the end of round 1")
    pair.signed.put("2/ended", b"x")
    pair.below.put(pair.name_of("2/ended"), pair.below.get([pair.name_of("1/ended")])[0] or b"")
    assert pair.signed.get(["2/ended"]) == [None]


def test_a_waiter_learns_that_what_came_is_not_the_jobs(pair: Pair) -> None:
    pair.signed.create("1/sealed", b"seal")
    pair.below.put(pair.name_of("1/sealed"), b"forged")
    with pytest.raises(StoreCorruptError, match=r"'1/sealed'.*not signed with this job's token"):
        pair.signed.wait("1/sealed", 0.0)


@pytest.mark.parametrize("place", [0, 1, 20, 33, -1])
def test_a_single_changed_byte_is_noticed(pair: Pair, place: int) -> None:
    pair.signed.put("k", b"value")
    name = pair.name_of("k")
    sealed = bytearray(pair.below.get([name])[0] or b"")
    sealed[place] ^= 1
    pair.below.put(name, bytes(sealed))
    assert pair.signed.get(["k"]) == [None]


@pytest.mark.parametrize("size", range(34))
def test_short_values_are_not_the_jobs(pair: Pair, size: int) -> None:
    pair.signed.put("k", b"value")
    pair.below.put(pair.name_of("k"), b"\x01" * size)
    assert pair.signed.get(["k"]) == [None]


def test_other_tokens_runs_and_purposes_have_other_keys() -> None:
    token = JobToken(SECRET)
    keys = {
        token.key("job", "store"),
        token.key("job", "tcp"),
        token.key("jobs", "tore"),
        JobToken(SECRET + b"0").key("job", "store"),
    }
    assert len(keys) == 4
    assert JobToken(SECRET).key("job", "store") == KEY
    below = InMemoryStore()
    sign_store(below, KEY, pytest.fail).put("k", b"v")
    assert sign_store(below, token.key("job2", "store"), pytest.fail).get(["k"]) == [None]


# --- where the token comes from -------------------------------------------------------------------------------------


def test_a_token_is_never_shown_and_survives_pickling() -> None:
    token = JobToken(SECRET)
    assert SECRET.decode() not in f"{token!r} {token}"
    assert pickle.loads(pickle.dumps(token)).key("job", "store") == KEY


def test_a_token_comes_from_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    token = load_job_token({"QUORATE_JOB_TOKEN_FILE": str(path)})
    assert token is not None
    assert token.key("job", "store") == KEY
    for mode in (0o640, 0o604, 0o660, 0o620):
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"chmod 600 {path}"):
            load_job_token({"QUORATE_JOB_TOKEN_FILE": str(path)})


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 15, b" " * 40])
def test_a_short_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=f"in '{path}' .* at least 16"):
        load_job_token({"QUORATE_JOB_TOKEN_FILE": str(path)})


def test_odd_files_are_refused_at_once(tmp_path: Path) -> None:
    fifo, absent, large = tmp_path / "fifo", tmp_path / "absent", tmp_path / "large"
    os.mkfifo(fifo, stat.S_IRUSR | stat.S_IWUSR)
    large.write_bytes(b"x" * 5000)
    large.chmod(0o600)
    cases = {fifo: "not a regular file", absent: "cannot be read", tmp_path: "regular file", large: "more than"}
    for path, words in cases.items():
        with pytest.raises(UsageError, match=words):
            load_job_token({"QUORATE_JOB_TOKEN_FILE": str(path)})


def test_the_variable_serves_where_a_file_cannot_be_made() -> None:
    assert load_job_token({}) is None
    assert load_job_token({"QUORATE_JOB_TOKEN": SECRET.decode()}) is not None
    with pytest.raises(UsageError, match="unset one"):
        load_job_token({"QUORATE_JOB_TOKEN": SECRET.decode(), "QUORATE_JOB_TOKEN_FILE": "x"})


def test_the_setting_says_whether_a_token_is_needed() -> None:
    given = {"QUORATE_JOB_TOKEN": SECRET.decode()}
    assert job_token_of({}, {}) is None
    assert job_token_of({}, given) is not None
    assert job_token_of({"auth": "off"}, given) is None
    assert job_token_of({"auth": " Required"}, given) is not None
    with pytest.raises(UsageError, match="no job token"):
        job_token_of({"auth": "required"}, {})
    with pytest.raises(UsageError, match="'always' is not one of auto, required, off"):
        job_token_of({"auth": "always"}, given)


# --- counters -------------------------------------------------------------------------------------------------------


def test_the_jobs_counters_are_those_that_it_adds_to() -> None:
    counters = [Key.ROUND, Key.tickets(3), Key.done(12), Key.departed(0)]
    values = [Key.sealed(1), Key.ended(1), Key.node(1, 2), Key.rank_heartbeat(1, 0), Key.ticket_heartbeat(1, 1)]
    values += [Key.assignment(1, 1, 2), Key.rank_tickets(1, 1, 0), Key.empty(1), "1/done/x", "done", "/done"]
    assert all(map(Key.is_counter, counters))
    assert not any(map(Key.is_counter, values))


def test_a_bare_number_is_not_taken_for_a_heartbeat(pair: Pair) -> None:
    """A counter is not signed; a forged one must not pass where the protocol expects a signed value."""
    strict = sign_store(pair.below, KEY, pair.reports.append, Key.is_counter)
    strict.put(Key.rank_heartbeat(1, 0), b"7 run")
    pair.below.put(pair.name_of(Key.rank_heartbeat(1, 0)), b"8")
    strict.add(Key.tickets(1), 12)
    assert strict.get([Key.rank_heartbeat(1, 0), Key.tickets(1)]) == [None, b"12"]
    assert strict.wait(Key.tickets(1), 0.0) == b"12"
    with pytest.raises(StoreCorruptError):
        strict.wait(Key.rank_heartbeat(1, 0), 0.0)
