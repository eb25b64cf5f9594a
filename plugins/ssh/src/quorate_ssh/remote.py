"""The process at a host's end of the connection: ``python -m quorate_ssh.remote``, started by ssh.

It says what it is, checks what it is asked to check, and starts the agent.  From then on it passes signals on and looks
after the connection: when that ends, in whatever way, so does the agent.  The agent dies with this process.  What does
not live here: the launching side (``_launch``), and agents that were told to go on without it (``_detached``).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any, final

import quorate
from quorate.clock import monotonic
from quorate.files import read_bytes
from quorate.net import host_name
from quorate.notices import write_error
from quorate.plugins import get_host
from quorate.proc import hold, open_pidfd, parent_death_command

from . import _detached
from ._messages import LONGEST_LINE, MARK, ORDERS, SILENCE_SECONDS, decode, encode

__all__ = ["main"]

#: After the connection is lost: how long workers may use their grace, and how long the agent has to end after that.
_LOST_GRACE_SECONDS = 5.0
_LOST_KILL_SECONDS = 10.0
_CANNOT_START = 126


def main() -> int:
    """Serve one connection and return the exit code."""
    # They come from a terminal or a session, not from the launching side.  If they were ignored, the agent, which gets
    # those of the launching side, would ignore them too.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    inbox = _Inbox()
    _say({"hello": _identity()})
    while True:
        message = inbox.wait(SILENCE_SECONDS)
        if message is None:
            return 0  # the launching side has gone before anything was started
        if "check" in message:
            _say({"problem": _problem_with(message["check"])})
        elif "start" in message:
            return _start(message["start"], inbox)
        elif "detached" in message:
            _say({"detached": _detached.answer(message["detached"])})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(MARK.encode() + encode(message))  # whatever encoding the host's variables ask for
    sys.stdout.buffer.flush()


def _identity() -> dict[str, Any]:
    connection = os.environ.get("SSH_CONNECTION", "").split()
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return {
        "version": quorate.__version__,
        "plugins": get_host().digest(),
        "host": host_name(),
        "address": connection[2] if len(connection) == 4 else "",
        "port": port,
        "pid": os.getpid(),
        "machine": _machine(),
    }


def _machine() -> str:
    """Return what tells this machine, or this container, from others; two names that have it are one."""
    with suppress(OSError):
        spaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid")]
        return " ".join([read_bytes("/proc/sys/kernel/random/boot_id", 100).decode().strip(), *spaces])
    return ""


def _problem_with(check: dict[str, Any]) -> str:
    """Return why the job cannot run here, ``""`` if it can."""
    folder, script = str(check.get("folder", "")), check.get("script")
    try:
        os.chdir(folder)
    except OSError as error:
        return f"the folder {folder} cannot be used: {error.strerror}"
    if script and not os.path.exists(script):
        return f"the script {script} does not exist in {folder}"
    return ""


def _start(start: dict[str, Any], inbox: _Inbox) -> int:
    environment = {**os.environ, **start["environment"]}
    command = [sys.executable, "-m", "quorate", "run", *start["arguments"]]
    if start.get("detach"):
        try:
            _say({"detached": _detached.begin(str(start["detach"]), command, environment)})
        except OSError as error:
            write_error(f"{error.filename or 'the agent'}: {error.strerror}")
            return _CANNOT_START
        return 0
    death = parent_death_command(os.environ.get("PATH", os.defpath))
    agent = subprocess.Popen([*death, *command], env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    return _Watch(agent, inbox).run()


@final
class _Inbox:
    """The messages of the launching side."""

    def __init__(self) -> None:
        self.descriptor = sys.stdin.fileno()
        os.set_blocking(self.descriptor, False)
        self._buffer = b""
        self.heard_at = monotonic()
        self.is_closed = False

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message that is not a ping; ``None`` once the launching side is gone."""
        while True:
            message = self.take()
            if message is not None:
                return message
            left = self.heard_at + seconds - monotonic()
            if self.is_closed or left <= 0:
                return None
            select.select([self.descriptor], [], [], left)
            self.read()

    def read(self) -> None:
        """Read what has come."""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.heard_at = monotonic()
        self._buffer += data
        self.is_closed = not data or len(self._buffer) > LONGEST_LINE

    def take(self) -> dict[str, Any] | None:
        """Return the next message that has come and is not a ping."""
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            message = decode(line, ORDERS)
            if message and "ping" not in message:
                return message
        return None


@final
class _Watch:
    """Waits for the agent's end, and for the launching side's signals and its end."""

    def __init__(self, agent: subprocess.Popen[bytes], inbox: _Inbox) -> None:
        self._agent, self._inbox = agent, inbox
        self._lost_at: float | None = None
        self._sent = 0

    def run(self) -> int:
        """Return the agent's exit code, as a shell would."""
        pidfd = hold(open_pidfd(self._agent.pid))
        terminated = _signal_pipe(signal.SIGTERM)
        while self._agent.poll() is None:
            watched = [pidfd, terminated] if self._inbox.is_closed else [pidfd, terminated, self._inbox.descriptor]
            ready = select.select(watched, [], [], 1.0)[0]
            if self._inbox.descriptor in ready:
                self._inbox.read()
                while (message := self._inbox.take()) is not None:
                    if "signal" in message:
                        self._send(message["signal"])
            if terminated in ready:
                os.read(terminated, 512)
                self._send(signal.SIGTERM)
            if self._inbox.is_closed or monotonic() - self._inbox.heard_at > SILENCE_SECONDS:
                self._end_without_connection()
        code = self._agent.returncode
        return code if code >= 0 else 128 - code

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._agent.send_signal(number)

    def _end_without_connection(self) -> None:
        """Ask the agent to stop, then to stop at once, then kill it: its workers die with it."""
        now = monotonic()
        if self._lost_at is None:
            self._lost_at = now
        since = now - self._lost_at
        due = [
            (0.0, signal.SIGTERM),
            (_LOST_GRACE_SECONDS, signal.SIGTERM),
            (_LOST_GRACE_SECONDS + _LOST_KILL_SECONDS, signal.SIGKILL),
        ]
        while self._sent < len(due) and since >= due[self._sent][0]:
            self._send(due[self._sent][1])
            self._sent += 1


def _signal_pipe(number: signal.Signals) -> int:
    """Return a descriptor that becomes readable when this process receives ``number``."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(number, lambda *_: None)
    return reader


if __name__ == "__main__":
    sys.exit(main())
