"""Ends the waits of gloo that outlive their connection.

A connection of gloo that breaks tells the buffers whose operations wait in its lists.  It forgets an operation that it
has begun and not finished: a send that the kernel has not taken whole, or not at all since the peer was gone, and a
receive of which a part is there.  Their buffer waits until the group's time-out, half an hour as a rule, and nothing in
torch's Python reaches it (torch 2.13).  So this module tells such a buffer what its connection should have told it, by
the function that the connection calls.

A buffer is found without a guess about how it is laid out.  The kernel says on which word a thread waits; the buffer is
the object of exactly that class which the word lies in, and the thread's stack refers to it.  It is told when two looks
have found it, after all connections were shut down.  Where a part of this is missing (another C++ library, a gloo that
has changed, a kernel that does not say), nothing is done, and the agent stops the worker as any that does not leave.

What does not live here: the connections (:mod:`._groups`).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from ctypes import c_char, c_char_p, c_size_t, c_void_p
from typing import final

_CLASS = "_ZTVN4gloo9transport3tcp13UnboundBufferE"
_ERROR_CLASS = "_ZTISt13runtime_error"
_TELL = "_ZN4gloo9transport3tcp13UnboundBuffer15signalExceptionENSt15__exception_ptr13exception_ptrE"
_WORD = ctypes.sizeof(c_void_p)
#: A table of virtual functions begins with two words that objects do not point to.
_TABLE_HEAD_BYTES = 2 * _WORD
#: How far a buffer's condition variables lie behind its beginning, at most (0xb0 in torch 2.13).
_LONGEST_BUFFER_BYTES = 256
#: How much of a thread's stack the functions take that wait, at most (some 0x100 in torch 2.13).
_STACK_BYTES = 2048
_RUNTIME_ERROR_BYTES = 16
_MESSAGE = b"gloo: connection closed, and an operation that had begun was not told"


@final
class Waits:
    """The waits of one process's threads in buffers of gloo, as seen look by look."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int]] = set()

    def end(self) -> None:
        """Make all waits fail that were there at the last call, too; to be called when all connections are shut."""
        gloo = _load()
        if gloo is None:
            return
        seen = set(_look(gloo))
        for _, buffer in seen & self._seen:
            _tell(gloo, buffer)
        self._seen = seen


def _load() -> ctypes.CDLL | None:
    """Return torch's libraries, if they are loaded and have all that is needed."""
    path = getattr(sys.modules.get("torch._C"), "__file__", None)
    try:
        gloo = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW) if path else None
        if gloo is None:
            return None
        for name, result, arguments in (
            ("__cxa_allocate_exception", c_void_p, [c_size_t]),
            ("_ZNSt13runtime_errorC1EPKc", None, [c_void_p, c_char_p]),
            ("_ZNSt13runtime_errorD1Ev", None, [c_void_p]),
            ("__cxa_init_primary_exception", c_void_p, [c_void_p, c_void_p, c_void_p]),
            ("_ZNSt15__exception_ptr13exception_ptrC1EPv", None, [c_void_p, c_void_p]),
            (_TELL, None, [c_void_p, c_void_p]),
        ):
            function = getattr(gloo, name)
            function.restype, function.argtypes = result, arguments
        for name in (_CLASS, _ERROR_CLASS):
            _address(gloo, name)
        return gloo
    except (OSError, AttributeError, ValueError):
        return None


def _address(gloo: ctypes.CDLL, name: str) -> int:
    return ctypes.addressof(c_char.in_dll(gloo, name))


def _look(gloo: ctypes.CDLL) -> Iterator[tuple[str, int]]:
    """Yield each thread that waits in a buffer, and the buffer's address."""
    table = _address(gloo, _CLASS) + _TABLE_HEAD_BYTES
    with suppress(OSError), open("/proc/self/mem", "rb", 0) as memory:
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):
                buffer = _buffer_of(thread, table, memory.fileno())
                if buffer is not None:
                    yield thread, buffer


def _buffer_of(thread: str, table: int, memory: int) -> int | None:
    """Return the address of the buffer that a thread waits in; ``None`` if it does not."""
    with open(f"/proc/self/task/{thread}/syscall") as file:
        words = file.read().split()
    if len(words) != 9:
        return None  # it runs
    # Number, six arguments, stack pointer, program counter; the first argument of futex(2) is the word.
    waited_on, stack = int(words[1], 16) // _WORD * _WORD, int(words[7], 16)
    first = waited_on - _LONGEST_BUFFER_BYTES
    if first <= 0:
        return None
    before = _read(memory, first, _LONGEST_BUFFER_BYTES)
    for index in reversed(range(len(before))):
        if before[index] == table:
            buffer = first + index * _WORD
            return buffer if buffer in _read(memory, stack, _STACK_BYTES) else None
    return None


def _read(memory: int, address: int, length: int) -> tuple[int, ...]:
    """Return words of this process's memory.  Raises OSError where there is none."""
    data = os.pread(memory, length, address)
    return struct.unpack(f"={len(data) // _WORD}{'Q' if _WORD == 8 else 'I'}", data[: len(data) // _WORD * _WORD])


def _tell(gloo: ctypes.CDLL, buffer: int) -> None:
    """Have the waits of a buffer raise a C++ ``std::runtime_error``."""
    error = gloo.__cxa_allocate_exception(_RUNTIME_ERROR_BYTES)
    gloo._ZNSt13runtime_errorC1EPKc(error, _MESSAGE)
    destructor = ctypes.cast(gloo._ZNSt13runtime_errorD1Ev, c_void_p)
    gloo.__cxa_init_primary_exception(error, _address(gloo, _ERROR_CLASS), destructor)
    pointer = c_void_p()
    gloo._ZNSt15__exception_ptr13exception_ptrC1EPv(ctypes.byref(pointer), error)
    getattr(gloo, _TELL)(buffer, ctypes.byref(pointer))
