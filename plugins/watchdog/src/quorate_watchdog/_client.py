"""What a worker calls: timers and heartbeats, written as lines into the agent's pipe.

No thread, no lock, no file; one ``write`` of about a hundred bytes per message, which never blocks for longer than
a quarter of a second.  Where there is no agent, or its pipe cannot be reached, nothing happens.  What does not live
here: who reads the lines (:mod:`._server`) and what they mean (:mod:`._messages`).
"""

from __future__ import annotations

import itertools
import os
import select
import sys
from types import TracebackType
from typing import final

from quorate.clock import monotonic

__all__ = ["expires", "heartbeat"]

#: Set by the agent: ``<path>:<inode>`` of the pipe.  The inode keeps us from writing into a stranger's file.
CHANNEL_VARIABLE = "QUORATE_TIMER_CHANNEL"
#: Set by the starter: the signal upon which a process is to write the stacks of its threads to stderr.
STACK_SIGNAL_VARIABLE = "QUORATE_STACK_SIGNAL"

#: Further signs of life within this time say nothing new.
_BEAT_SECONDS = 0.1
#: How long a message waits for room in a full pipe, which the agent empties a hundred times a second if it can.  The
#: end of a timer waits longer, or its worker would be taken for hung; there are only as many as there were begins.
_PATIENCE_MS, _PATIENCE_WITH_ENDS_MS = 20, 250
#: A pipe takes lines of up to this length (PIPE_BUF) in one piece or not at all.
_ATOMIC_BYTES = 4096
_LONGEST_SCOPE = 200

_timer_ids = itertools.count(1)


@final
class expires:  # noqa: N801 - reads as a clause: with expires(after=30): ...
    """Has the agent find this worker hung unless the block ends in time.

    ``with expires(after=30.0, scope="step"): ...``.  The agent's clock decides; this process takes no part in it, so
    that one that is blocked for good is found all the same.  A timer in a hot loop may be made once and entered again
    and again.  Without an agent it does nothing.

    Arguments:
        after: seconds.
        scope: what is timed, for the report; default: file and line of the caller.

    Raises:
        ValueError: ``after`` is no positive number of seconds.
    """

    __slots__ = ("_entered", "_tail")

    def __init__(self, after: float, scope: str = "") -> None:
        if not 0.0 < after < 1e9:
            raise ValueError(f"after={after!r} is no positive number of seconds")
        if not scope:
            frame = sys._getframe(1)
            scope = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        self._tail = f',"after":{float(after)},"scope":{_quote(scope)}}}\n'.encode()
        self._entered: list[int] = []

    def __enter__(self) -> expires:
        channel = _channel or _open_channel()
        number = next(_timer_ids)
        if not channel.write(b'%b,"timer":%d%b' % (channel.head, number, self._tail), False):
            number = 0  # it could not begin, so it need not end
        self._entered.append(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        number = self._entered.pop()
        if number:
            channel = _channel or _open_channel()
            channel.write(b'%b,"timer":%d,"after":-1}\n' % (channel.head, number), True)


def heartbeat() -> None:
    """Give a sign of life; costs nothing to speak of, so call it as often as there is progress.

    The agent shows when it last came, and with ``--heartbeat-timeout`` takes a missing one for a hang.  Without an
    agent it does nothing.
    """
    global _next_beat
    now = monotonic()
    if now >= _next_beat:
        _next_beat = now + _BEAT_SECONDS
        channel = _channel or _open_channel()
        channel.write(b'%b,"beat":1}\n' % channel.head, False)


_next_beat = 0.0


def _quote(scope: str) -> str:
    if len(scope) > _LONGEST_SCOPE:
        scope = scope[:_LONGEST_SCOPE] + "…"
    if scope.isascii() and scope.isprintable() and '"' not in scope and "\\" not in scope:
        return f'"{scope}"'
    import json

    return json.dumps(scope.encode("utf-8", "replace").decode())


@final
class _Channel:
    """The way to the agent; ``descriptor`` is -1 where there is none.  ``head`` says who writes."""

    __slots__ = ("_is_stuck", "_owed", "descriptor", "head", "inode")

    def __init__(self, descriptor: int, inode: int) -> None:
        self.descriptor, self.inode = descriptor, inode
        self.head = _head()
        self._owed = b""  # ends of timers that found the pipe full
        self._is_stuck = False  # the agent was waited for in vain: not again before it has read something

    def write(self, line: bytes, must: bool) -> bool:
        """Write a line; return whether it is on its way.  One that ``must`` get there goes with a later one at worst.

        Never raises, and never writes anywhere else: should the process have closed all its descriptors, the number
        may be another file's by now.
        """
        if self.descriptor < 0:
            return False
        try:
            if os.fstat(self.descriptor).st_ino != self.inode:
                raise OSError
            return self._write(line, must)
        except OSError:
            self.descriptor = -1  # the agent has gone, or the descriptor has
            return False

    def _write(self, line: bytes, must: bool) -> bool:
        data = self._owed + line
        patience = _PATIENCE_WITH_ENDS_MS if must else 0 if self._is_stuck else _PATIENCE_MS
        for is_last in (patience == 0, True):
            try:
                os.write(self.descriptor, data)
                self._owed, self._is_stuck = b"", False
                return True
            except BlockingIOError:
                if is_last:
                    break
                poller = select.poll()
                poller.register(self.descriptor, select.POLLOUT)
                poller.poll(patience)
        self._is_stuck = True
        if must and len(data) <= _ATOMIC_BYTES - 512:
            self._owed = data
        return False


_channel: _Channel | None = None


def _open_channel() -> _Channel:
    """Find the agent's pipe, once per process, and have the agent's signal print our stacks from now on."""
    global _channel
    descriptor, inode = -1, 0
    path, _, digits = os.environ.get(CHANNEL_VARIABLE, "").rpartition(":")
    if path and digits.isdecimal():
        descriptor, inode = _open_pipe(path, int(digits)), int(digits)
    _channel = _Channel(descriptor, inode)
    try:
        _print_stacks_upon_signal()
    except (OSError, ValueError, RuntimeError, ImportError):
        pass  # then the agent has other ways
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
    import stat

    return stat.S_ISFIFO(status.st_mode) and status.st_ino == inode


def _print_stacks_upon_signal() -> None:
    text = os.environ.get(STACK_SIGNAL_VARIABLE, "")
    if not text.isdecimal():
        return
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        caught = next((int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")), -1)
    if caught >> (int(text) - 1) & 1:
        return  # somebody has a handler there, which we never replace: the starter's own, mostly
    import faulthandler

    # The descriptor and not sys.stderr: that may be a capture's, the log is behind 2.
    faulthandler.register(int(text), file=2, all_threads=True, chain=False)


def _head() -> bytes:
    """Return the beginning of every message.  A pid means nothing outside its namespace, so that is told as well."""
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
    """In a forked child: it has another pid, and what its parent owes is not its business."""
    global _channel, _next_beat
    if _channel is not None:
        _channel = _Channel(_channel.descriptor, _channel.inode)
    _next_beat = 0.0


os.register_at_fork(after_in_child=_after_fork)
