"""What runs in a function worker: the call, its result, and the report of an exception.

Results are pickled **by value**: what a library would rather pass as a descriptor (a tensor in shared memory) would be
lost when the worker ends.  How they get to the agent is :mod:`._results`; what a forked worker does first is
:mod:`._setup`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any, final

from ._handle import Handle
from ._memory_file import memory_file, read_all
from ._results import LARGEST_RESULT_BYTES, Delivery
from ._stack_signal import answer
from ._torch_import import rest_collector_at_import

Call = tuple[Callable[..., Any], tuple[Any, ...]]


@final
class Task:
    """One call in one worker; a target for ``multiprocessing.Process``.

    Arguments:
        call: the function and its arguments.
        address: where the result is sent.
        setup: what is called first (:class:`._setup.Setup`); ``None`` where exec has done it all.
        error_file: where an exception is recorded.
    """

    def __init__(self, call: Call, address: bytes, setup: Callable[[], None] | None, error_file: str) -> None:
        self._call: Call | None = call
        self._packed: Handle | None = None
        self._address, self._setup, self._error_file = address, setup, error_file

    def __getstate__(self) -> tuple[Handle, bytes, Callable[[], None] | None, str]:
        # The call travels in a file of its own: a large argument must not fill a pipe, and a function that cannot be
        # found in the worker is an error of the worker, reported as such.
        self._packed = Handle(memory_file("quorate-call", ForkingPickler.dumps(self._call)))
        return self._packed, self._address, self._setup, self._error_file

    def __setstate__(self, state: tuple[Handle, bytes, Callable[[], None] | None, str]) -> None:
        self._call = None
        self._packed, self._address, self._setup, self._error_file = state

    def close(self) -> None:
        """In the agent, once the worker has started: close the packed call."""
        if self._packed is not None:
            os.close(self._packed.descriptor)
            self._packed = None

    def __call__(self) -> None:
        """In the worker: make the call, deliver its result, and wait until the agent releases the worker."""
        if self._setup is not None:
            self._setup()
        if self._error_file:
            os.environ.setdefault("TORCHELASTIC_ERROR_FILE", self._error_file)
        answer()
        rest_collector_at_import()  # in a child of the fork server; a spawned worker has done it
        try:
            delivery = Delivery(self._address)
            function, arguments = self._unpack()
            value = None
            try:
                value = function(*arguments)
            except SystemExit as end:
                if not _is_success(end.code):
                    raise _with_status(end) from None
            is_delivered = delivery.send(_pack(function, value))
        except Exception as error:
            _report(error, self._error_file)
            raise SystemExit(1) from None
        del value
        if is_delivered:
            delivery.wait_for_release()

    def _unpack(self) -> Call:
        if self._call is not None:
            return self._call
        assert self._packed is not None
        function, arguments = pickle.loads(read_all(self._packed.descriptor))
        self.close()
        return function, arguments


def _is_success(code: object) -> bool:
    """Return whether ``SystemExit(code)`` is the end of a program that succeeded."""
    return code is None or (isinstance(code, int) and code == 0)


def _with_status(end: SystemExit) -> SystemExit:
    """Return ``end`` with what Python makes of its code; a number that is no C int would have ``os._exit`` raise."""
    is_status = not isinstance(end.code, int) or -(1 << 31) <= end.code < 1 << 31
    return end if is_status else SystemExit(255)


def _pack(function: Callable[..., Any], value: Any) -> bytes:
    name = getattr(function, "__qualname__", repr(function))
    try:
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        why = error
    else:
        if len(data) > LARGEST_RESULT_BYTES:
            raise ValueError(
                f"{name} returned {len(data)} bytes, and at most {LARGEST_RESULT_BYTES} can be passed to the agent; "
                "write the value to a file and return its path"
            )
        return data
    raise TypeError(f"{name} returned a {type(value).__qualname__}, which cannot be pickled for the agent: {why}")


def _report(error: Exception, error_file: str) -> None:
    """Record an exception, unless the function's own ``@record`` has done so, and print it."""
    try:
        is_recorded = os.path.getsize(error_file) > 0
    except OSError:
        is_recorded = False
    if not is_recorded:
        from quorate.recording import record_exception  # loads plugins: for a failure only

        record_exception(error)
    import traceback  # 10 ms in each worker's start, and needed for a failure only

    if error.__traceback__ is not None:  # without this module's own frame
        error = error.with_traceback(error.__traceback__.tb_next or error.__traceback__)
    traceback.print_exception(type(error), error, error.__traceback__)
