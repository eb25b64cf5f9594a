"""What a worker calls: timers and heartbeats, written as lines into the agent's pipe.

It needs no thread, lock or file.  A message is one ``write`` of about a hundred bytes, which blocks for a quarter of a
second at most.  Without an agent, or where its pipe cannot be opened, nothing happens.  What does not live here: who
reads the lines (:mod:`._server`) and what they mean (:mod:`._messages`).
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import select
import stat
import sys
from contextlib import suppress
from types import TracebackType
from typing import final

from quorate.clock import monotonic

#: Set by the agent: ``<path>:<inode>`` of the pipe.  The inode keeps us from writing into another file.
CHANNEL_VARIABLE = "QUORATE_TIMER_CHANNEL"
#: Set by the starter: the signal upon which a process is to write the stacks of its threads to stderr.
STACK_SIGNAL_VARIABLE = "QUORATE_STACK_SIGNAL"

#: Heartbeats within this time after one that was sent are not sent.
_HEARTBEAT_SECONDS = 0.1
#: How long a message waits for room in a full pipe, which the agent empties a hundred times a second if it can.  The
#: release of a timer waits longer: if it is lost, its worker seems to hang.
_WRITE_TIMEOUT_MS, _RELEASE_TIMEOUT_MS = 20, 250
#: A pipe takes lines of up to this length (PIPE_BUF) in one piece or not at all.
_ATOMIC_BYTES = 4096
_LONGEST_SCOPE = 200

_timer_ids = itertools.count(1)


@final
class expires:  # noqa: N801 - reads as a clause: with expires(after=30): ...
    """A timer: unless the block ends in time, the agent treats this worker as hung.

    ``with expires(after=30.0, scope="step"): ...``.  The agent's clock decides, so a process that is blocked for ever
    is found too.  A timer in a hot loop may be made once and entered many times.  Without an agent it does nothing.

    Arguments:
        after: seconds.
        scope: what is timed, for the report; default: file and line of the caller.

    Raises:
        ValueError: ``after`` is not a positive number of seconds.
    """

    __slots__ = ("_entered", "_tail")

    def __init__(self, after: float, scope: str = "") -> None:
        if not 0.0 < after < 1e9:
            raise ValueError(f"after={after!r} is not a positive number of seconds")
        if not scope:
            frame = sys._getframe(1)
            scope = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        self._tail = f',"after":{float(after)},"scope":{_quote(scope)}}}\n'.encode()
        self._entered: list[int] = []

    def __enter__(self) -> expires:
        channel = _channel or _open_channel()
        number = next(_timer_ids)
        if not channel.write(b'%b,"timer":%d%b' % (channel.head, number, self._tail), is_release=False):
            number = 0  # it was not started, so it is not released
        self._entered.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        number = self._entered.pop()
        if number:
            channel = _channel or _open_channel()
            channel.write(b'%b,"timer":%d,"after":-1}\n' % (channel.head, number), is_release=True)


def heartbeat() -> None:
    """Tell the agent that this worker makes progress; costs a fraction of a microsecond, so call it in every step.

    The agent shows when it last came, and with ``--heartbeat-timeout`` treats a missing one as a hang.  Without an
    agent it does nothing.
    """
    global _next_heartbeat_at
    now = monotonic()
    if now >= _next_heartbeat_at:
        _next_heartbeat_at = now + _HEARTBEAT_SECONDS
        channel = _channel or _open_channel()
        channel.write(b'%b,"heartbeat":1}\n' % channel.head, is_release=False)


_next_heartbeat_at = 0.0


def _quote(scope: str) -> str:
    if len(scope) > _LONGEST_SCOPE:
        scope = scope[:_LONGEST_SCOPE] + "…"
    if scope.isascii() and scope.isprintable() and '"' not in scope and "\\" not in scope:
        return f'"{scope}"'
    return json.dumps(scope.encode("utf-8", "replace").decode())


@final
class _Channel:
    """The way to the agent; ``descriptor`` is -1 where no agent listens.  ``head`` begins every message."""

    __slots__ = ("_is_stuck", "_owed", "descriptor", "head", "inode")

    def __init__(self, descriptor: int, inode: int) -> None:
        self.descriptor, self.inode = descriptor, inode
        self.head = _head()
        self._owed = b""  # releases that found the pipe full
        self._is_stuck = False  # the pipe stayed full once: no more waiting until the agent has read something

    def write(self, line: bytes, is_release: bool) -> bool:
        """Write a line; return whether it was written.  A release that was not is written with the next line.

        Never raises, and never writes anywhere else: if the process has closed all its descriptors, the number may be
        another file's.
        """
        if self.descriptor < 0:
            return False
        try:
            if os.fstat(self.descriptor).st_ino != self.inode:
                raise OSError
            return self._write(line, is_release)
        except OSError:
            self.descriptor = -1  # the agent has ended, or the descriptor was closed
            return False

    def _write(self, line: bytes, is_release: bool) -> bool:
        data = self._owed + line
        timeout = _RELEASE_TIMEOUT_MS if is_release else 0 if self._is_stuck else _WRITE_TIMEOUT_MS
        for is_last in (timeout == 0, True):
            try:
                os.write(self.descriptor, data)
                self._owed, self._is_stuck = b"", False
                return True
            except BlockingIOError:
                if is_last:
                    break
                poller = select.poll()
                poller.register(self.descriptor, select.POLLOUT)
                poller.poll(timeout)
        self._is_stuck = True
        if is_release and len(data) <= _ATOMIC_BYTES - 512:
            self._owed = data
        return False


_channel: _Channel | None = None


def _open_channel() -> _Channel:
    """Open the agent's pipe, once per process, and print the stacks upon the agent's signal from now on."""
    global _channel
    descriptor, inode = -1, 0
    path, _, digits = os.environ.get(CHANNEL_VARIABLE, "").rpartition(":")
    if path and digits.isdecimal():
        descriptor, inode = _open_pipe(path, int(digits)), int(digits)
    _channel = _Channel(descriptor, inode)
    with suppress(OSError, ValueError, RuntimeError):  # the agent has other ways to get the stacks
        _print_stacks_upon_signal()
    return _channel


def _open_pipe(path: str, inode: int) -> int:
    """Return a descriptor of the pipe, -1 if it is not there: no agent, or one in another process namespace."""
    try:
        if not _is_pipe(os.stat(path), inode):
            return -1
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return -1
    if _is_pipe(os.fstat(descriptor), inode):
        return descriptor
    os.close(descriptor)
    return -1


def _is_pipe(status: os.stat_result, inode: int) -> bool:
    return stat.S_ISFIFO(status.st_mode) and status.st_ino == inode


def _print_stacks_upon_signal() -> None:
    text = os.environ.get(STACK_SIGNAL_VARIABLE, "")
    if not text.isdecimal():
        return
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        caught = next((int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")), -1)
    if caught >> (int(text) - 1) & 1:
        return  # a handler that is there (mostly the starter's own) is never replaced
    # Not sys.stderr, which may be captured: the log is behind descriptor 2.
    faulthandler.register(int(text), file=2, all_threads=True, chain=False)


def _head() -> bytes:
    """Return the beginning of every message.  It names the namespace, outside which a pid has no meaning."""
    environ = os.environ
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    rank, number = (environ.get(name, "") for name in ("RANK", "QUORATE_ROUND"))
    return (
        f'{{"pid":{os.getpid()},"namespace":{namespace},"agent":{_quote(environ.get("QUORATE_AGENT_TOKEN", ""))},'
        f'"rank":{int(rank) if rank.isdecimal() else -1},"round":{int(number) if number.isdecimal() else -1}'
    ).encode()


def _after_fork() -> None:
    """In a forked child: messages have its own pid, and the parent writes the releases that it owes."""
    global _channel, _next_heartbeat_at
    if _channel is not None:
        _channel = _Channel(_channel.descriptor, _channel.inode)
    _next_heartbeat_at = 0.0


os.register_at_fork(after_in_child=_after_fork)
