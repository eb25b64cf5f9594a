"""The kernel's NUMA memory policy of a thread (set_mempolicy(2)), which everything that it starts inherits.

Without a policy, memory comes from the node of the CPU that first writes to it.  What does not live here: the CPUs
(:mod:`quorate.affinity`), and which node a worker prefers, which is a plugin's answer to ``quorate_decide_launch``.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["can_prefer_node", "get_policy", "prefer_node", "preferring_call", "set_policy"]

_DEFAULT, _PREFERRED, _LOCAL = 0, 1, 4
# The C library has no function for these system calls, so their numbers are needed: set_mempolicy, get_mempolicy.
_NUMBERS = {"x86_64": (238, 239), "aarch64": (237, 236), "riscv64": (237, 236), "ppc64le": (261, 260)}
_MOST_NODES, _WORD_BITS = 1024, 64


def get_policy() -> int | None:
    """Return the mode of this thread's memory policy, ``None`` where the kernel does not tell."""
    numbers, mode = _numbers(), ctypes.c_int(-1)
    if numbers is None or ctypes.CDLL(None).syscall(numbers[1], ctypes.byref(mode), None, 0, None, 0) != 0:
        return None
    return mode.value


def can_prefer_node() -> bool:
    """Return whether this thread has the kernel's default policy and may have another one.

    A container often may not.  Another policy than the default is the user's own (numactl), and should stay.
    """
    return get_policy() in (_DEFAULT, _LOCAL)


def prefer_node(node: int) -> bool:
    """Have this thread's memory come from ``node`` as long as that has some; return whether the kernel agrees."""
    call = preferring_call(node)
    return call is not None and _set(*call)


def set_policy(mode: int) -> bool:
    """Set a policy that names no node, such as the default; return whether the kernel agrees."""
    numbers = _numbers()
    return numbers is not None and _set(numbers[0], mode, [])


def preferring_call(node: int) -> tuple[int, int, list[int]] | None:
    """Return what :func:`prefer_node` calls, ``None`` if it cannot: for a process that has nothing but ``ctypes``.

    That is ``syscall(number, mode, words, bits + 1)`` with ``words`` of 64 bits each.
    """
    numbers = _numbers()
    if numbers is None or not 0 <= node < _MOST_NODES:
        return None
    words = [0] * (_MOST_NODES // _WORD_BITS)
    words[node // _WORD_BITS] = 1 << (node % _WORD_BITS)
    return numbers[0], _PREFERRED, words


def _set(number: int, mode: int, words: list[int]) -> bool:
    mask = (ctypes.c_uint64 * len(words))(*words) if words else None
    status: int = ctypes.CDLL(None).syscall(number, mode, mask, _WORD_BITS * len(words) + 1 if words else 0)
    return status == 0


def _numbers() -> tuple[int, int] | None:
    return _NUMBERS.get(os.uname().machine) if sys.maxsize > 1 << 32 else None
