"""Makes workers write their stacks into their logs before they are stopped.

Imported when a worker hangs, and run on a thread of its own.  There are three ways, tried in order of their side
effects (docs/decisions/0013):

1. a process that answers :data:`STACK_SIGNAL` is sent it, and writes the Python stacks of its threads;
2. where py-spy is installed it writes Python and native stacks of each worker, from outside;
3. a worker that did neither, but catches SIGABRT (Python's faulthandler), is sent that, which ends it: only if SIGTERM,
   which it gets next, would end it just the same, or it is the hung one.

A process that is stopped, or waits in the kernel, cannot answer; its log then says so.
"""

from __future__ import annotations

import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import final

from quorate.clock import monotonic, seconds_until, sleep
from quorate.files import open_regular, read_bytes
from quorate.notices import warn
from quorate.proc import kernel_wait_of, open_pidfd, signals_of, stat_of, state_of, written_bytes

from ._stack_signal import STACK_SIGNAL
from ._workers import Worker

#: When, in the time that is given, asking must be over, then py-spy, then all, so that the rest is for the agent.
_ASK_SHARE, _SPY_SHARE, _SHARE = 0.4, 0.7, 0.9
#: A process that has written nothing over so many looks after its answer began, and is in no handler, has written it
#: all; one that would run if it had a CPU is given more.
_LOOK_SECONDS, _LOOKS, _LOOKS_IF_RUNNABLE = 0.02, 2, 10
_MOST_AT_ONCE = 8
_LONGEST_STACK_BYTES = 1 << 18


@final
class _Process:
    """One process of a worker, as /proc shows it; read again by :meth:`look`."""

    def __init__(self, pid: int, parent: int, worker: int, local_rank: int, log: str) -> None:
        self.pid, self.parent, self.worker, self.local_rank, self.log = pid, parent, worker, local_rank, log
        self.has_answered = False
        self._blocking: frozenset[str] = frozenset()
        self.look()

    def look(self) -> None:
        self.state, self._signals = state_of(self.pid), signals_of(self.pid)

    def catches(self, number: int) -> bool:
        return number in self._signals.caught

    def has_pending(self, number: int) -> bool:
        return number in self._signals.pending

    @property
    def is_alive(self) -> bool:
        return self.state not in ("", "Z", "X")

    @property
    def no_dump_reason(self) -> str:
        """Why it cannot answer any signal now, ``""`` if it can."""
        if self.state in ("T", "t"):
            by = "a signal (SIGSTOP)" if self.state == "T" else "a debugger"
            return f"is stopped by {by}; it goes on upon SIGCONT"
        return f"is in an uninterruptible wait of the kernel's: {kernel_wait_of(self.pid)}" if self.state == "D" else ""

    def _threads_blocking(self, number: int) -> frozenset[str]:
        found = []
        try:
            threads = os.listdir(f"/proc/{self.pid}/task")
        except OSError:
            return frozenset()
        for thread in threads:
            mask = _read(f"/proc/{self.pid}/task/{thread}/status").partition("\nSigBlk:")[2].partition("\n")[0]
            if mask and int(mask, 16) >> (number - 1) & 1:
                found.append(thread)
        return frozenset(found)

    def ask(self) -> bool:
        """Send it the stack signal; return whether it could be sent."""
        self._blocking = self._threads_blocking(STACK_SIGNAL)
        return self.send(STACK_SIGNAL)

    def is_answering(self) -> bool:
        """Whether a thread is in the signal's handler, which the kernel blocks it for (without SA_NODEFER)."""
        return not self._threads_blocking(STACK_SIGNAL) <= self._blocking

    def send(self, number: int) -> bool:
        try:
            os.kill(self.pid, number)
        except OSError:
            return False
        return True

    def write_log(self, text: str) -> None:
        """Write into its log: to its stderr, whatever that is, else to the file that it should be."""
        data = text.encode("utf-8", "replace")
        flags = os.O_WRONLY | os.O_APPEND
        for path in (f"/proc/{self.pid}/fd/2", f"/proc/{self.worker}/fd/2", self.log):
            try:
                if path.startswith("/proc/"):
                    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                else:
                    descriptor = open_regular(path, flags)
            except OSError:
                continue
            try:
                _write_if_taken(descriptor, data)
                return
            except OSError:
                continue
            finally:
                os.close(descriptor)
        warn(text.strip())


def dump_stacks(
    workers: Sequence[tuple[int, int, str]], hung_local_rank: int, timeout: float, answer_timeout: float = 1.0
) -> None:
    """Have workers write their stacks, within ``timeout`` seconds.

    Arguments:
        workers: local rank, process id and log file (``""`` if none) of each that runs.
        hung_local_rank: which of them hangs; it may be ended by SIGABRT.
        answer_timeout: how many seconds a process may take for its answer before it is asked in another way.
    """
    began = monotonic()
    families = {pid: _family(local_rank, pid, log) for local_rank, pid, log in workers}
    everyone = [process for family in families.values() for process in family]
    for process in everyone:
        if process.no_dump_reason:
            process.write_log(
                f"quorate: process {process.pid} (local rank {process.local_rank}) {process.no_dump_reason}\n"
            )
    end = began + _SHARE * timeout
    able = [[process for process in family if not process.no_dump_reason] for family in families.values()]
    _ask(able, began + _ASK_SHARE * timeout, answer_timeout)
    # Of a shell and what runs in it, of a worker and its data loaders: the first that could have Python stacks.
    heads = [head for family in families.values() for head in _heads(family)]
    heads.sort(key=lambda head: head.local_rank != hung_local_rank)
    _spy(heads, began + _SPY_SHARE * timeout)
    aborted = [head for head in heads if not head.has_answered and _abort(head, head.local_rank == hung_local_rank)]
    _wait_for_ends(aborted, end)


# --- which processes ------------------------------------------------------------------------------------------------


def dump_stacks_of(workers: Sequence[Worker], hung_local_rank: int, timeout: float) -> Sequence[str]:
    """Have those of ``workers`` write their stacks whose program still runs; return the hung one's last lines."""
    running = [worker for worker in workers if worker.exit_code is None and worker.result is None]
    if running:
        dump_stacks([(each.local_rank, each.pid, each.output.error_path) for each in running], hung_local_rank, timeout)
    return next((worker.last_lines() for worker in workers if worker.local_rank == hung_local_rank), ())


def _family(local_rank: int, worker: int, log: str) -> list[_Process]:
    """Return a worker and what it started, as far as it is in its session or descends from it; parents first."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for name in os.listdir("/proc"):
        stat = stat_of(int(name)) if name.isdecimal() else None
        if stat is not None:
            parents[int(name)], sessions[int(name)] = stat.parent, stat.session
    members = [worker] if worker in parents else []
    known = set(members)
    while True:
        new = [pid for pid in parents if pid not in known and (sessions[pid] == worker or parents[pid] in known)]
        if not new:
            break
        members += new
        known.update(new)
    family = [_Process(pid, parents[pid], worker, local_rank, log) for pid in members]
    return [process for process in family if process.is_alive]


def _heads(family: Sequence[_Process]) -> list[_Process]:
    """Return the processes that may have Python stacks and no such ancestor in the family; the worker if none has."""
    able = {process.pid for process in family if process.catches(signal.SIGABRT) or process.catches(STACK_SIGNAL)}
    parents: Mapping[int, int] = {process.pid: process.parent for process in family}

    def has_able_ancestor(pid: int) -> bool:
        while (pid := parents.get(pid, 0)) in parents:
            if pid in able:
                return True
        return False

    heads = [process for process in family if process.pid in able and not has_able_ancestor(process.pid)]
    return heads or list(family[:1])


# --- from outside ---------------------------------------------------------------------------------------------------


def find_py_spy() -> str:
    """Return the path of py-spy, ``""`` if it is not installed: beside this Python, or on the PATH."""
    return shutil.which("py-spy", path=os.path.dirname(sys.executable)) or shutil.which("py-spy") or ""


def _spy(heads: Sequence[_Process], end: float) -> None:
    program = find_py_spy()
    if not program:
        return
    able = [head for head in heads if head.is_alive and not head.no_dump_reason]
    with ThreadPoolExecutor(_MOST_AT_ONCE, "quorate-py-spy") as pool:
        list(pool.map(lambda head: _spy_on(program, head, end), able))


def _spy_on(program: str, head: _Process, end: float) -> None:
    """Write Python and native stacks into the log; only Python's, which take no symbols, if the time runs out."""
    problem = ""
    for option in ("--native", ""):
        command = [program, "dump", *([option] if option else []), "--pid", str(head.pid)]
        # Python's alone take a tenth of a second, so they get what is left over from the native ones.
        seconds = seconds_until(end) * (0.75 if option else 1.0)
        if seconds <= 0.0:
            break
        try:
            done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            head.send(signal.SIGCONT)  # it may have been left stopped
            problem = "it took too long"
            continue
        except OSError as error:
            problem = error.strerror or type(error).__name__
            break
        if done.returncode == 0:
            text = done.stdout[:_LONGEST_STACK_BYTES].decode("utf-8", "replace")
            head.write_log(f"quorate: stacks of process {head.pid} (local rank {head.local_rank}) by py-spy:\n{text}\n")
            head.has_answered = True
            return
        problem = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    head.write_log(f"quorate: py-spy could not read process {head.pid} (local rank {head.local_rank}): {problem}\n")


# --- from inside ----------------------------------------------------------------------------------------------------


def _ask(families: Sequence[list[_Process]], end: float, answer_timeout: float) -> None:
    """Ask those that can answer, one at a time of each family: in their shared log stacks would mix."""
    queues = [[process for process in family if process.catches(STACK_SIGNAL)] for family in families]
    while any(queues) and monotonic() < end:
        batch = [family.pop(0) for family in queues if family]
        asked = [process for process in batch if process.ask()]
        _wait_for_answers(asked, min(end, monotonic() + answer_timeout))


def _wait_for_answers(asked: Sequence[_Process], end: float) -> None:
    """Wait until the answers are written; another signal could cut them short.  No event signals that."""
    written = dict.fromkeys((process.pid for process in asked), -1)
    quiet = dict.fromkeys(written, 0)
    waiting = list(asked)
    while waiting:
        for process in list(waiting):
            process.look()
            if process.is_alive and process.has_pending(STACK_SIGNAL):
                continue
            process.has_answered = True
            now_written = written_bytes(process.pid)
            is_quiet = now_written == written[process.pid] and not process.is_answering()
            quiet[process.pid] = quiet[process.pid] + 1 if is_quiet else 0
            written[process.pid] = now_written
            enough = _LOOKS_IF_RUNNABLE if process.state == "R" else _LOOKS
            if not process.is_alive or quiet[process.pid] >= enough:
                waiting.remove(process)
        if waiting and monotonic() >= end:
            return
        sleep(_LOOK_SECONDS)


def _abort(head: _Process, is_hung: bool) -> bool:
    """End a process by SIGABRT if that makes it write its stacks and costs nothing; return whether it was sent."""
    head.look()
    if not head.is_alive or head.no_dump_reason:
        return False
    if head.catches(signal.SIGABRT) and (is_hung or not head.catches(signal.SIGTERM)):
        with suppress(OSError, ValueError):
            # It did not crash: no core file of all its memory, however large it is.
            resource.prlimit(head.pid, resource.RLIMIT_CORE, (0, resource.prlimit(head.pid, resource.RLIMIT_CORE)[1]))
        return head.send(signal.SIGABRT)
    why = "it handles SIGTERM and may have something to save" if head.catches(signal.SIGABRT) else "it writes none"
    remedy = "" if find_py_spy() else "; with py-spy installed they could be read from outside"
    head.write_log(f"quorate: no stacks of process {head.pid} (local rank {head.local_rank}): {why}{remedy}\n")
    return False


def _wait_for_ends(processes: Sequence[_Process], end: float) -> None:
    for process in processes:
        try:
            descriptor = open_pidfd(process.pid)
        except ProcessLookupError:
            continue
        if descriptor >= 0:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(1000.0 * seconds_until(end))
            os.close(descriptor)


def _write_if_taken(descriptor: int, data: bytes) -> None:
    """Write to a non-blocking descriptor, and drop the rest if it is full for half a second."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            if not poller.poll(500):
                return


def _read(path: str) -> str:
    return read_bytes(path).decode("ascii", "replace")
