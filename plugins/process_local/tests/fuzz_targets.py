"""What the agent reads from its workers, and its template from it; found by ``core.tests.fuzz``."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Mapping
from contextlib import redirect_stderr

from core.tests.fuzz.target import Target, in_a_file, over_a_socket

from quorate_process_local._channel import Channel
from quorate_process_local._connections import Connection
from quorate_process_local._consoles import _Text
from quorate_process_local._live import Live
from quorate_process_local._python import parse_python_command
from quorate_process_local._results import LARGEST_RESULT_BYTES, LENGTH
from quorate_process_local._streams import Output, Stream, tail_lines, tail_of_file
from quorate_process_local._template_site.quorate_template import receive, send
from quorate_process_local._workers import Worker


class _Process:
    pid, descriptor, is_held, problem = os.getpid(), -1, False, ""

    def poll(self) -> int | None:
        return None

    def release(self) -> None:
        pass


class _Worker(Worker):
    """A worker that is this process, to which no signal is sent."""

    def send(self, signal_number: int) -> None:
        pass

    def kill(self) -> None:
        pass


def _read_live(sock: socket.socket) -> None:
    """Have the agent read a live worker's packets, and answer them as it does."""
    worker = _Worker(0, _Process(), Output())
    live = Live([worker], lambda descriptor, call: None, lambda descriptor: None, 20.0, lambda worker: True)
    try:
        channel = worker.channel = Channel(sock.dup())
        worker.leave_by, channel.number = 1e9, 1
        with redirect_stderr(io.StringIO()):  # it warns of what is not a message
            live._read(worker, channel)
    finally:
        live.close()


def _read_result(sock: socket.socket) -> None:
    connection = Connection(sock.dup())
    try:
        while connection.read() and connection.announced_bytes <= LARGEST_RESULT_BYTES:
            pass
        announced = connection.announced_bytes
        data = connection.take()
        assert data is None or len(data) >= announced
    finally:
        connection.close()


def _read_orders(sock: socket.socket) -> None:
    while (got := receive(sock)) is not None:
        message, descriptors = got
        assert isinstance(message, dict)
        assert not descriptors


def _order(message: object) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, message)
        return theirs.recv(1 << 16)


def _read_stream(data: bytes) -> None:
    stream = Stream(-1, None, None, b"[0]: ", ())
    for start in range(0, len(data), 100):
        stream.feed(data[start : start + 100])
    stream.finish()
    lines = tail_lines(data)
    assert len(lines) <= 20
    assert all(line.isprintable() and len(line) <= 1000 for line in lines)


def _write_to_text(data: bytes) -> None:
    """Write what workers print to a stream that a program has put in place of the agent's."""
    stream = io.StringIO()
    text = _Text(stream)
    for start in range(0, min(len(data), 700), 7):  # characters in pieces
        text.write(data[start : start + 7])
    for start in range(700, len(data), 7001):
        text.write(data[start : start + 7001])
    assert len(stream.getvalue()) <= len(data)


def _read_log(path: str) -> None:
    tail_lines(tail_of_file(path))


def _result(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


_PICKLE = "a pickle of this job's own worker or agent, which runs the same code and user (docs/security.md)"
_KERNEL = "the kernel writes it"

TARGETS: Mapping[str, Target] = {
    "live workers": Target(
        over_a_socket(_read_live, socket.SOCK_SEQPACKET),
        (
            b'{"live":1}\0{"ask":1}\0{"left":1}',
            json.dumps({"live": [2]}).encode(),
            b'{"ask":' + b"[" * 300 + b"]" * 300 + b"}",
        ),
    ),
    "results": Target(over_a_socket(_read_result), (_result(b"abc"), _result(b"") + b"more", LENGTH.pack(1 << 40))),
    "output into a program's own stream": Target(_write_to_text, ("ä ∑\n".encode(), b"\xf0\x9f\x98")),
    "orders to templates": Target(
        over_a_socket(_read_orders),
        (_order({"start": 1, "words": ["a"]}), _order({}) + _order({"x": None})),
        (ValueError,),
    ),
    "output": Target(_read_stream, (b"one\rtwo\n\x1b[31mred\n", b"\n" * 50)),
    "logs": Target(in_a_file(_read_log, "stderr.log"), (b"one\rtwo\n\x1b[31mred\n",)),
    "python's arguments": Target(
        lambda data: parse_python_command(data.decode("utf-8", "replace").split("\0")),
        (b"-u\0-X\0dev\0train.py\0--x", b"-um\0pkg\0a", b"--check-hash-based-pycs\0always\0-c\0pass"),
        (ValueError,),
    ),
}
ELSEWHERE: Mapping[str, str] = {
    "quorate_process_local/_deliveries:_load": _PICKLE,
    "quorate_process_local/_task:Task._unpack": _PICKLE,
    "quorate_process_local/_warm_call:main": _PICKLE,
    "quorate_process_local/_stacks:_read": _KERNEL,
    "quorate_process_local/_stacks:_spy_on": "text of the program py-spy, shown as text",
    "quorate_process_local/_template_site/quorate_template:_other_threads": _KERNEL,
}
