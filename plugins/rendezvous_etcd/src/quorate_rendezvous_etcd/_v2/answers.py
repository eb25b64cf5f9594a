"""What etcd's API v2 answers: nodes of its tree, refusals, and errors, checked where text becomes data.

What does not live here: sending requests (:mod:`.client`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from attrs import frozen

from quorate.errors import QuorateError, RendezvousStateError, StoreCorruptError, StoreUnavailableError

from .._limits import LARGEST_COUNT

#: etcd's error codes for a condition of the request that does not hold.
NOT_FOUND, COMPARE_FAILED, NOT_FILE, NOT_DIRECTORY, EXISTS, NOT_EMPTY, CLEARED = 100, 101, 102, 104, 105, 108, 401
CONDITIONS = frozenset((NOT_FOUND, COMPARE_FAILED, NOT_FILE, NOT_DIRECTORY, EXISTS, NOT_EMPTY, CLEARED))
# A job of a thousand nodes has far fewer keys in one directory.
_MOST_CHILDREN = 200_000


@final
@frozen
class Node:
    """A node of etcd's tree.

    ``value`` is ``None`` for a directory and for a removed key.  ``children`` are the direct children, where etcd was
    asked for them.  ``created`` and ``modified`` are etcd's indices.  ``expires`` says whether it has a time to live.
    """

    key: str
    value: str | None
    is_directory: bool
    children: tuple[Node, ...]
    created: int
    modified: int
    expires: bool


@final
@frozen
class Answer:
    """etcd's answer: the node that was read or written, and the store's index at that time."""

    node: Node
    index: int


@final
class RefusedError(StoreUnavailableError):
    """A condition of the request does not hold; an outcome that the callers of the client act on."""

    def __init__(self, code: int, index: int, message: str) -> None:
        self.code, self.index = code, index
        super().__init__(message)


@contextmanager
def expecting(*codes: int) -> Iterator[None]:
    """Go on behind the block where etcd refuses a request in it with one of ``codes``."""
    try:
        yield
    except RefusedError as refused:
        if refused.code not in codes:
            raise


def read_answer(body: bytes, headers: Mapping[str, str]) -> Answer:
    """Return the answer in an HTTP response.

    Raises:
        ValueError: etcd does not write such a response.
    """
    try:
        data = json.loads(body)
        return Answer(_read_node(data["node"]), read_number(headers["X-Etcd-Index"]))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the answer is not one of etcd's ({type(error).__name__})") from None


def read_number(value: object) -> int:
    """Return an index or a code that etcd has written as a number or as digits.  Raises ValueError."""
    if isinstance(value, str) and len(value) <= 19 and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_COUNT:
        return value
    raise ValueError("a number of the answer is not one of etcd's")


def _read_node(data: Any) -> Node:
    key, value, children = data["key"], data.get("value"), data.get("nodes") or ()
    if not isinstance(key, str) or not isinstance(value, (str, type(None))) or not isinstance(children, (list, tuple)):
        raise ValueError("a node of the answer is not one of etcd's")
    if len(children) > _MOST_CHILDREN:
        raise ValueError(f"a directory has {len(children)} entries; the store accepts {_MOST_CHILDREN}")
    return Node(
        key=key,
        value=value,
        is_directory=data.get("dir") is True,
        children=tuple(_read_node(child) for child in children),
        created=read_number(data.get("createdIndex", 0)),
        modified=read_number(data.get("modifiedIndex", 0)),
        expires="ttl" in data,
    )


def unexpected(refused: RefusedError, path: str) -> QuorateError:
    """Return the error for a refusal that only keys of other programs below the prefix can cause."""
    if refused.code in (NOT_FILE, NOT_DIRECTORY):
        return StoreCorruptError(path, f"something else is stored on the way to it ({refused})")
    return RendezvousStateError(f"etcd refused a request that it should not have refused: {refused}")
