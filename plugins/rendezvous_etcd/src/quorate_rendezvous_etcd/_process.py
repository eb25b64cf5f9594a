"""One etcd process: its ports, its command line, its output, its signals.

What does not live here: how several of them form a cluster (:mod:`._server`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, final

from quorate.errors import StoreUnavailableError, UsageError
from quorate.files import write_all
from quorate.net import close_in_children

# etcd 3.4, 3.5 and 3.6 log this once they serve clients ("securely" or "insecurely").
_READY = b"serving client traffic"
#: More than the stack that follows an error.
_LINES_KEPT = 60
_LONGEST_LINE_BYTES = 1 << 16
_UNKNOWN_OPTION = "flag provided but not defined"
_FATAL = ('"level":"fatal"', '"level":"panic"')
_END_SECONDS = 10.0


def find_binary(binary: str | None = None) -> str:
    """Return the path of the etcd program: ``binary``, else ``QUORATE_ETCD_BINARY``, else ``etcd`` on ``PATH``.

    Raises:
        UsageError: etcd is not installed; the message says how to install it.
    """
    named = binary or os.environ.get("QUORATE_ETCD_BINARY", "")
    found = shutil.which(named or "etcd")
    if found is not None:
        return found
    what = f"the etcd program {named!r} cannot be run" if named else "no etcd program is on PATH"
    raise UsageError(
        f"{what}. Install one (Debian and Ubuntu: apt-get install etcd-server; others: https://etcd.io/docs/), or say "
        "where it is with EtcdServer(binary=…) or QUORATE_ETCD_BINARY"
    )


def features_of(binary: str) -> frozenset[str]:
    """Return the options that this etcd knows, such as ``--enable-v2``.  Raises UsageError if it cannot be run."""
    try:
        done = subprocess.run(
            [binary, "--help"], check=False, capture_output=True, timeout=_END_SECONDS, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"the etcd program {binary!r} cannot be run: {error}") from None
    words = (done.stdout + done.stderr).decode(errors="replace").split()
    return frozenset(word for word in words if word.startswith("--"))


def _environment() -> dict[str, str]:
    # etcd reads options from the environment, too.  The caller's are meant for another etcd.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    if platform.machine() == "aarch64":
        environment["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 refuses to start there without it
    return environment


def _open_log() -> tuple[IO[bytes], int]:
    """Return the stream of a pipe, and a descriptor of its other end for etcd, which can be read from, too.

    With a reader of its own, etcd survives its first line after the death of this process (a Go program that writes to
    a standard error without a reader is killed by SIGPIPE).
    """
    read_end, write_end = os.pipe()
    try:
        both = os.open(f"/proc/self/fd/{write_end}", os.O_RDWR)
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    return os.fdopen(read_end, "rb"), both


@final
class Ports:
    """Free ports of 127.0.0.1, held for as long as this object is open.

    The sockets are bound with SO_REUSEADDR and do not listen.  The kernel gives the ports to no other process.  etcd,
    which sets the same option, can listen on them.
    """

    def __init__(self, count: int) -> None:
        self._sockets: list[socket.socket] = []
        try:
            for _ in range(count):
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                self._sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", 0))
        except OSError:
            self.close()
            raise
        close_in_children(self)
        #: The ports, also in a forked child, which does not hold them.
        self.numbers: list[int] = [sock.getsockname()[1] for sock in self._sockets]

    def close(self) -> None:
        """Give the ports back."""
        for sock in self._sockets:
            sock.close()

    close_after_fork = close


@final
class Member:
    """A running etcd process with ``arguments``.  A thread reads its log, which shows when it is ready.

    It has the variables ``environment`` besides this process's own.  ``log`` is a descriptor that the log is copied to;
    -1: none.
    """

    def __init__(
        self, name: str, binary: str, arguments: Sequence[str], environment: Mapping[str, str], log: int = -1
    ) -> None:
        self.name = name
        self._log = log
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._ready = threading.Event()
        #: Whether it serves clients, or has done so.
        self.is_ready = False
        self._log_stream, log_end = _open_log()
        try:
            self._process = subprocess.Popen(
                [binary, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_end,
                env={**_environment(), **environment},
                start_new_session=True,
            )
        except BaseException:
            self._log_stream.close()
            raise
        finally:
            os.close(log_end)
        self._reader = threading.Thread(
            target=self._read, args=(self._log_stream,), name=f"quorate-etcd-{name}", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _read(self, stream: IO[bytes]) -> None:
        try:
            for line in iter(lambda: stream.readline(_LONGEST_LINE_BYTES), b""):
                self._lines.append(line.decode(errors="replace").rstrip())
                if self._log >= 0:
                    try:
                        write_all(self._log, line)
                    except OSError:
                        self._log = -1  # its owner has closed it, or the disk is full; etcd itself must go on
                if _READY in line:
                    self.is_ready = True
                    self._ready.set()
        finally:
            # Also if this thread fails: otherwise others would wait for it in vain.
            self._ready.set()

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until it serves clients.

        Raises:
            StoreUnavailableError: it ended before, or did not get there within ``seconds``.
        """
        self._ready.wait(seconds)
        if not self.is_ready:
            problem = "ended" if self._ready.is_set() else f"was not ready within {seconds:g} s"
            raise StoreUnavailableError(f"etcd member {self.name} {problem}; its last lines:\n{self.last_lines}")

    @property
    def last_lines(self) -> str:
        """The last lines of its log."""
        return "\n".join(self._lines)

    @property
    def problem(self) -> str:
        """What its log says of its end: the last line that tells an error, else the last of all."""
        return self.last_error or _text_of(next(reversed(list(self._lines)), "it said nothing"))

    @property
    def last_error(self) -> str:
        """The last line of its log that tells an error, ``""`` if none does: it was killed."""
        told = (line for line in reversed(list(self._lines)) if _tells_error(line))
        return _text_of(next(told, ""))

    @property
    def lacks_options(self) -> bool:
        """Whether it has ended because it does not know one of its options."""
        return any(_UNKNOWN_OPTION in line for line in list(self._lines))

    def wait_for_news(self, seconds: float) -> bool:
        """Wait until it serves clients or has ended, for at most ``seconds``; return whether one of the two holds."""
        return self._ready.wait(seconds)

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until it has ended, for at most ``seconds``; return whether it has."""
        self._reader.join(seconds)
        return not self._reader.is_alive()

    def send_signal(self, number: int) -> None:
        """Send the process a signal, if it still runs."""
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Send SIGSTOP and wait until it has been carried out: until then the process may still answer."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and SIGKILL if that did not end it, and wait until the process and its thread are gone."""
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._log_stream.close()


def _tells_error(line: str) -> bool:
    return line.startswith("panic:") or _UNKNOWN_OPTION in line or any(level in line for level in _FATAL)


def _text_of(line: str) -> str:
    """Return what a line of the log says, without the rest of its JSON."""
    try:
        entry = json.loads(line)
        return ": ".join(str(entry[name]) for name in ("msg", "error") if name in entry) or line
    except (ValueError, TypeError, RecursionError):
        return line
