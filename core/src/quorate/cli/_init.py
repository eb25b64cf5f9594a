"""As process 1 of a container: reaps orphans, and passes signals on to the command itself, its child.

The kernel makes process 1 the parent of every orphan and gives it no default for any signal.  A launcher can be
neither without taking the exit status of processes that other code of it waits for, so that is a process of its own.
What does not live here: what signals lead to (:mod:`quorate.agent`).
"""

from __future__ import annotations

import os
import signal

from .. import notices

#: A signal with this code is from a terminal, which has sent it to the child as well (sigaction(2)).
_SI_KERNEL = 0x80
_SYNCHRONOUS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)


def go_on_below_init() -> None:
    """Return at once, but as process 1 in a child; process 1 itself ends with the child and with its exit code."""
    if os.getpid() != 1:
        return
    notices.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    awaited = signal.valid_signals() - {*_SYNCHRONOUS, signal.SIGKILL, signal.SIGSTOP}
    while True:
        found = signal.sigwaitinfo(awaited)
        if found.si_signo == signal.SIGCHLD:
            _reap(child)
        elif found.si_code != _SI_KERNEL:
            os.kill(child, found.si_signo)


def _reap(child: int) -> None:
    """Reap all that has ended; end with the child."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
