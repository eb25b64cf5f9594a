"""What happens to the bytes of one worker's stream: console, file, filtered copies, and the tail of stderr.

:func:`plan_output` decides which streams need a reader; where none is needed the worker writes straight to its
destination.  What does not live here: reading (:mod:`._pump`).
"""

from __future__ import annotations

import errno
import os
import select
from typing import Protocol, final

from attrs import define, field

from quorate.errors import StartError
from quorate.files import read_regular, write_byte
from quorate.notices import warn
from quorate.proc import hold, release
from quorate.records import WorkerLaunch, WorkerLogs
from quorate.starter import StarterRequest
from quorate.text import printable

from ._terminals import are_one_terminal, follow_size, open_terminal

#: Enough for a traceback that a library has written much behind.
_TAIL_BYTES = 64 * 1024
_TAIL_LINES = 20
_TAIL_LINE_CHARACTERS = 1000
_LONGEST_LINE_BYTES = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Console(Protocol):
    """Takes bytes; after the first error it takes nothing more."""

    def write(self, data: bytes) -> None:
        """Write all of ``data``; may block on a slow console."""
        ...

    def close(self) -> None:
        """Take no more; the console itself stays open."""
        ...


@final
class Sink:
    """A descriptor that streams write to; after the first error it takes nothing more, so that no worker blocks."""

    __slots__ = ("_descriptor", "_name")

    def __init__(self, descriptor: int, name: str = "") -> None:
        self._descriptor, self._name = descriptor, name

    def write(self, data: bytes) -> None:
        """Write all of ``data``, in one piece where the kernel takes it so; may block on a slow console."""
        if self._descriptor < 0:
            return
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Another process made the console non-blocking; wait until it takes more.
                poller = select.poll()
                poller.register(self._descriptor, select.POLLOUT)
                poller.poll()
            except OSError as error:
                if self._name:
                    warn(f"{self._name} cannot be written ({error.strerror}); the output goes to the console only")
                self.close()
                return

    def close(self) -> None:
        """Close a file; a console stays open."""
        if self._name and self._descriptor >= 0:
            release(self._descriptor)
        self._descriptor = -1


@final
class Stream:
    """One stream of one worker, as the pump reads it.

    Without prefix and copies the bytes go on as they come, so that prompts and progress bars work.  With either, only
    whole lines do; a carriage return ends a line too, so that progress bars move.  A stream that is
    a terminal has ``size_of``, the descriptor of the terminal that it is as large as.
    """

    __slots__ = (
        "_buffer", "_by_line", "_console", "_copies", "_file", "_prefix", "_size_of", "drained", "read_end", "tail",
    )  # fmt: skip

    def __init__(
        self,
        read_end: int,
        console: Console | None,
        file: Sink | None,
        prefix: bytes,
        copies: tuple[tuple[Sink, tuple[bytes, ...]], ...],
        size_of: int = -1,
    ) -> None:
        self.read_end, self._size_of = read_end, size_of
        self.tail = b""
        self.drained = False
        self._console, self._file, self._prefix, self._copies = console, file, prefix, copies
        self._by_line = bool(copies) or bool(prefix and console)
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Take what the worker wrote."""
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        if self._size_of >= 0:
            follow_size(self.read_end, self._size_of)
        if self._file:
            self._file.write(data)
        if not self._by_line:
            if self._console:
                self._console.write(data)
            return
        lines = (self._buffer + data).splitlines(keepends=True)
        last = lines[-1] if lines else b""
        # A carriage return at the very end may be half of a line end.
        self._buffer = b"" if last.endswith(b"\n") or len(last) > _LONGEST_LINE_BYTES else lines.pop()
        self._pass_on(lines)

    def finish(self) -> None:
        """Pass on an unfinished last line; the stream gets nothing after this."""
        if self._buffer:
            end = b"" if self._buffer.endswith(b"\r") else b"\n"
            self._pass_on([self._buffer + end])
            self._buffer = b""

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _pass_on(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._console:
            self._console.write(b"".join([self._prefix + line for line in lines]))
        for sink, words in self._copies:
            chosen = [self._prefix + line for line in lines if any(word in line for word in words)]
            if chosen:
                sink.write(b"".join(chosen))


@final
@define(eq=False)
class Output:
    """How one worker's output is wired.

    ``stdout`` and ``stderr`` are descriptors for the worker (-1: the agent's own), to be closed by :meth:`close` once
    it has started.  ``streams`` are what the pump has to read, ``errors`` is stderr's among them (``has_both``: and
    stdout's), and ``error_path`` the file that holds stderr where it has no reader.
    """

    stdout: int = -1
    stderr: int = -1
    streams: list[Stream] = field(factory=list)
    errors: Stream | None = None
    error_path: str = ""
    has_both: bool = False

    def close(self) -> None:
        """Close the worker's ends."""
        for descriptor in (self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self.stdout = self.stderr = -1


def captures_stderr(request: StarterRequest) -> bool:
    """Return whether the end of stderr is to be kept where nothing else needs a reader (``--capture-stderr``)."""
    return bool(request.settings.get("capture_stderr", True))


def plan_output(
    launch: WorkerLaunch, consoles: tuple[Console, Console], copies: dict[str, Sink], captures: bool = True
) -> Output:
    """Open what ``launch.logs`` asks for.

    Arguments:
        consoles: the agent's stdout and stderr.
        copies: path -> sink of the filtered copies, shared by the workers of a context; added to.
        captures: whether the end of stderr is kept where nothing else needs a reader.

    Raises:
        StartError: a log file cannot be opened (on a full disk: a warning, and the console only).
    """
    output = Output()
    try:
        if captures and _passes_through(launch.logs, "stderr") and os.isatty(2):
            _plan_terminal(launch.logs, consoles[1], output)
        if output.stdout < 0:
            output.stdout = _plan(launch, "stdout", consoles[0], copies, output, captures)
        if output.stderr < 0:
            output.stderr = _plan(launch, "stderr", consoles[1], copies, output, captures)
    except BaseException:
        output.close()
        for stream in output.streams:
            release(stream.read_end)
            stream.close()
        raise
    return output


def _passes_through(logs: WorkerLogs, name: str) -> bool:
    """Return whether a stream goes to the console alone, as it is."""
    path = logs.stderr if name == "stderr" else logs.stdout
    copied = any(stream == name for stream, _, _ in logs.duplicates)
    return logs.console and path is None and not logs.prefix and not copied


def _plan_terminal(logs: WorkerLogs, console: Console, output: Output) -> None:
    """Give stderr a terminal, and stdout the same one if the agent's are the same: so the order of both is kept."""
    try:
        read_end, worker_end = open_terminal(2)
    except OSError:
        return  # a pipe does it, too
    output.stderr = worker_end
    output.errors = Stream(read_end, console, None, b"", (), size_of=2)
    output.streams.append(output.errors)
    if _passes_through(logs, "stdout") and are_one_terminal(1, 2):
        output.stdout = os.dup(worker_end)
        output.has_both = True


def _plan(
    launch: WorkerLaunch, name: str, console: Console, copies: dict[str, Sink], output: Output, captures: bool
) -> int:
    logs = launch.logs
    is_error = name == "stderr"
    path, tee = (logs.stderr, logs.tee_stderr) if is_error else (logs.stdout, logs.tee_stdout)
    descriptor = _open(path, launch.local_rank) if path is not None else -1
    filters = tuple(
        (sink, tuple(word.encode(errors="surrogateescape") for word in words))
        for stream, copy_path, words in logs.duplicates
        if stream == name and (sink := _copy_sink(copy_path, copies, launch.local_rank)) is not None
    )
    shown = logs.console and (path is None or tee or descriptor < 0)
    keeps_tail = is_error and descriptor < 0 and captures
    if not filters and not (shown and (logs.prefix or descriptor >= 0)) and not keeps_tail:
        if descriptor >= 0:
            output.error_path = path or "" if is_error else output.error_path
            return descriptor
        return -1 if shown else os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    file = Sink(hold(descriptor), path or "") if descriptor >= 0 else None
    try:
        read_end, write_end = os.pipe()
    except OSError:
        release(descriptor)
        raise
    os.set_blocking(hold(read_end), False)
    prefix = (logs.prefix or "").encode(errors="surrogateescape")
    stream = Stream(read_end, console if shown else None, file, prefix, filters)
    output.streams.append(stream)
    if is_error:
        output.errors = stream
    return write_end


def _open(path: str, local_rank: int) -> int:
    # Non-blocking while it opens: a worker of an earlier round could have put a FIFO there, which would block for ever.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in _NO_SPACE:
            warn(f"{path} cannot be made ({error.strerror}); the output goes to the console only")
            return -1
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # the caller knows the remedy
        why = "it is a pipe that nothing reads" if error.errno == errno.ENXIO else error.strerror
        raise StartError(
            f"the log file {path} of local rank {local_rank} cannot be opened: {why}; "
            "set --log-dir to a writable folder",
            local_rank=local_rank,
        ) from error
    os.set_blocking(descriptor, True)
    return descriptor


def _copy_sink(path: str, copies: dict[str, Sink], local_rank: int) -> Sink | None:
    if path not in copies:
        descriptor = _open(path, local_rank)
        if descriptor < 0:
            return None
        copies[path] = Sink(hold(descriptor), path)
    return copies[path]


def tail_lines(data: bytes, most: int = _TAIL_LINES) -> tuple[str, ...]:
    """Return the last lines of ``data``, at most ``most`` of at most 1000 printable characters each.

    Of a progress bar, which writes over its own line, only the last state is a line.
    """
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in data.decode("utf-8", "replace").split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(printable(line, _TAIL_LINE_CHARACTERS) for line in lines[-most:])


def tail_of_file(path: str) -> bytes:
    """Return the end of the log at ``path``, ``b""`` if the worker has put anything but a file of its own there."""
    return read_regular(path, _TAIL_BYTES, from_end=True)


def why_lost(path: str) -> str:
    """Return why nothing more can be written to the log at ``path``, ``""`` if its disk takes another byte."""
    try:
        write_byte(os.path.dirname(path))
    except OSError as error:
        return f"{path} cannot be written ({error.strerror})" if error.errno in _NO_SPACE else ""
    return ""
