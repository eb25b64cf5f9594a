"""What runs in a function worker: the call, its result, and what a forked worker must put right before it.

Results are pickled **by value**: what a library would rather hand over as a descriptor (a tensor in shared memory)
would be lost when the worker exits.  How they come to the agent is :mod:`._results`.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, final

from quorate.affinity import bind_thread

from ._fds import memory_file, read_all
from ._results import Delivery
from ._stack_signal import answer

__all__ = ["Task"]


@final
class Handle:
    """A descriptor that a child process may be given in a pickle."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], Handle], tuple[Any]]:
        from multiprocessing import reduction

        return _received, (reduction.DupFd(self.descriptor),)


def _received(duplicate: Any) -> Handle:
    return Handle(duplicate.detach())


@final
class Task:
    """One call in one worker; a target for ``multiprocessing.Process``.

    Arguments:
        call: the function and its arguments.
        address: where the result goes to.
        setup: what a forked worker puts right; ``None`` where exec has done it all.
        error_file: where an exception is recorded.
    """

    def __init__(
        self, call: tuple[Callable[..., Any], tuple[Any, ...]], address: bytes, setup: Setup | None, error_file: str
    ) -> None:
        self._call: tuple[Callable[..., Any], tuple[Any, ...]] | None = call
        self._packed: Handle | None = None
        self._address, self._setup, self._error_file = address, setup, error_file

    def __getstate__(self) -> tuple[Handle, bytes, Setup | None, str]:
        # The call travels in a file of its own: a large argument must not fill a pipe, and a function that cannot be
        # found in the worker is an error of the worker, reported as such.
        from multiprocessing.reduction import ForkingPickler

        data = ForkingPickler.dumps(self._call)
        self._packed = Handle(memory_file("quorate-call"))
        _write_all(self._packed.descriptor, data)
        return self._packed, self._address, self._setup, self._error_file

    def __setstate__(self, state: tuple[Handle, bytes, Setup | None, str]) -> None:
        self._call = None
        self._packed, self._address, self._setup, self._error_file = state

    def close(self) -> None:
        """In the agent, once the worker has started: let go of the packed call."""
        if self._packed is not None:
            os.close(self._packed.descriptor)
            self._packed = None

    def __call__(self) -> None:
        """In the worker: make the call, deliver its result, and stay until the agent lets go."""
        if self._setup is not None:
            self._setup.apply()
        if self._error_file:
            os.environ.setdefault("TORCHELASTIC_ERROR_FILE", self._error_file)
        answer()
        try:
            delivery = Delivery(self._address)
            function, arguments = self._unpack()
            value = None
            try:
                value = function(*arguments)
            except SystemExit as end:
                if not _is_success(end.code):
                    raise
            is_delivered = delivery.send(_pack(function, value))
        except Exception as error:
            _report(error, self._error_file)
            raise SystemExit(1) from None
        del value
        if is_delivered:
            delivery.stay()

    def _unpack(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self._call is None:
            assert self._packed is not None
            function, arguments = pickle.loads(read_all(self._packed.descriptor))
            self.close()
            return function, arguments
        return self._call


@final
class Setup:
    """What exec does for a command and a forked worker must do for itself.  Descriptors of -1 stay as they are.

    A worker that is not the agent's child, which binds those, binds itself to ``cpus`` and ``memory_node``.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        agent: int,
        is_child: bool,
        stdout: int,
        stderr: int,
        cpus: frozenset[int] | None = None,
        memory_node: int | None = None,
    ) -> None:
        self._environment, self._agent, self._is_child = dict(environment), agent, is_child
        self._cpus, self._memory_node = cpus, memory_node
        self._streams = [(Handle(source), target) for source, target in ((stdout, 1), (stderr, 2)) if source >= 0]

    def apply(self) -> None:
        """Called once, first thing in the worker."""
        os.setsid()
        self._die_with_parent()
        for handle, target in self._streams:
            os.dup2(handle.descriptor, target)
            os.close(handle.descriptor)
            # Not whatever the agent had made of its own (a notebook's, a capture's).
            stream = os.fdopen(
                target, "w", buffering=1 if target == 2 else -1, errors="backslashreplace", closefd=False
            )
            setattr(sys, "stdout" if target == 1 else "stderr", stream)
        os.environ.clear()
        os.environ.update(self._environment)
        bind_thread(self._cpus, self._memory_node)
        _reset_signals()

    def _die_with_parent(self) -> None:
        try:
            import ctypes

            ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
        except (ImportError, OSError, AttributeError):
            pass  # the guardian remains
        # The agent may have died before that; a fork server's worker can only look for the agent itself.
        if self._is_child:
            is_orphan = os.getppid() != self._agent
        else:
            try:
                os.kill(self._agent, 0)
                is_orphan = False
            except ProcessLookupError:
                is_orphan = True
        if is_orphan:
            os._exit(1)


def _reset_signals() -> None:
    """Give every signal the handling that a fresh interpreter has."""
    signal.set_wakeup_fd(-1)
    fresh: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGPIPE: signal.SIG_IGN,
        signal.SIGXFSZ: signal.SIG_IGN,
    }
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, fresh.get(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _is_success(code: object) -> bool:
    """Return whether ``SystemExit(code)`` is the end of a program that succeeded."""
    return code is None or (isinstance(code, int) and code == 0)


def _pack(function: Callable[..., Any], value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        why = error
    name, kind = getattr(function, "__qualname__", repr(function)), type(value).__qualname__
    raise TypeError(f"{name} returned a {kind}, which cannot be pickled for the agent: {why}")


def _report(error: Exception, error_file: str) -> None:
    """Record an exception unless the function's own ``@record`` has done so, and print it."""
    try:
        is_recorded = os.path.getsize(error_file) > 0
    except OSError:
        is_recorded = False
    if not is_recorded:
        from quorate.recording import record_exception

        record_exception(error)
    import traceback

    if error.__traceback__ is not None:  # this module's own frame helps nobody
        error = error.with_traceback(error.__traceback__.tb_next or error.__traceback__)
    traceback.print_exception(type(error), error, error.__traceback__)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
