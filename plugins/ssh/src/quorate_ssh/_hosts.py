"""The hosts of a job, as a flag or a file names them.

What does not live here: how they are reached (``_session``).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import final

from attrs import field, frozen
from attrs.validators import ge, optional

from quorate.errors import UsageError
from quorate.net import is_literal
from quorate.text import whole_number

_EXAMPLE = "write --hosts=a,b:8,user@c"
_SLOTS = re.compile(r"(slots|max_slots|max-slots|cpu|count|max|np|sockets)\s*=\s*([0-9]{1,6})(?![0-9])", re.IGNORECASE)
_COUNTS = frozenset({"slots", "cpu", "count", "np"})
_MOST_WORKERS = 999_999
#: No name of a host has these: they are a list's, a shell's, or another form of hostfile's.
_FOREIGN = re.compile(r"[^\w.:%~+-]")


@final
@frozen
class Host:
    """A host as ssh takes it (an alias, a name or an address, with or without ``user@``), and how many workers it runs.

    ``workers`` is ``None`` where that is not said.
    """

    name: str
    workers: int | None = field(default=None, validator=optional(ge(1)))


def parse_hosts(text: str) -> list[Host]:
    """Return the hosts of ``a,b:8,user@c,[fd00::1]:4``.

    Raises:
        UsageError: no host is named, a name is not a host's, or one is named twice.
    """
    return _checked([_parse(entry) for entry in text.split(",") if entry.strip()], "--hosts")


def parse_hostfile(text: str, path: str) -> list[Host]:
    """Return the hosts of a file: one a line, with ``slots=N`` or ``:N``; ``#`` begins a comment.

    A host that stands on several lines has the sum of their slots, as with MPI.

    Raises:
        UsageError: a line is not a host; the message has its number.
    """
    found: dict[str, int | None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        name, rest = (*content.split(None, 1), "")[:2]
        slots = None
        for key, value in _SLOTS.findall(rest):
            if key.lower() in _COUNTS:
                slots = int(value)
        left = _SLOTS.sub("", rest).strip()
        if left:
            raise UsageError(f"{path}, line {number}: {left!r} is not understood; write: HOST slots=N")
        host = _parse(name, f"{path}, line {number}: ")
        count = host.workers if slots is None else slots
        before = found.get(host.name)
        if slots == 0:
            raise UsageError(f"{path}, line {number}: a host needs at least one slot; remove the line")
        # A name alone counts as one slot only where it is repeated (MPICH's and PBS's files have a line for each slot).
        found[host.name] = count if host.name not in found else (before or 1) + (count or 1)
    return _checked([Host(name, workers) for name, workers in found.items()], path)


def _parse(text: str, where: str = "") -> Host:
    entry = text.strip()
    user, at, rest = entry.rpartition("@")
    if rest.startswith("["):
        name, bracket, count = rest[1:].partition("]")
        is_address = ":" in name and is_literal(name)  # "[name]" begins a group in other files
        is_count = bracket and is_address and (not count or count.startswith(":"))
        count = (count.removeprefix(":") or "?" if count else "") if is_count else "?"
    elif rest.count(":") > 1:
        name, count = rest if is_literal(rest) else "", ""  # an IPv6 address
    else:
        name, colon, count = rest.partition(":")
        if colon and not count:
            count = "?"
    number = whole_number(count) or 0
    is_number = not count or 0 < number <= _MOST_WORKERS
    is_user = not at or bool(user)
    is_wrong = not name or not is_user or not is_number or name.startswith(("-", "+")) or user.startswith("-")
    if is_wrong or " " in entry or not entry.isprintable() or _FOREIGN.search(name) or "/" in user:
        packed = "; a packed list is written out, such as by: scontrol show hostnames" if "[" in name else ""
        raise UsageError(f"{where}{text!r} is not a host; {_EXAMPLE}{packed}")
    return Host(f"{user}{at}{name}", number or None)


def _checked(hosts: list[Host], where: str) -> list[Host]:
    names = [host.name for host in hosts]
    if not names:
        raise UsageError(f"{where} names no host; {_EXAMPLE}")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise UsageError(
            f"{where} names {', '.join(twice)} twice; one agent runs all workers of its host: write HOST:N"
        )
    return hosts
