"""Runs the rendezvous machine against a real store.  Decides nothing.

Three threads, so that a store that hangs can neither hold up the machine's clock nor the agent:

* *rendezvous*: owns the machine's state, turns inputs into commands, keeps time;
* *store*: carries out calls, one at a time, and opens the store before the first;
* *wait*: sits in the one blocking wait.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

from ..clock import monotonic
from ..errors import QuorateError, StoreLostError, StoreUnavailableError
from ..records import NodeRecord, RoundSummary
from ._machine import initial_state, step
from ._protocol import (
    Appeared,
    AskRescale,
    Call,
    Command,
    Failed,
    GaveUp,
    Input,
    Key,
    Ordered,
    OrderNodes,
    Output,
    Reply,
    Rescaled,
    Settings,
    State,
    Tick,
    Wait,
    wake_at,
)
from ._store import HostedStore, InterruptibleStore, Store, put_many

__all__ = ["Driver"]

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
        self._state: State = initial_state(settings)
        self._open_store = open_store
        self._decide_ranks, self._decide_rescale = decide_ranks, decide_rescale
        self._tell = tell
        self._operation_timeout = operation_timeout
        self._inputs: queue.SimpleQueue[Input | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[Call | Callable[[Store], None] | None] = queue.SimpleQueue()
        self._overdue: deque[tuple[float, Call]] = deque()
        self._store: Store | None = None
        self._opening = False
        self._opened = threading.Event()
        self._target: str | None = None
        self._target_changed = threading.Condition()
        self._in_wait = False
        self._closing = False
        self._linger = 0.0
        self._threads: list[threading.Thread] = []

    @property
    def state(self) -> State:
        """The machine's last state (a frozen record, safe to read from any thread)."""
        return self._state

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
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def run(store: Store) -> None:
            try:
                answer.put((True, function(store)))
            except Exception as error:
                answer.put((False, error))

        self._calls.put(run)
        try:
            good, value = answer.get(timeout=timeout)
        except queue.Empty:
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
        self._aim(None)
        self._opened.set()
        deadline = monotonic() + timeout + linger
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))

    # --- the rendezvous thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        backlog: deque[Input] = deque()
        while True:
            event = backlog.popleft() if backlog else self._next_input()
            if event is None:
                return
            result = step(self._state, event, monotonic())
            self._state = result.state
            for command in result.commands:
                answer = self._execute(command)
                if answer is not None:
                    backlog.append(answer)

    def _next_input(self) -> Input | None:
        """Return the next input; a Tick when time is due, before anything else, so that no flood delays it."""
        now = monotonic()
        due = wake_at(self._state)
        if due is not None and due <= now:
            return Tick()
        if self._overdue and self._overdue[0][0] <= now:
            return self._call_is_overdue(now)
        times = [time for time in (due, self._overdue[0][0] if self._overdue else None) if time is not None]
        try:
            return self._inputs.get(timeout=max(0.0, min(times) - now) if times else None)
        except queue.Empty:
            return self._next_input()

    def _call_is_overdue(self, now: float) -> Input | None:
        _, call = self._overdue.popleft()
        if self._opening:
            self._overdue.append((now + self._operation_timeout, call))
            return Tick()
        if self._is_answered(call):
            return Tick()
        return Failed(call, f"no answer within {self._operation_timeout:g} s")

    def _is_answered(self, call: Call) -> bool:
        return self._state.pending.get(call.tag) is not call

    def _execute(self, command: Command) -> Input | None:
        if isinstance(command, Call):
            self._overdue.append((monotonic() + self._operation_timeout, command))
            while self._overdue and self._is_answered(self._overdue[0][1]):
                self._overdue.popleft()
            self._calls.put(command)
        elif isinstance(command, Wait):
            self._aim(command.key)
        elif isinstance(command, OrderNodes):
            try:
                return Ordered(tuple(self._decide_ranks(command.nodes, command.previous)))
            except Exception as error:
                return Ordered((), str(error) if isinstance(error, QuorateError) else f"decide_ranks raised {error!r}")
        elif isinstance(command, AskRescale):
            return Rescaled(bool(self._decide_rescale(command.summary, command.waiting)))
        else:
            self._tell(command)
        return None

    # --- the store thread -----------------------------------------------------------------------------------------

    def _run_calls(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                break
            try:
                store = self._ensure_store()
                if isinstance(call, Call):
                    self.post(Reply(call, _perform(store, call)))
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
        state = self._state
        if state.assignment is not None:
            number, members = state.assignment.round_number, state.assignment.group_world_size
        elif state.previous is not None:
            number, members = state.previous.summary.round_number, state.previous.summary.group_world_size
        else:
            return
        members += store.add(Key.tickets(number + 1), 0)  # standbys, too, want to read the end
        if store.add(Key.farewells(number), 1) >= members:
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
        kind = "state" if isinstance(error, QuorateError) else "crash"
        text = str(error) if isinstance(error, QuorateError) else f"the store raised {type(error).__name__}: {error}"
        self._tell(GaveUp(kind, text))

    # --- the wait thread ------------------------------------------------------------------------------------------

    def _aim(self, key: str | None) -> None:
        with self._target_changed:
            self._target = key
            self._target_changed.notify_all()
            store = self._store
            if self._in_wait and isinstance(store, InterruptibleStore):
                store.interrupt()

    def _run_wait(self) -> None:
        self._opened.wait()
        while True:
            with self._target_changed:
                while self._target is None and not self._closing:
                    self._target_changed.wait()
                if self._closing:
                    return
                key, store = self._target, self._store
                self._in_wait = True
            assert store is not None
            assert key is not None
            value, event = None, None
            try:
                can_stop = isinstance(store, InterruptibleStore)
                value = store.wait(key, _LONG_WAIT_SECONDS if can_stop else _SLICE_SECONDS)
            except StoreUnavailableError as error:
                event = Failed(None, str(error), isinstance(error, StoreLostError))
            except Exception as error:
                self._crash(error)
                return
            with self._target_changed:
                self._in_wait = False
                if self._target == key and (value is not None or event is not None):
                    self._target = None
                    self.post(event or Appeared(key, value or b""))


def _perform(store: Store, call: Call) -> Any:
    if call.operation == "add":
        return store.add(call.keys[0], call.amount)
    if call.operation == "create":
        return store.create(call.keys[0], call.values[0])
    if call.operation == "put":
        return store.put(call.keys[0], call.values[0])
    if call.operation == "put_many":
        return put_many(store, list(zip(call.keys, call.values, strict=True)))
    return store.get(call.keys)
