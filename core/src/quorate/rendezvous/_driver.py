"""Runs the rendezvous machine against a real store.  Decides nothing; what is to be decided, ``_executor`` does.

Three threads, so that a store that hangs can neither hold up the machine's clock nor the agent:

* *rendezvous*: owns the machine's state, turns inputs into commands, keeps time;
* *store*: carries out calls, one at a time, and opens the store before the first;
* *wait*: sits in the one blocking wait.
"""

from __future__ import annotations

import threading
from _queue import Empty, SimpleQueue  # as the agent has them
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

from ..clock import monotonic
from ..errors import FailureKind, QuorateError, StoreLostError, StoreUnavailableError
from ..records import NodeRecord, RoundSummary
from ._executor import Interpreter, PendingWait
from ._protocol import Call, Failed, GaveUp, Input, Key, Output, Reply, Settings, State
from ._store import HostedStore, InterruptibleStore, Store, put_many

__all__ = ["Driver", "perform"]

_T = TypeVar("_T")
_LONG_WAIT_SECONDS = 3600.0
_SLICE_SECONDS = 1.0


@final
class Driver:
    """One node's rendezvous machine, running.

    Arguments:
        settings: bounds and deadlines.
        open_store: opens the store; called on the store thread, again after StoreUnavailableError.
        decide_ranks, decide_rescale: the policies, called on the rendezvous thread.
        tell: called on the rendezvous thread with each output of the machine; must not block.
        operation_timeout: seconds after which a call without an answer counts as failed.
    """

    def __init__(
        self,
        settings: Settings,
        open_store: Callable[[], Store],
        decide_ranks: Callable[[Sequence[NodeRecord], Sequence[str]], Sequence[str]],
        decide_rescale: Callable[[RoundSummary, int], bool],
        tell: Callable[[Output], None],
        operation_timeout: float = 10.0,
    ) -> None:
        self._open_store = open_store
        self.decide_ranks, self.decide_rescale, self.tell = decide_ranks, decide_rescale, tell
        self._executor = Interpreter(settings, self, monotonic, operation_timeout)
        self._inputs: SimpleQueue[Input | None] = SimpleQueue()
        self._calls: SimpleQueue[Call | Callable[[Store], None] | None] = SimpleQueue()
        self._store: Store | None = None
        self._opening = False
        self._opened = threading.Event()
        self._pending, self._pending_changed = PendingWait(), threading.Condition()
        self._closing = False
        self._linger = 0.0
        self._threads: list[threading.Thread] = []

    @property
    def state(self) -> State:
        """The machine's last state (a frozen record, safe to read from any thread)."""
        return self._executor.state

    def start(self) -> None:
        """Start the threads.  Called once."""
        for name, run in (("rendezvous", self._run), ("store", self._run_calls), ("wait", self._run_wait)):
            thread = threading.Thread(target=run, name=f"quorate-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def post(self, event: Input) -> None:
        """Hand the machine an input; from any thread."""
        self._inputs.put(event)

    def query(self, function: Callable[[Store], _T], timeout: float) -> _T:
        """Run ``function`` on the store thread and return its result; from any other thread.

        Raises:
            StoreUnavailableError: no answer within ``timeout`` seconds.
        """
        answer: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

        def run(store: Store) -> None:
            try:
                answer.put((True, function(store)))
            except Exception as error:
                answer.put((False, error))

        self._calls.put(run)
        try:
            good, value = answer.get(timeout=timeout)
        except Empty:
            raise StoreUnavailableError(f"the store did not answer within {timeout:g} s") from None
        if not good:
            raise value
        result: _T = value
        return result

    def close(self, timeout: float, linger: float = 0.0) -> None:
        """Stop the threads and close the store; returns after at most about ``timeout + linger`` seconds.

        A node that hosts the store first gives the other members up to ``linger`` seconds to read how it ended.
        """
        self._closing, self._linger = True, linger
        self._inputs.put(None)
        self._calls.put(None)
        self.aim(None)
        self._opened.set()
        deadline = monotonic() + timeout + linger
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    # --- the rendezvous thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            event = self._next_input()
            if event is None:
                return
            self._executor.feed(event)

    def _next_input(self) -> Input | None:
        while True:
            event = self._executor.timely(self._opening)
            if event is not None:
                return event
            due = self._executor.next_due()
            try:
                return self._inputs.get(timeout=None if due is None else max(0.0, due - monotonic()))
            except Empty:
                pass

    def call(self, call: Call) -> None:
        """Queue a call for the store thread."""
        self._calls.put(call)

    def aim(self, key: str | None) -> None:
        """Have the wait thread wait for ``key`` instead of whatever it waits for."""
        with self._pending_changed:
            is_waiting = self._pending.aim(key)
            self._pending_changed.notify_all()
            store = self._store
            if is_waiting and isinstance(store, InterruptibleStore):
                store.interrupt()

    # --- the store thread -----------------------------------------------------------------------------------------

    def _run_calls(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                break
            try:
                store = self._ensure_store()
                if isinstance(call, Call):
                    self.post(Reply(call, perform(store, call)))
                else:
                    call(store)
            except StoreUnavailableError as error:
                if isinstance(call, Call):
                    self.post(Failed(call, str(error), isinstance(error, StoreLostError)))
            except Exception as error:
                self._crash(error)
        if self._store is not None:
            self._threads[-1].join(2 * _SLICE_SECONDS)  # nobody may still be waiting on it
            try:
                self._say_farewell(self._store)
            except StoreUnavailableError:
                pass
            finally:
                self._store.close()

    def _say_farewell(self, store: Store) -> None:
        """Count this node out of the last round; the store's host stays until all are out, or ``linger`` is over."""
        state = self.state
        if state.assignment is not None:
            number, members = state.assignment.round_number, state.assignment.group_world_size
        elif state.previous is not None:
            number, members = state.previous.summary.round_number, state.previous.summary.group_world_size
        else:
            return
        members += store.add(Key.tickets(number + 1), 0)  # standbys, too, want to read the end
        if store.add(Key.departed(number), 1) >= members:
            store.create(Key.empty(number), b"")
        elif self._linger > 0 and isinstance(store, HostedStore) and store.is_host:
            store.wait(Key.empty(number), self._linger)

    def _ensure_store(self) -> Store:
        if self._store is None:
            self._opening = True
            try:
                self._store = self._open_store()
            finally:
                self._opening = False
            self._opened.set()
        return self._store

    def _crash(self, error: Exception) -> None:
        """A store that raises what the contract does not name, or wrong settings: nothing to retry."""
        text = str(error) if isinstance(error, QuorateError) else f"the store raised {type(error).__name__}: {error}"
        self.tell(GaveUp(FailureKind.of(error), text))

    # --- the wait thread ------------------------------------------------------------------------------------------

    def _run_wait(self) -> None:
        self._opened.wait()
        while True:
            with self._pending_changed:
                while (key := self._pending.begin()) is None and not self._closing:
                    self._pending_changed.wait()
                if self._closing:
                    return
            store = self._store
            assert store is not None
            assert key is not None
            value, trouble = None, None
            try:
                can_stop = isinstance(store, InterruptibleStore)
                value = store.wait(key, _LONG_WAIT_SECONDS if can_stop else _SLICE_SECONDS)
            except StoreUnavailableError as error:
                trouble = Failed(None, str(error), isinstance(error, StoreLostError))
            except Exception as error:
                self._crash(error)
                return
            with self._pending_changed:
                event = self._pending.finish(key, value, trouble)
                if event is not None:
                    self.post(event)


def perform(store: Store, call: Call) -> Any:
    """Carry out one call, and return what its reply holds."""
    if call.operation == "add":
        return store.add(call.keys[0], call.amount)
    if call.operation == "create":
        return store.create(call.keys[0], call.values[0])
    if call.operation == "put":
        return store.put(call.keys[0], call.values[0])
    if call.operation == "put_many":
        return put_many(store, list(zip(call.keys, call.values, strict=True)))
    return store.get(call.keys)
