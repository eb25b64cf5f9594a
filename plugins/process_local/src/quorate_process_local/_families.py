"""Which processes of a worker's family a signal is for.

A worker that is asked to stop may need its family to save its work: data loaders, compile workers.  So it alone is
told, and its family once it has ended.  Shells are the exception.  A shell with a trap puts the signal off until the
command that it waits for has ended, so that command is told too.  A command in the background is left to the trap,
which runs at once and often passes the signal on.

What does not live here: when a signal is sent (:mod:`._context`), and what is left once a worker has ended
(:mod:`._sweep`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

from quorate.proc import children_of, descendants_of, open_pidfd, send_signal, signals_of, stat_of


class HasPid(Protocol):
    """A worker, as far as signals need to know it."""

    local_rank: int

    @property
    def pid(self) -> int: ...


_SHELLS = frozenset({"ash", "bash", "busybox", "dash", "ksh", "ksh93", "mksh", "rbash", "sh", "zsh"})
#: A shell without job control starts a command in the background with these ignored.
_IGNORED_IN_BACKGROUND = frozenset({signal.SIGINT, signal.SIGQUIT})


class Family:
    """The abilities of a context to pass signals on and to suspend; ``_running`` is the context's.

    See :class:`quorate.starter.ForwardsSignals` and :class:`quorate.starter.SuspendsWorkers`.
    """

    def _running(self) -> Sequence[HasPid]:
        raise NotImplementedError

    def forward(self, signal_number: int) -> Sequence[int]:
        return [worker.local_rank for worker in self._running() if _forward(worker.pid, signal_number)]

    def suspend(self) -> None:
        for worker in self._running():
            _send_to_all(worker.pid, signal.SIGSTOP)

    def resume(self) -> None:
        for worker in self._running():
            _send_to_all(worker.pid, signal.SIGCONT)


def tell(pid: int, signal_number: int) -> bool:
    """Ask a worker to stop, and the commands behind shells that put the signal off; return whether that is allowed."""
    is_allowed = _send(pid, signal_number)
    for shell, child in _commands_behind(pid, signal_number):
        _send(child, signal_number, parent=shell)
    return is_allowed


def _forward(pid: int, signal_number: int) -> bool:
    """Send a signal to a worker and to the commands behind its shells if they handle it; return whether one does."""
    family = [(0, pid), *_commands_behind(pid)]
    receivers = [(shell, each) for shell, each in family if signal_number in signals_of(each).caught]
    for shell, each in receivers:
        _send(each, signal_number, parent=shell)
    return bool(receivers)


def _send_to_all(pid: int, signal_number: int) -> None:
    """Send a signal that cannot be handled to a worker's process group, and to descendants that left the group."""
    for group in {pid, *(_group_of(each) for each in descendants_of(pid))} - {0}:
        # It has ended, or a program with other rights is left alone.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal_number)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _commands_behind(pid: int, put_off: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (shell, command) for what shells wait for; with ``put_off`` only behind shells with a trap for it."""
    shells = [pid]
    while shells:
        shell = shells.pop()
        if not _is_shell(shell) or (put_off and put_off not in signals_of(shell).caught):
            continue
        for child in sorted(children_of(shell)):
            if put_off and signals_of(child).ignored >= _IGNORED_IN_BACKGROUND:
                continue
            yield shell, child
            shells.append(child)


def _is_shell(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")) in _SHELLS
    except OSError:
        return False


def _send(pid: int, signal_number: int, parent: int = 0) -> bool:
    """Send a signal unless it is on its way already; with ``parent``, only to a child of it."""
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return True
    try:
        stat = stat_of(pid)
        if parent and (stat is None or stat.parent != parent):
            return True  # its number has passed to another process
        if signal_number in signals_of(pid).pending:
            return True
        return send_signal(pid, pidfd, signal_number)
    finally:
        if pidfd >= 0:
            os.close(pidfd)
