"""The decoders of the core, what each may raise, and examples of what it reads.

``TARGETS`` and ``ELSEWHERE`` are what the fuzzer looks for in each distribution's ``tests/fuzz_targets.py``.

What does not live here: where the inputs come from (``fuzz.__main__`` and ``test_fuzz``).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import final
from unittest.mock import patch

from core.tests.fuzz.target import Target, in_a_file

from quorate._bounded import LONGEST_DELAY_SECONDS, MOST_NODES, MOST_TICKETS
from quorate._discovery import _entry_points
from quorate.affinity import parse_cpus
from quorate.cli._cluster import ThisMachine, _read_until
from quorate.cli._flags import FLAGS
from quorate.cli._parse import parse
from quorate.cli._run import build_config
from quorate.cli._values import settings
from quorate.clock import monotonic
from quorate.cut_off import parse_when_cut_off
from quorate.errors import RendezvousStateError, StoreCorruptError, StoreUnavailableError, UsageError
from quorate.failures import ProcessFailure, message_from_abort, message_from_stderr, read_error_file
from quorate.job_token import TOKEN_FILE_VARIABLE, load_job_token
from quorate.logs_specs import Std
from quorate.net import named_endpoints, parse_endpoint
from quorate.preemption import DEADLINE_VARIABLE, deadline
from quorate.proc import command_of, read_signalfd
from quorate.records import Assignment, Cause, FailureRecord, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import RendezvousParameters
from quorate.rendezvous._cell import CellStore
from quorate.rendezvous._incarnation import JobEntry
from quorate.rendezvous._last_word_program import take_frames
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState, Liveness
from quorate.rendezvous._member_tickets import decode_tickets, encode_tickets
from quorate.rendezvous._observed_job import observe_job
from quorate.rendezvous._over import job_is_over
from quorate.rendezvous._protocol import Key
from quorate.rendezvous._refusals import RefusalReader
from quorate.rendezvous._signed import sign_store
from quorate.rendezvous._store import parse_counter
from quorate.rendezvous._transition import decode_seal, read_seal, read_summary
from quorate.rendezvous._waiting import _decode_note as decode_note
from quorate.rendezvous._wire import decode_assignment, decode_end, decode_node, encode, encode_object
from quorate.timeouts import LONGEST_SECONDS, Timeouts
from quorate.verdict import JobState, JobVerdict

_LONGEST_MESSAGE = 4096


_FAILURE = FailureRecord(
    1, 1, 7, -9, Cause.EXCEPTION, "why", 10**18, error_data={"message": "m", "deep": [[{"a": 1.5}]]}
)
_END = RoundEnd(
    3, Cause.NODE_LOST, Verdict.RESTART, "r", delay_seconds=1.5, lost=("a",), lost_ranks=(1, 2), failure=_FAILURE
)
_SEAL = {"sealer": 1, "nodes": 2, "world_size": 4, "min_nodes": 1, "max_nodes": 2, "restart_count": 0}
_ERROR = {"message": {"message": "m", "extraInfo": {"timestamp": "1700000000", "py_callstack": "Traceback"}}}
_STDERR = b"""[rank0]: Traceback (most recent call last):
[rank0]:   File "train.py", line 3, in <module>
[rank0]: ValueError: wrong
Fatal Python error: Aborted
  <no Python frame>
Extension modules: numpy, torch._C (total: 2)
"""


def _read_node(data: bytes) -> None:
    node = decode_node("key", data)
    assert decode_node("key", encode(node)).node_id


def _read_end(data: bytes) -> None:
    end = decode_end("key", data)
    assert 0 <= end.delay_seconds <= LONGEST_DELAY_SECONDS
    assert len(end.lost_ranks) <= MOST_NODES
    verdict = JobVerdict("", "", "", JobState.FAILED, end.cause, end.reason, end.failure, rounds=(end,))
    verdict.report("name")
    json.dumps(verdict.to_json(), default=str)
    decode_end("key", encode(end))


def _read_seal(data: bytes) -> None:
    assert read_summary(0, decode_seal(0, data)).group_world_size <= MOST_NODES
    assert read_seal(0, decode_seal(0, data)).sealer >= 1


def _read_tickets(data: bytes) -> None:
    tickets = decode_tickets("key", data)
    assert all(1 <= ticket <= MOST_TICKETS for ticket in tickets)
    (value,) = encode_tickets(0, 1, tickets or [1]).values()
    assert decode_tickets("key", value) == (tickets or [1])


def _read_heartbeat(data: bytes) -> None:
    heartbeat = Heartbeat.decode(data)
    assert 0 <= heartbeat.count < 10**18
    liveness = Liveness().after_reading({"key": data}, 0.0, 1.0).after_reading({"key": data + b"0"}, 1.0, 1.0)
    assert liveness.silent_for("key") in (0.0, 1.0)


def _read_error_file(path: str) -> None:
    data = read_error_file(path)
    failure = ProcessFailure(0, 1, 1, path)
    failure.timestamp_isoformat()
    record = FailureRecord(0, 0, 1, 1, Cause.EXCEPTION, failure.message, 0, error_data=data)
    decode_end("key", encode(RoundEnd(0, Cause.EXCEPTION, Verdict.FAILED, "", failure=record)))


def _read_entry_points(path: str) -> None:
    for name, target in _entry_points(os.path.dirname(path), "quorate"):
        assert name == name.strip()
        assert target == target.strip()


def _read_stderr(data: bytes) -> None:
    lines = data.decode("utf-8", "replace").splitlines()
    assert len(message_from_stderr(lines) or "") <= _LONGEST_MESSAGE
    message_from_abort(-6, lines)


def _read_flags(data: bytes) -> None:
    parsed = parse(data.decode("utf-8", "replace").split("\0"), {}, FLAGS)
    if parsed["logs-specs"] is None and isinstance(parsed["nproc-per-node"], int):
        assert build_config(parsed).shutdown_timeout <= LONGEST_SECONDS


def _read_variables(data: bytes) -> None:
    flag = FLAGS[data[0] % len(FLAGS)] if data else FLAGS[0]
    value = data[1:].decode("utf-8", "replace")
    parse(["train.py"], {flag.variable: value}, FLAGS)


def _read_rdzv_conf(data: bytes) -> None:
    chosen = settings(data.decode("utf-8", "replace"))
    timeouts = Timeouts.from_settings(chosen)
    assert timeouts.join_timeout <= LONGEST_SECONDS
    parameters = RendezvousParameters("tcp", "", "job", 1, 1, **{f"_{key}": value for key, value in chosen.items()})
    for key in parameters.config:
        for read in (parameters.get_as_int, parameters.get_as_bool):
            with suppress(UsageError):
                read(key)


_KEY = bytes(range(32))


@final
class _Store:
    """A store that holds what was given; each value is written with its key, NUL, the value, and two NULs."""

    def __init__(self, data: bytes) -> None:
        entries = (entry.partition(b"\0") for entry in data.split(b"\0\0"))
        self.values = {key.decode("latin-1"): value for key, _, value in entries}

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def add(self, key: str, amount: int) -> int:
        count = parse_counter(key, self.values.get(key)) + amount
        self.values[key] = b"%d" % count
        return count

    def create(self, key: str, value: bytes) -> bool:
        return self.values.setdefault(key, value) is value

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def wait(self, key: str, timeout: float) -> bytes | None:
        return self.values.get(key)

    def delete(self, prefix: str) -> None:
        self.values = {key: value for key, value in self.values.items() if not key.startswith(prefix)}

    def close(self) -> None:
        pass


def _held(**values: bytes) -> bytes:
    return b"\0\0".join(key.encode("latin-1") + b"\0" + value for key, value in values.items())


def _observe_job(data: bytes) -> None:
    observed = observe_job(_Store(data))
    assert len(observed.heartbeats) <= 2 * MOST_NODES
    observed.hosts()
    job_is_over(_Store(data))


def _enter(data: bytes) -> None:
    """Lead a node into the job that a store holds; it does not wait."""
    job_entry = JobEntry("job", True, 1.0, False, lambda seconds: True, lambda sentence: None)
    with suppress(StoreUnavailableError):  # it would have waited
        job_entry.enter(_Store(data), _NODE)


def _read_signed(data: bytes) -> None:
    store = sign_store(_Store(data), _KEY, lambda sentence: None, Key.is_counter)
    assert store.get(["a", Key.ROUND])[0] in (None, b"value")
    store.wait("a", 0.0)


def _signed(key: str, value: bytes) -> bytes:
    held = _Store(b"")
    sign_store(held, _KEY, lambda sentence: None).put(key, value)
    return _held(**held.values)


@final
class _Cell:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> tuple[bytes, str]:
        return self._data, "1"

    def swap(self, version: str, value: bytes) -> bool:
        return True

    def wait_for_change(self, version: str, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


def _read_cell(data: bytes) -> None:
    store = CellStore(_Cell(data))
    store.get(["a"])
    store.add("a", 1)


def _read_frames(data: bytes) -> None:
    frames: list[bytes] = []
    rest = b""
    for start in range(0, len(data), 1024):
        rest = take_frames(rest + data[start : start + 1024], frames)
    assert len(frames) <= 2
    assert len(rest) + sum(map(len, frames)) <= len(data)


def _read_deadline(path: str) -> None:
    with patch.dict(os.environ, {DEADLINE_VARIABLE: path}):
        found = deadline()
    if found is not None:
        assert 0 <= found.seconds_left < float("inf")
        assert found.reason.isprintable()


def _read_signals(data: bytes) -> None:
    """Read what waits at a descriptor; it is a pipe here."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        os.write(writer, data[:65536])
        assert len(read_signalfd(reader)) <= len(data) / 128
    finally:
        os.close(reader)
        os.close(writer)


def _read_command(path: str) -> None:
    assert len(command_of(7, os.path.dirname(os.path.dirname(path)))) <= 4096


def _ask_a_scheduler(path: str) -> None:
    """Read a file, and the same bytes as a command's output; no process is started for them."""
    machine = ThisMachine()
    with open(path, "rb") as output:
        machine._run = lambda command: _read_until(output.fileno(), monotonic() + 5.0)  # type: ignore[method-assign]
        assert machine.read(path) == machine.output("cat", path)


def _read_refusals(data: bytes) -> None:
    sentences: list[str] = []
    RefusalReader(sentences.append).take([None, data])
    assert len(sentences) == 1
    assert sentences[0].isprintable()
    assert len(sentences[0]) <= 1500


def _read_endpoints(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    named_endpoints(text)
    endpoint = parse_endpoint(text)
    assert 0 <= endpoint.port <= 65535


_CORRUPT = (StoreCorruptError,)
_NODE = NodeRecord("a", "r", 2, rank_hint=0, host="h", min_nodes=2, max_nodes=2)
_OTHER = NodeRecord("b", "r", 2, host="i", min_nodes=2, max_nodes=2)
_BEAT = Heartbeat(3, HeartbeatState.DONE, "host").encode()
_SEALED = encode_object("sealed", _SEAL)
_SIGNS = (
    _held(**{Key.ROUND: b"0", Key.sealed(0): _SEALED, Key.rank_heartbeat(0, 0): _BEAT, Key.tickets(1): b"1"}),
    _held(**{Key.ROUND: b"4", Key.ended(3): encode(_END), Key.sealed(4): _SEALED, Key.rank_heartbeat(4, 1): _BEAT}),
    _held(**{Key.ROUND: b"9", Key.ended(0): encode(_END), Key.tickets(1): b"2", Key.ticket_heartbeat(1, 1): _BEAT}),
)
_INCARNATIONS = (
    b"",
    _held(**{"incarnation/0/job": encode(_OTHER), Key.sealed(0): _SEALED, Key.rank_heartbeat(0, 0): _BEAT}),
    _held(**{"incarnations": b"2", "incarnation/1/job": encode(_OTHER), "incarnation/1/over": b"gone"}),
    _held(**{"incarnations": b"1", "incarnation/1/job": encode(_NODE), "incarnation/0/over": b"left"}),
)
TARGETS: Mapping[str, Target] = {
    "node records": Target(_read_node, (encode(NodeRecord("a", "r", 2, rank_hint=1, previous_round=3)),), _CORRUPT),
    "assignments": Target(
        lambda data: decode_assignment("key", data),
        (encode(Assignment(0, "a", "r", 2, 0, 1, 0, 2, 0, 2, "127.0.0.1", 1, warnings=("w",))),),
        _CORRUPT,
    ),
    "ends of rounds": Target(_read_end, (encode(_END),), _CORRUPT),
    "seals": Target(_read_seal, (encode_object("sealed", _SEAL),), _CORRUPT),
    "tickets of members": Target(_read_tickets, tuple(encode_tickets(0, 1, [2, 1]).values()), _CORRUPT),
    "heartbeats": Target(_read_heartbeat, (Heartbeat(3, HeartbeatState.DONE, "host").encode(),)),
    "error files": Target(
        in_a_file(_read_error_file, "error.json"), (json.dumps(_ERROR).encode(), b'{"message": "m"}')
    ),
    "counters": Target(lambda data: parse_counter("key", data), (b"12", b"-3"), _CORRUPT),
    "what a store shows": Target(_observe_job, _SIGNS, _CORRUPT),
    "incarnations": Target(_enter, _INCARNATIONS, (StoreCorruptError, RendezvousStateError)),
    "signed values": Target(_read_signed, (_signed("a", b"value"), _held(other=b"1")), _CORRUPT),
    "notes of who is here": Target(
        lambda data: decode_note("key", data), (encode_object("here", {"hosts": ["a", "b"], "nodes": 2}),), _CORRUPT
    ),
    "sentences of refused nodes": Target(_read_refusals, (b"node b was refused: --nnodes differs",)),
    "policies of nodes that are cut off": Target(
        lambda data: parse_when_cut_off(data.decode("utf-8", "replace")), (b"run", b" FREEZE"), (UsageError,)
    ),
    "cells": Target(_read_cell, (b'{"a":"MQ=="}', b""), _CORRUPT),
    "last words": Target(_read_frames, (b"\0\0\0\3abc\0\0\0\2de\0\0\0\0\0\0\0\1f",)),
    "job tokens": Target(
        in_a_file(lambda path: load_job_token({TOKEN_FILE_VARIABLE: path}), "token"), (b"x" * 20,), (UsageError,)
    ),
    "lists of CPUs": Target(lambda data: parse_cpus(data.decode("utf-8", "replace")), (b"0-3,8", b""), (ValueError,)),
    "choices of streams": Target(
        lambda data: Std.from_str(data.decode("utf-8", "replace")), (b"3", b"0:1,12:2"), (UsageError,)
    ),
    "stderr": Target(_read_stderr, (_STDERR,)),
    "flags": Target(
        _read_flags,
        (b"--nnodes=1:4\0--nproc-per-node=2\0--tee=0:1,1:3\0train.py\0--x", b"--shutdown-timeout=1e9\0train.py"),
        (UsageError,),
    ),
    "variables": Target(_read_variables, tuple(bytes([number]) for number in range(3)), (UsageError,)),
    "endpoints": Target(_read_endpoints, (b"[::1]:29400", b"host.example:80"), (UsageError,)),
    "entry points": Target(
        in_a_file(_read_entry_points, "entry_points.txt"),
        (b"[other]\nx = y\n[quorate] # c\nname = module:attr\n",),
    ),
    "deadlines": Target(
        in_a_file(_read_deadline, "deadline.json"),
        (b'{"monotonic_seconds":5.5,"unix_seconds":1.7e9,"reason":"why","signal_number":10}', b"", b"[" * 600),
    ),
    "waiting signals": Target(_read_signals, (struct.pack("=Iii", 2, 0, 0x80) + bytes(116), b"")),
    "words of processes": Target(in_a_file(_read_command, "7/cmdline"), (b"python\0train.py\0",)),
    "answers of schedulers": Target(in_a_file(_ask_a_scheduler, "answer"), (b"1-02:03:04\n",)),
    "rdzv-conf": Target(
        _read_rdzv_conf, (b"join_timeout=30,lease_timeout=1e300,x=yes,keep_alive_interval=5",), (UsageError, ValueError)
    ),
}

_KERNEL = "the kernel writes it"
_OWN = "this process has written it"
#: Why these have no target.
ELSEWHERE: Mapping[str, str] = {
    "quorate/addresses:_ipv4": _KERNEL,
    "quorate/addresses:_ipv6": _KERNEL,
    "quorate/agent/_preemption:Preemption.begin": "random bytes of its own, for a pause",
    "quorate/plugins:_usual_packages": "a file of this distribution",
    "quorate/policy:_back_off": _OWN,
    "quorate/proc:stat_of": _KERNEL,
    "quorate/proc:memory_groups": _KERNEL,
    "quorate/proc:peer_of": _KERNEL,
    "quorate/proc:kernel_wait_of": _KERNEL,
    "quorate/rendezvous/_last_word_program:main": "pickles of its own agent; its frames are 'last words'",
    "quorate/rendezvous/_last_word_program:_load": "a pickle, over a pipe whose other end its own agent alone has",
}
