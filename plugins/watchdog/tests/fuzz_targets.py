"""What the watchdog reads from workers' pipes; found by ``core.tests.fuzz``."""

from __future__ import annotations

from collections.abc import Mapping

from core.tests.fuzz.target import Target

from quorate_watchdog._messages import Lines, parse

_OURS = b'{"pid":7,"namespace":1,"agent":"a","rank":0,"round":2,'
_LONGEST_LINE_BYTES = 1 << 13


def _read(data: bytes) -> None:
    lines = Lines()
    for start in range(0, len(data), 4096):
        for line in lines.feed(data[start : start + 4096]):
            message = parse(line)
            if message is not None:
                assert abs(message.seconds) <= 1e12
                assert len(message.scope) <= 300
                hash(message)
        assert len(lines._rest) <= _LONGEST_LINE_BYTES
    parse(data)


TARGETS: Mapping[str, Target] = {
    "messages": Target(
        _read,
        (
            _OURS + b'"timer":3,"after":1.5,"scope":"s"}\n' + _OURS + b'"heartbeat":4}\n',
            b'{"pid":7,"scope_id":"s","expiration_time":1e9,"signal":9}\n{"pid":' + _OURS + b'"heartbeat":0}\n',
        ),
    ),
}
