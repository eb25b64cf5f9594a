"""What the text of a flag means: one function per kind of value.  Each raises ValueError with half a sentence.

Only the form is checked here; ranges and relations are checked by :class:`quorate.LaunchConfig`.
"""

from __future__ import annotations

from typing import Any

from ..errors import UsageError
from ..job_token import parse_auth
from ..logs_specs import Std, StdChoice
from ..rendezvous._port import port_range

YES = frozenset({"1", "true", "yes", "on"})
NO = frozenset({"0", "false", "no", "off"})


def text(value: str) -> str:
    return value


def switch(value: str) -> bool:
    word = value.strip().lower()
    if word in YES:
        return True
    if word in NO:
        return False
    raise ValueError("is neither 1 nor 0 (nor true or false)")


def auth(value: str) -> str:
    try:
        return parse_auth(value).value
    except UsageError:
        raise ValueError("is not one of auto, required, off") from None


def whole(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError("is not a whole number") from None


def ports(value: str) -> str:
    try:
        found = port_range(value)
    except UsageError:
        raise ValueError("is not LOW:HIGH, two ports from 1 to 65535, such as 29500:29509") from None
    return f"{found[0]}:{found[-1]}"


def seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("is not a number of seconds") from None


def nodes(value: str) -> tuple[int, int]:
    low, colon, high = value.partition(":")
    try:
        return int(low), int(high if colon else low)
    except ValueError:
        raise ValueError("is neither a number of nodes, such as 4, nor a range MIN:MAX, such as 2:4") from None


def workers(value: str) -> int | str:
    if value.isidentifier() and value.islower():
        return value
    try:
        return int(value)
    except ValueError:
        raise ValueError("is neither a number of workers nor one of auto, cpu, gpu, xpu or another device") from None


def streams(value: str) -> StdChoice:
    try:
        return Std.from_str(value)
    except UsageError:
        raise ValueError(
            "does not say which streams; write 0 (none), 1 (stdout), 2 (stderr) or 3 (both), "
            "or one of them per local rank, such as 0:1,12:2"
        ) from None


def ranks(value: str) -> frozenset[int] | None:
    if not value.strip():
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError("is not a list of ranks, such as 0,1,12")
    return frozenset(int(part) for part in parts)


def whose_code(value: str) -> str:
    if value not in ("quorate", "worker"):
        raise ValueError("is neither quorate nor worker")
    return value


def words(value: str) -> tuple[str, ...]:
    """Split at commas; a doubled comma is part of a word."""
    return tuple(part.replace("\0", ",") for part in value.replace(",,", "\0").split(",") if part)


def settings(value: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    # A shell's quotes, which a program passes on that starts no shell.
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    for part in value.split(","):
        key, equals, setting = part.partition("=")
        if not part.strip():
            continue
        if not equals or not key.strip() or not setting.strip():
            raise ValueError("is not a list of settings KEY=VALUE,KEY=VALUE")
        result[key.strip()] = setting.strip()
    return result
