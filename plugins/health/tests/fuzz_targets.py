"""What the health plugin reads from clients, workers and their limits; found by ``core.tests.fuzz``."""

from __future__ import annotations

from collections.abc import Mapping

from core.tests.fuzz.target import Target, in_a_file
from waitress.adjustments import Adjustments

from quorate_health._app import Application
from quorate_health._command import _Tail
from quorate_health._resources import _fields, _number
from quorate_health._server import LARGEST_BODY, LARGEST_HEADER, _OneRequest
from quorate_health._tail import tail_of

_BOUNDS = Adjustments(max_request_header_size=LARGEST_HEADER, max_request_body_size=LARGEST_BODY)


def _read_request(data: bytes) -> None:
    application = object.__new__(Application)
    application._own_name = "host"
    request, rest = _OneRequest(_BOUNDS), data
    while rest and not request.completed:
        taken = request.received(rest)
        if taken <= 0:
            break
        rest = rest[taken:]
    if request.completed and not request.error:
        application._is_own_name(request.headers.get("HOST", ""))
    request.close()


def _read_limits(path: str) -> None:
    assert all(number >= 0 for number in _fields(path).values())
    _number(path)


def _read_tail(path: str) -> None:
    lines = tail_of(path, 20)
    assert lines is None or (len(lines) <= 20 and all(line.isprintable() and len(line) <= 400 for line in lines))


def _read_output(data: bytes) -> None:
    tail = _Tail()
    tail.add(data)
    assert len(tail.last_line()) <= 1000


TARGETS: Mapping[str, Target] = {
    "requests": Target(
        _read_request,
        (
            b"GET /status?part HTTP/1.1\r\nHost: [::1]:80\r\nAccept: */*\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"GET http://" + b"9" * 5000 + b" HTTP/1.1.1 \r\n\r\n",
            b"GET http://[a/ HTTP/1.1\r\n\r\n",
            b"PUT http://h/x HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
        ),
    ),
    "logs": Target(in_a_file(_read_tail, "stderr.log"), (b"one\rtwo\n\x1b[31mred\n", b"")),
    "limits of memory": Target(in_a_file(_read_limits, "memory.stat"), (b"inactive_file 5\nactive_file 6\n", b"12\n")),
    "output of checks": Target(_read_output, (b"one\ntwo\n", b"")),
}
