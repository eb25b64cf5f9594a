"""The wire format: what is written can be read, and nothing hostile gets through."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from quorate.errors import StoreCorruptError
from quorate.records import Assignment, Cause, FailureRecord, NodeRecord, RoundEnd, Verdict
from quorate.rendezvous._liveness import Heartbeat, HeartbeatState
from quorate.rendezvous._wire import decode_assignment, decode_end, decode_node, decode_object, encode, encode_object
from quorate.text import printable

TEXT = st.text(max_size=40)
FOR_PEOPLE = TEXT.map(lambda text: printable(text, 1000))
ROUND = st.integers(0, 2**40)
COUNT = st.integers(0, 2**31 - 1)
SIZE = st.integers(1, 2**16)
NODES = st.builds(
    NodeRecord,
    node_id=st.text(min_size=1, max_size=40),
    role=TEXT,
    local_world_size=st.integers(1, 64),
    host=FOR_PEOPLE,
    address=TEXT,
    port=st.integers(0, 65535),
    shares_store=st.booleans(),
    rank_hint=st.none() | COUNT,
    plugin_digest=FOR_PEOPLE,
    previous_round=st.none() | ROUND,
    previous_rank=st.none() | COUNT,
)
ASSIGNMENTS = st.builds(
    Assignment,
    *[ROUND, TEXT, TEXT, SIZE, COUNT, SIZE, COUNT, SIZE, COUNT, SIZE, TEXT, st.integers(0, 65535)],
    shares_store=st.booleans(),
    restart_count=COUNT,
    warnings=st.lists(FOR_PEOPLE, max_size=3).map(tuple),
    missing=st.lists(FOR_PEOPLE, max_size=3).map(tuple),
)
FAILURES = st.builds(
    FailureRecord,
    *([COUNT] * 3 + [st.integers(-64, 255), st.sampled_from(Cause), FOR_PEOPLE, st.integers(0, 2**63)]),
    error_data=st.none() | st.fixed_dictionaries({"message": TEXT}),
    stderr_tail=st.lists(FOR_PEOPLE, max_size=4).map(tuple),
)
ENDS = st.builds(
    RoundEnd,
    ROUND,
    st.sampled_from(Cause),
    st.sampled_from(Verdict),
    FOR_PEOPLE,
    rank=st.none() | COUNT,
    restart_count=COUNT,
    delay_seconds=st.floats(0, 86_400),
    lost=st.lists(TEXT, max_size=3).map(tuple),
    lost_ranks=st.lists(st.integers(0, 2**16 - 1), max_size=3).map(tuple),
    failure=st.none() | FAILURES,
)


@given(NODES)
def test_a_node_record_survives_the_wire(node: NodeRecord) -> None:
    assert decode_node("k", encode(node)) == node


@given(ASSIGNMENTS)
def test_an_assignment_survives_the_wire(assignment: Assignment) -> None:
    assert decode_assignment("k", encode(assignment)) == assignment


@given(ENDS)
def test_a_rounds_end_survives_the_wire(end: RoundEnd) -> None:
    assert decode_end("k", encode(end)) == end


@pytest.mark.parametrize(
    "data",
    [
        {"message": "m" * 10**6},
        {"message": "m", **{f"key {number}": "x" * 10**4 for number in range(100)}},
        {"message": "m", "deep": [["x" * 100] * 100] * 100},
    ],
)
def test_whatever_a_worker_recorded_a_rounds_end_stays_small(data: dict[str, object]) -> None:
    """Every node reads it; one that is larger than anybody accepts would break them all."""
    failure = FailureRecord(0, 0, 1, 1, Cause.EXCEPTION, "why", 0, error_data=data, stderr_tail=("y" * 10**5,) * 20)
    value = encode(RoundEnd(0, Cause.EXCEPTION, Verdict.FAILED, "why", failure=failure))
    assert len(value) <= 1 << 16
    end = decode_end("k", value)
    assert end.failure is not None
    assert end.failure.message == "why"


@given(st.binary(max_size=300))
def test_garbage_is_refused_by_name_and_never_crashes(raw: bytes) -> None:
    for decode in (decode_node, decode_assignment, decode_end):
        with pytest.raises(StoreCorruptError) as caught:
            decode("7/node/3", raw)
        assert caught.value.key == "7/node/3"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([a.name for a in NodeRecord.__attrs_attrs__]), JSON, max_size=6))
def test_fields_of_the_wrong_type_are_refused(fields: dict[str, object]) -> None:
    raw = encode_object("node", fields)
    try:
        node = decode_node("k", raw)
    except StoreCorruptError:
        return
    assert json.loads(encode(node))["v"] == 1


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b'{"v":2,"kind":"end"}', "version '2', this node reads version 1"),
        (b'{"v":1,"kind":"node"}', "it is a 'node', not a 'end'"),
        (b"[]", "not a JSON object"),
        (b"x" * (1 << 19), "more than quorate ever writes"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_wrong_is_said(raw: bytes, problem: str) -> None:
    with pytest.raises(StoreCorruptError, match=problem):
        decode_object("k", raw, "end")


def test_unknown_fields_of_a_newer_node_are_ignored() -> None:
    data = json.loads(encode(NodeRecord("a", "d", 1)))
    assert decode_node("k", json.dumps({**data, "new_field": [1]}).encode()) == NodeRecord("a", "d", 1)


def test_overlong_texts_are_cut_so_that_values_stay_small() -> None:
    end = RoundEnd(0, Cause.EXCEPTION, Verdict.FAILED, "x" * 1_000_000)
    assert len(encode(end)) < 10_000


@given(COUNT, st.sampled_from(HeartbeatState), FOR_PEOPLE)
def test_a_heartbeat_survives_the_wire(count: int, state: HeartbeatState, host: str) -> None:
    assert Heartbeat.decode(Heartbeat(count, state, host).encode()) == Heartbeat(count, state, host)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_heartbeat(raw: bytes) -> None:
    assert isinstance(Heartbeat.decode(raw).state, HeartbeatState)
