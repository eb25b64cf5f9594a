"""The decoders of the core, what each may raise, and examples of what it reads.

What does not live here: where the inputs come from (``__main__`` and ``test_fuzz``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from attrs import frozen

from quorate._bounded import LONGEST_DELAY_SECONDS, MOST_NODES
from quorate._discovery import _entry_points
from quorate.cli._flags import FLAGS
from quorate.cli._parse import parse
from quorate.cli._run import build_config
from quorate.cli._values import settings
from quorate.errors import StoreCorruptError, UsageError
from quorate.failures import ProcessFailure, message_from_abort, message_from_stderr, read_error_file
from quorate.net import parse_endpoint
from quorate.records import Assignment, Cause, FailureRecord, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous import RendezvousParameters
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState, Liveness
from quorate.rendezvous._transition import decode_seal, read_summary
from quorate.rendezvous._wire import decode_assignment, decode_end, decode_node, encode, encode_object
from quorate.timeouts import LONGEST_SECONDS, Timeouts
from quorate.verdict import JobState, JobVerdict

_LONGEST_MESSAGE = 4096


@frozen
class Target:
    """``read`` takes any bytes and raises nothing but ``allowed``; ``examples`` are inputs that it accepts."""

    read: Callable[[bytes], object]
    examples: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = ()

    def try_one(self, data: bytes) -> bool:
        """Read ``data``; returns whether it was accepted."""
        try:
            self.read(data)
        except self.allowed:
            return False
        return True


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


def _read_heartbeat(data: bytes) -> None:
    heartbeat = Heartbeat.decode(data)
    assert 0 <= heartbeat.count < 10**18
    liveness = Liveness().after_reading({"key": data}, 0.0, 1.0).after_reading({"key": data + b"0"}, 1.0, 1.0)
    assert liveness.silent_for("key") in (0.0, 1.0)


def _in_a_file(read: Callable[[str], None], name: str) -> Callable[[bytes], None]:
    """Return ``read`` for bytes instead of a path; the file lies in memory and is this process's own."""
    folder = ""

    def read_bytes(data: bytes) -> None:
        nonlocal folder
        if not folder:
            folder = os.path.join("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", f"quorate-fuzz-{os.getpid()}")
            os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        try:
            with open(path, "wb") as file:
                file.write(data)
            read(path)
        finally:
            os.unlink(path)
            os.rmdir(folder)
            folder = ""

    return read_bytes


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


def _read_endpoint(data: bytes) -> None:
    endpoint = parse_endpoint(data.decode("utf-8", "replace"))
    assert 0 <= endpoint.port <= 65535


def _read_rdzv_conf(data: bytes) -> None:
    chosen = settings(data.decode("utf-8", "replace"))
    timeouts = Timeouts.from_settings(chosen)
    assert timeouts.join_timeout <= LONGEST_SECONDS
    parameters = RendezvousParameters("tcp", "", "job", 1, 1, **{f"_{key}": value for key, value in chosen.items()})
    for key in parameters.config:
        for read in (parameters.get_as_int, parameters.get_as_bool):
            try:
                read(key)
            except UsageError:
                pass


_CORRUPT = (StoreCorruptError,)
TARGETS: Mapping[str, Target] = {
    "node records": Target(_read_node, (encode(NodeRecord("a", "r", 2, rank_hint=1, previous_round=3)),), _CORRUPT),
    "assignments": Target(
        lambda data: decode_assignment("key", data),
        (encode(Assignment(0, "a", "r", 2, 0, 1, 0, 2, 0, 2, "127.0.0.1", 1, warnings=("w",))),),
        _CORRUPT,
    ),
    "ends of rounds": Target(_read_end, (encode(_END),), _CORRUPT),
    "seals": Target(_read_seal, (encode_object("sealed", _SEAL),), _CORRUPT),
    "heartbeats": Target(_read_heartbeat, (Heartbeat(3, HeartbeatState.DONE, "host").encode(),)),
    "error files": Target(
        _in_a_file(_read_error_file, "error.json"), (json.dumps(_ERROR).encode(), b'{"message": "m"}')
    ),
    "stderr": Target(_read_stderr, (_STDERR,)),
    "flags": Target(
        _read_flags,
        (b"--nnodes=1:4\0--nproc-per-node=2\0--tee=0:1,1:3\0train.py\0--x", b"--shutdown-timeout=1e9\0train.py"),
        (UsageError,),
    ),
    "variables": Target(_read_variables, tuple(bytes([number]) for number in range(3)), (UsageError,)),
    "endpoints": Target(_read_endpoint, (b"[::1]:29400", b"host.example:80"), (UsageError,)),
    "entry points": Target(
        _in_a_file(_read_entry_points, "entry_points.txt"),
        (b"[other]\nx = y\n[quorate] # c\nname = module:attr\n",),
    ),
    "rdzv-conf": Target(
        _read_rdzv_conf, (b"join_timeout=30,lease_timeout=1e300,x=yes,keep_alive_interval=5",), (UsageError, ValueError)
    ),
}
