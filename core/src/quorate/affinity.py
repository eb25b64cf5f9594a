"""Binds a thread, and so everything that it starts, to CPUs; lists of CPUs as the kernel writes them.

A worker is bound before its program runs.  Either the thread that starts it is bound for that moment
(:func:`bound_thread`), or the worker binds itself first thing after a fork (:func:`bind_thread`).  What does not live
here: which CPUs a worker gets, which is a plugin's answer to ``quorate_decide_launch``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

__all__ = ["bind_thread", "bound_thread", "format_cpus", "parse_cpus"]

#: More than any kernel has CPUs.
_MOST_NUMBERS = 1 << 16


def parse_cpus(text: str) -> frozenset[int]:
    """Return the numbers that a list in the kernel's form names, such as ``0-3,8``.

    Raises:
        ValueError: the text is not such a list.
    """
    numbers: set[int] = set()
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        begin, end = int(first), int(last if dash else first)
        if not 0 <= begin <= end < _MOST_NUMBERS:
            raise ValueError(f"{part.strip()!r} is not a range of CPUs")
        numbers.update(range(begin, end + 1))
    return frozenset(numbers)


def format_cpus(cpus: Collection[int]) -> str:
    """Return numbers as a list in the kernel's form, such as ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def bind_thread(cpus: Collection[int] | None, memory_node: int | None = None) -> None:
    """Bind the calling thread to ``cpus``, and have its memory come from ``memory_node`` as long as that has some.

    ``None`` leaves things as they are.  A memory policy that the kernel refuses, or that would replace the user's own
    (numactl), is left out.

    Raises:
        OSError: this process may use none of the CPUs.
    """
    with bound_thread(cpus, memory_node, restore=False):
        pass


@contextmanager
def bound_thread(
    cpus: Collection[int] | None, memory_node: int | None = None, *, restore: bool = True
) -> Iterator[None]:
    """Bind the calling thread, as :func:`bind_thread` does, while the block runs; what it starts in it stays bound.

    Raises:
        OSError: this process may use none of the CPUs.
    """
    before, policy = None, None
    try:
        if cpus is not None:
            before = os.sched_getaffinity(0)
            _set_affinity(cpus)
        if memory_node is not None:
            from . import memory_policy  # brings ctypes, which launches without a binding need not pay for

            policy = memory_policy.get_policy() if memory_policy.can_prefer_node() else None
            if policy is not None:
                memory_policy.prefer_node(memory_node)
        yield
    finally:
        if restore and before is not None:
            os.sched_setaffinity(0, before)
        if restore and policy is not None:
            memory_policy.set_policy(policy)


def _set_affinity(cpus: Collection[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        why = f"the CPUs {format_cpus(cpus)} cannot be used by this process"
        raise OSError(error.errno or errno.EINVAL, f"{why} ({error.strerror})") from None
