"""Lists of hosts as schedulers write them, and small values of their variables.

What does not live here: which variable holds what.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping

from quorate.errors import UsageError

_MOST_HOSTS = 1 << 16
_MOST_DIGITS = 9
_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")
_ENTRY = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_MOST_BRACKETS = 8  # of one name
_LONGEST_NAME = 1000
_FIRST_PORT, _PORTS = 29400, 3000  # below the ports that Linux gives to connections, 32768 and up
_PORTS_BETWEEN_STEPS = 509
_REPEATED = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")


def expand_hosts(text: str) -> list[str]:
    """Return the hosts of a packed list: ``n[1-3,07],m04`` is n1, n2, n3, n07, m04.

    A name may have several brackets (``rack[1-2]n[1-4]``); the last one runs fastest.  The order is the list's own.

    Raises:
        UsageError: the brackets do not match, a range is not one of numbers, or there are more than 65536 hosts.
    """
    found: list[str] = []
    for entry in _split(text):
        if entry.count("[") > _MOST_BRACKETS:
            raise _malformed(text)
        for host in _expand(entry, text):
            if len(host) > _LONGEST_NAME:
                raise _malformed(text)
            found.append(host)
            if len(found) > _MOST_HOSTS:
                raise UsageError(f"the list of hosts {text[:80]!r} names more than {_MOST_HOSTS} hosts")
    return found


def _split(text: str) -> list[str]:
    """Return the entries between the commas that stand outside brackets."""
    if _ENTRY.sub("", text).strip(","):
        raise _malformed(text)  # a bracket is left
    return [entry.strip() for entry in _ENTRY.findall(text) if entry.strip()]


def _expand(entry: str, text: str) -> Iterator[str]:
    head, bracket, rest = entry.partition("[")
    if not bracket:
        yield entry
        return
    ranges, _, tail = rest.partition("]")
    for part in ranges.split(","):
        for number_text in _numbers(part, text):
            for end in _expand(tail, text) if tail else ("",):
                yield f"{head}{number_text}{end}"


def _numbers(part: str, text: str) -> Iterator[str]:
    low, dash, high = part.partition("-")
    high = high if dash else low
    if not all(each.isascii() and each.isdigit() and len(each) <= _MOST_DIGITS for each in (low, high)):
        raise _malformed(text)
    if int(low) > int(high) or int(high) - int(low) >= _MOST_HOSTS:
        raise _malformed(text)
    for number_ in range(int(low), int(high) + 1):
        yield str(number_).zfill(len(low))


def _malformed(text: str) -> UsageError:
    return UsageError(f"the list of hosts {text[:80]!r} is not one such as n[1-3,7],m04")


def counts_of(text: str) -> list[int]:
    """Return the numbers of a list with repetitions: ``2(x3),1`` is 2, 2, 2, 1; an empty list where it is not one."""
    counts: list[int] = []
    for part in text.split(",") if text else ():
        found = _REPEATED.fullmatch(part.strip())
        repeats = 0 if found is None else int(found[2] or 1)
        if found is None or len(counts) + repeats > _MOST_HOSTS:
            return []
        counts += [int(found[1])] * repeats
    return counts


def unique(hosts: Iterable[str]) -> list[str]:
    """Return the hosts in their order, each once."""
    return list(dict.fromkeys(host for host in (host.strip() for host in hosts) if host))


def is_same_host(one: str, other: str) -> bool:
    """Return whether two names mean one host, where one of them may lack its domain."""
    if one == other:
        return True
    return one.partition(".")[0] == other.partition(".")[0] and not ("." in one and "." in other)


def number(environment: Mapping[str, str], *names: str) -> int | None:
    """Return the value of the first variable that is a whole number of at least 0, ``None`` if none is."""
    for name in names:
        text = environment.get(name, "").strip()
        if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
            return int(text)
    return None


def port_for(job_id: str, step: int = 0) -> int:
    """Return the port at which the agents of a job meet, so that two jobs, or two steps, can share a machine.

    Jobs whose ids are numbers have ports of their own as long as the numbers differ by less than 3000.
    """
    digits = job_id.partition(".")[0].partition("[")[0]
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
    job = int(digits) if is_number else zlib.crc32(job_id.encode("utf-8", "surrogateescape"))
    return _FIRST_PORT + (job + _PORTS_BETWEEN_STEPS * step) % _PORTS


def name_part(text: str) -> str:
    """Return ``text`` as a part of a run id: what is not a letter, a digit, ``.``, ``_`` or ``-`` becomes a dash."""
    return _UNUSABLE.sub("-", text.replace("\u0192", "f")).strip("-")[:80]
