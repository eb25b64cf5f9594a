"""How records are written to the store: versioned JSON, never pickle.

A value that cannot be read (another version, other types, hostile bytes) raises a StoreCorruptError that names the key.
Unknown fields are ignored, so that a newer node may add fields without a new version.  Texts that only people read come
out without anything that steers a terminal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from attrs import evolve, fields

from .._bounded import LARGEST_COUNTER, LONGEST_DELAY_SECONDS, MOST_NODES
from ..errors import StoreCorruptError, UsageError
from ..records import Assignment, Cause, FailureRecord, NodeRecord, RoundEnd, Verdict
from ..text import parse_json, printable, printable_lines

VERSION = 1
_LARGEST_BYTES = 1 << 18
#: Every node of a job reads a round's end, so it must be small; the limits for its texts are tried in this order.
_LARGEST_WRITTEN_BYTES = 1 << 16
_LONGEST_TEXTS = (8192, 2048, 256)
_MOST_LINES = 20
_MOST_MAPPING_ITEMS = 64
#: Values of records lie this deep at most; a worker's error data is cut to half of it when it is read.
_DEEPEST = 40
_LEFT_OUT = "…"
#: Longer than any text that :func:`encode` writes.
_LONGEST_SHOWN = 2 * _LONGEST_TEXTS[0]
#: Field -> the smallest and the largest number that it may have, for those that are not any number of 31 bits.
_RANGES: Mapping[str, tuple[int, int]] = {
    "round_number": (0, LARGEST_COUNTER),
    "previous_round": (0, LARGEST_COUNTER),
    "local_world_size": (1, MOST_NODES),
    "group_world_size": (1, MOST_NODES),
    "world_size": (1, (1 << 31) - 1),
    "role_world_size": (1, (1 << 31) - 1),
    "master_port": (0, 65535),
    "port": (0, 65535),
    "signal_number": (0, 64),
    "exit_code": (-(1 << 31), (1 << 32) - 1),
    "timestamp_ns": (0, 253_402_300_799_999_999_999),  # the end of the year 9999, which is the last that can be printed
}
#: Sentences and names for people.  Not those that are compared: node ids, roles, addresses.
_FOR_PEOPLE = frozenset({"reason", "host", "declined", "plugin_digest"})
_USUAL_RANGE = (0, (1 << 31) - 1)
#: Types whose values are never too long; most values have these.
_WHOLE = frozenset({int, bool, float, type(None)})
_TYPES = {"str": str, "int": int, "bool": bool}
_T = TypeVar("_T")


def encode_object(kind: str, fields: Mapping[str, Any]) -> bytes:
    """Return ``fields`` as the bytes of one versioned JSON object."""
    return json.dumps({"v": VERSION, "kind": kind, **fields}, separators=(",", ":"), default=str).encode()


def encode(record: NodeRecord | Assignment | RoundEnd | FailureRecord) -> bytes:
    """Return a record as bytes.  Defaults are left out; long texts are cut, and cut shorter if there are many."""
    value = b""
    for longest in _LONGEST_TEXTS:
        value = encode_object(_KINDS[type(record)], _fields(record, longest))
        if len(value) <= _LARGEST_WRITTEN_BYTES:
            return value
    failure = getattr(record, "failure", None)
    if failure is not None:  # a worker may have recorded anything
        bare = evolve(failure, error_data=None, stderr_tail=failure.stderr_tail[-_MOST_LINES:])
        value = encode_object(_KINDS[type(record)], _fields(evolve(record, failure=bare), _LONGEST_TEXTS[-1]))
    return value


def decode_object(key: str, value: bytes, kind: str) -> dict[str, Any]:
    """Return the JSON object in ``value``.  Raises StoreCorruptError if its version or kind is not the expected one."""
    if len(value) > _LARGEST_BYTES:
        raise StoreCorruptError(key, f"{len(value)} bytes are more than quorate ever writes")
    try:
        data = parse_json(value)
    except ValueError:
        raise StoreCorruptError(key, "it is not JSON within the bounds of what quorate writes") from None
    if not isinstance(data, dict):
        raise StoreCorruptError(key, "it is not a JSON object")
    if data.get("v") != VERSION:
        raise StoreCorruptError(key, f"it has version {str(data.get('v'))[:20]!r}, this node reads version {VERSION}")
    if data.get("kind") != kind:
        raise StoreCorruptError(key, f"it is a {str(data.get('kind'))[:20]!r}, not a {kind!r}")
    return data


def decode_node(key: str, value: bytes) -> NodeRecord:
    return _build(key, NodeRecord, decode_object(key, value, "node"), {})


def decode_assignment(key: str, value: bytes) -> Assignment:
    return _build(key, Assignment, decode_object(key, value, "assignment"), {"warnings": _texts, "missing": _texts})


def _decode_failure(key: str, data: Mapping[str, Any]) -> FailureRecord:
    return _build(
        key,
        FailureRecord,
        data,
        {"cause": Cause, "message": _lines, "stderr_tail": _texts, "error_data": _mapping_or_none},
    )


def decode_end(key: str, value: bytes) -> RoundEnd:
    return _build(
        key,
        RoundEnd,
        decode_object(key, value, "end"),
        {
            "cause": Cause,
            "verdict": Verdict,
            "lost": _names,
            "missing": _texts,
            "lost_ranks": partial(_numbers, highest=MOST_NODES - 1),
            "lost_counts": partial(_numbers, highest=LARGEST_COUNTER),
            "delay_seconds": _delay,
            "grace_seconds": _delay,
            "failure": lambda raw: None if raw is None else _decode_failure(key, _exactly(dict, raw)),
        },
    )


_KINDS: Mapping[type, str] = {
    NodeRecord: "node",
    Assignment: "assignment",
    RoundEnd: "end",
    FailureRecord: "failure",
}


def _fields(record: Any, longest: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for attribute in fields(type(record)):
        value = getattr(record, attribute.name)
        if value != attribute.default:
            result[attribute.name] = _short(value, longest)
    return result


def _short(value: Any, longest: int, depth: int = _DEEPEST) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # it could not be read again
    if type(value) in _WHOLE:
        return value
    if isinstance(value, str) and len(value) > longest:
        return value[: longest // 2] + " … " + value[-longest // 2 :]
    if type(value) in _KINDS:
        return _fields(value, longest)
    if depth <= 0 and isinstance(value, (Mapping, list, tuple)):
        return _LEFT_OUT
    if isinstance(value, Mapping):
        items = list(value.items())[:_MOST_MAPPING_ITEMS]
        return {str(key): _short(item, longest, depth - 1) for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_short(item, longest, depth - 1) for item in value]
    return value


def _build(key: str, record: type[_T], data: Mapping[str, Any], convert: Mapping[str, Callable[[Any], Any]]) -> _T:
    arguments: dict[str, Any] = {}
    kind: type = record  # a type variable is not known to be hashable
    try:
        for name, plain, text in _expected(kind):
            if name not in data:
                continue
            raw = data[name]
            if name in convert:
                arguments[name] = convert[name](raw)
            elif type(raw) is plain or (raw is None and text.endswith("| None")):
                arguments[name] = raw
            else:
                arguments[name] = _exactly(_TYPES[text.removesuffix(" | None")], raw)
            if plain is int and raw is not None:
                _check_range(name, raw)
            elif name in _FOR_PEOPLE:
                arguments[name] = printable(raw, _LONGEST_SHOWN)
        return record(**arguments)
    except (TypeError, ValueError, OverflowError, RecursionError, UsageError) as error:
        raise StoreCorruptError(key, f"it is not a valid {record.__name__}: {error}") from None


@cache
def _expected(record: type) -> tuple[tuple[str, type | None, str], ...]:
    """Return name, plain type (where there is one) and annotation of each field."""
    return tuple((each.name, _TYPES.get(each.type.removesuffix(" | None")), str(each.type)) for each in fields(record))


def _exactly(expected: type[_T] | tuple[type[_T], ...], raw: Any) -> _T:
    if not isinstance(raw, expected) or (isinstance(raw, bool) and expected is not bool):
        raise TypeError(f"{str(raw)[:40]!r} has the wrong type")
    return raw


def _check_range(name: str, value: int) -> None:
    low, high = _RANGES.get(name, _USUAL_RANGE)
    if not low <= value <= high:
        raise ValueError(f"its {name} is not between {low} and {high}")


def _delay(raw: Any) -> float:
    value = float(_exactly((int, float), raw))
    if not 0.0 <= value <= LONGEST_DELAY_SECONDS:
        raise ValueError(f"its delay_seconds is not between 0 and {LONGEST_DELAY_SECONDS:g}")
    return value


def _numbers(raw: Any, highest: int) -> tuple[int, ...]:
    items = tuple(_exactly(int, item) for item in _exactly(list, raw))
    if len(items) > MOST_NODES or not all(0 <= item <= highest for item in items):
        raise ValueError(f"its numbers of lost nodes are not {MOST_NODES} at most, each from 0 to {highest}")
    return items


def _mapping_or_none(raw: Any) -> Mapping[str, Any] | None:
    return None if raw is None else _exactly(dict, raw)


def _texts(raw: Any) -> tuple[str, ...]:
    return tuple(printable(_exactly(str, item), _LONGEST_SHOWN) for item in _exactly(list, raw))


def _names(raw: Any) -> tuple[str, ...]:
    return tuple(_exactly(str, item) for item in _exactly(list, raw))


def _lines(raw: Any) -> str:
    return printable_lines(_exactly(str, raw), _LONGEST_SHOWN)
