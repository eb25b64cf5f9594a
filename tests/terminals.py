"""A terminal with a person at it, for tests: runs a command on a pty of its own and types.

What does not live here: what is typed (``test_terminals``).
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from .harness import DEADLINE

__all__ = ["CTRL_C", "CTRL_Z", "QUORATE", "Piped", "Terminal", "quorate", "script"]

CTRL_C, CTRL_Z = b"\x03", b"\x1a"
QUORATE = (sys.executable, "-m", "quorate", "run")


class Terminal:
    """A command whose controlling terminal the test holds; used as a context manager, which ends the command."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._master, end = os.openpty()
        environment = {**os.environ, "TERM": "dumb", **(environment or {})}
        try:
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *command], stdin=end, stdout=end, stderr=end, env=environment
            )
        finally:
            os.close(end)
        self.shown = b""

    def wait_for(self, text: str, after: int = 0) -> int:
        """Wait until ``text`` is shown behind the position ``after``; return the position behind it."""
        deadline = time.monotonic() + DEADLINE
        while (found := self.shown.find(text.encode(), after)) < 0:
            assert self._read(deadline - time.monotonic()), f"{text!r} is not in {self.shown.decode(errors='replace')}"
        return found + len(text.encode())

    def number_behind(self, text: str) -> int:
        """Wait for ``text`` and the rest of its line; return the number there."""
        begin = self.wait_for(text)
        end = self.wait_for("\n", begin)
        return int(self.shown[begin:end])

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> tuple[int, str]:
        """Wait for the end of the command; return its exit code and all that was shown."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(DEADLINE), self.shown.decode(errors="replace")

    def hang_up(self) -> None:
        """Close the terminal, as when a connection breaks."""
        os.close(self._master)
        self._master = -1

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:
            data = b""  # nobody has it open any more
        self.shown += data
        return bool(data)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if self._master >= 0:
            os.close(self._master)


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return str(path)


def quorate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QUORATE, *arguments], capture_output=True, text=True, timeout=DEADLINE, env={**os.environ, **environment}
    )


class Piped:
    """A command whose output is read line by line."""

    def __init__(self, *command: str, new_session: bool = False) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=new_session
        )
        self.text = b""

    def wait_for(self, text: str) -> None:
        self._match(re.escape(text))

    def number_behind(self, text: str) -> int:
        return int(self._match(rf"{re.escape(text)}(\d+)\n")[1])

    def _match(self, pattern: str) -> re.Match[bytes]:
        """Read until ``pattern`` is there; a worker writes what it prints in pieces."""
        assert self.process.stdout is not None
        while not (found := re.search(pattern.encode(), self.text)):
            ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                self.process.kill()
                self.end()
                raise AssertionError(f"{pattern} is not in {self.text.decode()}")
            self.text += data
        return found

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, (self.text + output).decode()
