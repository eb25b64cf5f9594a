"""Receives signals through a wake-up descriptor, so that no handler interrupts the agent's thread.

Three kinds are caught: those that stop the job, those that are passed on to the workers, and the one that suspends
(Ctrl-Z).  What does not live here: what a signal leads to (``_running``; ``_stopping`` for the
second one), and a scheduler's warning (``_preemption``).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import final

from attrs import frozen

from .._interruption import Interrupter
from ..proc import is_in_foreground, open_signalfd, read_signalfd

_Handler = Callable[[int, FrameType | None], object] | int | None

#: nohup and a shell's ``&`` start a program with these ignored; they stay so.
_MAY_STAY_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
#: What the kernel says of a signal that came from a terminal and not from a process (sigaction(2)).
_SI_KERNEL = 0x80
_program_ends_with_run = False


@contextmanager
def ending_with_the_run() -> Iterator[None]:
    """Say that the program ends when the run in this context does: a stop signal that comes again is then ignored.

    Else the second of two signals could kill a program that has stopped its workers and is just writing its verdict.
    """
    global _program_ends_with_run
    before, _program_ends_with_run = _program_ends_with_run, True
    try:
        yield
    finally:
        _program_ends_with_run = before


@final
@frozen
class Caught:
    """A signal.  ``is_person``: a person pressed Ctrl-C, as far as can be known."""

    number: int
    is_person: bool = False


@final
class SignalCatcher:
    """Catches signals while it is installed; every one of them makes :meth:`fileno` readable.

    Where handlers cannot be installed (not the main thread) it does nothing; ``is_installed`` is then false.  A signal
    that was ignored when this process began (SIGHUP under nohup, SIGINT behind ``&``) stays ignored.  SIGCHLD does not:
    where it is ignored, the kernel discards the exit codes of children.

    Arguments:
        stopping: names of the signals that stop the job.
        forwarded: names of those that are for the workers; one that stops the job is not forwarded.
        warning: numbers of those by which a scheduler warns; one of them is not forwarded either.
    """

    def __init__(self, stopping: Sequence[str], forwarded: Sequence[str] = (), warning: Iterable[int] = ()) -> None:
        self._stopping = [int(signal.Signals[name]) for name in stopping]
        self._warning = list(warning)
        numbers = [int(signal.Signals[name]) for name in forwarded if name not in stopping]
        self.forwarded = [number for number in numbers if number not in self._warning]
        self._old: dict[int, _Handler] = {}
        self._old_wakeup = -1
        self._reader = self._writer = self._interrupts = -1
        self._epoll: select.epoll | None = None
        self._old_mask: set[int] = set()
        self._has_stopped = False
        self._interrupter = Interrupter()
        self.is_installed = False

    def install(self) -> None:
        """Begin to catch."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._reader, select.EPOLLIN)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in dict.fromkeys((*self._stopping, *self._warning, *self.forwarded)):
            if not (number in _MAY_STAY_IGNORED and signal.getsignal(number) is signal.SIG_IGN):
                handler = _ignore if number in self.forwarded else self._handle
                self._old[number] = signal.signal(number, handler)
        if signal.SIGTSTP not in self._old and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            self._old[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, _ignore)
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # the kernel would throw exit statuses away
            self._old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if signal.SIGINT in self._old:
            self._watch_senders()
        self._interrupter = Interrupter([signal.SIGINT] if self._interrupts >= 0 else [])
        self._interrupter.begin()
        self.is_installed = True

    def fileno(self) -> int:
        """Return the descriptor, -1 if nothing is installed."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def take(self) -> list[Caught]:
        """Return the caught signals since the last call, in order."""
        try:
            numbers = [number for number in os.read(self._reader, 4096) if self._is_news(number)]
        except BlockingIOError:
            numbers = []
        found = [Caught(number, number == signal.SIGINT and is_in_foreground()) for number in numbers]
        if self._interrupts >= 0:
            for number, code in read_signalfd(self._interrupts):
                if self._is_news(number):
                    self._interrupter.tell(number)
                    found.append(Caught(number, code == _SI_KERNEL and is_in_foreground()))
        self._has_stopped = self._has_stopped or any(caught.number in self._stopping for caught in found)
        return found

    def _is_news(self, number: int) -> bool:
        return number in self._old and not self._interrupter.is_own(number)

    def outlast(self) -> None:
        """Take it that signals that stop the job, or warn of its end, are still to come; see ``ending_with_the_run``.

        A scheduler that has warned one node signals the others a moment later.
        """
        self._has_stopped = True

    def suspend(self) -> None:
        """Stop this process as Ctrl-Z does, until it is continued; where the kernel forbids that, return at once."""
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)

    def restore(self) -> None:
        """Put back what was there before."""
        if not self.is_installed:
            return
        self.is_installed = False
        self._interrupter.end()
        if self._interrupts >= 0:
            read_signalfd(self._interrupts)
        for number, handler in self._old.items():
            is_stopping = number in self._stopping or number in self._warning
            if _program_ends_with_run and self._has_stopped and is_stopping:
                signal.signal(number, signal.SIG_IGN)
            else:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if self._interrupts >= 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)
            os.close(self._interrupts)
        signal.set_wakeup_fd(self._old_wakeup)
        assert self._epoll is not None
        self._epoll.close()
        os.close(self._reader)
        os.close(self._writer)
        self._epoll = None
        self._reader = self._writer = self._interrupts = -1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Let the agent's thread go where a plugin keeps it: the wake-up descriptor has received the signal."""
        self._interrupter.handle(number, frame)

    def _watch_senders(self) -> None:
        """Learn of each SIGINT whether it comes from a terminal: that takes a descriptor, and the signal blocked.

        Threads that are started from now on inherit that.  One that an older thread takes comes by the wake-up
        descriptor, and counts as a person's if this process is in the foreground.
        """
        self._interrupts = open_signalfd([signal.SIGINT])
        if self._interrupts >= 0:
            assert self._epoll is not None
            self._epoll.register(self._interrupts, select.EPOLLIN)
            self._old_mask = {int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])}


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the wake-up descriptor receives the signal."""
