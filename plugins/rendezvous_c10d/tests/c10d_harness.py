"""A member of a store as a real process, and what a process has open.  Plain functions and classes, no fixtures."""

from __future__ import annotations

import ast
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["DEADLINE_SECONDS", "HERE", "Member", "tasks"]


HERE = Path(__file__).resolve().parent
DEADLINE_SECONDS = 60.0


class Member:
    """A process that is a member of the store (``c10d_member.py``)."""

    def __init__(self, endpoint: str, run_id: str = "job", **settings: object) -> None:
        arguments = [f"{name}={value}" for name, value in settings.items()]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "c10d_member.py"), endpoint, run_id, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def opened(self) -> bool:
        """Wait until it has opened the store; returns whether it is the host."""
        word, is_host = self._answer()
        assert word == "open"
        return bool(is_host)

    def send(self, name: str, *arguments: object) -> None:
        """Have it call a method of its store."""
        assert self.process.stdin is not None
        self.process.stdin.write(repr((name, arguments)).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> tuple[str, Any]:
        """Wait for the outcome of what was sent: ``("returned", value)`` or ``(error class, message)``."""
        return self._answer()

    def call(self, name: str, *arguments: object) -> Any:
        """Call a method of its store; returns the value."""
        self.send(name, *arguments)
        word, value = self.receive()
        assert word == "returned", (word, value)
        return value

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL and wait until it is gone."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)

    def end(self) -> None:
        """Release the process and its pipes, however the test went."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # it died before it read what was sent
                pipe.close()

    def _answer(self) -> tuple[str, Any]:
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], DEADLINE_SECONDS)
        assert ready, "the member did not answer in time"
        line = stdout.readline()
        assert line, f"the member ended with {self.process.wait(DEADLINE_SECONDS)}"
        answer: tuple[str, Any] = ast.literal_eval(line.decode())
        return answer


def tasks() -> set[str]:
    """Return the threads of this process, torch's own included."""
    return set(os.listdir("/proc/self/task"))
