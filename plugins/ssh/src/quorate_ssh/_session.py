"""One connection to a host, from the launching side: an ssh process, and the threads that read and write it.

What does not live here: what is done with a host (``_launch``), and the host's end (``remote``).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any, final

from attrs import frozen

from quorate.proc import forget, hold
from quorate.text import printable

from ._console import Console
from ._hosts import Host
from ._messages import ANSWERS, LONGEST_LINE, MARK, PING_SECONDS, decode, encode

_LAST_LINES = 5
_LONGEST_KEPT = 1000
_LONGEST_SHOWN = 80
_DRAIN_SECONDS = 2.0
#: What a host may print that is neither an answer nor the job's output: bytes, of which a line counts for some more.
_MOST_BYTES_BETWEEN = 16 << 20
_BYTES_PER_LINE = 1000
#: What Python, or a shell without Python, says.
_SIGNS_OF_NOTHING = (
    "No module named quorate",
    "No module named 'quorate",
    "python3: not found",
    "python3: command not found",
)
_OPTIONS = (
    "-T",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=3",
    "-o",
    "ServerAliveCountMax=4",
    # They are for a person's session, and a port can be listened on once: by a session, or by one of several hosts.
    "-o",
    "ClearAllForwardings=yes",
)


@final
@frozen
class Answered:
    """A host has said something."""

    session: Session
    message: Mapping[str, Any]


@final
@frozen
class Ended:
    """A connection has ended; ``code`` is ssh's, which is the remote process's, or 255 where ssh itself failed."""

    session: Session
    code: int


Event = Answered | Ended


def _remote_command(python: str) -> str:
    """Return what ssh runs on a host: this machine's Python where the host has it under the same path, else its own."""
    path = shlex.quote(python)
    script = f"if [ -x {path} ]; then exec {path} -m quorate_ssh.remote; else exec python3 -m quorate_ssh.remote; fi"
    return f"exec sh -c {shlex.quote(script)}"


@final
class Session:
    """A connection; what the host says is posted, what the job prints goes to the console."""

    def __init__(
        self, index: int, host: Host, ssh: Sequence[str], python: str, console: Console, post: Callable[[Event], None]
    ) -> None:
        self.index, self.host = index, host
        self.hello: Mapping[str, Any] = {}
        #: A sentence if the connection was ended from here, because of what the host said.
        self.complaint = ""
        self.is_started = False
        self.is_missing = False
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)  # of standard error
        self.last_printed = ""  # to standard output, before the job
        self._console, self._post = console, post
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        #: The answers that may come next, and their types: a host says nothing unasked, but for its first word.
        self._expected: dict[str, type] = {"hello": dict}
        self._bytes_between = 0
        options = _OPTIONS if ssh[0].rpartition("/")[2] == "ssh" else ()
        # A session of its own: a terminal's Ctrl-C is for the launch, which passes it on.
        self._process = subprocess.Popen(
            [*ssh, *options, host.name, _remote_command(python)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        hold(self._process.stdin.fileno())
        self._threads = [
            threading.Thread(target=work, name=f"quorate-ssh-{host.name}", daemon=True)
            for work in (self._write, self._read_output, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._wait, name=f"quorate-ssh-{host.name}", daemon=True).start()

    def send(self, message: Mapping[str, Any], answer: tuple[str, type] | None = None) -> None:
        """Send a message; one to a connection that has ended is dropped.

        Arguments:
            message: see :data:`ORDERS`.
            answer: what the host says to it (:data:`ANSWERS`), and of which type; ``None``: nothing.
        """
        if answer is not None:
            self._expected[answer[0]] = answer[1]
        self._outbox.put(encode(message))

    def close(self) -> None:
        """End the connection: whatever runs at the other end stops."""
        self._outbox.put(None)

    def kill(self) -> None:
        """End the connection without waiting for the other end."""
        with suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)  # --ssh-command may name a script that runs ssh

    def await_end(self, seconds: float) -> None:
        """Wait until a connection that was closed has ended; one that does not end is killed after ``seconds``."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.kill()

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with suppress(OSError, ValueError):  # the connection has ended
            while (data := self._outbox.get()) is not None:
                pipe.write(data)
                pipe.flush()
        forget(pipe.fileno())
        with suppress(OSError):
            pipe.close()

    def _read_output(self) -> None:
        for line in _lines_of(self._process.stdout):
            text = line.decode("utf-8", "replace")
            if not self.hello:  # what a shell prints before may lack the end of its line
                text = text[max(text.find(MARK), 0) :]
            if self.is_started:
                self._console.write_output(self.host.name, line)
            elif text.startswith(MARK):
                self._take(text.removeprefix(MARK))
            else:
                self.last_printed = _shown(line) or self.last_printed
                self._count(line)
            if self.complaint:
                break

    def _take(self, text: str) -> None:
        message = decode(text, ANSWERS)
        kinds = [kind for kind in ANSWERS if kind in message]
        if len(kinds) != 1 or not isinstance(message[kinds[0]], self._expected.pop(kinds[0], ())):
            self._complain(f"its answer {printable(text.strip(), _LONGEST_SHOWN)!r} is not one that was asked for")
        elif not self.complaint:
            self.hello = message.get("hello") or self.hello
            self._post(Answered(self, message))

    def _count(self, line: bytes) -> None:
        self._bytes_between += len(line) + _BYTES_PER_LINE
        if self._bytes_between > _MOST_BYTES_BETWEEN:
            self._complain("it prints without end where an answer was expected")

    def _complain(self, complaint: str) -> None:
        self.complaint = self.complaint or complaint
        self.kill()

    def _read_errors(self) -> None:
        for line in _lines_of(self._process.stderr):
            text = _shown(line)
            self.last_lines.append(text)
            self.is_missing |= not self.hello and any(sign in text for sign in _SIGNS_OF_NOTHING)
            if self.is_started:
                self._console.write_error(self.host.name, line)
            else:
                self._count(line)
            if self.complaint:
                break

    def _wait(self) -> None:
        code = self._process.wait()
        self._outbox.put(None)
        # A connection that others share may keep the pipes open after its first user has ended.
        for thread in self._threads:
            thread.join(_DRAIN_SECONDS)
        self._post(Ended(self, code if code >= 0 else 255))


def _shown(line: bytes) -> str:
    return printable(line.decode("utf-8", "replace").strip(), _LONGEST_KEPT)


def _lines_of(pipe: IO[bytes] | None) -> Iterator[bytes]:
    """Yield the lines of a pipe; one that is too long to be kept comes in parts."""
    assert pipe is not None
    with pipe:
        yield from iter(lambda: pipe.readline(LONGEST_LINE), b"")


PING = {"ping": PING_SECONDS}
