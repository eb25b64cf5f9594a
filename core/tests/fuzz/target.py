"""What a target of the fuzzer is, and how bytes become a file or a connection for one.

What does not live here: the targets.  Each distribution has its own in ``tests/fuzz_targets.py``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from attrs import frozen

__all__ = ["Target", "in_a_file", "over_a_socket"]


@frozen
class Target:
    """``read`` takes any bytes and raises nothing but ``allowed``.

    ``examples`` are inputs that it accepts, ``refused`` others to begin with, which it refuses.
    """

    read: Callable[[bytes], object]
    examples: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = ()
    refused: tuple[bytes, ...] = ()

    @property
    def beginnings(self) -> tuple[bytes, ...]:
        """All inputs that others are made from."""
        return self.examples + self.refused

    def try_one(self, data: bytes) -> bool:
        """Read ``data``; returns whether it was accepted."""
        try:
            self.read(data)
        except self.allowed:
            return False
        return True


def in_a_file(read: Callable[[str], object], name: str) -> Callable[[bytes], None]:
    """Return ``read`` for bytes instead of a path; the file lies in memory and is this process's own.

    ``name`` may begin with folders.
    """

    def read_bytes(data: bytes) -> None:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else "/tmp"
        path = os.path.join(memory, f"quorate-fuzz-{os.getpid()}", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(path, "wb", opener=_open_private) as file:
                file.write(data)
            read(path)
        finally:
            os.unlink(path)
            folder = os.path.dirname(path)
            while folder != memory:
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    return read_bytes


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def over_a_socket(read: Callable[[socket.socket], object], kind: int = socket.SOCK_STREAM) -> Callable[[bytes], None]:
    """Return ``read`` for bytes instead of a connection, whose other end has sent them and closed.

    Where ``kind`` keeps packets apart, each NUL ends one.
    """

    def read_bytes(data: bytes) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with ours, theirs:
            theirs.setblocking(False)
            for part in data.split(b"\0") if kind == socket.SOCK_SEQPACKET else [data]:
                try:
                    theirs.send(part)
                except (BlockingIOError, OSError):
                    break  # more than the kernel holds
            theirs.shutdown(socket.SHUT_WR)
            read(ours)

    return read_bytes
