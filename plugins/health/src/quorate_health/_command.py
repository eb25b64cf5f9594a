"""The check that is a command of the user: runs it, with a deadline, and returns how it ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import final

from quorate.clock import LONGEST_WAIT_SECONDS, monotonic
from quorate.failures import signal_name
from quorate.job_token import without_token
from quorate.proc import find_program, parent_death_command
from quorate.text import printable

_KEPT_BYTES = 8192
_LONGEST_LINE = 400


@final
class Command:
    """A command that exits with 0 where the node is well.

    Arguments:
        words: the program, looked up on PATH, and its arguments.

    It runs in a session and process group of its own.  When it has ended, or its time is over, the rest of the group is
    killed.  If this process dies, the kernel kills the command, where util-linux' ``setpriv`` is installed.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._closed = False

    def check(self, timeout: float) -> str | None:
        """Run it for at most ``timeout`` seconds; returns what is wrong, if anything is."""
        name = self._words[0]
        argv, problem = _resolve(self._words)
        if problem:
            return f"{name} cannot be run: {problem}; correct --health-check-cmd"
        try:
            process = self._start(argv)
        except OSError as error:
            return f"{name} cannot be run: {error.strerror}; correct --health-check-cmd"
        if process is None:
            return None
        try:
            output = _Tail()
            in_time = _wait(process, output, monotonic() + timeout)
        finally:
            self._end(process)
        line = output.last_line()
        last = f": {line}" if line else ""
        if self._closed:
            return None
        if not in_time:
            return f"{name} was killed, because it had not ended after {timeout:g} s (command_timeout_s){last}"
        if process.returncode < 0:
            return f"{name} was killed by {signal_name(process.returncode)}{last}"
        return f"{name} ended with exit code {process.returncode}{last}" if process.returncode else None

    def close(self) -> None:
        """Kill it if it runs; it does not start again."""
        with self._lock:
            self._closed = True
            for group in self._running:
                _kill_group(group)

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._closed:
                return None
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
                env=without_token(os.environ),
            )
            self._running.add(process.pid)
            return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the group before its first process is reaped, so that the number cannot belong to another group."""
        with self._lock:
            _kill_group(process.pid)
            self._running.discard(process.pid)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@final
class _Tail:
    """The last bytes of an output."""

    def __init__(self) -> None:
        self._bytes = b""

    def add(self, piece: bytes) -> None:
        self._bytes = (self._bytes + piece)[-_KEPT_BYTES:]

    def last_line(self) -> str:
        """Return the last line that is not blank, cut to a length for people, without control characters."""
        lines = [line.strip() for line in self._bytes.decode(errors="replace").splitlines()]
        return printable(next((line for line in reversed(lines) if line), ""), _LONGEST_LINE)


def _wait(process: subprocess.Popen[bytes], output: _Tail, deadline: float) -> bool:
    """Read the output until the process has ended or the deadline has come; return whether it has ended.

    The end of the output would be too late: children of the process may keep the pipe open.
    """
    assert process.stdout is not None
    pipe, ended = process.stdout.fileno(), os.pidfd_open(process.pid)
    os.set_blocking(pipe, False)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(pipe, select.POLLIN)
    try:
        while True:
            left = deadline - monotonic()
            ready = dict(poller.poll(1000.0 * min(max(0.0, left), LONGEST_WAIT_SECONDS)))
            if pipe in ready and not _read(pipe, output):
                poller.unregister(pipe)
            if ended in ready:
                while _read(pipe, output):
                    pass
                return True
            if left <= 0:
                return False
    finally:
        os.close(ended)


def _read(pipe: int, output: _Tail) -> bool:
    try:
        piece = os.read(pipe, 65536)
    except BlockingIOError:
        return False
    output.add(piece)
    return bool(piece)


def _resolve(words: Sequence[str]) -> tuple[Sequence[str], str]:
    """Return the words to run so that the command dies with the thread that started it, or why it cannot be run."""
    path = os.pathsep.join(os.get_exec_path())
    program = words[0] if "/" in words[0] else find_program(words[0], path)
    if not os.path.exists(program):
        return (), "there is no such program"
    if not (os.path.isfile(program) and os.access(program, os.X_OK)):
        return (), "it is not an executable file"
    return (*parent_death_command(path), program, *words[1:]), ""


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it has ended, or it runs as another user by now
        os.killpg(group, signal.SIGKILL)
