"""Whatever a worker writes into the watchdog's pipe is a message within bounds, or none."""

from __future__ import annotations

import json
import os
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from quorate.clock import LONGEST_WAIT_SECONDS, monotonic, seconds_until
from quorate.services import AgentSnapshot
from quorate_watchdog._messages import Lines, Message, parse
from quorate_watchdog._timekeeper import Timekeeper

OWN = {"pid": 1, "namespace": 1, "agent": "a", "rank": 0, "round": 0, "timer": 1, "after": 5.0, "scope": "step"}
TORCH = {"pid": 1, "scope_id": "step", "expiration_time": 5.0, "signal": 9}
ODD: tuple[str, ...] = (
    *("Infinity", "-Infinity", "NaN", "1e999", "9" * 400, "9" * 5000, "-1", "0.5", "true", "null", '""', '"x"'),
    *("[" * 600 + "]" * 600, '{"a":' * 600 + "1" + "}" * 600, "[" * 100_000, '"\\ud800"', '"' + "x" * 5000 + '"'),
)


def is_within_bounds(message: Message | None) -> bool:
    if message is None:
        return True
    numbers = (message.pid, message.rank, message.round_number, message.namespace)
    texts = (message.scope, message.timer if isinstance(message.timer, str) else "")
    return (
        isfinite(message.seconds)
        and all(abs(number) <= 1 << 63 for number in numbers)
        and all(len(text) <= 300 for text in texts)
    )


@pytest.mark.parametrize("record", [OWN, TORCH], ids=["own", "torch"])
@pytest.mark.parametrize("odd", ODD, ids=lambda text: text[:12])
def test_no_field_of_a_message_is_believed(record: dict[str, Any], odd: str) -> None:
    for name in record:
        fields = {key: json.dumps(value) for key, value in record.items()} | {name: odd}
        line = "{" + ",".join(f'"{key}":{text}' for key, text in fields.items()) + "}"
        assert is_within_bounds(parse(line.encode()))


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    assert is_within_bounds(parse(data))
    for line in Lines().feed(data + b"\n"):
        assert is_within_bounds(parse(line))


class _Agent:
    """Notes what is reported."""

    environment: dict[str, str] = {}
    settings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None

    def snapshot(self) -> Any:
        return AgentSnapshot("job", "node", "host", "role", "running", "", 0)  # type: ignore[arg-type] # converted


@pytest.mark.parametrize("odd", ODD, ids=lambda text: text[:12])
def test_no_line_ends_the_timekeeper_and_its_next_wait_is_bounded(odd: str) -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        keeper = Timekeeper(_Agent(), [reader])  # type: ignore[arg-type] # a part of the interface
        for record in (OWN, TORCH):
            fields = {key: json.dumps(value) for key, value in {**record, "pid": os.getpid()}.items()}
            name = "after" if record is OWN else "expiration_time"
            line = "{" + ",".join(f'"{key}":{text}' for key, text in {**fields, name: odd}.items()) + "}\n"
            os.write(writer, line.encode()[:60_000])
            keeper.take([reader], keeper.next_deadline())
        deadline = keeper.next_deadline()
        assert deadline is None or 0.0 <= seconds_until(deadline) <= LONGEST_WAIT_SECONDS
        assert deadline is None or (isfinite(deadline) and deadline - monotonic() <= 1e12)
    finally:
        os.close(reader)
        os.close(writer)
